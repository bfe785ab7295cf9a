"""Two engines on one machine: the texts of one, each request once, and a failure that is told and can be resumed."""

import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest
from torch import OutOfMemoryError
from transformers import LlamaConfig

from eval.candidates import read_adapter, run_target
from eval.engines import Pair, Prompt, Sampling, open_engine
from eval.engines.pool import VISIBLE, EnginePool, Share, _chunks, _serve, parallel_size, shares
from eval.evaluate import evaluate
from tests.eval.engine_fixtures import PROMPTS, write_config
from utils.config import EvalConfig, load_config
from utils.errors import UserError, memory_for
from utils.files import read_lines

GREEDY = Sampling(max_new_tokens=12)


def requests(tiny):
    adapters = [None, *(read_adapter(tiny.parent / f"adapter{seed}") for seed in (1, 2))]
    prompts = [Prompt(text, GREEDY, adapter) for adapter in adapters for text in PROMPTS.values()]
    pairs = [Pair((5, 6, 7), (8, 9 + k), adapter) for adapter in adapters for k in range(4)]
    return dict(enumerate([*prompts, *pairs])), [adapter for adapter in adapters if adapter]


def answers(tiny, engines, name="transformers"):
    wanted, adapters = requests(tiny)
    config = EvalConfig(engine=name, engines=engines, batch_size=2)
    with open_engine(tiny, config, "float32", adapters, 96) as engine:
        return dict(engine.run(wanted)), engine.describe()


@pytest.mark.parametrize("name", ["transformers", pytest.param("vllm", marks=pytest.mark.slow)])
def test_two_engines_answer_as_one(tiny, name):
    if name == "vllm":
        pytest.importorskip("vllm")
    one, _ = answers(tiny, None, name)
    two, about = answers(tiny, 2, name)
    assert about["engines"] == 2 and one.keys() == two.keys()
    for number, answer in one.items():
        if isinstance(answer, list):
            assert answer == two[number]
        else:
            assert answer.logprob == pytest.approx(two[number].logprob, abs=1e-4)


@pytest.fixture
def config_file(tiny, tmp_path):
    for seed in (1, 2):
        shutil.copytree(tiny.parent / f"adapter{seed}", tmp_path / "out" / f"run{seed}" / "lora")
    return write_config(tmp_path, tiny, {"tasks": ["arithmetic"], "limit": 8, "max_new_tokens": 8, "batch_size": 2})


def score(path, engines):
    config = load_config(path, {"eval.engines": engines})
    out = Path(config.output_dir)
    found = evaluate(config, [run_target(config, out / f"run{seed}") for seed in (1, 2)])
    return found, [read_lines(out / f"run{seed}" / "eval" / "arithmetic.samples.jsonl") for seed in (1, 2)]


def test_a_killed_engine_is_told_and_what_it_made_is_kept(config_file, monkeypatch):
    _, expected = score(config_file, None)
    out = config_file.parent / "out"
    for path in out.glob("run*/eval/*.*"):
        path.unlink()
    receive, seen = EnginePool._receive, []

    def kill_one(self, pipe):
        seen.append(pipe)
        if len(seen) == 6:
            os.kill(self._workers[pipe].pid, signal.SIGKILL)
        return receive(self, pipe)

    monkeypatch.setattr(EnginePool, "_receive", kill_one)
    with pytest.raises(UserError, match=r"engine [01] ended with exit status -9; what it made is on file"):
        score(config_file, 2)
    made = sum(path.read_text().count('"key"') for path in out.glob("run*/eval/arithmetic.texts.jsonl"))
    assert 0 < made < 16
    monkeypatch.undo()
    found, again = score(config_file, 2)
    assert again == expected and found["run1"]["arithmetic"]["engine"]["engines"] == 2
    lines = "".join(path.read_text() for path in out.glob("run*/eval/arithmetic.texts.jsonl"))
    assert lines.count('"key"') == 16, "each text was generated once"


def test_an_engines_own_message_is_the_users(tiny, tmp_path):
    shutil.copy(tiny / "config.json", tmp_path)
    with pytest.raises(RuntimeError, match="engine [01]: OSError: .*no file named"):
        open_engine(tmp_path, EvalConfig(engine="transformers", engines=2), "float32", [], 96)


def test_portions_keep_adapters_together_and_give_every_engine_work(tiny):
    wanted, _ = requests(tiny)
    for engines in (1, 2, 5):
        portions = list(_chunks(wanted, engines))
        assert len(portions) >= engines
        assert sorted(number for portion in portions for number in portion) == sorted(wanted)
    adapters = [request.adapter for portion in _chunks(wanted, 5) for request in portion.values()]
    changed = sum(one != other for one, other in zip(adapters, adapters[1:], strict=False))
    assert changed == 2
    assert list(_chunks({}, 2)) == []


def test_gpus_are_shared_out(monkeypatch, tiny):
    def found(visible, **settings):
        monkeypatch.setattr("eval.engines.pool._gpus", lambda: list(visible))
        monkeypatch.setattr("eval.engines.pool._memory", lambda: float("inf"))
        return [share.gpus for share in shares(tiny, EvalConfig(**settings))]

    assert found("0123") == [["0"], ["1"], ["2"], ["3"]]
    assert found("4567", engines=2) == [["4"], ["5"]]
    assert found("0123", tensor_parallel_size=2) == [["0", "1"], ["2", "3"]]
    assert found("01", engine="transformers", tensor_parallel_size=2) == [["0"], ["1"]]
    with pytest.raises(UserError, match="eval.engines: 3 engines on 2 GPUs each need 6, not 4"):
        found("0123", engines=3, tensor_parallel_size=2)


@pytest.mark.parametrize(
    ("gpus", "heads", "kv_heads", "width", "need", "size"),
    [
        (8, 32, 32, 11008, 0.7, 1),
        (8, 32, 32, 11008, 1.5, 2),
        (8, 28, 4, 18944, 9, 4),  # Qwen2.5-7B's 28 heads can't be cut into 8
        (8, 32, 2, 11008, 6, 8),  # each key-value head on four GPUs
        (8, 32, 3, 11008, 6, 1),
        (6, 32, 8, 11008, 6, 4),
        (8, 32, 8, 11010, 6, 2),
    ],
)
def test_a_model_takes_as_few_gpus_as_hold_it(tmp_path, gpus, heads, kv_heads, width, need, size):
    shape = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "intermediate_size": width}
    LlamaConfig(hidden_size=128 * heads, **shape).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    assert parallel_size(tmp_path, gpus, 1000 / need) == size


def test_an_engine_sees_its_own_gpus_alone(monkeypatch):
    monkeypatch.setenv(VISIBLE, "0,1,2,3")
    monkeypatch.setattr("signal.signal", lambda *_: None)
    ours, theirs = multiprocessing.Pipe()

    def start():
        raise UserError(os.environ[VISIBLE])

    _serve(theirs, Share(gpus=["2", "3"]), start)
    assert str(ours.recv()) == "MainProcess: 2,3"


def test_an_engine_without_memory_says_which_setting_takes_less(monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    ours, theirs = multiprocessing.Pipe()

    def start():
        raise OutOfMemoryError("CUDA out of memory")

    with pytest.raises(OutOfMemoryError):
        _serve(theirs, Share(), start)
    with pytest.raises(UserError, match="eval.batch_size"), memory_for("eval.batch_size: set fewer"):
        raise ours.recv()
