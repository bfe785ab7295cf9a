"""Decompositions against dense float64 linear algebra, in every shape a layer can have."""

from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from astra import AstraError
from astra.decompose import Request, effective_rank
from astra.decompose import decompose as decompose_moment
from astra.moments import Moment
from astra.subspace import NotConverged, _orthonormal, ends_eigen

ALL = ("tail", "nullspace", "principal", "middle", "random")


def problem(m: int, n: int, tokens: int = 500, decay: float = 4.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(G, W, b, C) with a spectrum over `2 * decay` decades."""
    generator = torch.Generator().manual_seed(m * 1000 + n)
    x = torch.randn(tokens, n, generator=generator, dtype=torch.float64) * torch.logspace(0, -decay, n).double()
    weight = torch.randn(m, n, generator=generator)
    bias = torch.randn(m, generator=generator)
    ones = torch.cat([x, torch.ones(tokens, 1, dtype=torch.float64)], dim=1)
    y = x @ weight.double().T + bias.double()
    return ones.T @ ones / tokens, weight, bias, y.T @ y / tokens


def decompose(matrix, kind, tokens, weight, bias, rank, subspaces=("tail",), spectrum="full", seed=42, name=""):
    moment, request = Moment(matrix, kind, tokens, name), Request(rank, subspaces, spectrum, seed)
    info, tables = decompose_moment(moment, weight, bias, request, name)
    return SimpleNamespace(**asdict(info), eigenvalues=tables.pop("spectra"), vectors=tables)


@pytest.mark.parametrize(("m", "n"), [(12, 12), (12, 40), (40, 12)], ids=["square", "wide", "tall"])
def test_all_subspaces_are_eigenvectors_of_c(m: int, n: int) -> None:
    g, weight, bias, c = problem(m, n)
    found = decompose(g, "input", 500, weight, bias, 5, ALL)
    values = torch.linalg.eigvalsh(c)
    k = min(m, n + 1)
    assert found.numerical_rank == found.rank_bound == k
    torch.testing.assert_close(found.eigenvalues[m - k :], values[m - k :], rtol=1e-6, atol=1e-15 * float(values[-1]))
    assert found.eigenvalues[: m - k].eq(0).all()
    assert found.trace == pytest.approx(float(c.trace()))
    for subspace, q in found.vectors.items():
        assert q.shape == (m, 5) and q.dtype == torch.float32
        assert (q.T @ q - torch.eye(5)).abs().max() < 1e-6, subspace
    energies = {subspace: ((q.double() * (c @ q.double())).sum(0)) for subspace, q in found.vectors.items()}
    torch.testing.assert_close(energies["tail"], values[m - k : m - k + 5], rtol=1e-3, atol=0)
    torch.testing.assert_close(energies["principal"], values[-5:].flip(0), rtol=1e-6, atol=0)
    if m - k >= 5:
        assert energies["nullspace"].sum() < 1e-10 * c.trace()


def test_a_smaller_rank_is_a_slice() -> None:
    g, weight, bias, _ = problem(20, 30)
    wide = decompose(g, "input", 500, weight, bias, 8, ALL)
    narrow = decompose(g, "input", 500, weight, bias, 3, ("tail", "principal"))
    for subspace, q in narrow.vectors.items():
        torch.testing.assert_close(wide.vectors[subspace][:, :3], q)


def test_an_output_moment_gives_the_same() -> None:
    g, weight, bias, c = problem(12, 40)
    by_input = decompose(g, "input", 500, weight, bias, 5)
    by_output = decompose(c, "output", 500, weight, bias, 5)
    torch.testing.assert_close(by_input.eigenvalues, by_output.eigenvalues)
    torch.testing.assert_close(by_input.vectors["tail"], by_output.vectors["tail"])


def test_a_null_space_that_is_too_small_is_filled_from_the_tail() -> None:
    g, weight, _, _ = problem(16, 12)
    found = decompose(g[:12, :12], "input", 500, weight, None, 6, ("nullspace", "tail"))
    assert found.numerical_rank == 12
    null, tail = found.vectors["nullspace"], found.vectors["tail"]
    assert (null.T @ null - torch.eye(6)).abs().max() < 1e-6
    assert (null[:, :4].T @ weight).abs().max() < 1e-5
    torch.testing.assert_close(null[:, 4:], tail[:, :2])


@pytest.mark.parametrize("smallest", [1e-3, 1e-4, 0.0], ids=["poor", "very poor", "singular"])
def test_an_ill_conditioned_tall_weight_keeps_the_criterion(smallest: float) -> None:
    g, _, _, _ = problem(40, 12, decay=2)
    g = g[:12, :12]
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.linalg.qr(torch.randn(k, 12, generator=generator, dtype=torch.float64)).Q for k in (40, 12))
    scale = torch.logspace(0, -3, 12, dtype=torch.float64)
    scale[-1] = smallest
    weight = left * scale @ right.T
    c = weight @ g @ weight.T
    found = decompose(g, "input", 500, weight, None, 3, ("tail", "nullspace"))
    values = torch.linalg.eigvalsh(c)[40 - found.numerical_rank :]
    tail, null = (found.vectors[subspace].double() for subspace in ("tail", "nullspace"))
    assert found.numerical_rank == (12 if smallest else 11)
    assert (tail * (c @ tail)).sum() == pytest.approx(float(values[:3].sum()), rel=1e-2)
    assert (null * (c @ null)).sum() < 1e-10 * c.trace()
    assert (tail.T @ tail - torch.eye(3)).abs().max() < 1e-6


@pytest.mark.parametrize("smallest", [1e-12, 1e-13])
def test_what_is_small_but_not_rounding_is_in_the_numerical_range(smallest: float) -> None:
    q = torch.linalg.qr(torch.randn(400, 400, dtype=torch.float64, generator=torch.Generator().manual_seed(4))).Q
    values = torch.logspace(0, -6, 400, dtype=torch.float64)
    values[-60:-20] = smallest
    values[-20:] = 0
    c = q * values @ q.T
    found = decompose(c, "output", 10**6, torch.empty(400, 400).normal_(), None, 8, ("tail", "nullspace"))
    assert found.numerical_rank == 380
    tail, null = (found.vectors[subspace].double() for subspace in ("tail", "nullspace"))
    assert (tail * (c @ tail)).sum() == pytest.approx(8 * smallest, rel=1e-2)
    assert (null * (c @ null)).sum() < 1e-12


def test_few_tokens_bound_the_rank() -> None:
    g, weight, bias, c = problem(40, 20, tokens=7)
    found = decompose(g, "input", 7, weight, bias, 10, ("tail", "nullspace"))
    assert found.rank_bound == found.numerical_rank == 7
    assert found.vectors["tail"].shape == (40, 7)
    null = found.vectors["nullspace"].double()
    assert (null * (c @ null)).sum() < 1e-10 * c.trace()


def test_random_bases_come_from_seed_and_name() -> None:
    g, weight, bias, _ = problem(40, 12)

    def draw(seed: int, name: str) -> Tensor:
        return decompose(g, "input", 500, weight, bias, 4, ("nullspace",), seed=seed, name=name).vectors["nullspace"]

    assert torch.equal(draw(1, "a"), draw(1, "a"))
    assert not torch.allclose(draw(1, "a"), draw(2, "a")) and not torch.allclose(draw(1, "a"), draw(1, "b"))


@pytest.mark.parametrize("subspace", ["nullspace", "random"])
def test_drawn_directions_do_not_depend_on_what_else_is_stored(subspace: str) -> None:
    g, weight, bias, _ = problem(40, 12)
    few = decompose(g, "input", 500, weight, bias, 4, (subspace,)).vectors[subspace]
    many = decompose(g, "input", 500, weight, bias, 11, ("nullspace", "random", "tail")).vectors[subspace]
    torch.testing.assert_close(many[:, :4], few, rtol=0, atol=1e-6)


def test_the_middle_is_around_the_median() -> None:
    g, weight, bias, c = problem(12, 40)
    q = decompose(g, "input", 500, weight, bias, 2, ("middle",)).vectors["middle"].double()
    torch.testing.assert_close((q * (c @ q)).sum(0), torch.linalg.eigvalsh(c)[5:7], rtol=1e-5, atol=0)


def test_effective_rank() -> None:
    assert effective_rank(torch.ones(7).double()) == pytest.approx(7)
    assert effective_rank(torch.tensor([0.0, 0.0, 3.0]).double()) == pytest.approx(1)


def test_the_ends_of_a_large_spectrum_by_iteration() -> None:
    c = problem(300, 400, tokens=3000, decay=2.0)[3]
    values = torch.linalg.eigvalsh(c)
    found = ends_eigen(c, 10, 10, floor=1e-12)
    torch.testing.assert_close(found.values[:10], values[:10], rtol=1e-6, atol=0)
    torch.testing.assert_close(found.values[-10:], values[-10:], rtol=1e-6, atol=0)
    assert found.values[10:-10].isnan().all()
    low, high = found.vectors(0, 10), found.vectors(290, 300)
    assert float((low * (c @ low)).sum()) == pytest.approx(float(values[:10].sum()), rel=1e-6)
    assert float((high * (c @ high)).sum()) == pytest.approx(float(values[-10:].sum()), rel=1e-6)


def test_a_singular_matrix_is_left_to_the_full_solver() -> None:
    c = problem(60, 20)[3]
    with pytest.raises(NotConverged):
        ends_eigen(c, 4, 4, floor=1e-12)


@pytest.mark.parametrize("subspace", ["tail", "principal"])
def test_a_flat_spectrum_needs_no_full_solver(subspace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("astra.decompose.LARGE", 100)
    monkeypatch.setattr("astra.decompose.full_eigen", lambda _: pytest.fail("fell back to the full solver"))
    x = torch.randn(16000, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    c = x.T @ x / len(x)  # random activations: eigenvalues between 0.68 and 1.39
    found = decompose(c, "output", len(x), torch.randn(500, 500), None, 16, (subspace,), spectrum="ends")
    values, q = torch.linalg.eigvalsh(c), found.vectors[subspace].double()
    best = values[:16].sum() if subspace == "tail" else values[-16:].sum()
    assert float((q * (c @ q)).sum()) == pytest.approx(float(best), rel=1e-5)
    assert float(found.eigenvalues[-1]) == pytest.approx(float(values[-1]), rel=1e-5)
    assert found.eigenvalues.isfinite().sum() == 17  # those of the subspace, and one of the other end


def test_columns_that_almost_coincide_are_made_orthonormal() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(50, 1, dtype=torch.float64, generator=generator)
    x = x + 1e-9 * torch.randn(50, 6, dtype=torch.float64, generator=generator)
    q = _orthonormal(x)
    torch.testing.assert_close(q.T @ q, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (x - q @ (q.T @ x)).abs().max() < 1e-14


def test_spectrum_ends_meets_the_criterion_and_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("astra.decompose.LARGE", 100)
    g, weight, bias, c = problem(300, 400, tokens=3000, decay=2.0)
    found = decompose(g, "input", 3000, weight, bias, 10, ("tail", "principal"), spectrum="ends")
    values, q = torch.linalg.eigvalsh(c), found.vectors["tail"].double()
    assert float((q * (c @ q)).sum()) < 1.01 * float(values[:10].sum())
    assert found.effective_rank is None and found.eigenvalues.isnan().sum() == 280
    full = decompose(g, "input", 3000, weight, bias, 10, ("middle",), spectrum="ends")
    assert full.effective_rank is not None


def test_what_cannot_be_decomposed_is_named() -> None:
    g, *_ = problem(12, 12)
    with pytest.raises(AstraError, match="layer q: its outputs are all zero"):
        decompose(g, "input", 500, torch.zeros(12, 12), None, 5, name="q")


def test_a_solver_that_fails_names_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Tensor) -> None:
        raise torch.linalg.LinAlgError("linalg.eigh: failed to converge\nmore")

    monkeypatch.setattr("astra.decompose.full_eigen", fail)
    g, weight, bias, _ = problem(12, 12)
    with pytest.raises(AstraError, match=r"^layer q: linalg.eigh: failed to converge$"):
        decompose(g, "input", 500, weight, bias, 5, name="q")
