"""Training runs for the tests: what they read back from a run folder, how they crash, how processes start."""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml
from transformers import TrainerCallback

from training import trainer as fitting
from utils.config import Config
from utils.files import read_lines

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
    return json.loads((folder_of(config) / "metrics.json").read_text())


class Crash(Exception):
    """Stands for whatever ends a process in the middle of a step."""


def crash_at(monkeypatch, step: int) -> None:
    class Crasher(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == step:
                raise Crash

    make = fitting.make_trainer

    def crashing(*args):
        trainer = make(*args)
        trainer.add_callback(Crasher())
        return trainer

    monkeypatch.setattr(fitting, "make_trainer", crashing)


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
