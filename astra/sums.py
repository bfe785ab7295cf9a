"""Sums of outer products, in float64 on whatever device the activations are.

The tail of a spectrum is 1e-8 of its top or less, so a float32 sum cannot hold it (docs/method.md has the figures).
The sum is symmetric: only blocks on and below the diagonal are computed, which saves up to 44% of the products.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS = 1024  # rows converted to float64 at a time: bounds the copy, and keeps it in a CPU's cache
_BLOCK = 128  # narrower blocks make slower products
_BLOCKS = 8


class OuterSum:
    """S = sum of x x^T over `rows` rows x of `size` entries, each with a one appended if `augmented`."""

    def __init__(self, size: int, augmented: bool, device: torch.device) -> None:
        width = size + augmented
        self.rows, self._size = 0, size
        self._blocks = blocks(width)
        self._step = _ROWS if device.type == "cpu" else 8 * _ROWS
        self._sum = torch.zeros(width, width, dtype=torch.float64, device=device)

    def add(self, x: Tensor) -> None:
        """Add the outer products of the rows of x (k, size), any floating type."""
        rows = min(self._step, len(x))
        buffer = torch.ones(rows, len(self._sum), dtype=torch.float64, device=self._sum.device)
        for part in x.split(self._step):
            block = buffer[: len(part)]
            block[:, : self._size] = part
            for low, high in self._blocks:
                self._sum[low:high, :high].addmm_(block[:, low:high].T, block[:, :high])
        self.rows += len(x)

    def trace(self) -> Tensor:
        """Sum of the diagonal, a float64 scalar on its device; NaN or Inf if any row had one."""
        return self._sum.trace()

    def release(self) -> Tensor:
        """The whole symmetric sum, float64 (n, n) or (n + 1, n + 1), in the memory of this one, which is then over."""
        return _mirror(self._sum, self._blocks)


def congruence(w: Tensor, g: Tensor, upper: bool = False) -> Tensor:
    """W G W^T, float64 (m, m), of float64 W (m, n), upper triangular if `upper`, and symmetric G (n, n)."""
    result = g.new_empty(len(w), len(w))
    edges = blocks(len(w))
    for low, high in edges:
        start = low if upper else 0  # what is left of it is zero
        half = w[low:high, start:] @ g[start:, start:]
        result[low:, low:high] = w[low:, start:] @ half.T
    return _mirror(result, edges)


def blocks(width: int) -> list[tuple[int, int]]:
    """Ranges that divide 0 .. width, wide enough for fast products."""
    count = max(1, min(_BLOCKS, width // _BLOCK))
    edges = [width * k // count for k in range(count + 1)]
    return list(zip(edges, edges[1:], strict=False))


def _mirror(matrix: Tensor, edges: list[tuple[int, int]]) -> Tensor:
    """The same memory with everything above the diagonal blocks a copy of what is below them."""
    for low, high in edges:
        matrix[:low, low:high] = matrix[low:high, :low].T
    return matrix
