"""What tells one run from another: its settings as dotted keys, and those of them that may change."""

from typing import Any

from utils.config import Config
from utils.errors import UserError


def flat_settings(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = flat_settings(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        flat.update(nested)
    return flat


FORMAT = 2  # of metrics.json and of the manifests of checkpoints; CHANGELOG.md says what changed
# Settings that may differ between the start of a run and its resumption: they leave the result as it is.
FREE = (
    "train.report_to", "train.logging_steps", "train.forgetting", "data.general_text",
    "train.micro_batch_size", "train.gradient_checkpointing", "calibration.batch_size", "calibration.max_rank",
    "calibration.subspaces", "model.device_map", "data.dir",
)  # fmt: skip


def may_change(settings: dict[str, Any]) -> set[str]:
    """`FREE`, and `train.save_steps` unless validation at those steps chooses the checkpoint that is kept."""
    validated = settings.get("data.validation") or settings.get("model.task_type") == "SEQ_CLS"
    return {*FREE} if validated else {*FREE, "train.save_steps"}


# What `train.eval_tasks` are asked and judged with.
SCORED = {"grader", "stop", "response_prefix", "max_new_tokens", "max_model_len", "chat_template_kwargs"}


def scored(config: Config) -> dict[str, Any]:
    """What decides the accuracy of `train.eval_tasks`, by dotted keys, one for each setting; empty without them."""
    found = config.eval.model_dump(include=SCORED) if config.train.eval_tasks else {}
    return {f"eval.{key}": value for key, value in found.items()}


_DEFAULTS = flat_settings(Config().model_dump())
DATA = "data.fingerprint"  # of the tokens: known only once they are read
REMEDY = "give this run another name (--run=...) or start it over (--force)"


def require_same(record: dict[str, Any], now: dict[str, Any], where: str, remedy: str = REMEDY) -> None:
    """Refuse what an older version wrote, and name the first setting that changed since `where` was written.

    `record` is what was written, with its `format` and its `settings`; `now` are the settings of the run that wants to
    go on with it, flat. `remedy` is what the user can do about it.
    """
    if record.get("format") != FORMAT:
        theirs = record.get("format", 1)
        raise UserError(f"{where} was written by another version (format {theirs}, not {FORMAT}): {remedy}")
    before = {**_DEFAULTS, **record["settings"]}  # a setting that is newer than the record had its default
    unknown = {key for key in {*record["settings"]} ^ {*now} if key.startswith("eval.")}  # kept only where scored
    for key in sorted({*record["settings"], *now} - may_change(now) - unknown):
        if before.get(key) != now.get(key):
            raise UserError(f"{where} was made with {key}={before.get(key)!r}, now {now.get(key)!r}: {remedy}")


def require_shared(record: dict[str, Any], now: dict[str, Any], where: str, remedy: str = REMEDY) -> None:
    """As `require_same`, but of the settings in `now` alone."""
    shared = {key: value for key, value in record["settings"].items() if key in now}
    require_same({**record, "settings": shared}, now, where, remedy)
