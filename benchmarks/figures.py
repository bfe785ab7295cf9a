"""Draw the figures of the docs from committed results.

python benchmarks/figures.py precision benchmarks/results/calibration-precision-cpu.json docs/precision.png
python benchmarks/figures.py which-tail benchmarks/results/which-tail docs/which-tail.png
"""

import sys
from pathlib import Path

import matplotlib

sys.path.insert(0, str(Path(__file__).parent.parent))

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

from benchmarks.which_tail import LADDER, frame  # noqa: E402
from utils.files import read_json  # noqa: E402

FLOOR = 1e-12  # below this an excess is rounding


def precision(source: Path, target: Path) -> None:
    """Condition and tail energy of every layer, from a result of `benchmarks/calibration.py --oracle`."""
    layers = read_json(source)["layers"]
    types: dict[str, list[dict]] = {}
    for layer in layers:
        types.setdefault(layer["name"].rsplit(".", 1)[-1], []).append(layer)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for colour, (kind, found) in zip(plt.get_cmap("tab10").colors, types.items(), strict=False):  # type: ignore[attr-defined]
        depth = range(len(found))
        left.semilogy(depth, [1 / layer["condition"] for layer in found], ".-", color=colour, lw=1, label=kind)
        for key, style in (("tail_excess", "-"), ("float32_outputs_tail_excess", "--")):
            right.semilogy(depth, [max(abs(layer[key]), FLOOR) for layer in found], style, color=colour, lw=1)
    left.set(title="smallest / largest eigenvalue inside the numerical range", xlabel="decoder layer")
    figure.legend(loc="outside lower center", ncols=len(types), frameon=False)
    right.axhline(0.01, color="black", lw=0.8)
    right.set(
        title="tail energy, distance from the optimum\n(solid: float64 sums; dashed: float32 sums of outputs)",
        xlabel="decoder layer",
    )
    figure.savefig(target, dpi=110)


def which_tail(source: Path, target: Path) -> None:
    """Loss over rate and over relative step, and forgetting over loss, of the ladders kept by which_tail.py."""
    runs = frame(read_json(path) for path in sorted(source.glob("*.json")))
    runs = runs[runs["relative_step"] > 1e-4]  # what has learnt nothing, at the published rate, is far off the picture
    runs = runs[runs.groupby("arm")["relative_step"].transform("nunique") >= LADDER]
    names = {
        "learning_rate": "learning rate",
        "relative_step": "relative step",
        "reporting_loss": "loss on held-out records (nats per token)",
        "rise": "forgetting: rise of the loss on general text",
    }
    panels = [("learning_rate", "reporting_loss"), ("relative_step", "reporting_loss"), ("reporting_loss", "rise")]
    figure, grid = plt.subplots(1, 3, figsize=(14, 4.6), layout="constrained")
    for (x, y), axes in zip(panels, grid, strict=True):
        for arm, runs_of_arm in runs.groupby("arm"):
            own = runs_of_arm.dropna(subset=[x, y])
            rungs = own.groupby("relative_step")[["learning_rate", "reporting_loss", "rise"]].mean().reset_index()
            (line,) = axes.plot(rungs[x], rungs[y], label=arm)
            axes.plot(own[x], own[y], "o", ms=4, color=line.get_color(), alpha=0.6)
        scales = {f"{axis}scale": "linear" if of == "reporting_loss" else "log" for axis, of in (("x", x), ("y", y))}
        axes.set(xlabel=names[x], ylabel=names[y], **scales)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=10, frameon=False)
    what = "SmolLM2-135M (4-bit rounding in its weights), GSM8K, rank 16, 40 steps"
    what += "; a dot is a run, a line joins an arm's means over seeds"
    figure.suptitle(what, fontsize=10)
    figure.savefig(target, dpi=100)


if __name__ == "__main__":
    {"precision": precision, "which-tail": which_tail}[sys.argv[1]](*map(Path, sys.argv[2:4]))
