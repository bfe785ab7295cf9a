"""From a second moment and a weight to the spectrum of C = (1/T) sum y y^T and the eigenvectors asked for."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from astra.errors import AstraError
from astra.moments import Moment
from astra.store import LayerInfo
from astra.subspace import Eigen, NotConverged, ends_eigen, full_eigen
from astra.sums import OuterSum, congruence

Found = tuple[LayerInfo, dict[str, Tensor]]  # of a layer, with its tables: "spectra" and one per subspace
# An eigenvalue counts as zero below this times the largest. What rounding leaves of a zero is 2.5e-16 of the largest,
# whatever the size of the matrix: less than 1% of the smallest that is kept.
CUTOFF = 256 * torch.finfo(torch.float64).eps
_CONDITION = 1e-3  # smallest over largest pivot of a Cholesky factor to rely on
LARGE = 2048  # below this size a full decomposition is as fast as its ends


@dataclass(frozen=True)
class Request:
    """What to compute of each layer; see `astra.calibrate`."""

    rank: int
    subspaces: tuple[str, ...]
    spectrum: str
    seed: int


def decompose(
    moment: Moment, weight: Tensor, bias: Tensor | None, request: Request, name: str, distinct: int | None = None
) -> Found:
    """Decompose C of a layer y = W x + b, on the device of its moment.

    Args:
        moment: of x or of y.
        weight: W (m x n), any floating type.
        bias: b (m,) or None.
        request: a layer that has fewer vectors than `rank` gives fewer.
        name: the layer's, for messages; with the seed it decides `random` and the basis of the null space, whose
            columns depend neither on how many are asked for nor on the other subspaces.
        distinct: number of different tokens, where the input depends on nothing else.

    Returns:
        What is known of the layer, and its tables on the CPU: eigenvalues, float64 (m,), ascending, 0 outside the
        numerical range, NaN where not computed; and of each subspace float32 (m, <= rank), orthonormal columns.

    Raises:
        AstraError: NaN or Inf in the weights, or a C that has no energy or defeats the solver.
    """
    m, n = weight.shape
    bound = min(m, n + (bias is not None), moment.tokens, moment.tokens if distinct is None else distinct)
    rank = min(request.rank, m)
    problem = _Problem(moment, weight, bias)
    if not bool(problem.core.isfinite().all()):
        raise AstraError(f"layer {name}: NaN or Inf in its weights")
    try:
        solved = _solve(problem.core, rank, bound, request)
        largest = float(solved.values[-1])
        if not largest > 0:
            raise AstraError(f"layer {name}: its outputs are all zero on the calibration set")
        above = int((~solved.values.isfinite() | (solved.values > CUTOFF * largest)).sum())
        numerical = min(above, bound)
        picker = _Picker(problem, solved, numerical, rank, f"{request.seed}:{name}")
        tables = {
            subspace: picker.pick(subspace).to(device="cpu", dtype=torch.float32).contiguous()
            for subspace in request.subspaces
        }
    except torch.linalg.LinAlgError as error:
        raise AstraError(f"layer {name}: {str(error).splitlines()[0]}") from error
    inside = solved.values[len(solved.values) - numerical :]
    values = torch.cat([inside.new_zeros(m - numerical), inside]).cpu()
    info = LayerInfo(
        name=name,
        shape=(m, n),
        bias=bias is not None,
        moment=moment.kind,
        group=moment.group,
        tokens=moment.tokens,
        rank_bound=bound,
        numerical_rank=numerical,
        effective_rank=effective_rank(values) if bool(values.isfinite().all()) else None,
        trace=float(problem.core.trace()),
        distinct=distinct,
    )
    return info, {"spectra": values, **tables}


def effective_rank(eigenvalues: Tensor) -> float:
    """exp of the Shannon entropy of the normalised spectrum (Roy & Vetterli, 2007): 1 .. number of eigenvalues."""
    share = eigenvalues[eigenvalues > 0] / eigenvalues[eigenvalues > 0].sum()
    return math.exp(float(-(share * share.log()).sum()))


class _Problem:
    """C = Q core Q^T, with a core of at most n + 1 rows and orthonormal columns Q (m x k), never formed.

    For m > n, the Cholesky factor R of W~^T W~ gives Q = W~ R^-1 and core = R G R^T: no m x m problem, and products
    in place of Householder reflections. Q is orthonormal to eps cond(W~)^2, so that an ill-conditioned W~ gets them.
    """

    def __init__(self, moment: Moment, weight: Tensor, bias: Tensor | None) -> None:
        self.rows = weight.shape[0]
        self._tall: Tensor | None = None
        self._triangle: Tensor | None = None
        matrix = moment.matrix
        if moment.kind == "output":
            self.core = (matrix + matrix.T).div_(2)
            return
        w = weight.to(device=matrix.device, dtype=torch.float64)
        if bias is not None:
            w = torch.cat([w, bias.to(w)[:, None]], dim=1)
        if w.shape[0] > w.shape[1]:
            self._tall, self._triangle = w, _triangle(w)
            if self._triangle is None:
                self._tall, w = torch.linalg.qr(w)
            else:
                w = self._triangle
        self.core = congruence(w, matrix[: w.shape[1], : w.shape[1]], upper=self._tall is not None)

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


class _Picker:
    """Chooses eigenvectors by index; columns are ordered so that the first r of them serve rank r."""

    def __init__(self, problem: _Problem, solved: Eigen, numerical: int, rank: int, seed: str) -> None:
        self.problem, self.solved, self.numerical = problem, solved, numerical
        self.rank, self.seed = rank, seed
        self.first = len(solved.values) - numerical  # index of the smallest eigenvalue inside the numerical range

    def pick(self, subspace: str) -> Tensor:
        """float64 (m, <= rank), orthonormal."""
        count, size = min(self.rank, self.numerical), len(self.solved.values)
        if subspace == "tail":
            return self._lifted(self.first, self.first + count)
        if subspace == "principal":
            return self._lifted(size - count, size).flip(1)
        if subspace == "middle":  # around the median eigenvalue of the numerical range, from the middle outwards
            low = self.first + (self.numerical - count) // 2
            centre = self.first + (self.numerical - 1) / 2
            order = sorted(range(count), key=lambda index: (abs(low + index - centre), index))
            return self._lifted(low, low + count)[:, order]
        if subspace == "nullspace":
            return self._nullspace()
        return torch.linalg.qr(self._gaussian("random", self.rank)).Q

    def _lifted(self, low: int, high: int) -> Tensor:
        vectors = self.solved.vectors(low, high)
        # An eigenvector's sign is arbitrary: make it the same whatever solver found it.
        peak = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        return self.problem.lift(vectors * peak.sign())

    def _nullspace(self) -> Tensor:
        """A random orthonormal basis of the complement of the numerical range, then the tail if that is too small."""
        count = min(self.rank, self.problem.rows - self.numerical)
        low = self.solved.vectors(0, self.first)
        basis = self._gaussian("nullspace", count)
        for _ in range(2):  # once leaves the rounding of the first time
            inside = self.problem.coordinates(basis)
            basis = torch.linalg.qr(basis - self.problem.lift(inside - low @ (low.T @ inside))).Q
        tail = self._lifted(self.first, self.first + min(self.rank - count, self.numerical))
        return torch.cat([basis, tail], dim=1)

    def _gaussian(self, subspace: str, columns: int) -> Tensor:
        """Drawn column by column, each subspace from a seed of its own: what else is stored changes nothing."""
        digest = hashlib.sha256(f"{self.seed}:{subspace}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        draw = torch.empty(columns, self.problem.rows, dtype=torch.float64)
        for row in draw:
            row.normal_(generator=generator)
        return draw.T.to(self.problem.core.device)


def _solve(core: Tensor, rank: int, bound: int, request: Request) -> Eigen:
    """All of a core; of a large one only the ends, if they do and the iteration finds them.

    On a device a whole spectrum is its eigenvalues and the vectors of the ends: `eigh` would compute all vectors.
    """
    ends, subspaces = request.spectrum == "ends" or core.device.type != "cpu", request.subspaces
    if ends and len(core) >= LARGE and len(core) <= bound and "middle" not in subspaces:
        # Of an end that no subspace is taken from, one value: the numerical rank compares the two.
        low = rank if {"tail", "nullspace"} & set(subspaces) else 1
        high = rank if "principal" in subspaces else 1
        try:
            found = ends_eigen(core, low, high, floor=CUTOFF)
        except NotConverged:
            return full_eigen(core)  # singular, or no gap between what is wanted and the rest
        if request.spectrum == "full":
            found.values = torch.linalg.eigvalsh(core)
        return found
    return full_eigen(core)


def _triangle(w: Tensor) -> Tensor | None:
    """Upper triangular R with w^T w = R^T R, or None if w is too ill-conditioned for that."""
    total = OuterSum(w.shape[1], False, w.device)
    total.add(w)
    factor, failed = torch.linalg.cholesky_ex(total.release())
    diagonal = factor.diagonal().abs()
    return None if int(failed) or float(diagonal.min()) < _CONDITION * float(diagonal.max()) else factor.T
