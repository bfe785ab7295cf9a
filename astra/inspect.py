"""Print what a calibration found: python -m astra.inspect FOLDER."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from astra.errors import AstraError
from astra.store import Calibration, LayerInfo

TOKENS_PER_DIMENSION = 4  # fewer tokens than this times the width leave the small eigenvalues biased towards zero
HEADER = ("layer", "shape", "rank bound", "numerical rank", "effective rank", "tail energy", "condition")


def table(calibration: Calibration) -> str:
    """One line a layer: tail energy is the share of the trace in the stored tail, condition the largest eigenvalue
    over the smallest inside the numerical range.
    """
    rows = [HEADER, *(_row(calibration, info) for info in calibration.layers.values())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)


def warnings(calibration: Calibration) -> Iterator[str]:
    """What to mind before trusting the tails: too few tokens for a dimension, by distinct width."""
    widths: dict[tuple[int, str, int], list[str]] = {}
    for info in calibration.layers.values():
        needed = TOKENS_PER_DIMENSION * min(info.shape[0], info.shape[1])
        tokens, kind = min((info.tokens, "calibration"), (info.distinct or info.tokens, "different"))
        if tokens < needed:
            widths.setdefault((tokens, kind, needed), []).append(info.name)
    for (tokens, kind, needed), names in widths.items():
        yield (
            f"warning: {len(names)} layers ({names[0]}, ...) have {tokens:,} {kind} tokens; {needed:,} would do"
            + (f" ({needed / max(tokens, 1):.1f} times calibration.samples)" if kind == "calibration" else "")
        )


def main(arguments: list[str]) -> int:
    """Print the table and the warnings; 2 if the folder holds no calibration."""
    parser = argparse.ArgumentParser("python -m astra.inspect", description="Print what a calibration found.")
    parser.add_argument("folder", help="a calibration store")
    try:
        calibration = Calibration.load(parser.parse_args(arguments).folder)
        print(table(calibration), *warnings(calibration), sep="\n")
    except AstraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _row(calibration: Calibration, info: LayerInfo) -> tuple[str, ...]:
    values = calibration.eigenvalues(info.name)
    inside = values[len(values) - info.numerical_rank :]
    tail = inside[: min(calibration.max_rank, info.numerical_rank)]
    return (
        info.name,
        f"{info.shape[0]} x {info.shape[1]}{' + b' if info.bias else ''}",
        str(info.rank_bound),
        str(info.numerical_rank),
        "-" if info.effective_rank is None else f"{info.effective_rank:.1f}",
        f"{float(tail.sum()) / info.trace:.2e}" if bool(tail.isfinite().all()) else "-",
        f"{float(inside[-1] / inside[0]):.2e}",
    )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
