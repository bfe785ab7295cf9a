"""Turn the run folders of experiments into findings, tables and figures; no number in them is typed.

Reads `<output_dir>/<run>/` (`config.yaml`, `metrics.json`, `metrics.jsonl`, `losses.json`, `eval/*.json`) and
`<output_dir>/base/`, and writes `results.md`, `results.csv`, a self-contained `report.html` and `summary.json`.
"""

from __future__ import annotations

import html
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eval.charts import embed, rate_text, save_figures
from eval.published import published
from eval.results import (
    BASE,
    Results,
    Tuned,
    at_best,
    collect,
    correct,
    difference,
    record_losses,
    smallest_difference,
    stage_costs,
    tune,
)  # fmt: skip
from utils.cli import main, parse
from utils.files import atomic_write, write_json
from utils.runs import commit

USAGE = """
Write results.md, results.csv, report.html and summary.json for all runs of an experiment, or of several side by side.

  python -m eval.report outputs/metamath
  python -m eval.report outputs/a outputs/b            into outputs/a+b
  python -m eval.report --config configs/metamath.yaml [overrides]
"""
LOSS = "reporting loss"  # on records that neither trained nor selected; validation loss where none were held out
ALIKE = "†"  # not significantly worse than the best


@dataclass
class Part:
    """One section of the report: a table, or words alone."""

    title: str
    note: str
    table: pd.DataFrame | None = None


def write_report(folders: Path | Sequence[Path], target: Path | None = None) -> str:
    """Write all files of the report and return the Markdown.

    Args:
        folders: an experiment's folder, or several.
        target: where the files go; default: the experiment's folder, or `a+b` beside the first of several.

    Raises:
        UserError: no run in a folder.
    """
    folders = [folders] if isinstance(folders, Path) else list(folders)
    results = collect(folders)
    tuned = tune(results)
    target = target or (folders[0] if len(folders) == 1 else folders[0].parent / "+".join(f.name for f in folders))
    target.mkdir(parents=True, exist_ok=True)
    parts = [*sections(results, tuned)]
    figures = save_figures(results, tuned, target)
    for folder in folders:
        for path in sorted(folder.glob("calibration/*/spectrum.png")):
            figures["Spectra of the output activations"] = Path(shutil.copy(path, target / "spectrum.png"))
    title = f"{target.name}: {results.config['model.name']}"
    text = "\n\n".join([f"# {title}", *map(_markdown, parts)]) + "\n"
    for name, content in (("results.md", text), ("report.html", page(title, parts, figures))):
        with atomic_write(target / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    with atomic_write(target / "results.csv") as temporary:
        tidy(results).to_csv(temporary, index=False)
    write_json(target / "summary.json", summary(results, tuned))
    return text


def sections(results: Results, tuned: dict[str, Tuned]) -> Iterator[Part]:
    """The parts of the report, findings first."""
    yield Part("Findings", "\n".join(f"- {line}" for line in findings(results, tuned)))
    yield Part("Results", _results_note(results, tuned), main_table(results, tuned))
    if any(len(arm.tried) > 1 for arm in tuned.values()):
        yield Part("How each arm was tuned", f"The rate is {_words(results.axis)}.", tuning_table(tuned))
    for task in results.scores["task"].unique():
        details = task_details(results, tuned, task)
        if not details.empty:
            yield Part(f"{task}, in detail", "", details)
    measured = measures_table(results, tuned)
    if measured.shape[1] > 1:
        yield Part("What training did to the weights", "At each arm's best rate, mean over seeds.", measured)
    costs = cost_table(results)
    if not costs.empty:
        yield Part("Costs", "Whole processes, start-up included; mean over runs.", costs)
    failed = results.runs[results.runs["error"].notna()]
    if not failed.empty:
        yield Part("Runs without a result", "", failed[["run", "error"]].rename(columns={"error": "reason"}))
    for heading, note, table in published(results.config):
        yield Part(heading, note, table)


def findings(results: Results, tuned: dict[str, Tuned]) -> Iterator[str]:
    """What was run and what it shows, a sentence each."""
    config, runs = results.config, results.runs
    done = runs[runs["error"].isna()]
    yield (
        f"{len(done)} of {len(runs)} runs of {len(tuned)} arm{'s'[: len(tuned) != 1]} ended, "
        f"on {config['model.name']} ({config['model.dtype']}), trained on {config['data.train']}; "
        f"commit {commit() or 'unknown'}, {date.today().isoformat()}."
    )
    if config["model.name"] == "smollm2":
        yield "The base weights carry the rounding of a 4-bit file, and the model is small."
    for task in results.scores["task"].unique():
        if line := _setting(results, task):
            yield line
    for name in _columns(results):
        yield from _best_line(results, tuned, name)
    edges = [
        f"{arm.arm} ({arm.edge} of {len(arm.tried)})" for arm in tuned.values() if arm.edge in ("lowest", "highest")
    ]
    if edges:
        yield f"**Not tuned**, as the best rate is an end of the ladder: {', '.join(edges)}."
    diverged = {arm.arm: arm.diverged for arm in tuned.values() if arm.diverged}
    if diverged:
        yield (
            "Diverged: "
            + ", ".join(f"{arm} {count} of {len(runs[runs['arm'] == arm])} runs" for arm, count in diverged.items())
            + "."
        )
    texts = sorted(set(runs["forgetting_text"].dropna()))
    if texts:
        yield (
            f"Forgetting is the rise of the loss on {' and '.join(texts)}, in nats per token; ± is the standard error "
            "over paired windows of one run, or the deviation over seeds."
        )


def _setting(results: Results, task: str) -> str:
    """How a task was scored, in one line; what its records do not say is left out."""
    rows = results.scores[results.scores["task"] == task]
    first = rows.iloc[0]
    settings = first.get("settings") if isinstance(first.get("settings"), dict) else {}
    words = [f"{int(first['n']):,} problems" if pd.notna(first.get("n")) else ""]
    words += [f"grader {first['grader']}"] if isinstance(first.get("grader"), str) else []
    if "temperature" in settings:
        sampled = f"{settings['n_samples']} samples at temperature {settings['temperature']:g}"
        words.append(sampled if settings["temperature"] else "greedy")
    words += [f"{settings['engine']} {settings.get('engine_version') or ''}".strip()] if settings.get("engine") else []
    words += [settings["dtype"]] if settings.get("dtype") else []
    if isinstance(first.get("missing"), list) and first["missing"]:
        words.append(f"**without {', '.join(first['missing'])}**, which the mirror does not have")
    return f"{task}: {', '.join(word for word in words if word)}."


def _best_line(results: Results, tuned: dict[str, Tuned], name: str) -> Iterator[str]:
    """Which arm is best on a column, and which can't be told from it."""
    scores = _arm_scores(results, tuned, name)
    if len(scores) < 2:
        return
    best, verdicts = _compare(results, tuned, name)
    alike = [arm for arm, alike in verdicts.items() if alike and arm != best]
    line = f"{name}: best is {best} ({_shown(name, scores[best])})"
    line += f"; can't be told from it: {', '.join(alike)}" if alike else "; every other arm is significantly worse"
    spreads = [values.std(ddof=1) for values in _seed_scores(results, tuned, name).values() if len(values) > 1]
    seeds = min(len(values) for values in _seed_scores(results, tuned, name).values())
    smallest = smallest_difference(spreads, seeds)
    if smallest is not None:
        line += f"; {seeds} seeds could have shown a difference of {_shown(name, smallest)}"
    yield line + ("." if verdicts else "; one run per arm, and no record of its single answers: no test was made.")


def _columns(results: Results) -> list[str]:
    """What arms are ranked by: the tasks, then the loss."""
    tasks = [task for task in results.scores["task"].unique() if _metric(results, task) != "loss"]
    return [*tasks, *([LOSS] if results.runs[_loss_key(results)].notna().any() else [])]


def _metric(results: Results, task: str) -> str:
    return str(results.scores.loc[results.scores["task"] == task, "metric"].iloc[0])


def _loss_key(results: Results) -> str:
    return "reporting_loss" if results.runs["reporting_loss"].notna().any() else "validation_loss"


def _seed_scores(results: Results, tuned: dict[str, Tuned], name: str) -> dict[str, np.ndarray]:
    """Arm -> its score with each seed at its best rate."""
    best = at_best(results, tuned)
    if name == LOSS:
        values = best[["arm", _loss_key(results)]].dropna()
        return {arm: group.to_numpy(float) for arm, group in values.groupby("arm", sort=False)[_loss_key(results)]}
    rows = results.scores[(results.scores["task"] == name) & results.scores["run"].isin(best["run"])]
    return {arm: group.dropna().to_numpy(float) for arm, group in rows.groupby("arm", sort=False)["score"]}


def _arm_scores(results: Results, tuned: dict[str, Tuned], name: str) -> dict[str, float]:
    return {arm: float(values.mean()) for arm, values in _seed_scores(results, tuned, name).items() if len(values)}


def _compare(results: Results, tuned: dict[str, Tuned], name: str) -> tuple[str, dict[str, bool]]:
    """The best arm, and of each whether it can't be told from it; no verdicts where single answers are missing."""
    scores = _arm_scores(results, tuned, name)
    best = min(scores, key=lambda arm: scores[arm] if name == LOSS else -scores[arm])
    kept = {arm: _answers(results, tuned, name, arm) for arm in scores}
    if any(answers is None or answers.shape[1:] != kept[best].shape[1:] for answers in kept.values()):  # type: ignore[union-attr]
        return best, {}
    verdicts = {}
    for arm, answers in kept.items():
        _, low, high = difference(kept[best], answers)  # type: ignore[arg-type]
        verdicts[arm] = low <= 0 <= high
    return best, verdicts


def _answers(results: Results, tuned: dict[str, Tuned], name: str, arm: str) -> np.ndarray | None:
    """(seeds, problems or records) of an arm at its best rate."""
    runs = at_best(results, tuned)
    folders = runs.loc[(runs["arm"] == arm) & runs["error"].isna(), "folder"]
    split = "reporting" if _loss_key(results) == "reporting_loss" else "validation"
    found = [record_losses(folder, split) if name == LOSS else correct(folder, name) for folder in folders]
    if not found or not len(found[0]) or len({len(values) for values in found}) != 1:
        return None
    return np.stack(found)


def main_table(results: Results, tuned: dict[str, Tuned]) -> pd.DataFrame:
    """Arms by tasks at each arm's best rate: mean, its interval or deviation, best bold, a mark for what is alike."""
    names = [*results.scores["task"].unique(), *([LOSS] if LOSS in _columns(results) else [])]
    verdicts = {
        name: _compare(results, tuned, name) for name in _columns(results) if _arm_scores(results, tuned, name)
    }
    rows = []
    if (results.scores["arm"] == BASE).any():
        rows.append({"arm": BASE, **{name: _base_cell(results, name) for name in names}})
    for arm, choice in tuned.items():
        cells = {name: _cell(results, tuned, name, arm, verdicts.get(name)) for name in names}
        runs = at_best(results, tuned)
        runs = runs[runs["arm"] == arm]
        rate = "all" if choice.rate is None and len(choice.tried) > 1 else _rate(choice.rate)
        row = {"arm": arm, "rate": rate + (" (edge)" if choice.edge in ("lowest", "highest") else ""), **cells}
        row |= {
            heading: _forgetting(runs[runs["forgetting_text"] == text]) for heading, text in _texts(results).items()
        }
        row["seeds"] = str(runs["seed"].nunique())
        rows.append(row)
    table = pd.DataFrame(rows)
    order = ["arm", "rate", *names, *_texts(results), "seeds"]
    table = table[[name for name in order if name in table and table[name].fillna("").astype(bool).any()]].fillna("")
    first = next(iter(names), None)
    means = _arm_scores(results, tuned, first) if first in _columns(results) else {}
    sign = 1 if first == LOSS else -1
    rank = [(row != BASE, sign * means.get(row, -sign * np.inf)) for row in table["arm"]]
    return table.iloc[sorted(range(len(table)), key=lambda at: rank[at])].reset_index(drop=True)


def _base_cell(results: Results, name: str) -> str:
    rows = results.scores[(results.scores["arm"] == BASE) & (results.scores["task"] == name)]
    return "" if rows.empty else _with_interval(name, rows.iloc[0])


def _with_interval(name: str, row: Any) -> str:
    shown = _shown(name, row["score"], row["metric"])
    return shown + (f" [{100 * row['low']:.1f}, {100 * row['high']:.1f}]" if pd.notna(row["low"]) else "")


def _cell(
    results: Results, tuned: dict[str, Tuned], name: str, arm: str, verdict: tuple[str, dict[str, bool]] | None
) -> str:
    values = _seed_scores(results, tuned, name).get(arm, np.empty(0))
    if not len(values):
        return "diverged" if tuned[arm].diverged and tuned[arm].rate is None else ""
    metric = "loss" if name == LOSS else _metric(results, name)
    if len(values) > 1:
        text = f"{_shown(name, values.mean(), metric)} ± {_shown(name, values.std(ddof=1), metric)}"
    elif name == LOSS:
        text = _shown(name, values[0], metric)
    else:
        best = at_best(results, tuned)
        rows = results.scores
        rows = rows[(rows["task"] == name) & (rows["arm"] == arm) & rows["run"].isin(best["run"])]
        text = _with_interval(name, rows.iloc[0])
    if verdict is None or len(_arm_scores(results, tuned, name)) < 2:
        return text
    best_arm, alike = verdict
    return f"**{text}**" if arm == best_arm else text + (f" {ALIKE}" if alike.get(arm) else "")


def _shown(name: str, value: float, metric: str = "") -> str:
    if name == LOSS or metric == "loss":
        return f"{value:.4f}"
    return f"{100 * value:.1f}"


def _texts(results: Results) -> dict[str, str]:
    """Heading -> general text: rises on two texts never share a column, nor one with the losses of a task."""
    texts = sorted(set(results.runs["forgetting_text"].dropna()))
    return {"forgetting (rise)" if len(texts) == 1 else f"forgetting (rise on {text})": text for text in texts}


def _forgetting(runs: pd.DataFrame) -> str:
    values = runs["forgetting"].dropna()
    if values.empty:
        return ""
    if len(values) > 1:
        return f"{values.mean():+.4f} ± {values.std(ddof=1):.4f}"
    error = runs["forgetting_error"].dropna()
    return f"{values.iloc[0]:+.4f}" + (f" ± {error.iloc[0]:.4f}" if len(error) else "")


def _rate(value: float | None) -> str:
    return "" if value is None or pd.isna(value) else rate_text(value)


def _words(key: str) -> str:
    return {
        "train.relative_step": "the relative step, |dW| of the first step over |W|",
        "train.learning_rate": "the learning rate",
    }[key]


def _results_note(results: Results, tuned: dict[str, Tuned]) -> str:
    validated = results.runs["validation_loss"].notna().any()
    several = any(len(arm.tried) > 1 for arm in tuned.values())
    glue = results.config["model.task_type"] == "SEQ_CLS" and not results.config["data.validation"]
    lines = []
    if several and validated:
        split = "the validation split, which is also what is scored, as is usual for GLUE" if glue else "validation"
        lines.append(f"Each arm at the rate that was best on {split}.")
    elif several:
        lines.append("Nothing was held out (data.validation), so no rate was chosen: means are over all rates.")
    lines.append("± is the standard deviation over seeds; [] a 95% interval over problems, of one run.")
    if len(tuned) > 1:
        lines.append(
            f"Bold: the best. {ALIKE}: not significantly worse (95%, paired bootstrap over problems and seeds)."
        )
    return " ".join(lines)


def tuning_table(tuned: dict[str, Tuned]) -> pd.DataFrame:
    """What was tried, per arm."""
    return pd.DataFrame(
        [
            {
                "arm": arm.arm, "rungs": str(len(arm.tried)), "tried": ", ".join(map(_rate, arm.tried)),
                "best": _rate(arm.rate), "tied with it": ", ".join(_rate(r) for r in arm.tied if r != arm.rate),
                "inside the ladder": {"": "yes" if arm.rate else "-"}.get(arm.edge, f"no: {arm.edge}"),
                "diverged": str(arm.diverged or ""),
            }
            for arm in tuned.values()
        ]
    )  # fmt: skip


def task_details(results: Results, tuned: dict[str, Tuned], task: str) -> pd.DataFrame:
    """Other readings of a task: lenient, maj@k, pass@k, by level, cut and unreadable answers, its missing parts."""
    best = set(at_best(results, tuned)["run"])
    rows = results.scores[results.scores["task"] == task]
    rows = rows[rows["run"].isin(best) | (rows["arm"] == BASE)]
    found = []
    for arm, group in rows.groupby("arm", sort=False):
        line: dict[str, Any] = {"arm": arm}
        for _, row in group.iterrows():
            for key, value in _readings(row.to_dict()):
                line.setdefault(key, []).append(value)
        found.append(
            {key: f"{np.mean(value):.1f}" if isinstance(value, list) else value for key, value in line.items()}
        )
    table = pd.DataFrame(found).fillna("")
    return table if table.shape[1] > 1 else pd.DataFrame()


def _readings(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Every other share of a result, in percent."""
    for key in ("lenient", "acc_norm"):
        if isinstance(row.get(key), float) and not np.isnan(row[key]):
            yield {"lenient": "last number"}.get(key, key), 100 * row[key]
    for key in ("pass_at_k", "maj_at_k"):
        for k, value in (row[key] if isinstance(row.get(key), dict) else {}).items():
            yield f"{key.partition('_')[0]}@{k}", 100 * value["score"]
    graders = row["graders"] if isinstance(row.get("graders"), dict) else {}
    for grader, value in graders.items() if len(graders) > 1 else ():
        yield f"grader {grader}", 100 * value["accuracy"]
    for key, groups in (row["by"] if isinstance(row.get("by"), dict) else {}).items():
        if key == "level" or len(groups) <= 8:
            for group, value in groups.items():
                yield str(group), 100 * value["accuracy"]
    for key, word in (("length_share", "cut at the limit"), ("unparsable_share", "unreadable")):
        if isinstance(row.get(key), float) and not np.isnan(row[key]):
            yield word, 100 * row[key]


def measures_table(results: Results, tuned: dict[str, Tuned]) -> pd.DataFrame:
    """|dW|/|W| and what else was measured of the trained weights, per arm."""
    columns = {
        "update_norm": "|dW|/|W|", "output_change": "change of outputs", "inside_span": "share inside span(Q)",
        "relative_step": "first step", "learning_rate": "learning rate",
    }  # fmt: skip
    best = at_best(results, tuned)
    kept = [key for key in columns if best[key].notna().any()]
    if "update_norm" not in kept:
        return pd.DataFrame({"arm": []})
    means = best.groupby("arm", sort=False)[kept].mean()
    shown = means.map(lambda value: "" if pd.isna(value) else f"{value:.3g}").rename(columns=columns)
    return shown.reset_index()


def cost_table(results: Results) -> pd.DataFrame:
    """Seconds of every stage, memory and size, per arm."""
    costs = stage_costs(results)
    if costs.empty:
        return costs
    table = costs.pivot_table(index="arm", columns="stage", values="seconds", aggfunc="mean", sort=False)
    table = table.map(lambda value: "" if pd.isna(value) else f"{value:,.0f}")
    table.columns = [f"{stage} (s)" for stage in table.columns]
    for key, name in (("peak_memory_bytes", "peak memory (GiB)"), ("peak_gpu_memory_bytes", "peak GPU memory (GiB)")):
        if key in costs and costs[key].notna().any():
            table[name] = costs.groupby("arm")[key].max().map(lambda size: f"{size / 2**30:.2f}")
    runs = results.runs.groupby("arm")
    for key, name, form in (
        ("trainable_parameters", "trainable", "{:,.0f}"), ("served_rank", "served rank", "{:.0f}"),
        ("adapter_bytes", "adapter (MB)", "{:.1f}"),
    ):  # fmt: skip
        means = runs[key].mean().dropna() / (1e6 if key == "adapter_bytes" else 1)
        if len(means):
            table[name] = means.map(form.format)
    return table.fillna("").reset_index()


def summary(results: Results, tuned: dict[str, Tuned]) -> dict[str, Any]:
    """Every task's figures before and after, what the arms' tuning found, costs, and where the adapters lie."""
    best = at_best(results, tuned)
    best = best[best["error"].isna()]
    names = ("score", "low", "high", "n", "lenient", "lenient_interval", "length_stops")
    tasks: dict[str, Any] = {}
    for _, row in results.scores.iterrows():
        if row["arm"] == BASE or row["run"] in set(best["run"]):
            place = tasks.setdefault(row["task"], {}).setdefault(row["arm"], [])
            place.append({name: _plain(row.get(name)) for name in names})
    costs = stage_costs(results)
    arms = {}
    for arm, choice in tuned.items():
        own = best[best["arm"] == arm]
        arms[arm] = {
            "rate": choice.rate, "tried": list(choice.tried), "edge": choice.edge, "seeds": list(choice.seeds),
            "diverged": choice.diverged, "loras": [str(folder / "lora") for folder in own["folder"]],
            **{key: _plain(own[key].mean()) if own[key].notna().any() else None
               for key in ("validation_loss", "reporting_loss", "forgetting", "update_norm", "trainable_parameters")},
        }  # fmt: skip
        arms[arm]["forgetting_text"] = " and ".join(sorted(set(own["forgetting_text"].dropna()))) or None
        if own["forgetting_text"].nunique() > 1:
            arms[arm]["forgetting"] = None  # no mean over two texts
    return {
        "model": results.config["model.name"],
        "commit": commit(),
        "axis": results.axis,
        "tasks": tasks,
        "arms": arms,
        "seconds": {stage: _plain(seconds) for stage, seconds in costs.groupby("stage")["seconds"].sum().items()},
        "peak_memory_bytes": _plain(costs["peak_memory_bytes"].max()) if len(costs) else None,
    }


def _plain(value: Any) -> Any:
    """A value as JSON holds it."""
    if isinstance(value, list | tuple):
        return list(value)
    if value is None or pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value


def tidy(results: Results) -> pd.DataFrame:
    """One row per run and task, one value per cell, with the settings that differ between runs."""
    runs = results.runs.drop(columns=["folder"])
    rows = results.scores.drop(columns=["folder"])
    rows = rows[[name for name in rows if not rows[name].map(lambda cell: isinstance(cell, dict | list)).any()]]
    joined = runs.merge(rows.drop(columns=["arm"]), on="run", how="outer")
    joined.loc[joined["run"] == BASE, "arm"] = BASE
    shared = {key: value for key, value in results.config.items() if key.split(".")[0] in ("model", "data", "eval")}
    settings = {key: value for key, value in shared.items() if not isinstance(value, list | dict)}
    return joined.assign(commit=commit(), **settings)


def _markdown(part: Part) -> str:
    lines = [f"## {part.title}", *([part.note] if part.note else [])]
    if part.table is not None:
        head, rule = list(part.table.columns), ["---"] * part.table.shape[1]
        rows = [head, rule, *part.table.astype(str).values.tolist()]
        lines.append("\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows))
    return "\n\n".join(lines)


def page(title: str, parts: Sequence[Part], figures: dict[str, Path]) -> str:
    """The report as one HTML page that asks for no other file; figures stand after the results."""
    drawn = [
        f'<figure><img alt="{html.escape(name)}" src="{embed(path)}"><figcaption>{html.escape(name)}</figcaption>'
        "</figure>"
        for name, path in figures.items()
    ]
    body = [f"<h1>{html.escape(title)}</h1>", *map(_section, parts[:2]), *drawn, *map(_section, parts[2:])]
    return PAGE.format(title=html.escape(title), body="\n".join(body))


def _section(part: Part) -> str:
    text = f"<h2>{html.escape(part.title)}</h2>"
    if part.note.startswith("- "):
        items = (f"<li>{_bold(line.removeprefix('- '))}</li>" for line in part.note.splitlines())
        text += f"<ul>{''.join(items)}</ul>"
    elif part.note:
        text += f"<p>{_bold(part.note)}</p>"
    if part.table is not None:
        head = "".join(f"<th>{html.escape(str(cell))}</th>" for cell in part.table.columns)
        lines = (
            "<tr>" + "".join(f"<td>{_bold(str(cell))}</td>" for cell in row) + "</tr>"
            for row in part.table.values.tolist()
        )
        text += f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return text


def _bold(text: str) -> str:
    """Escaped text, with what stands between ** in bold."""
    pieces = html.escape(text).split("**")
    return "".join(f"<b>{piece}</b>" if at % 2 else piece for at, piece in enumerate(pieces))


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }}
th, td {{ padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }}
th:first-child, td:first-child {{ text-align: left }}
figure {{ display: inline-block; margin: 1rem 1rem 0 0; vertical-align: top }}
figure img {{ max-width: 36rem; width: 100% }}
figcaption {{ color: #666; font-size: 13px }}
</style></head>
<body>
{body}
</body></html>
"""


def command() -> None:
    """Write the report of experiments' folders, or of the one that a config names, and print it."""
    words = sys.argv[1:]
    if words and not any(word.startswith("-") for word in words):
        print(write_report([Path(word.rstrip("/")) for word in words]))
    else:
        print(write_report(Path(parse(USAGE, {})[0].output_dir)))


if __name__ == "__main__":
    main(command)
