"""Training runs from a config to an exported adapter: every method, interrupted and resumed, in one process or two."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

import train as training
from dataset.tokens import collate
from eval.candidates import run_target
from eval.classification import score_classifiers
from eval.report import write_report
from tests.runs import (
    ROOT,
    TORCHRUN,
    Crash,
    calibrate,
    crash_at,
    folder_of,
    launch,
    losses,
    metrics,
    start,
    train_and_reload,
    watch_training,
)
from training.arguments import accumulation
from training.check import check, finished
from training.checkpoints import last_complete
from training.data import BucketSampler, pack
from training.methods import METHODS
from training.trainer import RunTrainer, TargetLogits
from utils.config import Config
from utils.errors import UserError
from utils.files import read_lines


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_trains_and_leaves_something_to_take_away(config, name):
    this = config(method__name=name, data__limit=4)  # every step sees the same
    calibrate(this)
    assert train_and_reload(this) < 1e-5
    found = metrics(this)
    assert len(losses(this)) == found["steps"] == 6 and losses(this)[-1] < losses(this)[0]
    if METHODS[name].plain:
        assert found["export"]["trained_rank"] >= 4 and found["export"]["rank"] in (8, 16)
    folder = folder_of(this)
    assert (folder / "loss.png").stat().st_size > 0
    assert (folder / ("lora" if METHODS[name].plain else "merged") / "README.md").is_file()
    assert not list((folder / "checkpoints").rglob("adapter_config.json"))
    assert all(
        {"grad_norm", "learning_rate", "tokens_per_second"} <= set(line)
        for line in read_lines(folder / "metrics.jsonl")
    )


def test_a_finished_run_is_known_and_one_that_was_forced_and_interrupted_is_not(config, monkeypatch):
    this = config()
    assert not finished(this, folder_of(this))
    training.train(this)
    assert finished(this, folder_of(this))
    with pytest.raises(UserError, match=r"train\.learning_rate=0\.01, now 0\.02"):
        finished(config(train__learning_rate=2e-2), folder_of(this))
    (folder_of(this) / "eval").mkdir()
    with monkeypatch.context() as patched, pytest.raises(Crash):
        crash_at(patched, 3)
        training.train(this, force=True)
    assert not finished(this, folder_of(this)) and not (folder_of(this) / "eval").exists()
    training.train(this)
    assert finished(this, folder_of(this)) and len(losses(this)) == 6


def products(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each adapter's B A, for which its factors may be turned against each other, and other weights as they are."""
    other = {
        key.replace("lora_A", "lora_B"): state[key.replace("lora_A", "lora_B")] @ factor
        for key, factor in state.items()
        if "lora_A" in key
    }
    return other | {key: tensor for key, tensor in state.items() if "lora_" not in key}


@pytest.mark.parametrize("name", ["astra", "pissa", "dora", "full"])
def test_a_resumed_run_ends_with_the_curve_of_an_uninterrupted_one(config, monkeypatch, name):
    whole, broken = (config(method__name=name, run=run, method__dropout=0.1) for run in ("whole", "broken"))
    calibrate(whole)
    training.train(whole)
    with monkeypatch.context() as patched, pytest.raises(Crash):
        crash_at(patched, 5)
        training.train(broken)
    assert not (folder_of(broken) / "metrics.json").exists()
    training.train(broken)
    assert losses(broken) == pytest.approx(losses(whole), abs=1e-4)
    target = "merged/model.safetensors" if name in ("dora", "full") else "lora/adapter_model.safetensors"
    left, right = (load_file(folder_of(run) / target) for run in (whole, broken))
    left, right = products(left), products(right)
    assert left and left.keys() == right.keys()
    for key, tensor in left.items():
        torch.testing.assert_close(tensor, right[key], atol=1e-5, rtol=1e-4)


def test_an_incomplete_or_altered_checkpoint_does_not_count(config, monkeypatch):
    this = config()
    with monkeypatch.context() as patched, pytest.raises(Crash):
        crash_at(patched, 5)
        training.train(this)
    with pytest.raises(UserError, match=r"checkpoint-4 was made with method\.dropout=0\.0, now 0\.1"):
        training.train(config(method__dropout=0.1))
    newest = folder_of(this) / "checkpoints" / "checkpoint-4"
    weights = newest / "trainable.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    settings = json.loads((newest / "manifest.json").read_text())["settings"]
    assert last_complete(newest.parent, settings).name == "checkpoint-2"
    (newest.parent / "checkpoint-2" / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"trainable\.safetensors: damaged"):  # and no whole one to go on from
        last_complete(newest.parent, settings)


def test_sigterm_checkpoints_first_and_the_run_goes_on_later(config, monkeypatch):
    class Terminate(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    this = config(train__save_steps=100)
    with monkeypatch.context() as patched, pytest.raises(SystemExit) as ended:
        watch_training(patched, Terminate())
        training.train(this)
    assert ended.value.code == 143
    assert (folder_of(this) / "checkpoints" / "checkpoint-3" / "manifest.json").is_file()
    training.train(this)
    assert [line["step"] for line in read_lines(folder_of(this) / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_the_good_checkpoint(config, monkeypatch):
    class Poison(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 3:
                next(p for p in model.parameters() if p.requires_grad).data.fill_(float("nan"))

    watch_training(monkeypatch, Poison())
    this = config()
    with pytest.raises(UserError, match="not a number at step 4"):
        training.train(this)
    assert [path.name for path in (folder_of(this) / "checkpoints").glob("checkpoint-*")] == ["checkpoint-2"]


@pytest.mark.parametrize("name", ["pissa", "lora_ga"])
def test_nf4_is_trained_and_leaves_an_adapter_that_names_its_base(config, monkeypatch, name):
    modules = pytest.importorskip("bitsandbytes.nn.modules")
    # As on a CPU with AVX512-BF16, which can't repack layers of 32 inputs, such as this model's, for inference.
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: True)
    this = config(method__name=name, model__quantization="nf4", data__limit=4)
    assert train_and_reload(this) < 1e-5
    assert losses(this)[-1] < losses(this)[0]
    lora = folder_of(this) / "lora"
    assert json.loads((lora / "adapter_config.json").read_text())["base_model_quantization"] == "nf4"
    assert "on the unquantised weights it is another model" in (lora / "README.md").read_text()
    plain = config(run="plain", method__name=name, data__limit=4)
    training.train(plain)
    assert metrics(this)["parameters"] == metrics(plain)["parameters"]  # and not the bytes that hold two each


def test_cuda_asked_for_and_absent_is_one_line(config, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES"):
        training.train(config())


@pytest.mark.parametrize(("batch", "micro", "processes", "expected"), [(128, 4, 1, (4, 32)), (12, 8, 2, (6, 1))])
def test_accumulation_follows_from_the_processes(monkeypatch, batch, micro, processes, expected):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    assert accumulation(batch, micro) == expected


def test_a_global_batch_that_processes_cannot_share_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="global_batch_size"):
        accumulation(16, 4)


def test_each_step_draws_at_random_and_is_sorted_by_length_within():
    lengths = [(7 * k) % 50 + 1 for k in range(40)]
    sampler = BucketSampler(lengths, 8, seed=1)
    first = list(sampler)
    assert sorted(first) == list(range(40)) and first == list(sampler)
    for k in range(0, 40, 8):
        chosen = [lengths[index] for index in first[k : k + 8]]
        assert chosen == sorted(chosen, reverse=True)
    assert max(lengths) == lengths[first[0]]
    assert first not in (
        list(BucketSampler(lengths, 8, seed=1, epoch=lambda: 1)),
        list(BucketSampler(lengths, 8, seed=2)),
    )


@pytest.mark.parametrize("packing", [False, True])
def test_the_cheap_loss_is_the_models_own(base, packing):
    model = AutoModelForCausalLM.from_pretrained(base)
    rows = [list(range(10, 22)), list(range(30, 35))]
    features = [{"input_ids": row, "labels": [-100, -100, *row[2:]]} for row in rows]
    padded = collate(features, 0)
    expected = model(**padded).loss
    trainer = RunTrainer.__new__(RunTrainer)
    trainer.target_logits = TargetLogits(model)
    total, count = trainer.summed_loss(model, pack(features) if packing else padded)
    torch.testing.assert_close(total / count, expected)


def wait_for_a_checkpoint(config: Config, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while not list((folder_of(config) / "checkpoints").glob("checkpoint-*/manifest.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    "engine", [pytest.param(None, marks=pytest.mark.slow), "zero2", pytest.param("zero3", marks=pytest.mark.slow)]
)
def test_two_processes_end_with_the_loss_of_one(config, tmp_path, engine):
    path = f"configs/deepspeed/{engine}.json" if engine else None
    alone = config(run="alone", method__name="astra")
    both = config(run="both", method__name="astra", train__deepspeed=path)
    calibrate(alone)
    training.train(alone)
    launch(both, tmp_path, *TORCHRUN)
    assert losses(both) == pytest.approx(losses(alone), abs=1e-3)
    left, right = (products(load_file(folder_of(run) / "lora/adapter_model.safetensors")) for run in (alone, both))
    for key, tensor in left.items():
        torch.testing.assert_close(tensor, right[key], atol=1e-3, rtol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("engine", ["one", "torchrun", "zero2", "zero3"])
def test_a_run_stopped_from_outside_goes_on_and_ends_the_same(config, tmp_path, engine, sent):
    command = (sys.executable,) if engine == "one" else TORCHRUN
    path = f"configs/deepspeed/{engine}.json" if engine.startswith("zero") else None
    common = {"train__max_steps": 24, "train__save_steps": 6, "train__deepspeed": path}
    whole, stopped = config(run="whole", **common), config(run="stopped", **common)
    launch(whole, tmp_path, *command)
    process = start(stopped, tmp_path, *command)
    wait_for_a_checkpoint(stopped, process)
    # A scheduler asks the launcher to stop; a machine that fails takes every process with it.
    told = psutil.Process(process.pid).children(recursive=True) if sent == signal.SIGKILL else []
    process.send_signal(sent)
    for child in told:
        child.kill()
    assert process.wait() != 0
    psutil.wait_procs(told)
    assert not (folder_of(stopped) / "metrics.json").exists()
    launch(stopped, tmp_path, *command)
    assert losses(stopped) == pytest.approx(losses(whole), abs=1e-4)
    steps = [line["step"] for line in read_lines(folder_of(stopped) / "metrics.jsonl") if "loss" in line]
    assert steps == list(range(1, 25))


def test_gradient_checkpointing_does_not_change_the_result(config):
    plain = config(run="plain")
    recomputed = config(run="recomputed", train__gradient_checkpointing=True)
    for this in (plain, recomputed):
        training.train(this)
    assert losses(recomputed) == pytest.approx(losses(plain), abs=1e-5)


@pytest.mark.slow
def test_a_compiled_run_ends_with_the_same_loss(config):
    plain = config(run="plain")
    compiled = config(run="compiled", train__compile=True)
    training.train(plain)
    assert train_and_reload(compiled) < 1e-4
    assert losses(compiled) == pytest.approx(losses(plain), abs=1e-3)


COLA = "".join(f"x\t{k % 2}\t\t{'it runs' if k % 2 else 'runs it it'} {k}\n" for k in range(16))
STSB = "sentence1\tsentence2\tscore\n" + "".join(f"it runs {k}\tit runs {k % 3}\t{k % 3 + 0.5}\n" for k in range(16))


@pytest.mark.parametrize(
    ("task", "folder", "text", "metric"),
    [("cola", "CoLA", COLA, "matthews_correlation"), ("stsb", "STS-B", STSB, "pearson")],
)
def test_a_classifier_learns_a_task_of_glue(config, tmp_path, task, folder, text, metric):
    from transformers import BertConfig, BertForSequenceClassification

    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / "glue" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "glue" / folder / name).write_text(text, encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(config().model.name)
    bert = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    BertForSequenceClassification(bert).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    this = config(
        data={"train": task, "dir": str(tmp_path), "max_length": 32},
        model={"name": str(tmp_path / "bert"), "dtype": "float32", "task_type": "SEQ_CLS"},
        method__name="astra",
        method__target_modules=["query", "value"],
        train__max_steps=24,
    )
    check(this)
    calibrate(this)
    assert train_and_reload(this) < 1e-5
    found = metrics(this)
    assert (found["validation_accuracy"] is None) == (task == "stsb") and found["validation_loss"] > 0
    state = load_file(folder_of(this) / "lora" / "adapter_model.safetensors")
    assert any("classifier" in key for key in state)
    score_classifiers(this, [run_target(this, folder_of(this))])
    result = json.loads((folder_of(this) / "eval" / f"{task}.json").read_text())
    assert (result["metric"], result["n"]) == (metric, 16)
    assert task == "stsb" or result["metrics"]["accuracy"] == found["validation_accuracy"] > 0.5
    with pytest.raises(UserError, match="needs SEQ_CLS, not CAUSAL_LM"):
        check(config(data={"train": task, "dir": str(tmp_path)}))


def test_the_log_of_a_run_says_why_it_has_no_result(config, tmp_path):
    this = config(method__name="astra")  # which has no calibration yet
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(this.model_dump()))
    command = [sys.executable, str(ROOT / "train.py"), "--config", str(tmp_path / "config.yaml")]
    assert subprocess.run(command, capture_output=True).returncode == 2
    assert " error: " in (folder_of(this) / "log.txt").read_text()
    assert "no calibration for these settings" in write_report(tmp_path / "out")
