"""What the run folders of experiments hold, as tables: one row per run, and one per run and figure.

An *arm* is one method with all its settings but the rate and the seed. Its rate is chosen on validation, by the rule
of `utils.ladder` where the runs kept a loss per record; the test sets have no say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from eval.intervals import difference
from eval.task_record import OF_MODEL, changes
from utils import ladder
from utils.comparison import deciding
from utils.config import ARM, CHOOSERS, LADDERS, STEP
from utils.errors import UserError, first_line
from utils.files import read_lines, read_record
from utils.settings import FREE, flat_settings, may_change

BASE = "base model"
LOSS = {"reporting": "held-out loss", "validation": "validation loss"}  # the former never chose a rate
# Metrics between 0 and 1 (correlations: -1 and 1), which are shown as percent; all others as they are.
SHARES = re.compile(r"accuracy|f1|em|mcc|exact match|matthews correlation|pearson|spearman|pass.*1|(.* )?acc( .*)?")


@dataclass
class Arm:
    """An arm at its best rate."""

    name: str
    rate: float | None  # None where all runs diverged, or nothing was validated
    tried: tuple[float, ...]  # the rates of runs that ended
    edge: str = ""  # "lowest" or "highest": no clearly worse rate was tried on that side; "one": one rate; "": neither
    tied: tuple[float, ...] = ()  # rates that can't be told from the best, which is one of them
    seeds: tuple[int, ...] = ()  # those run at the best rate
    diverged: tuple[float, ...] = ()  # the rates of the runs that diverged


@dataclass
class Results:
    """The results of one experiment or more.

    `runs` has a row per run: `run`, `folder`, `arm`, `label` (the arm without its rank), `rank`, `rate`, `seed`
    (`train.seed`), `draw` (a number for what all its seeds are), `error`, `diverged`, and the figures of its
    metrics.json, in the units of their names. `scores` has a row per run and figure: `run`, `arm` ("base model" too),
    `folder`, `task`, `metric`, `score`, `low`, `high`, `error` (standard), `n`, `better` (1: higher is better, -1:
    lower, 0: arms are not ranked by it), and the whole `result`.
    """

    runs: pd.DataFrame
    scores: pd.DataFrame
    settings: dict[str, dict[str, Any]]  # by run, flat
    axis: str  # the setting that `rate` holds
    arms: dict[str, Arm]  # by name, in the runs' order
    folders: list[Path]  # of the experiments, in the order they were named

    @property
    def config(self) -> dict[str, Any]:
        """The settings of one run, for what all share."""
        return next(iter(self.settings.values()))

    @property
    def best(self) -> pd.DataFrame:
        """The runs at their arms' best rates; all runs of an arm without one."""
        return self.runs[[self.arms[row.arm].rate in (None, row.rate) for row in self.runs.itertuples()]]

    def at_best(self, task: str) -> pd.DataFrame:
        """The scores on one task of the runs at their arms' best rates."""
        return self.scores[(self.scores["task"] == task) & self.scores["run"].isin(self.best["run"])]

    def of_base(self, task: str) -> pd.DataFrame:
        return self.scores[(self.scores["task"] == task) & (self.scores["arm"] == BASE)]

    def tasks(self, ranked: bool = False) -> list[str]:
        """What was scored, in order; `ranked`: what arms are ranked by."""
        return list(self.scores.loc[self.scores["better"].ne(0) | (not ranked), "task"].unique())


def collect(folders: Sequence[Path]) -> Results:
    """Read experiments; a run of several experiments is named `<experiment>/<run>`.

    Raises:
        UserError: a folder has no run, or two have one name.
    """
    found: dict[Path, dict[str, Any]] = {}
    names: dict[str, Path] = {}
    for folder in folders:
        if (name := folder.absolute().name) in names:
            raise UserError(f"{names[name]} and {folder}: two experiments of one name; rename one of the folders")
        names[name] = folder
        if not (configs := sorted(folder.glob("*/config.yaml"))):
            raise UserError(f"{folder}: no run in this folder")
        found |= {path.parent: _settings(path.parent) for path in configs}
    axis = next(key for key in LADDERS if all(settings.get(key) is not None for settings in found.values()))
    if several := len(folders) > 1:
        found = {path: {"experiment": path.parent.absolute().name, **settings} for path, settings in found.items()}
    labels = _labels(found)
    ranks = {path: None if found[path]["method.name"] == "full" else found[path]["method.rank"] for path in found}
    rows, draws = [], dict[tuple[Any, ...], int]()
    for path, settings in found.items():
        rank, label = ranks[path], labels[path]
        named = {"run": f"{path.parent.absolute().name}/{path.name}" if several else path.name, "folder": path}
        arm = f"{label}, rank {rank}" if rank and len(set(ranks.values()) - {None}) > 1 else label
        figures = _figures(path)
        measured = axis != STEP and settings.get(STEP) is not None  # its learning rate was not set
        rate = figures["learning_rate"] if measured else settings.get(axis)
        drawn = tuple(value for key, value in sorted(settings.items()) if key.endswith(".seed") and key[:5] != "eval.")
        place = {"rank": rank, "rate": rate, "seed": settings["train.seed"]}
        place["draw"] = draws.setdefault(drawn, len(draws))
        rows.append({**named, "arm": arm, "label": label, **place, **figures})
    runs = pd.DataFrame(rows)
    split = "reporting" if runs["reporting_loss"].notna().any() else "validation"
    scored = [{"run": BASE, "arm": BASE, "folder": folder / "base"} for folder in folders] + rows
    columns = ["run", "arm", "folder", "task", "metric", "score", "low", "high", "error", "n", "better", "result"]
    scores = pd.DataFrame([score for row in scored for score in _scores(row, split)], columns=columns)
    _tell_apart(scores)
    several_models = len(models(found.values())) > 1  # whose base models are no one row
    scores = scores[~(scores["arm"].eq(BASE) & (several_models | scores.duplicated(["arm", "task"])))]
    select = next(iter(found.values())).get("compare.select", "validation_loss")
    arms = {str(arm): _tune(str(arm), group, select) for arm, group in runs.groupby("arm", sort=False)}
    settings = dict(zip(runs["run"], found.values(), strict=True))
    return Results(runs, scores, settings, axis, arms, list(folders))


def models(settings: Iterable[dict[str, Any]]) -> list[str]:
    """The base models of some runs, with their data types."""
    return sorted({f"{one['model.name']} ({one['model.dtype']})" for one in settings})


def _settings(run: Path) -> dict[str, Any]:
    """What a run's figures depend on, flat: as it was trained, or as it was to be."""
    try:
        config = flat_settings(yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")))
    except (OSError, AttributeError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{run / 'config.yaml'}: damaged ({first_line(error)}); train.py writes it anew") from error
    return {**config, **flat_settings(_read(run / "metrics.json").get("settings", {}))}


def _read(path: Path) -> dict[str, Any]:
    return read_record(path) if path.exists() else {}


def _labels(runs: dict[Path, dict[str, Any]]) -> dict[Path, str]:
    """The name of each run's arm, its rank apart: the one it has, or the method, and what else differs below it."""
    names = {path: _name(settings) for path, settings in runs.items()}
    kept = {path: _of_arm(settings) for path, settings in runs.items()}
    texts = pd.DataFrame({path: {key: str(value) for key, value in own.items()} for path, own in kept.items()}).T
    differ = texts.groupby(names).nunique() > 1
    return {
        path: ", ".join(
            [names[path]]
            + [
                f"{key.rpartition('.')[2].replace('_', ' ')} {_text(value)}"
                for key, value in own.items()
                if value is not None and differ.at[names[path], key]
            ]
        )
        for path, own in kept.items()
    }


def _name(settings: dict[str, Any]) -> str:
    method = settings["method.name"]
    arm = settings.get(ARM) or (f"{method} ({settings['method.subspace']})" if method in CHOOSERS else method)
    return f"{settings['experiment']}, {arm}" if "experiment" in settings else arm


def _of_arm(settings: dict[str, Any]) -> dict[str, Any]:
    """What may tell arms of one name apart; what the method does not read, the rate and the seeds can't."""
    method = settings["method.name"]
    idle = {"method.rank", *may_change(settings), *LADDERS}
    idle |= set() if method in CHOOSERS else {"method.subspace", "method.split", "method.rank_allocation"}
    idle |= {key for key in settings if key[:7] == "method."} - {"method.name"} if method == "full" else set()
    return {
        key: value
        for key, value in settings.items()
        if key.split(".")[0] in ("model", "data", "calibration", "method", "train")
        and not (key in idle or key.endswith((".seed", ".fingerprint")))
    }


def _text(value: Any) -> str:
    words = value if isinstance(value, list) else [value]
    return " ".join(f"{word:g}" if isinstance(word, float) else str(word) for word in words)


def _figures(run: Path) -> dict[str, Any]:
    metrics, diverged = _read(run / "metrics.json"), (run / "diverged.json").is_file()
    forgetting, export, update = (metrics.get(key) or {} for key in ("forgetting", "export", "update"))
    kept = (
        "validation_loss", "validation_accuracy", "reporting_loss", "base_loss", "learning_rate", "relative_step",
        "trainable_parameters", "peak_memory_bytes", "train_seconds", "final_loss",
    )  # fmt: skip
    return {
        **{key: metrics.get(key) for key in kept},
        "forgetting": forgetting.get("rise"),
        "forgetting_error": forgetting.get("standard_error"),
        "forgetting_text": _text_name(forgetting),
        "update_norm": update.get("relative_norm"),
        "inside_span": update.get("inside_span"),
        "output_change": update.get("output_change"),
        "median_output_change": update.get("median_output_change"),
        "served_rank": export.get("rank"),
        "adapter_bytes": export.get("bytes"),
        "diverged": diverged,
        "error": None if metrics else "diverged" if diverged else _last_error(run / "log.txt"),
    }


def _text_name(record: dict[str, Any]) -> str | None:
    return f"{record['text']} {record.get('fingerprint', '')}".strip() if "text" in record else None


def _last_error(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    errors = [line.partition("error: ")[2] for line in lines if " error: " in line]
    return errors[-1] if errors else "not finished"


def _scores(row: dict[str, Any], split: str) -> Iterator[dict[str, Any]]:
    """The headline of every task of a run; then its loss on held-out records, and what it forgot."""
    about = {key: row[key] for key in ("run", "arm", "folder")}
    for path in sorted((row["folder"] / "eval").glob("*.json")):
        result = read_record(path)
        lost = "loss" in result
        low, high = result.get("interval") or (None, None)
        yield {
            **about, "task": result["task"], "low": low, "high": high, "n": result.get("n"), "result": result,
            "metric": "loss" if lost else result.get("metric", "accuracy").replace("_", " "),
            "score": result["loss"] if lost else result.get("accuracy", result.get("score")),
            "better": 0 if lost else 1 if result.get("higher_is_better", True) else -1,
        }  # fmt: skip
    if pd.notna(loss := row.get(f"{split}_loss")):
        yield {**about, "task": LOSS[split], "metric": "loss", "score": loss, "better": -1, "result": {}}
    if pd.notna(row.get("forgetting")):
        record = {"text": row["forgetting_text"]} if row["forgetting_text"] else {}
        score = {"score": row["forgetting"], "error": row["forgetting_error"]}
        yield {**about, "task": "forgetting (rise)", "metric": "rise", **score, "better": 0, "result": record}


def _tell_apart(scores: pd.DataFrame) -> None:
    """Losses on two general texts are two tasks."""
    texts = scores["result"].map(_text_name)
    several = texts.groupby(scores["task"]).transform("nunique") > 1
    scores["task"] = scores["task"].where(~several | texts.isna(), scores["task"] + " on " + texts.astype(str))


def _tune(name: str, runs: pd.DataFrame, select: str) -> Arm:
    """Choose the rate of an arm on validation, as `compare.select` says."""
    ended = runs[(runs["validation_loss"].notna() | runs["diverged"]) & runs["rate"].notna()]
    diverged = tuple(sorted(runs.loc[runs["diverged"], "rate"].dropna()))
    if ended["validation_loss"].isna().all():
        tried = tuple(sorted(runs["rate"].dropna().unique()))
        alone = len(tried) == 1 and not diverged
        seeds = tuple(sorted(runs["seed"])) if alone else ()
        return Arm(name, tried[0] if alone else None, tried, "one" if alone else "", (), seeds, diverged)
    tried = tuple(sorted(ended["rate"].unique()))
    kept: dict[int, dict[int, ladder.Losses]] = {}
    for row in ended.itertuples():
        losses = None if row.diverged else deciding(_read(row.folder / "losses.json"), select)
        kept.setdefault(tried.index(row.rate), {})[row.draw] = losses
    lengths = {len(losses) for seeds in kept.values() for losses in seeds.values() if losses is not None}
    if len(lengths) == 1 and lengths != {0}:
        rates = ended.groupby("draw")["rate"].nunique()
        choice = ladder.choose(kept, rates.idxmax())  # the draw of seeds that tuned has the most rates
        best, tied, inside = choice.best, choice.tied, choice.inside
    else:
        best = tried.index(ended.groupby("rate")["validation_loss"].mean().idxmin())
        tied, inside = (best,), 0 < best < len(tried) - 1
    if best is None:
        return Arm(name, None, tried, diverged=diverged)
    edge = "one" if len(tried) == 1 else "" if inside else "lowest" if tied[0] == 0 else "highest"
    seeds = tuple(sorted(ended.loc[ended["rate"] == tried[best], "seed"]))
    return Arm(name, tried[best], tried, edge, tuple(tried[place] for place in tied), seeds, diverged)


def standing(results: Results, task: str) -> tuple[str, dict[str, bool]]:
    """The best arm on a task, "" if all are equal; of each whether it can't be told from it, with single answers."""
    rows = results.at_best(task)
    means = rows.groupby("arm", sort=False)["score"].mean() * rows["better"].iloc[0]
    if means.nunique() == 1:
        return "", {}
    best = str(means.idxmax())
    if made_unlike(results, task):
        return best, {}
    answers = {str(arm): _answers(group, task) for arm, group in rows.groupby("arm", sort=False)}
    shapes = {None if found is None else found.shape[1] for found in answers.values()}
    if len(shapes) > 1 or None in shapes:
        return best, {}
    tested = {arm: difference(answers[best], found) for arm, found in answers.items()}  # type: ignore[arg-type]
    return best, {arm: low <= 0 <= high for arm, (_, low, high) in tested.items()}


def made_unlike(results: Results, task: str, base: bool = False) -> str:
    """What differs between the runs' problems, or how they were asked and judged; `base`: the base model's too."""
    rows = results.at_best(task)
    rows = pd.concat([results.of_base(task), rows]) if base else rows
    if task in LOSS.values():
        runs = [results.settings[run] for run in rows["run"]]
        made = [{key: one[key] for key in one if key.startswith("data.") and key not in FREE} for one in runs]
    else:
        made = [{**result.get("settings", {}), **OF_MODEL} for result in rows["result"]]
    return "; ".join(sorted({changes(made[0], other) for other in made[1:]} - {""}))


def _answers(rows: pd.DataFrame, task: str) -> NDArray[np.float64] | None:
    """(seeds, problems or records) of an arm, float64, whose means are its scores; None where it has none such."""
    if split := next((split for split, name in LOSS.items() if name == task), None):
        found = [np.asarray(_read(run / "losses.json").get(split, []), np.float64) for run in rows["folder"]]
    else:
        name = f"{task.replace('/', '-')}.samples.jsonl"
        found = [shares(run / "eval" / name).to_numpy(dtype=np.float64) for run in rows["folder"]]
    if len({len(values) for values in found}) != 1 or not len(found[0]):
        return None
    answers = np.stack(found)
    return answers if np.allclose(answers.mean(1), rows["score"].astype(float), rtol=1e-3, atol=1e-6) else None


@cache
def shares(samples: Path) -> pd.Series:
    """Each problem's share of right answers, by its number; empty where they are neither right nor wrong, or none."""
    frame = pd.DataFrame(read_lines(samples), columns=["problem", "correct"])
    return frame.groupby("problem")["correct"].mean() if frame["correct"].notna().all() else pd.Series(dtype=float)


def stage_costs(results: Results) -> pd.DataFrame:
    """Seconds and peak memory of every stage, a row per run and stage; stages that all runs share have no run."""
    arms = dict(zip(results.runs["folder"], results.runs["arm"], strict=True))
    rows = [
        {"arm": arms.get(path.parent.parent, "all runs"), "stage": path.stem, **read_record(path)}
        for folder in results.folders
        for path in [*sorted((folder / "stages").glob("*.json")), *sorted(folder.glob("*/stages/*.json"))]
    ]
    return pd.DataFrame(rows, columns=None if rows else ["arm", "stage", "seconds", "peak_memory_bytes"])
