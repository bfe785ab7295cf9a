"""The two ends of a large spectrum by subspace iteration: a few matrix products instead of a full decomposition."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_TOLERANCE = 1e-4  # Ritz residual over Ritz value at which a vector has converged: its energy is then right to 1e-8
_ROUNDS = 12
_STEPS = 48  # products between two looks at the residuals, at most
_WANTED = 14.0  # log of what a round should gain on the last wanted vector: 1e6
_GROWTH = 18.0  # log of how far apart a filter may pull a block before rounding eats it: 1e8
_APART = 1e-5  # smallest pivot of unit columns that CholeskyQR2 still makes orthonormal to rounding


class NotConverged(Exception):
    """The iteration did not find a wanted end; the full solver has to."""


@dataclass
class Eigen:
    """Eigenvalues of a symmetric matrix, float64 (k,), ascending, NaN where not computed; vectors of its two ends."""

    values: Tensor
    low: Tensor
    high: Tensor

    def vectors(self, low: int, high: int) -> Tensor:
        """Eigenvectors low, ..., high - 1, which must lie within one end."""
        if high <= self.low.shape[1]:
            return self.low[:, low:high]
        first = len(self.values) - self.high.shape[1]
        return self.high[:, low - first : high - first]


def full_eigen(matrix: Tensor) -> Eigen:
    """All eigenpairs of a symmetric matrix (k, k): both ends are the whole."""
    values, vectors = torch.linalg.eigh(matrix)
    return Eigen(values, vectors, vectors)


def ends_eigen(matrix: Tensor, low: int, high: int, floor: float) -> Eigen:
    """The `low` smallest and `high` largest eigenpairs of a positive definite matrix (k, k), float64, on its device.

    Subspace iteration with oversampling, Chebyshev filters and Rayleigh-Ritz, on the matrix itself for the high end
    and on its inverse, through a Cholesky factor, for the low end, stopped when every wanted residual |C x - l x| is
    below 1e-4 l (Saad, Numerical Methods for Large Eigenvalue Problems, chapters 5 and 7). The filters are for flat
    spectra, on which plain iteration takes hundreds of steps. A matrix that is singular to `floor` times its largest
    eigenvalue has not converged, nor one without a gap where an end begins.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if int(failed):
        raise NotConverged
    smallest, low_end = _iterate(matrix, lambda x: torch.cholesky_solve(x, factor), low, inverse=True)
    largest, high_end = _iterate(matrix, lambda x: matrix @ x, high, inverse=False)
    if float(smallest[0]) <= floor * float(largest[-1]):
        raise NotConverged
    values = torch.full((len(matrix),), torch.nan, dtype=torch.float64, device=matrix.device)
    values[:low], values[len(matrix) - high :] = smallest, largest
    return Eigen(values, low_end, high_end)


def _iterate(matrix: Tensor, apply: Callable[[Tensor], Tensor], count: int, inverse: bool) -> tuple[Tensor, Tensor]:
    """The `count` pairs of the matrix (k, k) at the end where `apply`, it or its inverse, is largest; ascending."""
    size = len(matrix)
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(size, min(size, count + max(16, count // 2)), dtype=torch.float64, generator=generator)
    x, bound, degree, passes = x.to(matrix.device), 0.0, 1, 2
    wanted = slice(0, count) if inverse else slice(x.shape[1] - count, x.shape[1])
    for _ in range(_ROUNDS):
        for _ in range(passes):
            x = _orthonormal(_filter(apply, x, bound, degree))
        image = matrix @ x
        values, rotation = torch.linalg.eigh(x.T @ image)
        x, image = x @ rotation, image @ rotation
        residuals = (image[:, wanted] - x[:, wanted] * values[wanted]).norm(dim=0)
        if bool((residuals <= _TOLERANCE * values[wanted].abs()).all()):
            return values[wanted], x[:, wanted]
        bound, degree, passes = _schedule(1 / values.flip(0) if inverse else values, count)
    raise NotConverged


def _schedule(values: Tensor, count: int) -> tuple[float, int, int]:
    """Bound and degree of the next filter and how often to apply it, from ascending Ritz values of the operator."""
    bound, last, top = (float(values[index]) for index in (0, len(values) - count, -1))
    if not 0 < bound <= last <= top < math.inf:
        raise NotConverged
    gain, growth = (math.acosh(max(2 * value / bound - 1, 1 + 1e-4)) for value in (last, top))
    steps = min(max(round(_WANTED / gain), 2), _STEPS)
    degree = min(max(int(_GROWTH / growth), 1), steps)
    return bound, degree, -(-steps // degree)


def _filter(apply: Callable[[Tensor], Tensor], x: Tensor, bound: float, degree: int) -> Tensor:
    """T_degree(2 A / bound - 1) x, a Chebyshev polynomial: small on [0, bound], growing fast above it."""
    if degree == 1:
        return apply(x)
    before, x = x, apply(x) * (2 / bound) - x
    for _ in range(degree - 1):
        before, x = x, (apply(x) * (2 / bound) - x) * 2 - before
    return x


def _orthonormal(x: Tensor) -> Tensor:
    """An orthonormal basis of the columns: CholeskyQR2, products only, or Householder QR where they are too close."""
    for _ in range(2):
        x = x / x.norm(dim=0)
        factor, failed = torch.linalg.cholesky_ex(x.T @ x)
        if not bool((failed == 0) & (factor.diagonal().min() > _APART)):
            return torch.linalg.qr(x).Q
        x = torch.linalg.solve_triangular(factor.T, x, upper=True, left=False)
    return x
