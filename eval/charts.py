"""The report's figures: one colour per method and one line style per rank in all of them, legends beside the data."""

from __future__ import annotations

from collections.abc import Iterator
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
from eval.results import BASE, LOSS, SHARES, Results
from utils.config import RATE
from utils.files import atomic_write, read_lines

STYLES = ("-", "--", ":", "-.")
SMOOTHED = 20  # parts of a run over which a loss curve is averaged
MARKERS = "xv^sD"  # of published ladders


def rate_text(value: float | None) -> str:
    """A rate as one writes it: 3e-4, 1.8e-3; "" for none."""
    if value is None or pd.isna(value):
        return ""
    digits, _, power = f"{value:.3e}".partition("e")
    return f"{float(digits):g}e{int(power)}"


def save_figures(results: Results, folder: Path) -> dict[str, Path]:
    """Draw every figure that the results have data for; title -> PNG."""
    figures: dict[str, Path] = {}
    for title, name, figure in _Charts(results).all():
        figures[title] = folder / f"{name.replace('/', '-').replace(' ', '-')}.png"
        with atomic_write(figures[title]) as temporary:
            figure.savefig(temporary, dpi=130, format="png")
        plt.close(figure)
    return figures


class _Charts:
    def __init__(self, results: Results) -> None:
        self.results, self.runs = results, results.runs
        labels = list(dict.fromkeys(self.runs["label"]))
        palette = plt.get_cmap("tab10" if len(labels) <= 10 else "tab20")
        self.colours = {label: palette(k % palette.N) for k, label in enumerate(labels)}
        ranks = sorted(self.runs["rank"].dropna().unique())
        self.lines = {rank: STYLES[k % len(STYLES)] for k, rank in enumerate(ranks)}

    def look(self, row: Any) -> dict[str, Any]:
        return {"color": self.colours[row["label"]], "linestyle": self.lines.get(row["rank"], "-")}

    def all(self) -> Iterator[tuple[str, str, Figure]]:
        """Title, file name and figure."""
        results, runs, ladder = self.results, self.runs, self.runs["rate"].nunique() > 1
        tasks = [task for task in results.tasks(ranked=True) if task not in LOSS.values()]
        for task in tasks:
            rows = results.scores[results.scores["task"] == task]
            metric, base = rows["metric"].iloc[0], results.of_base(task)["score"]
            unit, label = (100, f"{metric} (%)") if SHARES.fullmatch(metric) else (1, metric)
            scores = runs.merge(rows[["run", "score", "low", "high"]], on="run")
            scores[["score", "low", "high"]] = unit * scores[["score", "low", "high"]].astype(float)
            level = unit * base.iloc[0] if len(base) else None
            if ladder and len(scores):
                yield f"{task}: {metric} and rate", f"{task}-learning-rate", self._rates(scores, label, level)
            best = scores[scores["run"].isin(results.best["run"])]
            if best["rank"].nunique() > 1:
                yield f"{task}: {metric} and rank", f"{task}-rank", self._ranks(best, label, level)
        others = curves(results.config) if ladder and results.axis == RATE else {}
        if {"gsm8k", "math"} <= set(tasks) and others:
            both = results.scores[results.scores["task"].isin(["gsm8k", "math"])].groupby("run")["score"]
            scores = runs.assign(score=runs["run"].map(100 * both.mean()[both.count() == 2])).dropna(subset="score")
            title = "Mean of GSM8K and MATH, and published ladders of the same model, data and batch (grey)"
            yield title, "published-learning-rate", self._rates(scores, "accuracy (%)", None, others)
        for what, scale in (("loss", "nats per token"), ("accuracy", "share")):
            found = runs.assign(score=runs[f"validation_{what}"].astype(float)).dropna(subset="score")
            if ladder and len(found):
                label = f"validation {what} ({scale})"
                yield f"Validation {what} and rate", f"{what}-learning-rate", self._rates(found, label, None)
        split = "reporting" if runs["reporting_loss"].notna().any() else "validation"
        for number, (text, points) in enumerate(runs.dropna(subset="forgetting").groupby("forgetting_text")):
            what = f"forgetting: rise of the loss on {text} (nats per token)"
            if figure := self._paths(points, "forgetting", split, what):
                yield f"Task loss and forgetting on {text}", f"loss-forgetting{number or ''}", figure
        if figure := self._paths(runs, "update_norm", split, "|dW| / |W|"):
            yield "Task loss and update", "loss-update", figure
        if figure := self._curves():
            yield "Training loss at each arm's best rate", "loss", figure

    def _rates(self, scores: pd.DataFrame, label: str, level: float | None, others: Any = None) -> Figure:
        """One panel per rank: a line per arm over its rates, its best a star, open where that is the ladder's end."""
        ranks: list[Any] = sorted(scores["rank"].dropna().unique()) or [None]
        size = (2.6 + 4.4 * len(ranks), 4.2)
        figure, panels = plt.subplots(1, len(ranks), figsize=size, sharey=True, squeeze=False, layout="constrained")
        for rank, axes in zip(ranks, panels[0], strict=True):
            shown = scores[(scores["rank"] == rank) | scores["rank"].isna()]
            for name, group in shown.groupby("arm", sort=False):
                means, arm = self._line(axes, group, "rate"), self.results.arms[str(name)]
                if arm.rate in means.index and len(means) > 1:
                    look = self.look(group.iloc[0])["color"]
                    face = look if arm.edge == "" else "white"
                    axes.plot(arm.rate, means[arm.rate], marker="*", ms=13, color=look, mfc=face, zorder=4)
            for (method, line), marker in zip((others or {}).get(rank, {}).items(), MARKERS, strict=False):
                name, values = f"{method} (published)", [100 * value for value in line.values()]
                axes.plot(list(line), values, color="0.7", lw=1, marker=marker, ms=4, zorder=0, label=name)
            rates = sorted(shown["rate"].unique())
            axes.set_xscale("log")
            axes.set_xticks(rates, list(map(rate_text, rates)), rotation=45, ha="right", fontsize=8)
            axes.set_xlabel("relative step" if "step" in self.results.axis else "learning rate")
            axes.set_title(f"rank {rank:g}" if len(ranks) > 1 else "")
        panels[0][0].set_ylabel(label)
        return _finished(figure, level)

    def _ranks(self, scores: pd.DataFrame, label: str, level: float | None) -> Figure:
        figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
        for name, group in scores.groupby("label", sort=False):
            if group["rank"].isna().all():  # full fine-tuning
                axes.axhline(group["score"].mean(), color=self.colours[str(name)], linestyle="--", label=str(name))
            else:
                self._line(axes, group, "rank", linestyle="-")
        ranks = sorted(scores["rank"].dropna().unique())
        axes.set(xlabel="rank", ylabel=label, xscale="log")
        axes.set_xticks(ranks, [f"{rank:g}" for rank in ranks])
        return _finished(figure, level)

    def _line(self, axes: Axes, group: pd.DataFrame, x: str, **look: Any) -> pd.Series:
        """Means with the deviation over seeds, or the interval of a single run."""
        points = group.reindex(columns=[x, "score", "low", "high"]).groupby(x)
        means, deviations = points["score"].mean(), points["score"].std()
        sides = (means - points["low"].min(), points["high"].max() - means)
        axes.errorbar(
            means.index, means, yerr=[deviations.fillna(side).fillna(0).clip(lower=0) for side in sides], marker="o",
            ms=4, capsize=2, lw=1.4, elinewidth=0.8, label=group["label"].iloc[0],
            **{**self.look(group.iloc[0]), **look},
        )  # fmt: skip
        return means

    def _paths(self, points: pd.DataFrame, x: str, split: str, label: str) -> Figure | None:
        """Each arm's rates joined into a path, the last one named, its best a star; the base model is a point."""
        y = f"{split}_loss"
        points = points.dropna(subset=[x, y])
        if len(points) < 2:
            return None
        figure, axes = plt.subplots(figsize=(8.4, 4.8), layout="constrained")
        for name, group in points.groupby("arm", sort=False):
            means, look = group.groupby("rate")[[x, y]].mean(), self.look(group.iloc[0])
            axes.plot(means[x], means[y], marker="o", ms=4, lw=1.2, label=str(name), **look)
            if points["arm"].nunique() <= 4:  # the names of more would cover each other
                place: dict[str, Any] = {"textcoords": "offset points", "xytext": (4, 3), "fontsize": 7}
                axes.annotate(rate_text(means.index[-1]), tuple(means.iloc[-1]), color=look["color"], **place)
            if (rate := self.results.arms[str(name)].rate) in means.index:
                axes.plot(means.loc[rate, x], means.loc[rate, y], marker="*", ms=13, color=look["color"], zorder=4)
        axes.set(xlabel=label, ylabel=f"{LOSS[split]} (nats per token)", xmargin=0.1)
        known = points["base_loss"].dropna()
        return _finished(figure, known.iloc[0] if len(known) else None, linestyle="", marker="s")

    def _curves(self) -> Figure | None:
        """Smoothed training loss, one line per arm at its best rate, with the range over seeds as a band."""
        figure, axes = plt.subplots(figsize=(8.4, 4.2), layout="constrained")
        for arm, group in self.results.best.groupby("arm", sort=False):
            smooth = pd.concat([_smooth(folder) for folder in group["folder"]])
            if len(smooth):
                lines, look = smooth.groupby("step")["loss"], self.look(group.iloc[0])
                axes.plot(lines.mean(), lw=1.4, label=str(arm), **look)
                axes.fill_between(lines.mean().index, lines.min(), lines.max(), color=look["color"], alpha=0.15, lw=0)
        if not axes.lines:
            plt.close(figure)
            return None
        axes.set(xlabel="optimizer step", ylabel="loss of the response (nats per token)")
        return _finished(figure, None)


def _smooth(run: Path) -> pd.DataFrame:
    """Step and mean loss of each twentieth of a run."""
    lines = [(line["step"], line["loss"]) for line in read_lines(run / "metrics.jsonl") if "loss" in line]
    points = pd.DataFrame(lines, columns=["step", "loss"])
    return points.groupby(np.arange(len(points)) * SMOOTHED // max(len(points), SMOOTHED)).mean()


def _finished(figure: Figure, level: float | None, **look: Any) -> Figure:
    """Add the base model, a grid and a legend; a base model far from the arms is named, and does not squeeze them."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        low, high = axes.get_ylim()
        if level is not None:
            far = not low - (high - low) <= level <= high + (high - low)
            name = f"{BASE}: {level:.3g}" + (" (off the scale)" if far else "")
            x = [0, 0] if look else axes.get_xlim()
            style = look or {"linestyle": ":", "scalex": False}
            axes.plot(x, [level, level], color="0.4", lw=1, label=name, **style)
            if far:
                axes.set_ylim(low, high)
        if axes.get_xscale() == "log":
            axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.25)
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=8, frameon=False)
    return figure
