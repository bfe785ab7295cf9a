"""Turn the run folders of experiments into findings, tables and figures; no number in them is typed.

Reads `<output_dir>/<run>/` (`config.yaml`, `metrics.json`, `metrics.jsonl`, `losses.json`, `eval/*.json`) and
`<output_dir>/base/`, and writes `results.md`, `results.csv`, a self-contained `report.html` and `summary.json`.
"""

import base64
import html
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.cli import main, parse
from utils.files import atomic_write, write_json, write_text

if TYPE_CHECKING:  # pandas and Matplotlib take seconds to import
    from eval.tables import Part

USAGE = """
Write results.md, results.csv, report.html and summary.json for all runs of an experiment, or of several side by side.

  python -m eval.report outputs/metamath
  python -m eval.report outputs/a outputs/b            into outputs/a+b
  python -m eval.report --config configs/metamath.yaml [overrides]
"""


def write_report(folders: Path | Sequence[Path]) -> str:
    """Write the files of the report into an experiment's folder, or `a+b` beside several; return the Markdown."""
    from eval import charts, tables
    from eval.results import collect

    folders = [folders] if isinstance(folders, Path) else list(folders)
    results = collect(folders)
    target = folders[0].absolute().with_name("+".join(folder.absolute().name for folder in folders))
    target.mkdir(parents=True, exist_ok=True)
    parts = tables.sections(results)
    figures = charts.save_figures(results, target)
    spectra = [path for folder in folders for path in sorted(folder.glob("calibration/*/spectrum.png"))]
    for number, path in enumerate(spectra):
        which = f" ({path.parents[2].name}, {path.parent.name})" if len(spectra) > 1 else ""
        copied = figures[f"Spectra of the output activations{which}"] = target / f"spectrum{number or ''}.png"
        with atomic_write(copied) as temporary:
            shutil.copy(path, temporary)
    title = f"{target.name}: {results.config['model.name']}"
    text = "\n\n".join([f"# {title}", *map(_markdown, parts)]) + "\n"
    write_text(target / "results.md", text)
    write_text(target / "report.html", _page(title, parts, figures))
    write_text(target / "results.csv", tables.tidy(results).to_csv(index=False))
    write_json(target / "summary.json", tables.summary(results))
    return text


def _markdown(part: "Part") -> str:
    lines = [f"## {part.title}", *([part.note] if part.note else [])]
    if part.table is not None:
        rows = [list(part.table), ["---"] * part.table.shape[1], *part.table.astype(str).to_numpy().tolist()]
        lines.append("\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows))
    return "\n\n".join(lines)


def _page(title: str, parts: Sequence["Part"], figures: dict[str, Path]) -> str:
    """The report as one HTML page that asks for no other file; figures stand after the results."""
    drawn = []
    for name, path in figures.items():
        source, words = base64.b64encode(path.read_bytes()).decode("ascii"), html.escape(name)
        drawn.append(f'<figure><img alt="{words}" src="data:image/png;base64,{source}">')
        drawn.append(f"<figcaption>{words}</figcaption></figure>")
    body = [f"<h1>{html.escape(title)}</h1>", *map(_section, parts[:2]), *drawn, *map(_section, parts[2:])]
    return PAGE.format(title=html.escape(title), body="\n".join(body))


def _section(part: "Part") -> str:
    note = html.escape(part.note)
    items = "".join(f"<li>{line.removeprefix('- ')}</li>" for line in note.splitlines())
    text = f"<h2>{html.escape(part.title)}</h2>" + (f"<ul>{items}</ul>" if note[:2] == "- " else f"<p>{note}</p>")
    if part.table is not None:
        text += part.table.to_html(index=False, border=0)
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text)


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ display: block; overflow-x: auto; border-collapse: collapse; margin: 1rem 0 }}
td {{ font-variant-numeric: tabular-nums }}
th, td {{ padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }}
th:first-child, td:first-child {{ text-align: left }}
th {{ white-space: normal }}
figure {{ display: inline-block; margin: 1rem 1rem 0 0; vertical-align: top }}
figure img {{ max-height: 20rem; max-width: 100% }}
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
