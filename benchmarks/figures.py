"""Draw the figures of the docs from committed results.

python benchmarks/figures.py precision benchmarks/results/calibration-precision-cpu.json docs/precision.png
python benchmarks/figures.py which-tail benchmarks/results/which-tail docs/which-tail.png
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import pandas as pd  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402

FLOOR = 1e-12  # below this an excess is rounding


def precision(source: Path, target: Path) -> None:
    """Condition and tail energy of every layer, from a result of `benchmarks/calibration.py --oracle`."""
    layers = json.loads(source.read_text(encoding="utf-8"))["layers"]
    types: dict[str, list[dict]] = {}
    for layer in layers:
        types.setdefault(layer["name"].rsplit(".", 1)[-1], []).append(layer)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for colour, (kind, found) in zip(plt.get_cmap("tab10").colors, types.items(), strict=False):  # type: ignore[attr-defined]
        depth = range(len(found))
        left.semilogy(depth, [1 / layer["condition"] for layer in found], ".-", color=colour, lw=1, label=kind)
        for key, style in (("tail_excess", "-"), ("float32_outputs_tail_excess", "--")):
            right.semilogy(depth, [max(abs(layer[key]), FLOOR) for layer in found], style, color=colour, lw=1)
    left.set(title="smallest / largest eigenvalue inside the numerical range", xlabel="depth")
    figure.legend(loc="outside lower center", ncols=len(types), frameon=False)
    right.axhline(0.01, color="black", lw=0.8)
    right.set(
        title="tail energy, distance from the optimum\n(solid: float64 sums; dashed: float32 sums of outputs)",
        xlabel="depth",
    )
    figure.savefig(target, dpi=110)


def which_tail(source: Path, target: Path) -> None:
    """Loss of every run over its learning rate and over its relative step, from the runs kept by which_tail.py."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(source.glob("*.json"))]
    runs = pd.DataFrame([{"arm": record["arm"], **record["figures"]} for record in records if not record["diverged"]])
    runs["relative_step"] = [settings["train.relative_step"] for settings in runs["settings"]]
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for x, axes in zip(("learning_rate", "relative_step"), panels, strict=True):
        for arm, own in runs.groupby("arm"):
            rungs = own.groupby("relative_step")[["learning_rate", "reporting_loss"]].mean().reset_index()
            (line,) = axes.plot(rungs[x], rungs["reporting_loss"], lw=1.4, label=arm)
            axes.plot(own[x], own["reporting_loss"], "o", ms=4, color=line.get_color(), alpha=0.6)
        axes.set(xscale="log", xlabel=x.replace("_", " ").replace("relative", "relative first"))
    panels[0].set_ylabel("loss on held-out records (nats per token)")
    panels[1].legend(frameon=False)
    what = "SmolLM2-135M (4-bit rounding in its weights), GSM8K, rank 16, 40 steps; a dot is a run"
    figure.suptitle(what, fontsize=10)
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    {"precision": precision, "which-tail": which_tail}[sys.argv[1]](*map(Path, sys.argv[2:4]))
