"""Turn the run folders of an experiment into tables and plots; no figure in them is typed.

Reads `<output_dir>/<run>/` (`config.yaml`, `metrics.json`, `metrics.jsonl`, `eval/*.json`) and `<output_dir>/base/`,
and writes `results.md`, `results.csv`, a self-contained `report.html` and `summary.json` beside them.
"""

import csv
import html
import json
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from eval.plots import Row, embed, save_figures
from utils.cli import main, parse
from utils.errors import UserError
from utils.files import atomic_write, read_json, write_json

USAGE = """
Write results.md, results.csv, report.html and summary.json for all runs of an experiment.

  python -m eval.report --config configs/metamath.yaml
"""
PUBLISHED = Path(__file__).parent / "published.json"
KEYS = ("method", "subspace", "rank", "alpha", "learning_rate")  # runs that share these differ in their seed only
COLUMNS = {
    "label": "method", "rank": "rank", "learning_rate": "learning rate", "seeds": "seeds",
    "accuracy": "accuracy (%)", "interval": "95% interval", "lenient": "last number (%)",
    "lenient_interval": "95% interval", "plus": "evalplus (%)", "validation_loss": "validation loss",
    "forgetting": "forgetting",
    "trainable_parameters": "trainable parameters", "peak_memory_bytes": "peak memory (GiB)",
    "train_seconds": "training (s)",
}  # fmt: skip


def collect(folder: Path) -> list[Row]:
    """Return one row for every run and task in an experiment's folder, and one for every run without a result.

    Raises:
        UserError: no run in the folder.
    """
    rows = []
    for path in sorted(folder.glob("*/config.yaml")):
        rows += _run_rows(path.parent)
    if not rows:
        raise UserError(f"{folder}: no run in this folder")
    base = [
        _row("base", None, {"method": "base", "label": "base model"}, {}, result)
        for result in _results(folder / "base")
    ]
    return base + rows


def _run_rows(run: Path) -> list[Row]:
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    method, train = config["method"], config["train"]
    subspace = method["subspace"] if method["name"] == "astra" else None
    settings = {
        "method": method["name"],
        "subspace": subspace,
        "label": f"{method['name']} ({subspace})" if subspace else method["name"],
        "rank": None if method["name"] == "full" else method["rank"],
        "alpha": method["alpha"] or method["rank"],
        "learning_rate": train["learning_rate"],
        "seed": train["seed"],
    }
    metrics = read_json(run / "metrics.json") if (run / "metrics.json").is_file() else {}
    error = None if metrics else _last_error(run / "log.txt")
    return [_row(run.name, error, settings, metrics, result) for result in _results(run) or [{}]]


def _row(run: str, error: str | None, settings: Row, metrics: Row, result: Row) -> Row:
    return {
        "run": run,
        **{key: settings.get(key) for key in ("label", *KEYS, "seed")},
        **_score(result),
        **{key: result.get(key) for key in ("lenient", "lenient_interval", "plus", "length_stops")},
        **{key: metrics.get(key) for key in ("validation_loss", "trainable_parameters", "peak_memory_bytes")},
        "forgetting": (metrics.get("forgetting") or {}).get("rise"),
        "train_seconds": metrics.get("train_seconds"),
        "error": error,
    }


def _score(result: Row) -> Row:
    """The figure a task is ranked by: accuracy, or what its `metric` names, which has no interval here."""
    scores = {key: result.get(key) for key in ("task", "accuracy", "interval", "n")}
    metric = result.get("metric", "accuracy").replace("_", " ")
    if metric != "accuracy":
        scores |= {"accuracy": result["score"], "interval": None}
    return {**scores, "metric": metric}


def _results(run: Path) -> list[Row]:
    return [read_json(path) for path in sorted((run / "eval").glob("*.json"))]


def _last_error(path: Path) -> str:
    """Return why a run has no result: the last error in its log, or that it is not finished."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    errors = [line.partition("error: ")[2] for line in lines if "error: " in line]
    return errors[-1] if errors else "not finished"


def summarise(rows: Sequence[Row], task: str) -> list[Row]:
    """Return one row for each setting of a task, by method and rank: mean and standard deviation over its seeds."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["task"] == task and row["accuracy"] is not None:
            groups.setdefault(tuple(row[key] for key in ("label", *KEYS)), []).append(row)
    found = [_mean(group) for group in groups.values()]
    return sorted(
        found, key=lambda row: (row["method"] != "base", row["label"], row["rank"] or 0, row["learning_rate"] or 0)
    )


def _mean(group: list[Row]) -> Row:
    row = dict(group[0])
    numeric = ("accuracy", "lenient", "plus", "validation_loss", "forgetting", "peak_memory_bytes", "train_seconds")
    for key in numeric:
        values = [member[key] for member in group if member[key] is not None]
        row[key] = statistics.fmean(values) if values else None
        row[f"{key}_sd"] = statistics.stdev(values) if len(values) > 1 else None
    row["seeds"] = len(group)
    return row


def best_rates(rows: Sequence[Row]) -> list[Row]:
    """Keep each method's and rank's learning rate of lowest mean validation loss; the test set has no say.

    Returns nothing where a method was run at one rate only or a validation loss is missing.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["method"] != "base":
            groups.setdefault((row["label"], row["rank"]), []).append(row)
    if not any(len(group) > 1 for group in groups.values()):
        return []
    if any(row["validation_loss"] is None for group in groups.values() for row in group):
        return []
    return [min(group, key=lambda row: row["validation_loss"]) for group in groups.values()]


def table(rows: Sequence[Row]) -> list[list[str]]:
    """Return a heading and a line of texts for each row; columns without a value are left out."""
    kept = [key for key in COLUMNS if any(_cell(row, key) for row in rows)]
    headings = {**COLUMNS, "accuracy": f"{rows[0]['metric']} (%)"}
    return [[headings[key] for key in kept], *([_cell(row, key) for key in kept] for row in rows)]


def _cell(row: Row, key: str) -> str:
    if key in ("interval", "lenient_interval"):
        interval = row.get(key) if row["seeds"] == 1 else None
        return "{:.1f} to {:.1f}".format(*(100 * bound for bound in interval)) if interval else ""
    value = row.get(key)
    if value is None:
        return ""
    if key in ("accuracy", "lenient", "plus"):
        spread = row.get(f"{key}_sd")
        return f"{100 * value:.1f}" + (f" ± {100 * spread:.1f}" if spread is not None else "")
    if key in ("validation_loss", "forgetting"):
        return f"{value:.3f}"
    if key == "peak_memory_bytes":
        return f"{value / 2**30:.2f}"
    if key in ("trainable_parameters", "train_seconds"):
        return f"{value:,.0f}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def markdown(lines: list[list[str]]) -> str:
    """Return a table in Markdown, its first line the heading."""
    rule = ["---"] * len(lines[0])
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])


def sections(rows: Sequence[Row], model: str) -> list[tuple[str, str, list[list[str]]]]:
    """Return (title, note, table) for every part of the report."""
    parts = []
    for task in dict.fromkeys(row["task"] for row in rows if row["task"]):
        found = summarise(rows, task)
        counts = " or ".join(sorted({str(row["n"]) for row in found}))
        note = f"{counts} problems. Mean ± standard deviation over seeds; the interval (Wilson) is of a single run."
        parts.append((task, note, table(found)))
        best = best_rates(found)
        if best:
            parts.append(
                (f"{task}, each method at its best rate", "The rate was chosen on the validation split.", table(best))
            )
    failed = [[row["run"], row["error"]] for row in rows if row["error"]]
    if failed:
        parts.append(("Runs without a result", "", [["run", "reason"], *failed]))
    if any(row["task"] == "gsm8k" for row in rows):
        parts += [(part["title"], part["note"], part["table"]) for part in read_json(PUBLISHED)]
    if model == "smollm2" and parts:
        title, note, lines = parts[0]
        parts[0] = (title, f"{note} The base weights carry the rounding of a 4-bit file.", lines)
    return parts


def stage_costs(folder: Path) -> list[tuple[str, str, Row]]:
    """Return (run, stage, its seconds and peak memory), the stages shared by all runs first."""
    shared = sorted((folder / "stages").glob("*.json"))
    of_runs = sorted(folder.glob("*/stages/*.json"))
    found = [("", path) for path in shared] + [(path.parts[-3], path) for path in of_runs]
    return [(run, path.stem, read_json(path)) for run, path in found]


def _cost_table(folder: Path) -> list[list[str]]:
    lines = [
        [run or "all runs", stage, f"{cost['seconds']:,.0f}", f"{cost['peak_memory_bytes'] / 2**30:.2f}"]
        for run, stage, cost in stage_costs(folder)
    ]
    return [["run", "stage", "seconds", "peak memory (GiB)"], *lines]


def summary(folder: Path, rows: Sequence[Row]) -> Row:
    """Return the figures of an experiment of one run: accuracy before and after, cost, and where the adapter lies."""
    adapted = next(row for row in rows if row["method"] != "base" and row["accuracy"] is not None)
    base = next((row for row in rows if row["method"] == "base" and row["task"] == adapted["task"]), None)
    run = folder / adapted["run"]
    stages = {
        path.stem: read_json(path) for place in (folder, run) for path in sorted((place / "stages").glob("*.json"))
    }
    names = ("accuracy", "interval", "lenient", "lenient_interval", "length_stops")
    return {
        "task": adapted["task"],
        "n": adapted["n"],
        **({"base": {name: base[name] for name in names}} if base else {}),
        "adapted": {name: adapted[name] for name in names},
        "seconds": {name: stage["seconds"] for name, stage in stages.items()},
        "peak_memory_bytes": max((stage["peak_memory_bytes"] for stage in stages.values()), default=None),
        "trainable_parameters": adapted["trainable_parameters"],
        "forgetting": adapted["forgetting"],
        "lora": str(run / "lora"),
    }


def write_report(folder: Path) -> str:
    """Write all files of the report into an experiment's folder and return the Markdown.

    Raises:
        UserError: no run in the folder.
    """
    rows = collect(folder)
    model = yaml.safe_load(next(folder.glob("*/config.yaml")).read_text(encoding="utf-8"))["model"]["name"]
    parts = [
        *sections(rows, model),
        ("Cost of the stages", "Whole processes, start-up included.", _cost_table(folder)),
    ]
    curves = {path.parent.name: _curve(path) for path in sorted(folder.glob("*/metrics.jsonl"))}
    figures = save_figures(rows, curves, folder)
    for path in sorted(folder.glob("calibration/*/spectrum.png")):
        figures["Spectra of the output activations"] = Path(shutil.copy(path, folder / "spectrum.png"))
    text = f"# {folder.name}: {model}\n\n" + "\n\n".join(_markdown(part) for part in parts) + "\n"
    for name, content in (("results.md", text), ("report.html", page(f"{folder.name}: {model}", parts, figures))):
        with atomic_write(folder / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    with atomic_write(folder / "results.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    if len({row["run"] for row in rows if row["method"] != "base" and row["accuracy"] is not None}) == 1:
        write_json(folder / "summary.json", summary(folder, rows))
    return text


def _markdown(part: tuple[str, str, list[list[str]]]) -> str:
    title, note, lines = part
    return f"## {title}\n\n" + (f"{note}\n\n" if note else "") + markdown(lines)


def _curve(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def page(title: str, parts: Sequence[tuple[str, str, list[list[str]]]], figures: dict[str, Path]) -> str:
    """Return the report as one HTML page that asks for no other file."""
    body = [f"<h1>{html.escape(title)}</h1>"]
    for heading, note, lines in parts:
        cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in line) for line in lines[1:]]
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in lines[0])
        rows = "".join(f"<tr>{line}</tr>" for line in cells)
        body.append(f"<h2>{html.escape(heading)}</h2><p>{html.escape(note)}</p>")
        body.append(f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>")
    for heading, path in figures.items():
        name = html.escape(heading)
        body.append(f'<figure><img alt="{name}" src="{embed(path)}"><figcaption>{name}</figcaption></figure>')
    return PAGE.format(title=html.escape(title), body="\n".join(body))


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse; margin: 1rem 0 }}
th, td {{ padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right }}
th:first-child, td:first-child {{ text-align: left }}
figure {{ display: inline-block; margin: 1rem 1rem 0 0 }}
figure img {{ max-width: 34rem; width: 100% }}
figcaption {{ color: #666; font-size: 13px }}
</style></head>
<body>
{body}
</body></html>
"""


def command() -> None:
    """Write the report of the experiment that a config names, and print it."""
    config, _ = parse(USAGE, {})
    print(write_report(Path(config.output_dir)))


if __name__ == "__main__":
    main(command)
