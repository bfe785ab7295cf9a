"""The report's figures: one colour per method and one line style per rank in all of them, legends beside the data."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from eval.published import curves
from eval.results import BASE, Results, Tuned, at_best
from utils.files import read_lines

STYLES = ("-", "--", ":", "-.")
SMOOTHED = 20  # parts of a run over which a loss curve is averaged
Draw = Callable[[Results, dict[str, Tuned], Path], Figure | None]


def rate_text(value: float) -> str:
    """A rate as one writes it: 3e-4, 1.8e-3."""
    digits, _, power = f"{value:.3e}".partition("e")
    return f"{float(digits):g}e{int(power)}"


def save_figures(results: Results, tuned: dict[str, Tuned], folder: Path) -> dict[str, Path]:
    """Draw every figure that the results have data for; title -> PNG."""
    figures: dict[str, Path] = {}
    style = _Style(results)
    for title, name, figure in _figures(results, tuned, style):
        figure.savefig(folder / name, dpi=130)
        figures[title] = folder / name
        plt.close(figure)
    return figures


def embed(path: Path) -> str:
    """A PNG as a data URI, so that a page needs no other file."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


class _Style:
    """Colour by label, line style by rank, the same in every figure."""

    def __init__(self, results: Results) -> None:
        labels = list(dict.fromkeys(results.runs["label"]))
        palette = plt.get_cmap("tab10" if len(labels) <= 10 else "tab20")
        self.colours = {label: palette(k % palette.N) for k, label in enumerate(labels)}
        ranks = sorted(results.runs["rank"].dropna().unique())
        self.lines = {rank: STYLES[k % len(STYLES)] for k, rank in enumerate(ranks)}

    def of(self, row: Any) -> dict[str, Any]:
        return {"color": self.colours[row["label"]], "linestyle": self.lines.get(row["rank"], "-")}


def _figures(results: Results, tuned: dict[str, Tuned], style: _Style) -> Iterator[tuple[str, str, Figure]]:
    runs = results.runs
    tasks = [task for task, group in results.scores.groupby("task", sort=False) if (group["metric"] != "loss").all()]
    ladder = runs["rate"].nunique() > 1
    for task in tasks:
        scores = runs.merge(
            results.scores.loc[results.scores["task"] == task, ["run", "score", "low", "high"]], on="run"
        )
        metric = results.scores.loc[results.scores["task"] == task, "metric"].iloc[0]
        if scores.empty:
            continue
        base = results.scores[(results.scores["task"] == task) & (results.scores["arm"] == BASE)]["score"]
        level = 100 * base.iloc[0] if len(base) else None
        for column in ("score", "low", "high"):
            scores[column] = 100 * scores[column].astype(float)
        if ladder:
            name = f"{task}: {metric} and rate"
            yield (
                name,
                f"{task}-learning-rate.png",
                _against_rate(results, tuned, scores, f"{metric} (%)", style, level),
            )
        best = scores[scores["run"].isin(at_best(results, tuned)["run"])]
        if best["rank"].nunique() > 1:
            yield f"{task}: {metric} and rank", f"{task}-rank.png", _against_rank(best, f"{metric} (%)", style, level)
    if {"gsm8k", "math"} <= set(tasks) and ladder and (others := curves(results.config)):
        both = (
            results.scores[results.scores["task"].isin(["gsm8k", "math"])]
            .groupby("run", as_index=False)["score"]
            .mean()
        )
        scores = runs.merge(both.assign(score=100 * both["score"], low=np.nan, high=np.nan), on="run")
        title = "Mean of GSM8K and MATH, and published ladders of the same model, data and batch (grey)"
        figure = _against_rate(results, tuned, scores, "accuracy (%)", style, None, others)
        yield title, "published-learning-rate.png", figure
    key = "reporting_loss" if runs["reporting_loss"].notna().any() else "validation_loss"
    if ladder and runs["validation_loss"].notna().any():
        losses = runs.assign(score=runs["validation_loss"], low=np.nan, high=np.nan).dropna(subset=["score"])
        figure = _against_rate(results, tuned, losses, "validation loss (nats per token)", style, None)
        yield "Validation loss and rate", "loss-learning-rate.png", figure
    known = runs.dropna(subset=["forgetting", key])
    for number, (text, points) in enumerate(known.groupby("forgetting_text")):  # one figure per text
        if len(points) > 1:
            what = f"rise of the loss on {text} (nats per token)"
            paths = _paths(results, tuned, points, "forgetting", key, what, style)
            yield "Task loss and forgetting", f"loss-forgetting{number or ''}.png", paths
    points = runs.dropna(subset=["update_norm", key])
    if len(points) > 1:
        paths = _paths(results, tuned, points, "update_norm", key, "|dW| / |W|", style)
        yield "Task loss and update", "loss-update.png", paths
    if curves_ := _curves(results, tuned, style):
        yield "Training loss at each arm's best rate", "loss.png", curves_


def _against_rate(
    results: Results,
    tuned: dict[str, Tuned],
    scores: pd.DataFrame,
    label: str,
    style: _Style,
    level: float | None,
    others: dict[int, dict[str, dict[float, float]]] | None = None,
) -> Figure:
    """One panel per rank: a line per arm over its rates, mean with the deviation over seeds or the run's interval."""
    ranks: list[Any] = sorted(scores["rank"].dropna().unique()) or [None]
    figure, panels = plt.subplots(
        1, len(ranks), figsize=(2.4 + 4.4 * len(ranks), 4.2), sharey=True, squeeze=False, layout="constrained"
    )
    for rank, axes in zip(ranks, panels[0], strict=True):
        shown = scores[(scores["rank"] == rank) | scores["rank"].isna()]
        for arm, group in shown.groupby("arm", sort=False):
            _rate_line(axes, group, tuned[str(arm)], style)
        for method, line in (others or {}).get(int(rank) if rank else 0, {}).items():
            axes.plot(*zip(*((x, 100 * y) for x, y in line.items()), strict=True), color="0.7", lw=1, zorder=0)
            axes.annotate(method, (max(line), 100 * line[max(line)]), color="0.5", fontsize=7)
        if level is not None:
            axes.axhline(level, color="0.4", lw=1, linestyle=(0, (1, 2)), label=BASE)
        rates = sorted(shown["rate"].unique())
        axes.set(xscale="log", xlabel="relative step" if "step" in results.axis else "learning rate")
        axes.set_xticks(rates, [rate_text(rate) for rate in rates], rotation=45, ha="right", fontsize=8)
        axes.xaxis.set_minor_locator(NullLocator())
        if len(ranks) > 1:
            axes.set_title(f"rank {rank:g}")
        axes.grid(alpha=0.25)
    panels[0][0].set_ylabel(label)
    return _with_legend(figure)


def _rate_line(axes: Axes, group: pd.DataFrame, tuned: Tuned, style: _Style) -> None:
    means = group.groupby("rate")["score"].agg(["mean", "std", "count"])
    low, high = means["std"].copy(), means["std"].copy()
    for rate, row in means.iterrows():
        if row["count"] == 1:
            single = group[group["rate"] == rate].iloc[0]
            known = pd.notna(single["low"])
            low[rate] = single["score"] - single["low"] if known else 0.0
            high[rate] = single["high"] - single["score"] if known else 0.0
    look = style.of(group.iloc[0])
    axes.errorbar(
        means.index, means["mean"], yerr=np.stack([low.clip(lower=0), high.clip(lower=0)]), marker="o", ms=4,
        capsize=2, lw=1.4, elinewidth=0.8, label=group["label"].iloc[0], **look,
    )  # fmt: skip
    if tuned.rate is not None and tuned.rate in means.index and len(means) > 1:
        edge = tuned.edge in ("lowest", "highest")
        face = "white" if edge else look["color"]  # an open star: the ladder's end, not a best rate
        axes.plot(
            tuned.rate, means.loc[tuned.rate, "mean"], marker="*", ms=13, color=look["color"], mfc=face, zorder=4
        )


def _against_rank(scores: pd.DataFrame, label: str, style: _Style, level: float | None) -> Figure:
    figure, axes = plt.subplots(figsize=(6.8, 4.2), layout="constrained")
    for name, group in scores.groupby("label", sort=False):
        means = group.groupby("rank")["score"].agg(["mean", "std"])
        colour = style.colours[str(name)]
        if group["rank"].isna().all():
            axes.axhline(group["score"].mean(), color=colour, linestyle="--", label=str(name))
            continue
        axes.errorbar(
            means.index,
            means["mean"],
            yerr=means["std"].fillna(0),
            marker="o",
            capsize=2,
            label=str(name),
            color=colour,
        )
    if level is not None:
        axes.axhline(level, color="0.4", lw=1, linestyle=(0, (1, 2)), label=BASE)
    ranks = sorted(scores["rank"].dropna().unique())
    axes.set(xscale="log", xlabel="rank", ylabel=label)
    axes.set_xticks(ranks, [f"{rank:g}" for rank in ranks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.25)
    return _with_legend(figure)


def _paths(
    results: Results, tuned: dict[str, Tuned], points: pd.DataFrame, x: str, y: str, label: str, style: _Style
) -> Figure:
    """Each arm's rates joined into a path, from the smallest, its best rate a star; the base model is a point."""
    figure, axes = plt.subplots(figsize=(7.6, 4.8), layout="constrained")
    for arm, group in points.groupby("arm", sort=False):
        means = group.groupby("rate")[[x, y]].mean().sort_index()
        look = style.of(group.iloc[0])
        axes.plot(means[x], means[y], marker="o", ms=4, lw=1.2, label=str(arm), **look)
        end = (means[x].iloc[-1], means[y].iloc[-1])
        last = rate_text(means.index[-1])
        axes.annotate(last, end, fontsize=7, color=look["color"], textcoords="offset points", xytext=(4, 3))
        rate = tuned[str(arm)].rate
        if rate in means.index:
            axes.plot(means.loc[rate, x], means.loc[rate, y], marker="*", ms=13, color=look["color"], zorder=4)
    if "base_loss" in points and points["base_loss"].notna().any():
        axes.plot(0, points["base_loss"].dropna().iloc[0], marker="s", ms=7, color="0.3", linestyle="", label=BASE)
    split = "held-out" if y == "reporting_loss" else "validation"
    axes.set(xlabel=label, ylabel=f"{split} loss (nats per token)")
    axes.grid(alpha=0.25)
    return _with_legend(figure)


def _curves(results: Results, tuned: dict[str, Tuned], style: _Style) -> Figure | None:
    """Smoothed training loss, one line per arm at its best rate, with the range over seeds as a band."""
    figure, axes = plt.subplots(figsize=(7.6, 4.2), layout="constrained")
    for arm, group in at_best(results, tuned).groupby("arm", sort=False):
        runs = [_smooth(folder) for folder in group["folder"]]
        runs = [run for run in runs if len(run)]
        if not runs:
            continue
        shortest = min(len(run) for run in runs)
        steps = runs[0][:shortest, 0]
        losses = np.stack([run[:shortest, 1] for run in runs])
        look = style.of(group.iloc[0])
        axes.plot(steps, losses.mean(0), lw=1.4, label=str(arm), **look)
        if len(runs) > 1:
            axes.fill_between(steps, losses.min(0), losses.max(0), color=look["color"], alpha=0.15, lw=0)
    if not axes.lines:
        plt.close(figure)
        return None
    axes.set(xlabel="optimizer step", ylabel="loss of the response (nats per token)")
    axes.grid(alpha=0.25)
    return _with_legend(figure)


def _smooth(run: Path) -> np.ndarray:
    """(parts, 2): step and mean loss of each twentieth of a run."""
    points = np.asarray([(line["step"], line["loss"]) for line in read_lines(run / "metrics.jsonl") if "loss" in line])
    return (
        np.stack([part.mean(0) for part in np.array_split(points, min(SMOOTHED, len(points)))])
        if len(points)
        else points
    )


def _with_legend(figure: Figure) -> Figure:
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=8, frameon=False)
    return figure
