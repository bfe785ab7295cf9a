"""Results where training reported to (`train.report_to`): TensorBoard and Weights & Biases, no other tracker."""

import importlib
import importlib.util
import os
from typing import Any

from eval.candidates import Target
from eval.task_record import readings
from utils.config import Config
from utils.errors import UserError

TRACKERS = ("tensorboard", "wandb")


def check_trackers(config: Config) -> None:
    """Raise a `UserError` when a tracker that results go to is not installed."""
    for name in config.train.report_to:
        if name in TRACKERS and importlib.util.find_spec(name) is None:
            raise UserError(f"train.report_to: {name} is not installed; install it, or set train.report_to=[]")


def track(config: Config, target: Target, results: dict[str, dict[str, Any]]) -> None:
    """Report a target's figures: to `<run>/tensorboard`, or as a run of its name and job type `eval`."""
    found = {key: value for task, result in results.items() for key, value in figures(task, result).items()}
    if "tensorboard" in config.train.report_to:
        from torch.utils.tensorboard import SummaryWriter  # type: ignore[attr-defined]

        with SummaryWriter(str(target.folder.parent / "tensorboard")) as writer:
            for key, value in found.items():
                writer.add_scalar(key, value)
    if "wandb" in config.train.report_to:
        wandb: Any = importlib.import_module("wandb")  # not among the requirements
        project = os.environ.get("WANDB_PROJECT", "huggingface")  # the Trainer's
        with wandb.init(project=project, name=target.name, job_type="eval") as run:
            run.log(found)


def figures(task: str, result: dict[str, Any]) -> dict[str, float]:
    """A result's headline and its other readings, as `eval/<task>/<figure>`."""
    found = {key: result[key] for key in ("accuracy", "score", "loss") if key in result} | readings(result)
    return {f"eval/{task}/{key}": value for key, value in found.items()}
