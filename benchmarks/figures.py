"""Draw docs/precision.png from a result of `benchmarks/calibration.py --oracle`.

python benchmarks/figures.py benchmarks/results/calibration-precision-cpu.json docs/precision.png
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

FLOOR = 1e-12  # below this an excess is rounding


def main(source: str, target: str) -> None:
    layers = json.loads(Path(source).read_text(encoding="utf-8"))["layers"]
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


if __name__ == "__main__":
    main(*sys.argv[1:3])
