"""What the run folders of an experiment hold, as rows: one for a run and task, or one for all seeds of a setting."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from utils.config import CHOOSERS
from utils.errors import UserError
from utils.files import read_json
from utils.settings import FREE, flat_settings

Row = dict[str, Any]

KEYS = {  # columns of their own; other settings have one where runs differ in them
    "method": "method.name", "subspace": "method.subspace", "rank": "method.rank", "alpha": "method.alpha",
    "learning_rate": "train.learning_rate",
}  # fmt: skip


def collect(folder: Path) -> list[Row]:
    """Return one row for every run and task in an experiment's folder, and one for every run without a result.

    Raises:
        UserError: no run in the folder.
    """
    runs = {path.parent: _settings(path.parent) for path in sorted(folder.glob("*/config.yaml"))}
    if not runs:
        raise UserError(f"{folder}: no run in this folder")
    named = {*KEYS.values()}
    varied = [
        key
        for key in dict.fromkeys(key for settings in runs.values() for key in settings)
        if key not in named and len({str(found[key]) for found in runs.values() if key in found}) > 1
    ]
    base = {"method": "base", "label": "base model", **dict.fromkeys(varied)}
    rows = [_row("base", None, base, {}, result) for result in _results(folder / "base")]
    for run, settings in runs.items():
        rows += _run_rows(run, settings, varied)
    return rows


def _settings(run: Path) -> Row:
    """Return what a run's figures depend on, flat, seeds apart: as it was trained, or as it was to be."""
    metrics = _metrics(run)
    config = flat_settings(yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")))
    settings = metrics.get("settings", config)
    method = settings["method.name"]
    idle = {"method.subspace", "method.split", "method.rank_allocation"} if method not in CHOOSERS else set()
    if method == "full":
        idle |= {key for key in settings if key.startswith("method.") and key != "method.name"}
    kept = {
        key: value
        for key, value in settings.items()
        if key.split(".")[0] in ("model", "data", "calibration", "method", "train")
        and not key.endswith((".seed", ".fingerprint"))
        and key not in {*FREE, *idle}
    }
    return {**kept, "seed": settings["train.seed"]}


def _metrics(run: Path) -> Row:
    return read_json(run / "metrics.json") if (run / "metrics.json").is_file() else {}


def _run_rows(run: Path, settings: Row, varied: Sequence[str]) -> list[Row]:
    found: Row = {name: settings.get(key) for name, key in KEYS.items()}
    found["label"] = f"{found['method']} ({found['subspace']})" if found["subspace"] else found["method"]
    found["alpha"] = found["alpha"] or found["rank"]
    found |= {key: _text(settings.get(key)) for key in varied}
    metrics = _metrics(run)
    error = None if metrics else _last_error(run / "log.txt")
    return [_row(run.name, error, found, metrics, result) for result in _results(run) or [{}]]


def _text(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def _row(run: str, error: str | None, settings: Row, metrics: Row, result: Row) -> Row:
    return {
        "run": run,
        **{key: settings.get(key) for key in ("label", *KEYS, "seed")},
        **{key: value for key, value in settings.items() if "." in key},
        **_score(result),
        **{key: result.get(key) for key in ("lenient", "lenient_interval", "plus", "length_stops")},
        **{key: metrics.get(key) for key in ("validation_loss", "trainable_parameters", "peak_memory_bytes")},
        "forgetting": (metrics.get("forgetting") or {}).get("rise"),
        "train_seconds": metrics.get("train_seconds"),
        "error": error,
    }


def _score(result: Row) -> Row:
    """The figure a task is ranked by: accuracy, or what its `metric` names, which has no interval here."""
    scores = {key: result.get(key) for key in ("task", "accuracy", "interval", "n", "loss")}
    metric = result.get("metric", "accuracy").replace("_", " ")
    if metric != "accuracy":
        scores |= {"accuracy": result["score"], "interval": None}
    return {**scores, "metric": metric}


def _results(run: Path) -> list[Row]:
    return [read_json(path) for path in sorted((run / "eval").glob("*.json"))]


def _last_error(path: Path) -> str:
    """Return why a run has no result: the last error in its log, or that it is not finished."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    errors = [line.partition("error: ")[2] for line in lines if " error: " in line]
    return errors[-1] if errors else "not finished"


def _setting(row: Row, *without: str) -> tuple[Any, ...]:
    """What a row is a result of, seeds apart."""
    keys = ["label", *KEYS, *(key for key in row if "." in key)]
    return tuple(row[key] for key in keys if key not in without)


def summarise(rows: Sequence[Row], task: str) -> list[Row]:
    """Return one row for each setting of a task, by method and rank: mean and standard deviation over its seeds."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["task"] == task and (row["accuracy"] is not None or row["loss"] is not None):
            groups.setdefault(_setting(row), []).append(row)
    found = [_mean(group) for group in groups.values()]
    return sorted(
        found, key=lambda row: (row["method"] != "base", row["label"], row["rank"] or 0, row["learning_rate"] or 0)
    )


def _mean(group: list[Row]) -> Row:
    row = dict(group[0])
    numeric = (
        "accuracy", "loss", "lenient", "plus", "validation_loss", "forgetting", "peak_memory_bytes", "train_seconds",
    )  # fmt: skip
    for key in numeric:
        values = [member[key] for member in group if member[key] is not None]
        row[key] = statistics.fmean(values) if values else None
        row[f"{key}_sd"] = statistics.stdev(values) if len(values) > 1 else None
    row["seeds"] = len(group)
    return row


def best_rates(rows: Sequence[Row]) -> list[Row]:
    """Keep each setting's learning rate of lowest mean validation loss; the test set has no say.

    Returns nothing where no setting was run at several rates, or a validation loss is missing.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["method"] != "base":
            groups.setdefault(_setting(row, "learning_rate"), []).append(row)
    if not any(len(group) > 1 for group in groups.values()):
        return []
    if any(row["validation_loss"] is None for group in groups.values() for row in group):
        return []
    return [min(group, key=lambda row: row["validation_loss"]) for group in groups.values()]


def at_best_rates(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of runs at the rates that `best_rates` chooses; all, where it chooses none."""
    kept = []
    for task in dict.fromkeys(row["task"] for row in rows):
        chosen = {_setting(row) for row in best_rates(summarise(rows, task))}
        kept += [row for row in rows if row["task"] == task and (not chosen or _setting(row) in chosen)]
    return kept


def stage_costs(folder: Path) -> list[tuple[str, str, Row]]:
    """Return (run, stage, its seconds and peak memory), the stages shared by all runs first."""
    shared = sorted((folder / "stages").glob("*.json"))
    of_runs = sorted(folder.glob("*/stages/*.json"))
    found = [("", path) for path in shared] + [(path.parts[-3], path) for path in of_runs]
    return [(run, path.stem, read_json(path)) for run, path in found]
