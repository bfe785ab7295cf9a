"""Figures of the results: what people look at before they read."""

import base64
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

Row = dict[str, Any]
SIZE = (7.0, 4.2)


def save_figures(rows: Sequence[Row], curves: dict[str, list[dict[str, float]]], folder: Path) -> dict[str, Path]:
    """Draw every figure the rows have data for; return title -> PNG.

    Args:
        rows: One dictionary a run and task, as `eval.report.collect` makes them.
        curves: Run -> lines of its metrics.jsonl.
        folder: Where the PNGs go.
    """
    figures: dict[str, Path] = {}

    def draw(title: str, name: str, paint: Callable[[Axes], bool]) -> None:
        figure, axes = plt.subplots(figsize=SIZE, layout="constrained")
        if paint(axes):
            axes.set_title(title)
            axes.grid(alpha=0.3)
            figure.savefig(folder / name, dpi=120)
            figures[title] = folder / name
        plt.close(figure)

    draw("Training loss", "loss.png", lambda axes: _curves(axes, curves))
    for task in dict.fromkeys(row["task"] for row in rows if row["task"]):
        of_task = [row for row in rows if row["task"] == task and row["accuracy"] is not None]
        tuned = [row for row in of_task if row["method"] != "base"]
        name = tuned[0]["metric"] if tuned else "accuracy"
        draw(f"{task}: {name} and rank", f"{task}-rank.png", partial(_lines, rows=tuned, key="rank"))
        rate = partial(_lines, rows=tuned, key="learning_rate")
        draw(f"{task}: {name} and learning rate", f"{task}-learning-rate.png", rate)
        draw(f"{task}: {name} and forgetting", f"{task}-forgetting.png", partial(_scatter, rows=tuned))
    return figures


def embed(path: Path) -> str:
    """Return a PNG as a data URI, so that a page needs no other file."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _curves(axes: Axes, curves: dict[str, list[dict[str, float]]]) -> bool:
    for run, lines in curves.items():
        points = [(line["step"], line["loss"]) for line in lines if "loss" in line]
        if points:
            axes.plot(*zip(*points, strict=True), label=run, linewidth=1.2)
    axes.set(xlabel="optimizer step", ylabel="loss of the response (nats a token)")
    return _legend(axes)


def _lines(axes: Axes, rows: Sequence[Row], key: str) -> bool:
    """Mean accuracy against one setting, a line a method, with the standard deviation over the rest."""
    if len({row[key] for row in rows}) < 2:
        return False
    for label in dict.fromkeys(row["label"] for row in rows):
        groups: dict[float, list[float]] = {}
        for row in rows:
            if row["label"] == label:
                groups.setdefault(row[key], []).append(100 * row["accuracy"])
        xs = sorted(groups)
        means = [sum(groups[x]) / len(groups[x]) for x in xs]
        lows = [mean - min(groups[x]) for x, mean in zip(xs, means, strict=True)]
        highs = [max(groups[x]) - mean for x, mean in zip(xs, means, strict=True)]
        axes.errorbar(xs, means, yerr=[lows, highs], marker="o", capsize=3, label=label)
    axes.set_xscale("log", base=2 if key == "rank" else 10)
    if key == "rank":
        ranks = sorted({row[key] for row in rows})
        axes.set_xticks(ranks, [str(rank) for rank in ranks])
    axes.set(xlabel=key.replace("_", " "), ylabel=f"{rows[0]['metric']} (%); bars: lowest and highest")
    return _legend(axes)


def _scatter(axes: Axes, rows: Sequence[Row]) -> bool:
    rows = [row for row in rows if row["forgetting"] is not None]
    if not rows:
        return False
    for label in dict.fromkeys(row["label"] for row in rows):
        of_label = [row for row in rows if row["label"] == label]
        axes.scatter(
            [row["forgetting"] for row in of_label], [100 * row["accuracy"] for row in of_label], label=label, s=36
        )
    axes.set(xlabel="forgetting (rise of loss on general text, nats a token)", ylabel=f"{rows[0]['metric']} (%)")
    return _legend(axes)


def _legend(axes: Axes) -> bool:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(fontsize=8, ncols=1 + len(labels) // 12)
    return bool(handles)
