"""Training runs for the tests: what they read back from a run folder, how they crash, how processes start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import TrainerCallback

import train
from dataset.glue import num_labels
from tests.astra.tiny import relative_difference
from training import export
from training import trainer as fitting
from utils.config import Config
from utils.files import read_lines, read_record
from utils.models import load_model
from utils.quantize import quantize_base

ROOT = Path(__file__).parent.parent
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--")


def calibrate(config: Config) -> None:
    """Make the calibration store that a run of the method astra reads."""
    import calibrate as calibration
    from training.stores import stores

    for folder, (run, need) in stores(config).items():
        calibration.calibrate_store(folder, run, need, False)


def losses(config: Config) -> list[float]:
    return [line["loss"] for line in read_lines(folder_of(config) / "metrics.jsonl") if "loss" in line]


def folder_of(config: Config) -> Path:
    return Path(config.output_dir) / str(config.run)


def metrics(config: Config) -> dict:
    return read_record(folder_of(config) / "metrics.json")


def train_and_reload(config: Config) -> float:
    """Train a run, and return by how much its result, loaded as a user would, differs from the trained model."""
    ids, write, trained = torch.arange(5, 25).view(2, 10), export.export, []

    def noted(config, model, *args, **options):
        trained.append(model.eval()(input_ids=ids).logits.detach().float())
        return write(config, model, *args, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(export, "export", noted)
        train.train(config)
    folder = export.exported_folder(config, folder_of(config))
    if folder.name == "merged":
        model = load_model(config.model.model_copy(update={"name": str(folder)}))
    else:
        model = load_model(config.model, num_labels(config))
        if config.model.quantization is not None:
            quantize_base(model, "cpu")
        model = PeftModel.from_pretrained(model, folder)
    return relative_difference(model.eval()(input_ids=ids).logits.detach().float(), trained[0])


class Crash(Exception):
    """Stands for whatever ends a process in the middle of a step."""


def crash_at(monkeypatch, step: int) -> None:
    class Crasher(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == step:
                raise Crash

    watch_training(monkeypatch, Crasher())


def watch_training(monkeypatch, callback: TrainerCallback) -> None:
    """Give every trainer that is made one more callback."""
    make = fitting.make_trainer

    def watched(*args):
        trainer = make(*args)
        trainer.add_callback(callback)
        return trainer

    monkeypatch.setattr(fitting, "make_trainer", watched)


def write_config(config: Config, folder: Path) -> Path:
    path = folder / f"{config.run}.yaml"
    path.write_text(yaml.safe_dump(config.model_dump()), encoding="utf-8")
    return path


def start(config: Config, tmp_path: Path, *command: str) -> subprocess.Popen:
    path = write_config(config, tmp_path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([*command, "train.py", "--config", str(path)], cwd=ROOT, env=environment)


def launch(config: Config, tmp_path: Path, *command: str) -> None:
    assert start(config, tmp_path, *command).wait() == 0
