"""What is known of a run before anything heavy is imported: that it can work, what decides it, whether it is done."""

import importlib.util
from pathlib import Path
from typing import Any

from astra.ranks import MAX_RANK
from dataset.general_text import check_general_text, measured_in_training
from dataset.sources import check_training
from training.methods import METHODS
from training.stores import stores
from utils.config import Config, expand_sweep
from utils.errors import UserError
from utils.files import read_json, read_record
from utils.log import log
from utils.models import check_model, model_fingerprint, resolve_model
from utils.runs import check_writable
from utils.settings import DATA, flat_settings, require_same, scored


def check(config: Config) -> None:
    """Check all that calibration and training need, for every run of the sweep; downloads no weights."""
    runs = expand_sweep(config)
    for run in runs:
        if run.method.name not in METHODS:
            raise UserError(f"method.name: no method {run.method.name!r}; allowed: {', '.join(METHODS)}")
    check_writable(config)
    check_model(config.model)
    for data in {run.data.model_dump_json(): run.data for run in runs}.values():
        check_training(data, config.model.task_type)
    for name in {run.data.general_text for run in runs if measured_in_training(run)}:
        check_general_text(name)
    for run in runs:
        check_combination(run)
    for name, rank in sorted({(run.method.name, run.method.rank) for run in runs}):
        if METHODS[name].moves and 2 * rank > MAX_RANK:
            log.warning(
                f"method.rank: the change of {name} at rank {rank} has rank {2 * rank}; its adapter is cut to "
                f"{MAX_RANK}, the most that vLLM serves, and the error stated"
            )
    stores(config)  # knows which ranks a calibration can serve


def check_combination(config: Config) -> None:
    """Refuse settings that are each allowed and make no sense together."""
    method, deepspeed = METHODS[config.method.name], deepspeed_file(config)
    if own := (deepspeed or {}).keys() & {"optimizer", "scheduler"}:
        raise UserError(f"train.deepspeed: {config.train.deepspeed} has its own {min(own)}, in place of the run's")
    if deepspeed is not None and config.model.dtype == "float16":
        raise UserError("model.dtype: DeepSpeed would train in float16; use bfloat16 or float32")
    if config.model.quantization is not None:
        if config.model.task_type == "SEQ_CLS":
            raise UserError("model.quantization: nf4 is for language models (model.task_type: CAUSAL_LM)")
        if not method.plain:
            raise UserError(
                f"model.quantization: nf4 freezes the weights that {config.method.name} trains or rescales"
            )
        if zero_stage(deepspeed) == 3:
            raise UserError("model.quantization: ZeRO-3 can't split nf4 weights; use configs/deepspeed/zero2.json")
    if config.train.liger_kernel and importlib.util.find_spec("liger_kernel") is None:
        raise UserError("train.liger_kernel: the package liger-kernel is not installed (pip install liger-kernel)")
    for name in config.train.report_to:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"train.report_to: {name} is not installed (tensorboard, wandb, mlflow, ...)")
    if config.train.early_stopping and not validated(config):
        raise UserError("train.early_stopping: needs validation examples (data.validation)")
    if config.data.reporting and config.model.task_type == "SEQ_CLS":
        raise UserError(
            "data.reporting: a classifier is reported on its task's own set; hold out data.validation only"
        )
    nullspace = method.needs == "calibration" and config.method.subspace == "nullspace"
    if nullspace and config.method.split == "balanced":
        raise UserError(
            "method.split: balanced shares what nullspace does not have, as A starts at 0; use orthonormal"
        )
    if config.train.eval_tasks:
        if config.model.task_type == "SEQ_CLS":
            raise UserError("train.eval_tasks: a classifier's accuracy is measured at every validation; name no task")
        if zero_stage(deepspeed) == 3:
            raise UserError("train.eval_tasks: ZeRO-3 splits the weights that generate; use ZeRO-2, or python -m eval")
    if config.method.freeze_b and not method.moves:
        raise UserError(f"method.freeze_b: {config.method.name} has no start of B to keep; name a method that has")
    if config.method.rank_allocation == "effective_rank" and method.needs != "calibration":
        able = " or ".join(name for name, other in METHODS.items() if other.needs == "calibration")
        raise UserError(f"method.rank_allocation: effective_rank needs method.name={able}, not {config.method.name}")


def zero_stage(deepspeed: dict[str, Any] | None) -> int:
    """Return the ZeRO stage that a DeepSpeed file asks for, 0 where it names none."""
    return int(((deepspeed or {}).get("zero_optimization") or {}).get("stage", 0))


def validated(config: Config) -> bool:
    """Whether a run has validation examples: those held out, or a classifier's own."""
    return config.data.validation > 0 or config.model.task_type == "SEQ_CLS"


def deepspeed_file(config: Config) -> dict[str, Any] | None:
    """Return what the run's DeepSpeed file holds, or None where it names none."""
    if config.train.deepspeed is None:
        return None
    try:
        return read_json(config.train.deepspeed)
    except UserError as error:
        raise UserError(f"train.deepspeed: {error}") from error


def run_settings(config: Config) -> dict[str, Any]:
    """Return what a run's result depends on, flat: its checkpoints and its result belong to these values."""
    values = config.model_dump(include={"model", "data", "method", "train", "calibration"})
    values["model"]["fingerprint"] = model_fingerprint(resolve_model(config.model))
    if METHODS[config.method.name].needs == "nothing":
        del values["calibration"]
    return flat_settings(values) | scored(config)


def finished(config: Config, folder: Path) -> bool:
    """Whether the run has its result, with these settings; in a comparison it is one to have diverged."""
    diverged = config.arm is not None and (folder / "diverged.json").is_file()
    exported = (folder / "lora").is_dir() or (folder / "merged").is_dir()
    if not diverged and not (exported and (folder / "metrics.json").exists()):
        return False
    result = read_record(folder / ("diverged.json" if diverged else "metrics.json"))
    tokens = {DATA: result["settings"].get(DATA)}  # whether they are the same is not worth reading them
    require_same(result, run_settings(config) | tokens, str(folder))
    return True
