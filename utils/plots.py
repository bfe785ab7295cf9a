"""Every figure: of a calibration, of a run's losses, and of an experiment's results. Importing it takes a second."""

from __future__ import annotations

import base64
import re
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from utils.files import atomic_write, read_lines

if TYPE_CHECKING:
    from astra.store import Calibration

SHADES = {"tail": "tab:blue", "nullspace": "tab:green", "principal": "tab:red", "middle": "tab:orange"}
Row = dict[str, Any]
SIZE = (7.0, 4.2)


def plot_spectra(calibration: Calibration, path: Path, rank: int) -> None:
    """Draw the spectra of all layers by module type, with the stored subspaces shaded, and effective ranks by depth.

    Args:
        path: PNG file to write.
        rank: width of the shaded bands, in eigenvectors.
    """
    types: dict[str, list[str]] = {}
    for name in calibration.layers:
        types.setdefault(_kind(name), []).append(name)
    columns = min(4, len(types) + 1)
    rows = -(-(len(types) + 1) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.2 * rows), squeeze=False)
    panels = list(axes.flat)
    for axis, (kind, names) in zip(panels, types.items(), strict=False):
        _spectra(axis, calibration, kind, names, rank)
    _effective_ranks(panels[len(types)], calibration, types)
    for axis in panels[len(types) + 1 :]:
        axis.axis("off")
    figure.tight_layout()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def _kind(name: str) -> str:
    """A layer's path after the number of its decoder layer; its whole name if there is none."""
    return re.split(r"(?:^|\.)\d+\.", name)[-1]


def _spectra(axis: Axes, calibration: Calibration, kind: str, names: list[str], rank: int) -> None:
    """Eigenvalues over the largest, descending, one line a layer from dark (first) to light (last)."""
    for depth, name in enumerate(names):
        values = calibration.eigenvalues(name).flip(0)
        positive = values[: calibration.layers[name].numerical_rank]
        axis.semilogy(
            range(1, len(positive) + 1), positive / positive[0], lw=0.7,
            color=colormaps["viridis"](depth / max(len(names) - 1, 1)),
        )  # fmt: skip
    info = calibration.layers[names[len(names) // 2]]
    m, numerical = info.shape[0], info.numerical_rank
    bands = {
        "tail": (numerical - rank, numerical),
        "nullspace": (m - rank, m),
        "principal": (0, rank),
        "middle": ((numerical - rank) / 2, (numerical + rank) / 2),
    }
    for subspace in calibration.subspaces:
        if subspace in bands:
            axis.axvspan(*bands[subspace], color=SHADES[subspace], alpha=0.2, lw=0, label=subspace)
    axis.set(title=f"{kind}  {m} x {info.shape[1]}", xlabel="index", ylabel="eigenvalue / largest", xlim=(0, m))
    if set(calibration.subspaces) & set(bands):
        axis.legend(fontsize=7, loc="lower left")


def _effective_ranks(axis: Axes, calibration: Calibration, types: dict[str, list[str]]) -> None:
    """Share of the dimensions that each layer's activations use, by depth."""
    found = {name: info.effective_rank for name, info in calibration.layers.items() if info.effective_rank}
    if len(found) < len(calibration.layers):
        axis.text(0.5, 0.5, "effective ranks need\ncalibration.spectrum: full", ha="center", va="center")
        axis.axis("off")
        return
    for kind, names in types.items():
        axis.plot(range(len(names)), [found[name] for name in names], marker=".", lw=1, label=kind)
    axis.set(title="effective rank", xlabel="depth", yscale="log")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(fontsize=6)


def plot_loss(folder: Path) -> None:
    """Draw `loss.png` from `metrics.jsonl`."""
    lines = read_lines(folder / "metrics.jsonl")
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for key, label in (("loss", "training"), ("eval_loss", "validation")):
        points = [(line["step"], line[key]) for line in lines if key in line]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker="." if key == "eval_loss" else None)
    axes.set(xlabel="step", ylabel="loss per target token (nats)", title=folder.name)
    axes.legend()
    with atomic_write(folder / "loss.png") as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)


def save_figures(
    rows: Sequence[Row], tuned: Sequence[Row], curves: dict[str, list[dict[str, float]]], folder: Path
) -> dict[str, Path]:
    """Draw every figure the rows have data for; return title -> PNG.

    Args:
        rows: One dictionary a run and task, as `eval.report.collect` makes them.
        tuned: Those of them at each setting's best learning rate, for the figure over ranks.
        curves: Run -> lines of its metrics.jsonl.
        folder: Where the PNGs go.
    """
    figures: dict[str, Path] = {}
    # The same colour for a method in every figure.
    methods = dict.fromkeys(row["label"] for row in rows if row["method"] != "base")
    colours = {label: f"C{k % 10}" for k, label in enumerate(methods)}

    def draw(title: str, name: str, paint: Callable[[Axes], bool]) -> None:
        figure, axes = plt.subplots(figsize=SIZE, layout="constrained")
        if paint(axes):
            axes.set_title(title)
            axes.grid(alpha=0.3)
            figure.savefig(folder / name, dpi=120)
            figures[title] = folder / name
        plt.close(figure)

    draw("Training loss", "loss.png", partial(_curves, curves=curves, rows=rows, colours=colours))
    for task in dict.fromkeys(row["task"] for row in rows if row["task"]):
        found, best = _scored(rows, task), _scored(tuned, task)
        if not found:
            continue
        name = found[0]["metric"]
        for what, paint in {
            "rank": partial(_lines, rows=best, colours=colours, key="rank"),
            "learning rate": partial(_lines, rows=found, colours=colours, key="learning_rate"),
            "forgetting": partial(_scatter, rows=found, colours=colours),
        }.items():
            draw(f"{task}: {name} and {what}", f"{task}-{what.replace(' ', '-')}.png", paint)
    return figures


def _scored(rows: Sequence[Row], task: str) -> list[Row]:
    return [row for row in rows if row["task"] == task and row["method"] != "base" and row["accuracy"] is not None]


def embed(path: Path) -> str:
    """Return a PNG as a data URI, so that a page needs no other file."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _curves(
    axes: Axes, curves: dict[str, list[dict[str, float]]], rows: Sequence[Row], colours: dict[str, str]
) -> bool:
    """Loss of every run, of several runs in the colours of their methods."""
    methods = {row["run"]: row["label"] for row in rows}
    for run, lines in curves.items():
        points = [(line["step"], line["loss"]) for line in lines if "loss" in line]
        if points:
            label = methods.get(run, run)
            _, named = axes.get_legend_handles_labels()
            axes.plot(
                *zip(*points, strict=True), color=colours.get(label), linewidth=1, alpha=0.8,
                label="_" if label in named else label,
            )  # fmt: skip
    axes.set(xlabel="optimizer step", ylabel="loss of the response (nats a token)")
    return _legend(axes)


def _lines(axes: Axes, rows: Sequence[Row], colours: dict[str, str], key: str) -> bool:
    """Mean accuracy against one setting with its standard deviation over seeds, a line for all else that differs."""
    values = sorted({row[key] for row in rows if row[key] is not None})
    if len(values) < 2:
        return False
    for label, line in _by_series(rows, key).items():
        groups: dict[float | None, list[float]] = {}
        for row in line:
            groups.setdefault(row[key], []).append(100 * row["accuracy"])
        if None in groups:  # full fine-tuning has no rank
            axes.axhline(statistics.fmean(groups.pop(None)), linestyle="--", color="grey", label=label)
        xs = [value for value in values if value in groups]
        means = [statistics.fmean(groups[x]) for x in xs]
        spread = [statistics.stdev(groups[x]) if len(groups[x]) > 1 else 0.0 for x in xs]
        if xs:
            axes.errorbar(xs, means, yerr=spread, marker="o", capsize=3, label=label, color=colours.get(label))
    axes.set_xscale("log", base=2 if key == "rank" else 10)
    if key == "rank":
        axes.set_xticks(values, [str(value) for value in values])
    axes.set(xlabel=key.replace("_", " "), ylabel=f"{rows[0]['metric']} (%); bars: deviation over seeds")
    return _legend(axes)


def _by_series(rows: Sequence[Row], key: str) -> dict[str, list[Row]]:
    """Rows by method and every other setting in which they differ."""
    others = [name for name in rows[0] if name in ("rank", "alpha", "learning_rate") or "." in name]
    of_rank = {row["alpha"] == row["rank"] for row in rows} == {True}
    others = [
        name
        for name in others
        if name != key and not (name == "alpha" and of_rank) and len({row[name] for row in rows}) > 1
    ]
    series: dict[str, list[Row]] = {}
    for row in rows:
        words = [
            f"{name.rpartition('.')[2].replace('_', ' ')} {row[name]}" for name in others if row[name] is not None
        ]
        series.setdefault(", ".join([row["label"], *words]), []).append(row)
    return series


def _scatter(axes: Axes, rows: Sequence[Row], colours: dict[str, str]) -> bool:
    rows = [row for row in rows if row["forgetting"] is not None]
    if not rows:
        return False
    for label in dict.fromkeys(row["label"] for row in rows):
        of_label = [row for row in rows if row["label"] == label]
        xs, ys = [row["forgetting"] for row in of_label], [100 * row["accuracy"] for row in of_label]
        axes.scatter(xs, ys, label=label, color=colours[label], s=36)
    axes.set(xlabel="forgetting (rise of loss on general text, nats a token)", ylabel=f"{rows[0]['metric']} (%)")
    return _legend(axes)


def _legend(axes: Axes) -> bool:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(fontsize=8, ncols=1 + len(labels) // 12)
    return bool(handles)
