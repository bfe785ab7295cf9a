"""The report's findings and tables, and the two files for machines: `results.csv` and `summary.json`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any

import pandas as pd

from eval.charts import rate_text
from eval.intervals import smallest_difference
from eval.published import published
from eval.results import BASE, LOSS, SHARES, Arm, Results, made_unlike, models, stage_costs, standing
from eval.task_record import readings
from utils.runs import commit

ALIKE = "†"  # not significantly worse than the best
READINGS = {"lenient": "last number", "length_share": "cut", "unparsable_share": "unreadable"}
# Of a table: a column of the figures, its heading, the unit it is shown in, and how.
Columns = dict[str, tuple[str, float, Callable[[float], str]]]
MEASURES: Columns = {
    "update_norm": ("|dW|/|W|", 1, "{:.3g}".format),
    "output_change": ("change of outputs", 1, "{:.3g}".format),
    "median_output_change": ("in the median layer", 1, "{:.3g}".format),
    "inside_span": ("share inside span(Q)", 1, "{:.3g}".format),
    "relative_step": ("first step", 1, lambda value: rate_text(float(f"{value:.3g}"))),
    "learning_rate": ("learning rate", 1, lambda value: rate_text(float(f"{value:.3g}"))),
}
SIZES: Columns = {
    "peak_memory_bytes": ("peak memory (GiB)", 2**30, "{:.2f}".format),
    "peak_gpu_memory_bytes": ("peak GPU memory (GiB)", 2**30, "{:.2f}".format),
    "trainable_parameters": ("trainable", 1, "{:,.0f}".format),
    "served_rank": ("served rank", 1, "{:.0f}".format),
    "adapter_bytes": ("adapter (MB)", 1e6, "{:.1f}".format),
}


@dataclass
class Part:
    """One section of the report: words, and perhaps a table of texts."""

    title: str
    note: str
    table: pd.DataFrame | None = None


def sections(results: Results) -> list[Part]:
    """The parts of the report that have something to say, findings first."""
    axis = "relative step, |dW| of the first step over |W|" if "step" in results.axis else "learning rate"
    at_best = "at each arm's best rate, mean over seeds."
    failed = results.runs.loc[results.runs["error"].notna(), ["run", "error"]].rename(columns={"error": "reason"})
    details = {task: details_table(results, task) for task in results.tasks()}
    parts = [
        Part("Findings", "\n".join(f"- {line}" for line in findings(results))),
        Part("Results", _results_note(results), main_table(results)),
        Part("How each arm was tuned", f"The rate is the {axis}.", ladder_table(results)),
        *(Part(f"{task}, in detail", f"In percent, {at_best}", table) for task, table in details.items()),
        Part("What training did to the weights", at_best.capitalize(), measures_table(results)),
        Part("Costs", "Whole processes, start-up included; mean over runs.", cost_table(results)),
        Part("Runs without a result", "", failed),
        *(Part(*told) for told in published(results.config)),
    ]
    return [part for part in parts if part.table is None or not part.table.empty]


def findings(results: Results) -> Iterator[str]:
    """What was run and what it shows, a sentence each."""
    config, runs, arms = results.config, results.runs, results.arms.values()
    count = f"{runs['error'].isna().sum()} of {len(runs)} runs of {len(arms)} arm{'s' if len(arms) > 1 else ''} ended"
    what = f"on {' and '.join(models(results.settings.values()))}, trained on {config['data.train']}"
    yield f"{count}, {what}; commit {commit() or 'unknown'}, {date.today().isoformat()}."
    if config["model.name"] == "smollm2":
        yield "The base weights carry the rounding of a 4-bit file, and the model is small."
    for task in results.tasks():
        yield from _how_scored(results, task)
    for task in results.tasks(ranked=True):
        yield from _best_arms(results, task)
    if open_ended := [f"{arm.name} ({arm.edge} of {len(arm.tried)})" for arm in arms if arm.edge not in ("", "one")]:
        yield f"**Not tuned**, as no clearly worse rate was tried on one side of the best: {', '.join(open_ended)}."
    counts = runs["arm"].value_counts()
    if diverged := [f"{arm.name} {len(arm.diverged)} of {counts[arm.name]} runs" for arm in arms if arm.diverged]:
        yield f"Diverged: {', '.join(diverged)}."
    if texts := sorted(set(runs["forgetting_text"].dropna())):
        yield (
            f"Forgetting is the rise of the loss on {' and '.join(texts)}, in nats per token; ± is the standard error "
            "over paired windows of one run, or the deviation over seeds."
        )


def _how_scored(results: Results, task: str) -> Iterator[str]:
    """Grader, decoding and engine of a task, as far as its records say."""
    row = results.scores[results.scores["task"] == task].iloc[-1]
    result = row["result"]
    settings, missing = result.get("settings", {}), result.get("missing")
    words = [f"{row['n']:,.0f} {'tasks' if 'tasks' in result else 'problems'}"] if pd.notna(row["n"]) else []
    words += [f"from {settings['source']}"] if settings.get("source") else []
    words += [f"grader {result['grader']}"] if result.get("grader") else []
    if "temperature" in settings:
        sampled = f"{settings['n_samples']} samples at temperature {settings['temperature']:g}"
        words.append(sampled if settings["temperature"] else "greedy")
    words += [f"{settings['engine']} {settings['engine_version']}"] if settings.get("engine") else []
    words += [settings["dtype"]] if settings.get("dtype") else []
    words += [f"**without {', '.join(missing)}**, which the mirror does not have"] if missing else []
    words += [f"**not all alike** ({unlike})"] if (unlike := made_unlike(results, task, base=True)) else []
    if words:
        yield f"{task}: {', '.join(words)}."


def _best_arms(results: Results, task: str) -> Iterator[str]:
    """Which arm is best on a task, and which can't be told from it."""
    rows = results.at_best(task)
    metric, scores = rows["metric"].iloc[0] if len(rows) else "", rows.groupby("arm", sort=False)["score"]
    if len(scores) < 2:
        return
    best, verdicts = standing(results, task)
    if not best:
        yield f"{_heading(task, metric)}: all {len(scores)} arms are at {_shown(scores.mean().iloc[0], metric)}."
        return
    alike = [arm for arm, same in verdicts.items() if same and arm != best]
    line = f"{_heading(task, metric)}: best is {best} ({_shown(scores.mean()[best], metric)})"
    line += f"; can't be told from it: {', '.join(alike)}" if alike else ""
    line += "; every other arm is significantly worse" if verdicts and not alike else ""
    seeds = int(scores.count().min())
    smallest = smallest_difference(list(scores.std().dropna()), seeds)
    line += f"; {seeds} seeds could have shown a difference of {_shown(smallest, metric)}" if smallest else ""
    line += "; with one seed the test is over problems alone" if verdicts and scores.count().max() == 1 else ""
    missing = "; no test was made: there are no single answers to equal problems to average."
    yield line + ("." if verdicts else missing)


def _shown(value: float, metric: str) -> str:
    if SHARES.fullmatch(metric):
        return f"{100 * value:.1f}"
    return {"loss": f"{value:.4f}", "rise": f"{value:+.4f}"}.get(metric, f"{value:.4g}")


def _heading(task: str, metric: str) -> str:
    name = task if metric in ("accuracy", "rise") or task in LOSS.values() else f"{task} {metric}"
    return f"{name} (%)" if SHARES.fullmatch(metric) else name


def _results_note(results: Results) -> str:
    several, config = any(len(arm.tried) > 1 for arm in results.arms.values()), results.config
    split = "validation accuracy" if config.get("compare.select") == "accuracy" else "validation"
    if config["model.task_type"] == "SEQ_CLS" and not config["data.validation"]:
        split = "the validation split, which is also what is scored, as is usual for GLUE"
    text = f"Each arm at the rate that was best on {split}. " if several else ""
    if several and results.runs["validation_loss"].isna().all():
        text = "Nothing was held out (data.validation), so no rate was chosen: means are over all rates. "
    text += "± is the standard deviation over seeds; [] a 95% interval over problems, of one run."
    if len(results.arms) > 1:
        test = "95%, paired bootstrap over problems and seeds, and Student's t over seeds"
        text += f" Bold: the best. {ALIKE}: not significantly worse ({test})."
    return text


def main_table(results: Results) -> pd.DataFrame:
    """Arms by tasks at each arm's best rate: mean, its interval or deviation, best bold, a mark for what is alike."""
    ranked = results.tasks(ranked=True)
    order = results.at_best(ranked[0]) if ranked else results.scores[:0]
    means = (order["score"] * order["better"]).groupby(order["arm"]).mean()
    counts = results.best[results.best["error"].isna()].groupby("arm")["draw"].nunique()
    rows = {BASE: {"arm": BASE, "rate": ""}}
    for arm in sorted(results.arms, key=lambda arm: -means.get(arm, -float("inf"))):
        rows[arm] = {"arm": arm, "rate": _arm_rate(results.arms[arm]), "seeds": str(counts.get(arm, 0))}
    for task in results.tasks():
        compared = task in ranked and results.at_best(task)["arm"].nunique() > 1
        best, verdicts = standing(results, task) if compared else ("", {})
        for arm, group in [(BASE, results.of_base(task)), *results.at_best(task).groupby("arm", sort=False)]:
            if len(group):
                cell, heading = _cell(group), _heading(task, group["metric"].iloc[0])
                mark = f" {ALIKE}" if verdicts.get(str(arm)) else ""
                rows[str(arm)][heading] = f"**{cell}**" if arm == best else cell + mark
    table = pd.DataFrame([row for row in rows.values() if len(row) > 2]).fillna("")
    return table[[*(name for name in table if name != "seeds" and table[name].any()), "seeds"]]


def _arm_rate(arm: Arm) -> str:
    rate = "all" if arm.rate is None and len(arm.tried) > 1 else rate_text(arm.rate)
    return rate + (" (edge)" if arm.edge not in ("", "one") else "")


def _cell(rows: pd.DataFrame) -> str:
    first, values = rows.iloc[0], rows["score"]
    metric, text = first["metric"], _shown(values.mean(), first["metric"])
    spread = values.std() if len(rows) > 1 else first["error"]
    if pd.notna(spread):
        return f"{text} ± {_shown(spread, metric).lstrip('+')}"
    if pd.notna(first["low"]):
        text += f" [{_shown(first['low'], metric)}, {_shown(first['high'], metric)}]"
    return text


def ladder_table(results: Results) -> pd.DataFrame:
    """What was tried, per arm; empty where no arm tried two rates."""
    tuned = any(len(arm.tried) > 1 for arm in results.arms.values())
    rows = [
        {
            "arm": arm.name, "rungs": str(len(arm.tried)), "tried": ", ".join(map(rate_text, arm.tried)),
            "best": rate_text(arm.rate),
            "tied with it": ", ".join(rate_text(rate) for rate in arm.tied if rate != arm.rate),
            "inside the ladder": ("yes" if arm.rate else "-") if not arm.edge else f"no: {arm.edge}",
            "diverged": ", ".join(map(rate_text, arm.diverged)),
        }
        for arm in (results.arms.values() if tuned else ())
    ]  # fmt: skip
    return pd.DataFrame(rows)


def details_table(results: Results, task: str) -> pd.DataFrame:
    """Other readings of a task: lenient, maj@k, pass@k, other graders, by level, cut and unreadable answers."""
    rows = pd.concat([results.of_base(task), results.at_best(task)])
    shares = pd.DataFrame([readings(result) for result in rows["result"]], index=rows["arm"])
    columns: Columns = {name: (READINGS.get(name, name), 0.01, "{:.1f}".format) for name in shares}
    return _texts(shares, columns) if columns else pd.DataFrame()


def _texts(figures: pd.DataFrame, columns: Columns) -> pd.DataFrame:
    """The mean per arm, which is the index, of the columns that have a figure, as texts."""
    means = figures.astype(float).groupby("arm", sort=False).mean().dropna(axis="columns", how="all")
    table = pd.DataFrame(index=means.index)
    for name, (heading, unit, form) in columns.items():
        if name in means:
            table[heading] = (means[name] / unit).map(form, na_action="ignore")
    return table.fillna("").reset_index()


def measures_table(results: Results) -> pd.DataFrame:
    """|dW|/|W| and what else was measured of the trained weights, per arm."""
    measured = results.best.set_index("arm")[list(MEASURES)]
    return pd.DataFrame() if measured["update_norm"].isna().all() else _texts(measured, MEASURES)


def cost_table(results: Results) -> pd.DataFrame:
    """Seconds of every stage, memory and size, per arm."""
    costs = stage_costs(results)
    if costs.empty:
        return costs
    seconds = costs.pivot_table(index="arm", columns="stage", values="seconds", sort=False)
    sizes = results.runs.set_index("arm")[["trainable_parameters", "served_rank", "adapter_bytes"]].astype(float)
    figures = seconds.join(costs.groupby("arm").max(numeric_only=True)).join(sizes.groupby("arm").mean())
    stages: Columns = {name: (f"{name} (s)", 1, "{:,.0f}".format) for name in seconds}
    return _texts(figures, stages | SIZES)


def summary(results: Results) -> dict[str, Any]:
    """Every task's figures before and after, what the arms' tuning found, costs, and where the adapters lie."""
    ended = results.best[results.best["error"].isna()]
    tasks: dict[str, Any] = {}
    for row in results.scores.itertuples():
        if row.result.get("task") and (row.arm == BASE or row.run in set(ended["run"])):
            figures = {name: _plain(getattr(row, name)) for name in ("score", "low", "high", "n")}
            figures |= {name: row.result.get(name) for name in ("lenient", "lenient_interval", "length_stops")}
            tasks.setdefault(row.task, {}).setdefault(row.arm, []).append(figures)
    arms, costs = {}, stage_costs(results)
    kept = ["validation_loss", "reporting_loss", "forgetting", "update_norm", "trainable_parameters"]
    for name, arm in results.arms.items():
        own = ended[ended["arm"] == name]
        means = {key: _plain(value) for key, value in own[kept].astype(float).mean().items()}
        texts = sorted(set(own["forgetting_text"].dropna()))
        means |= {"forgetting": None} if len(texts) > 1 else {}  # no mean over two texts
        arms[name] = {
            "rate": arm.rate, "tried": list(arm.tried), "edge": arm.edge, "seeds": list(arm.seeds),
            "diverged": len(arm.diverged),
            "loras": [str(lora) for folder in own["folder"] if (lora := folder / "lora").is_dir()],
            **means, "forgetting_text": " and ".join(texts) or None,
        }  # fmt: skip
    return {
        "model": results.config["model.name"],
        "commit": commit(),
        "axis": results.axis,
        "tasks": tasks,
        "arms": arms,
        "seconds": costs.groupby("stage")["seconds"].sum().to_dict(),
        "peak_memory_bytes": _plain(costs["peak_memory_bytes"].max()) if len(costs) else None,
    }


def _plain(value: Any) -> Any:
    """A cell as JSON holds it."""
    return None if value is None or pd.isna(value) else getattr(value, "item", lambda: value)()


def tidy(results: Results) -> pd.DataFrame:
    """One row per run and task, one value per cell, with all settings of the run and of the task."""
    scores = results.scores[results.scores["result"].map(lambda result: "task" in result).astype(bool)]
    told = pd.json_normalize([{"result": row} for row in scores["result"]]).set_index(scores.index)
    told = told.drop(columns=[name for name in told if told[name].map(lambda cell: isinstance(cell, list)).any()])
    scores = scores.drop(columns=["arm", "folder", "result", "error", "better"]).join(told)
    settings = pd.DataFrame([{**found, "run": run} for run, found in results.settings.items()]).drop(columns="arm")
    settings = settings.map(lambda cell: " ".join(map(str, cell)) if isinstance(cell, list) else cell)
    joined = results.runs.drop(columns="folder").merge(scores, on="run", how="outer")
    joined = joined.merge(settings, on="run", how="left")
    joined["arm"] = joined["arm"].where(joined["run"] != BASE, BASE)
    return joined.assign(commit=commit())
