"""What a training run keeps, drops and remembers: checkpoints, early stopping, memory, the best validation."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import train as training
from tests.runs import Crash, crash_at, folder_of, losses, metrics
from training import announce
from training import trainer as fitting
from training.checkpoints import require_same_deepspeed, rotate, seconds_before
from utils.errors import UserError
from utils.files import read_lines, read_record


def checkpoints(config) -> set[str]:
    return {path.name for path in (folder_of(config) / "checkpoints").glob("checkpoint-*")}


@pytest.mark.parametrize(("best", "kept"), [(None, {4, 6}), (2, {2, 6}), (4, {4, 6}), (6, {4, 6})])
def test_two_checkpoints_are_kept_the_newest_and_the_best(tmp_path, best, kept):
    for step in (2, 4, 6):
        (tmp_path / f"checkpoint-{step}").mkdir()
    rotate(tmp_path, best and tmp_path / f"checkpoint-{best}")
    assert {path.name for path in tmp_path.iterdir()} == {f"checkpoint-{step}" for step in kept}


def test_older_checkpoints_stay_until_the_new_one_is_complete(config, monkeypatch):
    this, whole = config(), fitting.RunTrainer._save_checkpoint
    write = fitting.RunTrainer._save_checkpoint.__globals__["write_manifest"]

    def crash(folder, settings, step, seconds):
        if step == 6:
            assert checkpoints(this) == {"checkpoint-2", "checkpoint-4", "checkpoint-6"}
            raise Crash
        write(folder, settings, step, seconds)

    monkeypatch.setitem(whole.__globals__, "write_manifest", crash)
    with pytest.raises(Crash):
        training.train(this)
    monkeypatch.undo()
    before = seconds_before(folder_of(this) / "checkpoints" / "checkpoint-4")
    training.train(this)
    assert losses(this) and checkpoints(this) == {"checkpoint-4", "checkpoint-6"}
    assert 0 < before < metrics(this)["train_seconds"]


def test_incomplete_checkpoints_are_removed_when_a_run_goes_on(config, monkeypatch):
    this = config()
    with monkeypatch.context() as patched, pytest.raises(Crash):
        crash_at(patched, 3)
        training.train(this)
    folder = folder_of(this) / "checkpoints"
    for name in ("checkpoint-1", "checkpoint-99"):
        shutil.copytree(folder / "checkpoint-2", folder / name)
        (folder / name / "manifest.json").unlink()
    with monkeypatch.context() as patched, pytest.raises(Crash):
        crash_at(patched, 3)
        training.train(this)
    assert checkpoints(this) == {"checkpoint-2"}


EARLY = {
    "data__validation": 0.25, "train__learning_rate": 0.3, "train__max_steps": 60, "train__save_steps": 1,
    "train__early_stopping": 3,
}  # fmt: skip


def test_early_stopping_counts_on_where_the_run_was_interrupted(config, monkeypatch):
    whole, broken = config(run="whole", **EARLY), config(run="broken", **EARLY)
    training.train(whole)
    steps = metrics(whole)["steps"]
    with monkeypatch.context() as patched, pytest.raises(Crash):
        crash_at(patched, steps)  # before its last validation: two of the three failures lie behind it
        training.train(broken)
    training.train(broken)
    assert metrics(broken)["steps"] == steps < 60
    for run in (whole, broken):  # and what is exported is the checkpoint of the least loss, not the last
        kept = read_record(folder_of(run) / "losses.json")["validation"]
        seen = [line["eval_loss"] for line in read_lines(folder_of(run) / "metrics.jsonl") if "eval_loss" in line]
        assert sum(kept) / len(kept) == pytest.approx(min(seen), rel=1e-5) and min(seen) < seen[-1]


@pytest.mark.parametrize("changes", [{}, {"train__max_steps": 4}, EARLY], ids=["steps", "within an epoch", "early"])
def test_a_run_killed_between_its_last_step_and_its_export_takes_no_further_step(config, changes):
    this = config(**changes)
    training.train(this)
    folder, steps = folder_of(this), metrics(this)["steps"]
    lines, adapter = read_lines(folder / "metrics.jsonl"), load_file(folder / "lora" / "adapter_model.safetensors")
    (folder / "metrics.json").unlink()
    training.train(this)
    assert metrics(this)["steps"] == steps
    assert read_lines(folder / "metrics.jsonl") == lines
    again = load_file(folder / "lora" / "adapter_model.safetensors")
    assert again.keys() == adapter.keys() and all(torch.equal(again[key], adapter[key]) for key in adapter)


def test_the_accuracy_is_that_of_the_checkpoint_exported(tmp_path):
    lines = [{"step": k, "loss": 1.0} for k in (1, 2)]
    lines += [{"step": 1, "eval_loss": 0.2, "eval_accuracy": 0.9}, {"step": 2, "eval_loss": 0.3, "eval_accuracy": 0.7}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figures = announce.validation_figures(read_lines(tmp_path / "metrics.jsonl"))
    assert figures == {"validation_loss": 0.2, "validation_accuracy": 0.9}
    assert announce.validation_figures([]) == {"validation_loss": None, "validation_accuracy": None}


def test_a_run_goes_on_with_the_engine_that_wrote_its_checkpoint(tmp_path):
    with pytest.raises(UserError, match="was written with DeepSpeed"):
        require_same_deepspeed(tmp_path, deepspeed=False)
    require_same_deepspeed(tmp_path, deepspeed=True)
    (tmp_path / "trainable.safetensors").touch()
    with pytest.raises(UserError, match="was written without DeepSpeed"):
        require_same_deepspeed(tmp_path, deepspeed=True)
    require_same_deepspeed(tmp_path, deepspeed=False)
