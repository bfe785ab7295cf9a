"""The two ends of a large spectrum by subspace iteration: a few matrix products instead of a full decomposition."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_STEPS = 60
_TOLERANCE = 1e-4  # Ritz residual over Ritz value at which a vector has converged: its energy is then right to 1e-8
_CHECK = 3  # iterations between looks at the residuals


class NotConverged(Exception):
    """The iteration did not find the wanted end; the full solver has to."""


class EndsEigen:
    """The `count` smallest and largest eigenpairs of a positive definite matrix (k, k), float64, on its device.

    Low end: inverse iteration through a Cholesky factor, which multiplies the error of vector i by
    l_i / l_{count + extra} a step; high end: plain iteration. Both with oversampling and Rayleigh-Ritz, stopped when
    every wanted residual |C x - l x| is below 1e-4 l (Halko, Martinsson & Tropp, 2011; Saad, chapter 5).

    Raises:
        NotConverged: the matrix is singular to `floor` times its largest eigenvalue, or an end does not converge.
    """

    def __init__(self, matrix: Tensor, count: int, floor: float) -> None:
        size = len(matrix)
        block = min(size, count + max(64, count // 2))
        generator = torch.Generator().manual_seed(size)
        start = torch.randn(size, block, dtype=torch.float64, generator=generator).to(matrix.device)
        self._high_values, self._high = _iterate(matrix, lambda x: matrix @ x, start, count, smallest=False)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if int(failed):
            raise NotConverged
        self._low_values, self._low = _iterate(
            matrix, lambda x: torch.cholesky_solve(x, factor), start, count, smallest=True
        )
        if float(self._low_values[0]) <= floor * float(self._high_values[-1]):
            raise NotConverged
        self.values = torch.full((size,), torch.nan, dtype=torch.float64, device=matrix.device)
        self.values[:count], self.values[size - count :] = self._low_values, self._high_values

    def vectors(self, low: int, high: int) -> Tensor:
        """Eigenvectors low, ..., high - 1, which must lie within one end."""
        count, size = self._low.shape[1], len(self.values)
        if high <= count:
            return self._low[:, low:high]
        return self._high[:, low - size + count : high - size + count]


def _iterate(
    matrix: Tensor, apply: Callable[[Tensor], Tensor], x: Tensor, count: int, smallest: bool
) -> tuple[Tensor, Tensor]:
    """Subspace iteration from x (k, block) until the `count` wanted Ritz pairs have converged; ascending."""
    for step in range(1, _STEPS + 1):
        x = torch.linalg.qr(apply(x)).Q
        if step % _CHECK:
            continue
        image = matrix @ x
        values, rotation = torch.linalg.eigh(x.T @ image)
        x, image = x @ rotation, image @ rotation
        wanted = slice(0, count) if smallest else slice(len(values) - count, len(values))
        residuals = (image[:, wanted] - x[:, wanted] * values[wanted]).norm(dim=0)
        if bool((residuals <= _TOLERANCE * values[wanted].abs()).all()):
            return values[wanted], x[:, wanted]
    raise NotConverged
