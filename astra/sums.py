"""Sums of outer products, in float64 on whatever device the activations are.

The tail of a spectrum is 1e-8 of its top or less, so a float32 sum cannot hold it (docs/method.md has the figures).
On a CPU, BLAS `dsyrk` computes one triangle only: float64 at the price of a float32 product.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from scipy.linalg.blas import dsyrk
from torch import Tensor

_ROWS = 1024  # rows converted to float64 at a time: bounds the copy, and keeps it in cache


class OuterSum(Protocol):
    """S = sum of x x^T over rows x; `augmented` appends a one to each x."""

    rows: int

    def add(self, x: Tensor) -> None:
        """Add the outer products of the rows of x (k, n), any floating type."""

    def matrix(self) -> Tensor:
        """The whole symmetric sum, float64 (n, n) or (n + 1, n + 1), on its device."""

    def trace(self) -> Tensor:
        """Sum of the diagonal, a float64 scalar on its device; NaN or Inf if any row had one."""

    def load(self, matrix: Tensor, rows: int) -> None:
        """Continue from a saved `matrix()` and `rows`."""


def outer_sum(size: int, augmented: bool, device: torch.device) -> OuterSum:
    """An empty sum for rows of `size` entries."""
    return _HostSum(size, augmented) if device.type == "cpu" else _DeviceSum(size, augmented, device)


class _HostSum:
    """Upper triangle of an F-ordered array, which is what `dsyrk` updates in place."""

    def __init__(self, size: int, augmented: bool) -> None:
        width = size + augmented
        self.rows, self._size = 0, size
        self._sum = np.zeros((width, width), order="F")
        self._block = np.ones((0, width))

    def add(self, x: Tensor) -> None:
        for start in range(0, len(x), _ROWS):
            part = x[start : start + _ROWS]
            block = self._workspace(len(part))
            torch.from_numpy(block)[:, : self._size] = part
            dsyrk(1.0, block.T, beta=1.0, c=self._sum, overwrite_c=1)
        self.rows += len(x)

    def _workspace(self, rows: int) -> np.ndarray:
        if len(self._block) < rows:
            self._block = np.ones((rows, self._sum.shape[0]))
        return self._block[:rows]

    def matrix(self) -> Tensor:
        upper = torch.from_numpy(self._sum)
        return torch.triu(upper) + torch.triu(upper, 1).T

    def trace(self) -> Tensor:
        return torch.tensor(np.trace(self._sum), dtype=torch.float64)

    def load(self, matrix: Tensor, rows: int) -> None:
        self._sum[...] = np.triu(matrix.numpy())
        self.rows = rows


class _DeviceSum:
    """Whole matrix by GEMM, float64: what accelerators with float64 tensor cores do best."""

    def __init__(self, size: int, augmented: bool, device: torch.device) -> None:
        width = size + augmented
        self.rows, self._augmented = 0, augmented
        self._sum = torch.zeros(width, width, dtype=torch.float64, device=device)

    def add(self, x: Tensor) -> None:
        for start in range(0, len(x), 4 * _ROWS):
            part = x[start : start + 4 * _ROWS].to(device=self._sum.device, dtype=torch.float64)
            if self._augmented:
                part = torch.cat([part, part.new_ones(len(part), 1)], dim=1)
            self._sum.addmm_(part.T, part)
        self.rows += len(x)

    def matrix(self) -> Tensor:
        return self._sum

    def trace(self) -> Tensor:
        return self._sum.trace()

    def load(self, matrix: Tensor, rows: int) -> None:
        self._sum.copy_(matrix)
        self.rows = rows
