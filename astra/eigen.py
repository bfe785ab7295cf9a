"""Symmetric eigenproblems of which some vectors are wanted: LAPACK on a CPU, dense or iterative on a device.

Every solver has `values`, float64 (k,) ascending, NaN where not computed, and `vectors(low, high)`, float64
(k, high - low), the eigenvectors of those indices.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from astra import lapack

_WHOLE = 0.4  # above this share of vectors one full decomposition is cheaper than selected ones


class Eigen(Protocol):
    """A decomposed symmetric matrix."""

    values: Tensor

    def vectors(self, low: int, high: int) -> Tensor:
        """Eigenvectors low, ..., high - 1 in ascending order of eigenvalues, as columns."""


def eigen(matrix: Tensor) -> Eigen:
    """All eigenvalues, and vectors on demand, of a symmetric float64 (k, k) matrix, on its device."""
    return TridiagonalEigen(matrix) if matrix.device.type == "cpu" and len(matrix) > 2 else DenseEigen(matrix)


class DenseEigen:
    """Everything at once, by `torch.linalg.eigh`."""

    def __init__(self, matrix: Tensor) -> None:
        self.values, self._vectors = torch.linalg.eigh(matrix)

    def vectors(self, low: int, high: int) -> Tensor:
        """See `Eigen`."""
        return self._vectors[:, low:high]


class TridiagonalEigen:
    """One reduction to tridiagonal form, all values from it, and only the wanted vectors.

    LAPACK's own drivers reduce the matrix again for every subset asked for.
    """

    def __init__(self, matrix: Tensor) -> None:
        self._matrix = matrix
        size = len(matrix)
        self._reflectors = matrix.numpy().copy()  # a symmetric matrix is the same in rows and in columns
        self._diagonal, self._below, self._tau = np.empty(size), np.empty(size - 1), np.empty(size - 1)
        reduction = (b"L", size, self._reflectors, size, self._diagonal, self._below, self._tau)
        work = lapack.workspace("dsytrd", *reduction)
        lapack.call("dsytrd", *reduction, work, len(work))
        values = self._diagonal.copy()
        lapack.call("dsterf", size, values, self._below.copy())
        self.values = torch.from_numpy(values)
        self._dense: DenseEigen | None = None

    def vectors(self, low: int, high: int) -> Tensor:
        """See `Eigen`."""
        size = len(self.values)
        if self._dense is not None or high - low > _WHOLE * size:
            return self._whole().vectors(low, high)
        if high <= low:
            return torch.zeros(size, 0, dtype=torch.float64)
        try:
            _, small = eigh_tridiagonal(self._diagonal, self._below, select="i", select_range=(low, high - 1))
        except np.linalg.LinAlgError:
            return self._whole().vectors(low, high)
        return torch.from_numpy(self._back(small))

    def _back(self, small: np.ndarray) -> np.ndarray:
        """Q times vectors (k, c) of the tridiagonal form, Q being the product of the reflections."""
        size, count = small.shape
        vectors = np.array(small, order="F")
        product = (b"L", b"L", b"N", size, count, self._reflectors, size, self._tau, vectors, size)
        work = lapack.workspace("dormtr", *product)
        lapack.call("dormtr", *product, work, len(work))
        return vectors

    def _whole(self) -> DenseEigen:
        if self._dense is None:
            self._dense = DenseEigen(self._matrix)
        return self._dense
