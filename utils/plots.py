"""Figures of a calibration and of a run. Importing it takes a second."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.files import atomic_write, read_lines

if TYPE_CHECKING:
    from astra.store import Calibration


def plot_spectra(calibration: Calibration, path: Path, rank: int) -> None:
    """Draw the spectra of all layers by module type, and effective ranks by depth, as PNG.

    The stored subspaces are shaded, `rank` eigenvectors wide.
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
    _save(figure, path, dpi=110)


def _kind(name: str) -> str:
    """A layer's path after the number of its decoder layer; its whole name if there is none."""
    return re.split(r"(?:^|\.)\d+\.", name)[-1]


def _spectra(axis: Axes, calibration: Calibration, kind: str, names: list[str], rank: int) -> None:
    """Eigenvalues over the largest, descending, one line per layer from dark (first) to light (last)."""
    for depth, name in enumerate(names):
        values = calibration.eigenvalues(name).flip(0)
        positive = values[: calibration.layers[name].numerical_rank]
        axis.semilogy(
            range(1, len(positive) + 1), positive / positive[0], lw=0.7,
            color=colormaps["viridis"](depth / max(len(names) - 1, 1)),
        )  # fmt: skip
    info = calibration.layers[names[len(names) // 2]]
    m, numerical = info.shape[0], info.numerical_rank
    begins = {  # and the colour
        "tail": (numerical - rank, "tab:blue"),
        "nullspace": (m - rank, "tab:green"),
        "principal": (0, "tab:red"),
        "middle": ((numerical - rank) / 2, "tab:orange"),
    }
    for subspace in (shaded := [name for name in calibration.subspaces if name in begins]):
        start, colour = begins[subspace]
        axis.axvspan(start, start + rank, color=colour, alpha=0.2, lw=0, label=subspace)
    axis.set(title=f"{kind}  {m} x {info.shape[1]}", xlabel="index", ylabel="eigenvalue / largest", xlim=(0, m))
    if shaded:
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
    _save(figure, folder / "loss.png", dpi=150)


def _save(figure: Figure, path: Path, dpi: int) -> None:
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")
    plt.close(figure)
