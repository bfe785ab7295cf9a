"""From a second moment and a weight to the spectrum of C = (1/T) sum y y^T and the eigenvectors asked for."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from astra.errors import AstraError
from astra.store import SUBSPACES
from astra.subspace import EndsEigen, NotConverged
from astra.sums import OuterSum, congruence

T = TypeVar("T")
# An eigenvalue counts as zero below this times the largest. What rounding leaves of a zero is 2.5e-16 of the largest,
# whatever the size of the matrix: less than 1% of the smallest that is kept.
CUTOFF = 256 * torch.finfo(torch.float64).eps
_CONDITION = 1e-3  # smallest over largest pivot of a Cholesky factor to rely on
LARGE = 2048  # below this size a full decomposition is as fast as its ends


@dataclass
class LayerSpectrum:
    """Decomposition of one layer's C (m x m).

    Attributes:
        eigenvalues: float64 (m,), ascending, on the CPU; 0 outside the numerical range, NaN where not computed.
        vectors: subspace -> float32 (m, <= rank), orthonormal columns, on the CPU.
        numerical_rank: number of eigenvalues above `CUTOFF` times the largest, at most `rank_bound`.
        rank_bound: min(m, n (+1 with a bias), T).
        effective_rank: exp(-sum p log p) with p the eigenvalues over their sum; None without a full spectrum.
        trace: of C.
    """

    eigenvalues: Tensor
    vectors: dict[str, Tensor]
    numerical_rank: int
    rank_bound: int
    effective_rank: float | None
    trace: float


def decompose(
    moment: Tensor,
    kind: str,
    tokens: int,
    weight: Tensor,
    bias: Tensor | None,
    rank: int,
    subspaces: Sequence[str] = ("tail",),
    *,
    spectrum: str = "full",
    seed: int = 42,
    name: str = "",
) -> LayerSpectrum:
    """Decompose C of a layer y = W x + b, on the device of `moment`.

    Args:
        moment: float64, the mean of x~ x~^T ("input": n x n, or (n + 1) x (n + 1) with a last row of ones) or of
            y y^T ("output": m x m).
        kind: "input" or "output".
        tokens: T, the number of tokens behind the mean.
        weight: W (m x n), any floating type.
        bias: b (m,) or None.
        rank: columns wanted of each subspace; a layer that has fewer gives fewer.
        subspaces: any of `SUBSPACES` (DESIGN: tail and nullspace are the low end, principal the high end).
        spectrum: "full", or "ends" for only as many eigenvalues at each end as needed, where the layer is large.
        seed: of `random` and of the basis of the null space, together with `name`.
        name: the layer, for the seed and for messages.

    Raises:
        AstraError: unknown subspace, NaN or Inf in the weights, or a C that has no energy or defeats the solver.
    """
    unknown = next((subspace for subspace in subspaces if subspace not in SUBSPACES), None)
    if unknown is not None:
        raise AstraError(f"subspace {unknown!r} is not one of {', '.join(SUBSPACES)}")
    m, n = weight.shape
    bound = min(m, n + (bias is not None), tokens)
    rank = min(rank, m)
    problem = _Problem(moment, kind, weight, bias)
    if not bool(problem.core.isfinite().all()):
        raise AstraError(f"layer {name}: NaN or Inf in its weights")
    solved = _named(name, lambda: _solve(problem.core, rank, bound, spectrum, subspaces))
    largest = float(solved.values[-1])
    if not largest > 0:
        raise AstraError(f"layer {name}: its outputs are all zero on the calibration set")
    known = solved.values.isfinite()
    above = int((~known | (solved.values > CUTOFF * largest)).sum())
    numerical = min(above, bound)
    values = torch.cat([solved.values.new_zeros(m - numerical), solved.values[len(solved.values) - numerical :]])
    picker = _Picker(problem, solved, numerical, rank, _generator(seed, name))
    vectors = _named(name, lambda: {subspace: _single(picker.pick(subspace)) for subspace in subspaces})
    values = values.cpu()
    full = bool(values.isfinite().all())
    return LayerSpectrum(
        values, vectors, numerical, bound, effective_rank(values) if full else None, float(problem.core.trace())
    )


def effective_rank(eigenvalues: Tensor) -> float:
    """exp of the Shannon entropy of the normalised spectrum (Roy & Vetterli, 2007): 1 .. number of eigenvalues."""
    share = eigenvalues[eigenvalues > 0] / eigenvalues[eigenvalues > 0].sum()
    return math.exp(float(-(share * share.log()).sum()))


class _Problem:
    """C = Q core Q^T, with a core of at most n + 1 rows and orthonormal columns Q (m x k), never formed.

    For m > n, the Cholesky factor R of W~^T W~ gives Q = W~ R^-1 and core = R G R^T: no m x m problem, and products
    in place of Householder reflections. Q is orthonormal to eps cond(W~)^2, so that an ill-conditioned W~ gets them.
    """

    def __init__(self, moment: Tensor, kind: str, weight: Tensor, bias: Tensor | None) -> None:
        self.rows = weight.shape[0]
        self._tall: Tensor | None = None
        self._triangle: Tensor | None = None
        if kind == "output":
            self.core = _symmetric(moment)
            return
        w = weight.to(device=moment.device, dtype=torch.float64)
        if bias is not None:
            w = torch.cat([w, bias.to(w)[:, None]], dim=1)
        if w.shape[0] > w.shape[1]:
            self._tall, self._triangle = w, _triangle(w)
            if self._triangle is None:
                self._tall, w = torch.linalg.qr(w)
            else:
                w = self._triangle
        self.core = congruence(w, moment[: w.shape[1], : w.shape[1]], upper=self._tall is not None)

    def lift(self, coordinates: Tensor) -> Tensor:
        """Q times coordinates (k, c): (m, c)."""
        if self._triangle is not None:
            coordinates = torch.linalg.solve_triangular(self._triangle, coordinates, upper=True)
        return coordinates if self._tall is None else self._tall @ coordinates

    def coordinates(self, vectors: Tensor) -> Tensor:
        """Q^T times vectors (m, c): (k, c)."""
        found = vectors if self._tall is None else self._tall.T @ vectors
        if self._triangle is None:
            return found
        return torch.linalg.solve_triangular(self._triangle.T, found, upper=False)


class Eigen(Protocol):
    """A decomposed symmetric matrix; `values` is float64 (k,), ascending, NaN where not computed."""

    values: Tensor

    def vectors(self, low: int, high: int) -> Tensor:
        """Eigenvectors low, ..., high - 1 in ascending order of eigenvalues, float64 (k, high - low)."""


class FullEigen:
    """Everything at once, by `torch.linalg.eigh`."""

    def __init__(self, matrix: Tensor) -> None:
        self.values, self._vectors = torch.linalg.eigh(matrix)

    def vectors(self, low: int, high: int) -> Tensor:
        """See `Eigen`."""
        return self._vectors[:, low:high]


class _Picker:
    """Chooses eigenvectors by index; columns are ordered so that the first r of them serve rank r."""

    def __init__(
        self, problem: _Problem, solved: Eigen, numerical: int, rank: int, generator: torch.Generator
    ) -> None:
        self.problem, self.solved, self.numerical = problem, solved, numerical
        self.rank, self.generator = rank, generator
        self.first = len(solved.values) - numerical  # index of the smallest eigenvalue inside the numerical range

    def pick(self, subspace: str) -> Tensor:
        """float64 (m, <= rank), orthonormal."""
        return {
            "tail": lambda: self._tail(self.rank),
            "principal": self._principal,
            "middle": self._middle,
            "nullspace": self._nullspace,
            "random": self._random,
        }[subspace]()

    def _lifted(self, low: int, high: int) -> Tensor:
        vectors = self.solved.vectors(low, high)
        # An eigenvector's sign is arbitrary: make it the same whatever solver found it.
        peak = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        return self.problem.lift(vectors * peak.sign())

    def _tail(self, count: int) -> Tensor:
        return self._lifted(self.first, self.first + min(count, self.numerical))

    def _principal(self) -> Tensor:
        size = len(self.solved.values)
        return self._lifted(size - min(self.rank, self.numerical), size).flip(1)

    def _middle(self) -> Tensor:
        """Around the median eigenvalue of the numerical range, from the middle outwards."""
        count = min(self.rank, self.numerical)
        low = self.first + (self.numerical - count) // 2
        centre = self.first + (self.numerical - 1) / 2
        order = sorted(range(low, low + count), key=lambda index: (abs(index - centre), index))
        return self._lifted(low, low + count)[:, [index - low for index in order]]

    def _nullspace(self) -> Tensor:
        """A random orthonormal basis of the complement of the numerical range, then the tail if that is too small."""
        count = min(self.rank, self.problem.rows - self.numerical)
        low = self.solved.vectors(0, self.first)
        basis = self._gaussian(self.problem.rows, count)
        for _ in range(2):  # once leaves the rounding of the first time
            inside = self.problem.coordinates(basis)
            basis = torch.linalg.qr(basis - self.problem.lift(inside - low @ (low.T @ inside))).Q
        return torch.cat([basis, self._tail(self.rank - count)], dim=1)

    def _random(self) -> Tensor:
        return torch.linalg.qr(self._gaussian(self.problem.rows, self.rank)).Q

    def _gaussian(self, rows: int, columns: int) -> Tensor:
        draw = torch.randn(rows, columns, dtype=torch.float64, generator=self.generator)
        return draw.to(self.problem.core.device)


def _solve(core: Tensor, rank: int, bound: int, spectrum: str, subspaces: Sequence[str]) -> Eigen:
    """All of a core; of a large one only the ends, if they do and the iteration finds them.

    On a device a whole spectrum is its eigenvalues and the vectors of the ends: `eigh` would compute all vectors.
    """
    ends = spectrum == "ends" or core.device.type != "cpu"
    if ends and len(core) >= LARGE and len(core) <= bound and "middle" not in subspaces:
        # Of an end that no subspace is taken from, one value: the numerical rank compares the two.
        low = rank if {"tail", "nullspace"} & set(subspaces) else 1
        high = rank if "principal" in subspaces else 1
        try:
            found = EndsEigen(core, low, high, floor=CUTOFF)
        except NotConverged:
            return FullEigen(core)  # singular, or no gap between what is wanted and the rest
        if spectrum == "full":
            found.values = torch.linalg.eigvalsh(core)
        return found
    return FullEigen(core)


def _named(name: str, solve: Callable[[], T]) -> T:
    """What `solve` gives; its failure with the layer's name."""
    try:
        return solve()
    except (torch.linalg.LinAlgError, AstraError) as error:
        raise AstraError(f"layer {name}: {str(error).splitlines()[0]}") from error


def _triangle(w: Tensor) -> Tensor | None:
    """Upper triangular R with w^T w = R^T R, or None if w is too ill-conditioned for that."""
    total = OuterSum(w.shape[1], False, w.device)
    total.add(w)
    factor, failed = torch.linalg.cholesky_ex(total.release())
    diagonal = factor.diagonal().abs()
    return None if int(failed) or float(diagonal.min()) < _CONDITION * float(diagonal.max()) else factor.T


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T).div_(2)


def _single(vectors: Tensor) -> Tensor:
    return vectors.to(device="cpu", dtype=torch.float32).contiguous()


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
