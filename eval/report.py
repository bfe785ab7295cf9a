"""Turn the run folders of an experiment into tables and plots; no figure in them is typed.

Reads `<output_dir>/<run>/` (`config.yaml`, `metrics.json`, `metrics.jsonl`, `eval/*.json`) and `<output_dir>/base/`,
and writes `results.md`, `results.csv`, a self-contained `report.html` and `summary.json` beside them.
"""

import csv
import html
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from eval.results import Row, at_best_rates, best_rates, collect, stage_costs, summarise
from utils.cli import main, parse
from utils.files import atomic_write, read_json, write_json
from utils.plots import embed, save_figures

USAGE = """
Write results.md, results.csv, report.html and summary.json for all runs of an experiment.

  python -m eval.report outputs/metamath
  python -m eval.report --config configs/metamath.yaml [overrides]
"""
Part = tuple[str, str, list[list[str]]]  # title, note, table with its heading
PUBLISHED = Path(__file__).parent / "published.json"
COLUMNS = {
    "label": "method", "rank": "rank", "alpha": "alpha", "learning_rate": "learning rate", "seeds": "seeds",
    "loss": "loss (nats a token)",
    "accuracy": "accuracy (%)", "interval": "95% interval", "lenient": "last number (%)",
    "lenient_interval": "95% interval", "plus": "evalplus (%)", "validation_loss": "validation loss",
    "forgetting": "forgetting",
    "trainable_parameters": "trainable parameters", "peak_memory_bytes": "peak memory (GiB)",
    "train_seconds": "training (s)",
}  # fmt: skip


def table(rows: Sequence[Row]) -> list[list[str]]:
    """Return a heading and a line of texts for each row; columns without a value are left out."""
    headings = {**COLUMNS, "accuracy": f"{rows[0]['metric']} (%)"}
    at = list(headings).index("seeds")
    keys = [*list(headings)[:at], *(key for key in rows[0] if "." in key), *list(headings)[at:]]
    kept = [key for key in keys if any(_cell(row, key) for row in rows)]
    return [[headings.get(key, key) for key in kept], *([_cell(row, key) for key in kept] for row in rows)]


def _cell(row: Row, key: str) -> str:
    if key in ("interval", "lenient_interval"):
        interval = row.get(key) if row["seeds"] == 1 else None
        return "{:.1f} to {:.1f}".format(*(100 * bound for bound in interval)) if interval else ""
    value = row.get(key)
    if value is None or (key == "alpha" and value == row["rank"]):
        return ""
    if key in ("accuracy", "lenient", "plus"):
        spread = row.get(f"{key}_sd")
        return f"{100 * value:.1f}" + (f" ± {100 * spread:.1f}" if spread is not None else "")
    if key in ("loss", "validation_loss", "forgetting"):
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


def sections(rows: Sequence[Row], scored_on_validation: bool) -> list[Part]:
    """Return the tables of each task, and of the runs that have no result."""
    parts: list[Part] = []
    chosen = "The rate was chosen on the validation split" + (
        ", which is also what is scored, as is usual for GLUE." if scored_on_validation else "."
    )
    for task in dict.fromkeys(row["task"] for row in rows if row["task"]):
        found = summarise(rows, task)
        counts = " or ".join(sorted({str(row["n"]) for row in found if row["n"]}))
        note = f"{counts} problems. Mean ± standard deviation over seeds; the interval (Wilson) is of a single run."
        parts.append((task, note if counts else "", table(found)))
        best = best_rates(found)
        if best:
            parts.append((f"{task}, each method at its best rate", chosen, table(best)))
    failed = [[row["run"], row["error"]] for row in rows if row["error"]]
    if failed:
        parts.append(("Runs without a result", "", [["run", "reason"], *failed]))
    return parts


def published(rows: Sequence[Row]) -> list[Part]:
    """Return what others have published on a task of the report."""
    parts = read_json(PUBLISHED) if any(row["task"] == "gsm8k" for row in rows) else []
    return [(part["title"], part["note"], part["table"]) for part in parts]


def _cost_table(folder: Path) -> list[list[str]]:
    costs = stage_costs(folder)
    peaks = {"peak_memory_bytes": "peak main memory (GiB)", "peak_gpu_memory_bytes": "peak GPU memory (GiB)"}
    kept = [key for key in peaks if any(key in cost for _, _, cost in costs)]
    lines = [
        [run or "all runs", stage, f"{cost['seconds']:,.0f}", *(_gibibytes(cost.get(key)) for key in kept)]
        for run, stage, cost in costs
    ]
    return [["run", "stage", "seconds", *(peaks[key] for key in kept)], *lines]


def _gibibytes(size: int | None) -> str:
    return f"{size / 2**30:.2f}" if size else ""


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
    config = yaml.safe_load(next(folder.glob("*/config.yaml")).read_text(encoding="utf-8"))
    title, model = f"{folder.name}: {config['model']['name']}", config["model"]["name"]
    on_validation = config["model"]["task_type"] == "SEQ_CLS" and not config["data"]["validation"]
    intro = "The base weights carry the rounding of a 4-bit file." if model == "smollm2" else ""
    parts = [
        *sections(rows, on_validation),
        ("Cost of the stages", "Whole processes, start-up included.", _cost_table(folder)),
    ]
    others = published(rows)
    curves = {path.parent.name: _curve(path) for path in sorted(folder.glob("*/metrics.jsonl"))}
    figures = save_figures(rows, at_best_rates(rows), curves, folder)
    for path in sorted(folder.glob("calibration/*/spectrum.png")):
        figures["Spectra of the output activations"] = Path(shutil.copy(path, folder / "spectrum.png"))
    text = (
        "\n\n".join([f"# {title}", *([intro] if intro else []), *(_markdown(part) for part in [*parts, *others])])
        + "\n"
    )
    for name, content in (("results.md", text), ("report.html", page(title, intro, parts, figures, others))):
        with atomic_write(folder / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    with atomic_write(folder / "results.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    if len({row["run"] for row in rows if row["method"] != "base" and row["accuracy"] is not None}) == 1:
        write_json(folder / "summary.json", summary(folder, rows))
    return text


def _markdown(part: Part) -> str:
    title, note, lines = part
    return f"## {title}\n\n" + (f"{note}\n\n" if note else "") + markdown(lines)


def _curve(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def page(title: str, intro: str, parts: Sequence[Part], figures: dict[str, Path], others: Sequence[Part]) -> str:
    """Return the report as one HTML page that asks for no other file; what others measured comes last."""
    body = [f"<h1>{html.escape(title)}</h1><p>{html.escape(intro)}</p>", *map(_section, parts)]
    for heading, path in figures.items():
        name = html.escape(heading)
        body.append(f'<figure><img alt="{name}" src="{embed(path)}"><figcaption>{name}</figcaption></figure>')
    return PAGE.format(title=html.escape(title), body="\n".join([*body, *map(_section, others)]))


def _section(part: Part) -> str:
    heading, note, lines = part
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in lines[0])
    cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in line) for line in lines[1:]]
    rows = "".join(f"<tr>{line}</tr>" for line in cells)
    return (
        f"<h2>{html.escape(heading)}</h2><p>{html.escape(note)}</p>\n"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


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
    """Write the report of an experiment's folder, or of the one that a config names, and print it."""
    words = sys.argv[1:]
    named = len(words) == 1 and not words[0].startswith("-")
    print(write_report(Path(words[0] if named else parse(USAGE, {})[0].output_dir)))


if __name__ == "__main__":
    main(command)
