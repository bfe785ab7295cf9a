"""`python -m eval` as a user meets it: results, skipping, resuming after a kill, and one line for each mistake."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from eval.candidates import adapter_target, base_target, run_target
from eval.evaluate import evaluate
from eval.task_record import read_samples
from tests.eval.engine_fixtures import save_adapter, tiny_llama
from utils.config import load_config
from utils.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tiny(smollm2, tmp_path_factory):
    """A random two-layer Llama with SmolLM2's tokenizer, an adapter on it, and a run folder that holds the adapter."""
    folder = tiny_llama(tmp_path_factory.mktemp("tiny") / "model", tokenizer=smollm2)
    save_adapter(folder, folder.parent / "adapter", 4, seed=1)
    return folder


@pytest.fixture
def config_file(tiny, tmp_path):
    """A config for `tiny`; its run folder `<output_dir>/mine` is trained."""
    values = {
        "output_dir": str(tmp_path / "out"),
        "run": "mine",
        "model": {"name": str(tiny), "dtype": "float32"},
        "eval": {"tasks": ["arithmetic"], "engine": "transformers", "limit": 6, "max_new_tokens": 12, "batch_size": 2},
    }
    shutil.copytree(tiny.parent / "adapter", tmp_path / "out" / "mine" / "lora")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def start(*words, **kwargs):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "eval", *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stderr=subprocess.PIPE, **kwargs)


def score(path, force=False, base=True, **changes):
    config = load_config(path, {f"eval.{key}": value for key, value in changes.items()})
    run = run_target(config, Path(config.output_dir) / "mine")
    return evaluate(config, [base_target(config), run] if base else [run], force)


def test_a_record_holds_what_an_audit_needs(config_file):
    found = score(config_file)
    out = config_file.parent / "out"
    for target, folder in (("base", out / "base"), ("mine", out / "mine")):
        result = json.loads((folder / "eval" / "arithmetic.json").read_text())
        assert result == found[target]["arithmetic"]
        assert result["n"] == 6 and 0 <= result["interval"][0] <= result["accuracy"] <= result["interval"][1]
        assert result["length_stops"] == 6 and result["unparsable"] == 6 and result["too_long"] == 0
        assert result["tokens"] == 72 and result["seconds"] > 0 and result["tokens_per_second"] > 0
        assert result["engine"]["version"] and result["settings"]["max_new_tokens"] == 12
        samples = read_samples(folder / "eval" / "arithmetic.samples.jsonl")
        assert [sample["problem"] for sample in samples] == list(range(6))
        for sample in samples:
            assert "### Instruction:" in sample["prompt"] and sample["tokens"] == 12
            assert sample["correct"] is False and sample["gold"]
    assert (
        found["mine"]["arithmetic"]["settings"]["adapter"] and not found["base"]["arithmetic"]["settings"]["adapter"]
    )


def test_what_is_finished_is_skipped_unless_forced(config_file, monkeypatch):
    first = score(config_file)
    monkeypatch.setattr("eval.evaluate.open_engine", lambda *_: pytest.fail("nothing is left to do"))
    assert score(config_file) == first
    with pytest.raises(UserError, match=r"made under other settings \(.*problems: 6 -> 5.*--force"):
        score(config_file, limit=5)
    monkeypatch.setattr("eval.evaluate.engine_version", lambda _: "another")
    with pytest.raises(UserError, match=r"\(engine_version: .* -> another\)"):
        score(config_file)
    monkeypatch.undo()
    monkeypatch.setattr("dataset.templates.ALPACA", "Q: {instruction} A:")
    with pytest.raises(UserError, match=r"\(prompts: \w+ -> \w+\)"):
        score(config_file)
    monkeypatch.undo()
    assert score(config_file, limit=5, force=True)["mine"]["arithmetic"]["n"] == 5


def test_several_samples_give_pass_at_k(config_file):
    found = score(config_file, base=False, n_samples=2, temperature=0.7)["mine"]["arithmetic"]
    assert found["pass_at"] == {"1": 0.0, "2": 0.0} and found["unparsable"] == 12
    samples = read_samples(config_file.parent / "out" / "mine" / "eval" / "arithmetic.samples.jsonl")
    assert [(sample["problem"], sample["sample"]) for sample in samples[:3]] == [(0, 0), (0, 1), (1, 0)]


def test_prompts_longer_than_the_context_are_counted(config_file):
    found = score(config_file, base=False, max_model_len=48, max_new_tokens=4)["mine"]["arithmetic"]
    assert 0 < found["too_long"] <= 6 and found["n"] == 6


@pytest.mark.parametrize(("engine", "limit"), [("transformers", 6), pytest.param("vllm", 300, marks=pytest.mark.slow)])
def test_killed_in_the_middle_it_goes_on_where_it_stopped(config_file, engine, limit):
    settings = {"base": False, "engine": engine, "limit": limit}
    whole = score(config_file, **settings)["mine"]["arithmetic"]
    folder = config_file.parent / "out" / "mine" / "eval"
    expected = read_samples(folder / "arithmetic.samples.jsonl")
    for path in folder.iterdir():
        path.unlink()
    partial = folder / "arithmetic.partial.jsonl"
    words = ("--config", config_file, f"--eval.engine={engine}", f"--eval.limit={limit}", "--eval.batch_size=2")
    process = start(*words)
    try:
        while process.poll() is None and not (partial.exists() and partial.read_text().count("\n") > 2):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    finally:
        process.communicate()
    if partial.exists():  # a fast machine may have finished before the kill
        assert not (folder / "arithmetic.json").exists()
        kept = partial.read_text().count("\n") - 1
        assert 2 <= kept < limit
    again = score(config_file, **settings)["mine"]["arithmetic"]
    assert read_samples(folder / "arithmetic.samples.jsonl") == expected
    assert {**again, "seconds": 0, "seconds_grading": 0, "tokens_per_second": 0} == {
        **whole, "seconds": 0, "seconds_grading": 0, "tokens_per_second": 0
    }  # fmt: skip
    assert not partial.exists()


def test_an_adapter_has_a_folder_of_its_own(config_file, tiny):
    config = load_config(config_file)
    target = adapter_target(config, tiny.parent / "adapter")
    assert target.name.startswith("adapter-") and target.folder.parent.name == target.name
    assert target.folder.parents[1] == config_file.parent / "out" / "adapters"


def test_an_adapter_of_another_shape_is_named(config_file, tiny, smollm2):
    config = load_config(config_file, {"model.name": str(smollm2)})
    lora = config_file.parent / "out" / "mine" / "lora"
    with pytest.raises(UserError, match="adapter's base is .*, not model.name"):
        run_target(config, lora.parent)
    settings = json.loads((lora / "adapter_config.json").read_text())
    (lora / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": str(smollm2)}))
    with pytest.raises(UserError, match=r"q_proj \(32 inputs, .*\) does not fit|does not fit model.name"):
        run_target(config, lora.parent)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--eval.tasks=gsm9k"], "eval.tasks: no task 'gsm9k'; allowed: arithmetic, gsm8k"),
        (["--run", "nowhere"], "nowhere: holds neither lora/ nor merged/"),
        (["--adapter", "nowhere"], "nowhere: not a PEFT adapter"),
        (["--base", "--run", "x"], "--run, --adapter and --base: give one of them"),
        (["stray"], "unexpected word 'stray'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(config_file, words, said):
    process = start("--config", config_file, *words)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert said in errors and errors.count("\n") == 1
