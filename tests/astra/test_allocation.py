"""Ranks shared over layers: the budget kept exactly, the bounds respected, more to layers that use more directions."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astra import AstraError, allocate


@st.composite
def requests(draw: st.DrawFn) -> tuple[dict[str, float], int, int, dict[str, int]]:
    ranks = draw(st.lists(st.floats(1.0, 4096.0), min_size=1, max_size=12))
    minimum = draw(st.integers(1, 8))
    highest = {f"layer{k}": draw(st.integers(minimum, 64)) for k in range(len(ranks))}
    budget = draw(st.integers(minimum * len(ranks), sum(highest.values())))
    return {f"layer{k}": rank for k, rank in enumerate(ranks)}, budget, minimum, highest


@given(requests())
@settings(max_examples=200, deadline=None)
def test_the_budget_is_kept_and_the_bounds_respected(
    request_: tuple[dict[str, float], int, int, dict[str, int]],
) -> None:
    effective, budget, minimum, highest = request_
    ranks = allocate(effective, budget, minimum, highest)
    assert sum(ranks.values()) == budget
    assert all(minimum <= ranks[name] <= highest[name] for name in effective)
    assert allocate(effective, budget, minimum, highest) == ranks


def test_more_directions_in_use_get_more_rank() -> None:
    ranks = allocate({"few": 2.0, "some": 20.0, "many": 200.0}, 48, 1, 64)
    assert ranks["few"] < ranks["some"] < ranks["many"]
    assert sum(ranks.values()) == 48


def test_equal_layers_share_equally() -> None:
    assert allocate(dict.fromkeys("abcd", 10.0), 32, 1, 64) == dict.fromkeys("abcd", 8)


@pytest.mark.parametrize(
    ("effective", "budget", "minimum", "message"),
    [
        ({}, 8, 1, "no layers"),
        ({"a": float("nan")}, 8, 1, "layer a: effective rank nan"),
        ({"a": 2.0}, 9, 1, "rank budget 9 is outside 1..8"),
        ({"a": 2.0}, 8, 0, "minimum rank 0"),
    ],
)
def test_what_cannot_be_shared_is_named(effective: dict[str, float], budget: int, minimum: int, message: str) -> None:
    with pytest.raises(AstraError, match=message):
        allocate(effective, budget, minimum, 8)
