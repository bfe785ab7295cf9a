"""What a run's result depends on, and whether that result is already there; imports nothing heavy."""

from pathlib import Path
from typing import Any

from utils.config import Config
from utils.errors import UserError
from utils.files import read_json
from utils.models import model_fingerprint, resolve_model

# Settings that may differ between the start of a run and its resumption: they leave the result as it is.
FREE = (
    "train.report_to", "train.logging_steps", "train.save_steps", "train.forgetting", "train.micro_batch_size",
    "train.gradient_checkpointing", "calibration.batch_size",
)  # fmt: skip
DATA = "data.fingerprint"  # of the tokens: known only once they are read


def run_settings(config: Config) -> dict[str, Any]:
    """Return what a run's result depends on, flat: its checkpoints and its result belong to these values."""
    values = config.model_dump(include={"model", "data", "method", "train", "calibration"})
    values["model"]["fingerprint"] = model_fingerprint(resolve_model(config.model))
    return flat_settings(values)


def without_calibration(settings: dict[str, Any]) -> dict[str, Any]:
    """Drop what a method that reads no calibration does not depend on."""
    return {key: value for key, value in settings.items() if not key.startswith("calibration.")}


def finished(config: Config, folder: Path) -> bool:
    """Whether the run has its result.

    Raises:
        UserError: it was made with other settings.
    """
    exported = (folder / "lora").is_dir() or (folder / "merged").is_dir()
    if not (exported and (folder / "metrics.json").is_file()):
        return False
    before = {key: value for key, value in read_json(folder / "metrics.json")["settings"].items() if key != DATA}
    now = run_settings(config)
    require_same(before, now if before.keys() == now.keys() else without_calibration(now), str(folder))
    return True


def require_same(before: dict[str, Any], now: dict[str, Any], where: str) -> None:
    """Raise a `UserError` that names the first setting that changed since `where` was written."""
    for key in sorted({*before, *now} - set(FREE)):
        if before.get(key) != now.get(key):
            raise UserError(
                f"{where} was made with {key}={before.get(key)!r}, now {now.get(key)!r}: "
                "give this run another name (--run=...) or start it over (--force)"
            )


def flat_settings(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = flat_settings(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        flat.update(nested)
    return flat


def check_combination(config: Config) -> None:
    """Raise a `UserError` for settings that are each allowed and make no sense together."""
    if config.model.quantization is not None:
        if config.model.task_type == "SEQ_CLS":
            raise UserError("model.quantization: nf4 is for language models (model.task_type: CAUSAL_LM)")
        if config.method.name in ("full", "dora"):
            raise UserError(
                f"model.quantization: nf4 freezes the weights that {config.method.name} trains or rescales"
            )
        if config.train.deepspeed and read_json(config.train.deepspeed)["zero_optimization"]["stage"] == 3:
            raise UserError("model.quantization: ZeRO-3 can't split nf4 weights; use configs/deepspeed/zero2.json")
    validated = config.data.validation > 0 or config.model.task_type == "SEQ_CLS"
    if config.train.early_stopping and not validated:
        raise UserError("train.early_stopping: needs validation examples (data.validation)")
    if config.method.rank_allocation == "effective_rank" and config.method.name != "astra":
        raise UserError(f"method.rank_allocation: effective_rank needs method.name=astra, not {config.method.name}")
