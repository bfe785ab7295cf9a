"""Sums of outer products, in float64 on whatever device the activations are.

The tail of a spectrum is 1e-8 of its top or less, so a float32 sum cannot hold it (docs/method.md has the figures).
The sum is symmetric: only blocks on and below the diagonal are computed, which saves up to 44% of the products.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS = 1024  # rows converted to float64 at a time: bounds the copy, and keeps it in a CPU's cache
_BLOCK = 192  # narrower blocks make slower products
_BLOCKS = 8


class OuterSum:
    """S = sum of x x^T over rows x of `size` entries, each with a one appended if `augmented`.

    Attributes:
        rows: number of rows summed.
    """

    def __init__(self, size: int, augmented: bool, device: torch.device) -> None:
        width = size + augmented
        count = max(1, min(_BLOCKS, width // _BLOCK))
        self.rows, self._size = 0, size
        self._edges = [width * k // count for k in range(count + 1)]
        self._step = _ROWS if device.type == "cpu" else 8 * _ROWS
        self._sum = torch.zeros(width, width, dtype=torch.float64, device=device)

    def add(self, x: Tensor) -> None:
        """Add the outer products of the rows of x (k, size), any floating type."""
        for part in x.split(self._step):
            block = part.new_ones(len(part), len(self._sum), dtype=torch.float64, device=self._sum.device)
            block[:, : self._size] = part
            for low, high in zip(self._edges, self._edges[1:], strict=False):
                self._sum[low:high, :high].addmm_(block[:, low:high].T, block[:, :high])
        self.rows += len(x)

    def matrix(self) -> Tensor:
        """The whole symmetric sum, float64 (n, n) or (n + 1, n + 1), on its device."""
        return self._sum.tril() + self._sum.tril(-1).T

    def trace(self) -> Tensor:
        """Sum of the diagonal, a float64 scalar on its device; NaN or Inf if any row had one."""
        return self._sum.trace()

    def load(self, matrix: Tensor, rows: int) -> None:
        """Continue from a saved `matrix()` and `rows`."""
        self._sum.copy_(matrix)
        self.rows = rows

    def release(self) -> Tensor:
        """`matrix()` in the memory of the sum itself, which is not to be added to any more."""
        for low, high in zip(self._edges, self._edges[1:], strict=False):
            self._sum[:low, low:high] = self._sum[low:high, :low].T
        return self._sum
