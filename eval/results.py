"""What the run folders of experiments hold, as two tables: one row per run, and one per run and task.

An *arm* is one method with all its settings but the rate and the seed. Its rate is chosen on validation, by the rule
of `utils.ladder` where the runs kept a loss per record; the test sets have no say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from eval.task_record import read_samples
from utils import ladder
from utils.config import CHOOSERS
from utils.errors import UserError, first_line
from utils.files import read_record
from utils.settings import FREE, flat_settings

RATES = ("train.relative_step", "train.learning_rate")  # what a ladder varies; the first that is set is the axis
RESAMPLES = 2000
BASE = "base model"


@dataclass
class Results:
    """The results of one experiment or more.

    Attributes:
        runs: a row per run: `run`, `arm`, `label` (the arm without its rank), `rank`, `rate` (what the ladder varies),
            `seed`, `error`, `diverged`, and the figures of its metrics.json, in the units of their names.
        scores: a row per run and task: `run`, `task`, `metric`, `score` (a share, or a loss), `low`, `high`, `n`, and
            the task's other figures; the base model's rows have `arm` = "base model".
        axis: the setting that `rate` holds.
        config: flat settings of one run, for what all share.
        folders: experiment folders, in the order they were named.
    """

    runs: pd.DataFrame
    scores: pd.DataFrame
    axis: str
    config: dict[str, Any]
    folders: list[Path]


def collect(folders: Sequence[Path]) -> Results:
    """Read experiments; a run of several experiments is named `<experiment>/<run>`.

    Raises:
        UserError: no run in a folder.
    """
    found = {path: _settings(path) for folder in folders for path in run_folders(folder)}
    axis = next(key for key in RATES if any(settings.get(key) is not None for settings in found.values()))
    several = len(folders) > 1

    def name(path: Path) -> str:
        return f"{path.parent.name}/{path.name}" if several else path.name

    arms = _arms({path: {"experiment": path.parent.name, **s} if several else s for path, s in found.items()})
    runs = pd.DataFrame(
        [
            {
                "run": name(path), "folder": path, "arm": arms[path][0], "label": arms[path][1],
                "method": settings["method.name"],
                "rank": None if settings["method.name"] == "full" else settings["method.rank"],
                "rate": settings.get(axis), "seed": settings["train.seed"], **_figures(path),
            }
            for path, settings in found.items()
        ]
    )  # fmt: skip
    rows = [_score(BASE, BASE, folder / "base", result) for folder in folders for result in _scores(folder / "base")]
    rows += [
        _score(row.run, row.arm, row.folder, result) for row in runs.itertuples() for result in _scores(row.folder)
    ]
    columns = ["run", "arm", "folder", "task", "metric", "score", "low", "high", "n"]
    scores = pd.DataFrame(rows, columns=None if rows else columns)
    if "fingerprint" in scores:  # losses on two texts are two tasks
        texts = scores["text"] + " " + scores["fingerprint"]
        several = texts.groupby(scores["task"]).transform("nunique") > 1
        scores.loc[several & texts.notna(), "task"] += " on " + texts
    return Results(runs, scores, axis, next(iter(found.values())), list(folders))


def run_folders(folder: Path) -> list[Path]:
    """The runs of an experiment, by name.

    Raises:
        UserError: there are none.
    """
    runs = [path.parent for path in sorted(folder.glob("*/config.yaml"))]
    if not runs:
        raise UserError(f"{folder}: no run in this folder")
    return runs


def _settings(run: Path) -> dict[str, Any]:
    """What a run's figures depend on, flat: as it was trained, or as it was to be."""
    metrics = read_record(run / "metrics.json") if (run / "metrics.json").exists() else {}
    try:
        config = flat_settings(yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")))
    except (OSError, AttributeError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{run / 'config.yaml'}: damaged ({first_line(error)}); train.py writes it anew") from error
    return {**config, **metrics.get("settings", {})}


def _arms(runs: dict[Path, dict[str, Any]]) -> dict[Path, tuple[str, str]]:
    """Run -> its arm and its label: the arm's own name, or the method and what else differs between the runs."""
    kept = {path: _of_arm(settings) for path, settings in runs.items()}
    keys = dict.fromkeys(key for settings in kept.values() for key in settings)
    varied = [key for key in keys if len({str(settings[key]) for settings in kept.values() if key in settings}) > 1]
    ranks = len({settings.get("method.rank") for settings in kept.values()} - {None}) > 1
    named: dict[Path, tuple[str, str]] = {}
    for path, settings in kept.items():
        method, subspace = settings["method.name"], settings.get("method.subspace")
        label = settings.get("arm") or (f"{method} ({subspace})" if subspace else method)
        own = ("arm", "experiment", "method.name", "method.subspace", "method.rank")
        extra = [
            f"{key.rpartition('.')[2].replace('_', ' ')} {_text(settings[key])}"
            for key in varied
            if key not in own and settings.get("arm") is None and settings.get(key) is not None
        ]
        label = ", ".join([*([settings["experiment"]] if "experiment" in varied else []), label, *extra])
        rank = f", rank {settings['method.rank']}" if ranks and settings.get("method.rank") else ""
        named[path] = (label + rank, label)
    return named


def _of_arm(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that tell arms apart: what the method does not read, the rate and the seeds are left out."""
    method = settings["method.name"]
    idle = set() if method in CHOOSERS else {"method.subspace", "method.split", "method.rank_allocation"}
    if method == "full":
        idle |= {key for key in settings if key.startswith("method.") and key != "method.name"}
    return {
        key: value
        for key, value in settings.items()
        if key.split(".")[0] in ("experiment", "arm", "model", "data", "calibration", "method", "train")
        and not key.endswith((".seed", ".fingerprint"))
        and key not in {*FREE, *RATES, *idle}
    }


def _text(value: Any) -> str:
    return (
        " ".join(map(str, value)) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else value
    )


def _figures(run: Path) -> dict[str, Any]:
    metrics = read_record(run / "metrics.json") if (run / "metrics.json").is_file() else {}
    diverged = (run / "diverged.json").is_file()
    forgetting = metrics.get("forgetting") or {}
    export, update = metrics.get("export") or {}, metrics.get("update") or {}
    kept = (
        "validation_loss", "reporting_loss", "base_loss", "learning_rate", "relative_step", "trainable_parameters",
        "peak_memory_bytes", "train_seconds", "final_loss",
    )  # fmt: skip
    text = f"{forgetting['text']} {forgetting.get('fingerprint', '')}".strip() if "text" in forgetting else None
    return {
        **{key: metrics.get(key) for key in kept},
        "forgetting": forgetting.get("rise"),
        "forgetting_error": forgetting.get("standard_error"),
        "forgetting_text": text,
        "update_norm": update.get("relative_norm"),
        "inside_span": update.get("inside_span"),
        "output_change": update.get("output_change"),
        "served_rank": export.get("rank"),
        "adapter_bytes": export.get("bytes"),
        "diverged": diverged,
        "error": None if metrics else "diverged" if diverged else _last_error(run / "log.txt"),
    }


def _last_error(path: Path) -> str:
    """Why a run has no result: the last error in its log, or that it is not finished."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    errors = [line.partition("error: ")[2] for line in lines if " error: " in line]
    return errors[-1] if errors else "not finished"


def _scores(run: Path) -> list[dict[str, Any]]:
    return [read_record(path) for path in sorted((run / "eval").glob("*.json"))]


def _score(run: str, arm: str, folder: Path, result: dict[str, Any]) -> dict[str, Any]:
    """A task's headline figure: accuracy, or what its `metric` names, or a loss."""
    metric = "loss" if "loss" in result else result.get("metric", "accuracy").replace("_", " ")
    score = result["loss"] if metric == "loss" else result.get("accuracy", result.get("score"))
    low, high = result.get("interval") or (None, None)
    other = {key: value for key, value in result.items() if key not in ("accuracy", "loss", "score", "interval")}
    return {
        **other,
        "run": run,
        "arm": arm,
        "folder": folder,
        "metric": metric,
        "score": score,
        "low": low,
        "high": high,
    }


@dataclass(frozen=True)
class Tuned:
    """An arm at its best rate.

    Attributes:
        rate: what the ladder varies; None where all runs diverged.
        tried: the rates that were run.
        edge: "lowest" or "highest" where the best is an end of what was tried, "one" where one rate was; else "".
        tied: rates that can't be told from the best.
        seeds: the seeds run at the best rate.
        diverged: runs that diverged.
    """

    arm: str
    rate: float | None
    tried: tuple[float, ...]
    edge: str
    tied: tuple[float, ...]
    seeds: tuple[int, ...]
    diverged: int


def tune(results: Results) -> dict[str, Tuned]:
    """The best rate of every arm, chosen on validation; every rate is kept where nothing was validated."""
    return {arm: _tune(str(arm), runs) for arm, runs in results.runs.groupby("arm", sort=False)}


def _tune(arm: str, runs: pd.DataFrame) -> Tuned:
    ended = runs[runs["validation_loss"].notna() | runs["diverged"]]
    tried = tuple(sorted(runs["rate"].dropna().unique()))
    diverged = int(runs["diverged"].sum())
    if ended.empty or ended["validation_loss"].isna().all():
        rate = tried[0] if len(tried) == 1 and not diverged else None
        return Tuned(arm, rate, tried, "one" if rate else "", (), tuple(sorted(runs["seed"])), diverged)
    order = {rate: number for number, rate in enumerate(tried)}
    kept: dict[int, dict[int, ladder.Losses]] = {}
    for row in ended.itertuples():
        losses = None if row.diverged else record_losses(row.folder, "validation")
        kept.setdefault(order[row.rate], {})[row.seed] = losses
    alike = {len(losses) for seeds in kept.values() for losses in seeds.values() if losses is not None}
    first = int(runs["seed"].min())
    if alike and alike != {0} and len(alike) == 1 and any(first in seeds for seeds in kept.values()):
        choice = ladder.choose(kept, first)
        best, tied = choice.best, choice.tied
    else:
        means = ended.groupby("rate")["validation_loss"].mean()
        best, tied = order[means.idxmin()], ()
    if best is None:
        return Tuned(arm, None, tried, "", (), (), diverged)
    edge = "one" if len(tried) == 1 else "lowest" if best == 0 else "highest" if best == len(tried) - 1 else ""
    seeds = tuple(sorted(ended.loc[ended["rate"] == tried[best], "seed"]))
    return Tuned(arm, tried[best], tried, edge, tuple(tried[place] for place in tied), seeds, diverged)


def record_losses(run: Path, split: str) -> NDArray[np.float64]:
    """Loss of each record of a held-out split, float64 (records,), in nats per target token; empty if not kept."""
    path = run / "losses.json"
    return np.asarray(read_record(path).get(split, []) if path.is_file() else [], dtype=np.float64)


def at_best(results: Results, tuned: dict[str, Tuned]) -> pd.DataFrame:
    """The runs at their arms' best rates; all runs of an arm that was not tuned."""
    keep = [tuned[row.arm].rate in (None, row.rate) for row in results.runs.itertuples()]
    return results.runs[keep]


@cache
def correct(run: Path, task: str) -> NDArray[np.float64]:
    """Each problem's share of right answers, float64 (problems,), in the problems' order; empty if not kept."""
    path = run / "eval" / f"{task.replace('/', '-')}.samples.jsonl"
    if not path.is_file():
        return np.empty(0)
    shares: dict[int, list[bool]] = {}
    for sample in read_samples(path):
        if sample.get("correct") is None:
            return np.empty(0)
        shares.setdefault(sample["problem"], []).append(sample["correct"])
    return np.asarray([np.mean(shares[number]) for number in sorted(shares)])


@cache
def _weights(count: int) -> NDArray[np.float32]:
    """How often each problem is drawn, as a share: float32 (resamples, problems), the same in every comparison."""
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    return (drawn / count).astype(np.float32)


def difference(first: NDArray[np.float64], second: NDArray[np.float64]) -> tuple[float, float, float]:
    """Mean of `second` - `first` and its 95% interval, by a bootstrap over problems, paired, and over seeds.

    Args:
        first, second: float64 (seeds, problems), the same problems in the same order; seeds may differ in number.
    """
    rng = np.random.default_rng(0)
    weights = _weights(first.shape[1])

    def means(scores: NDArray[np.float64]) -> NDArray[np.float64]:
        seeds = rng.multinomial(len(scores), np.full(len(scores), 1 / len(scores)), RESAMPLES) / len(scores)
        return np.einsum("rs,rs->r", seeds, weights @ scores.T)

    changes = means(second) - means(first)
    low, high = np.quantile(changes, [0.025, 0.975])
    return float(second.mean() - first.mean()), float(low), float(high)


def smallest_difference(spreads: Sequence[float], seeds: int) -> float | None:
    """The difference between two arms that `seeds` runs of each show with a chance of 80%, at a level of 5%.

    From the arms' pooled standard deviation over seeds and Student's t; None below two seeds.
    """
    if seeds < 2 or not spreads:
        return None
    from scipy.stats import t

    pooled = float(np.sqrt(np.mean(np.square(spreads))))
    freedom = len(spreads) * (seeds - 1)
    return float((t.ppf(0.975, freedom) + t.ppf(0.8, freedom)) * pooled * np.sqrt(2 / seeds))


def stage_costs(results: Results) -> pd.DataFrame:
    """Seconds and peak memory of every stage, a row per run and stage; stages that all runs share have no run."""
    names = {row.folder: (row.run, row.arm) for row in results.runs.itertuples()}
    rows = []
    for folder in results.folders:
        for path in [*sorted((folder / "stages").glob("*.json")), *sorted(folder.glob("*/stages/*.json"))]:
            run, arm = names.get(path.parent.parent, ("", "all runs"))
            rows.append({"run": run, "arm": arm, "stage": path.stem, **read_record(path)})
    return pd.DataFrame(rows, columns=None if rows else ["run", "arm", "stage", "seconds", "peak_memory_bytes"])
