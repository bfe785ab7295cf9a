"""Share a rank budget over layers by how many directions their activations use."""

from __future__ import annotations

import math
from collections.abc import Mapping

from astra.errors import AstraError


def allocate(
    effective_ranks: Mapping[str, float], budget: int, minimum: int, maximum: Mapping[str, int] | int
) -> dict[str, int]:
    """Ranks in proportion to the logarithm of the effective ranks, summing to `budget` exactly.

    A layer's weight is log(1 + effective rank). Layers that meet their minimum or maximum are fixed there and the rest
    of the budget is shared over the others; fractions go to the largest remainders, ties to the earlier layer, so the
    result depends on nothing but the arguments.

    Args:
        effective_ranks: layer name -> entropy effective rank, >= 1.
        budget: total of the ranks to give out.
        minimum: smallest rank of a layer, >= 1.
        maximum: largest rank, one for all layers or one for each.

    Raises:
        AstraError: no ranks within the bounds sum to the budget, or an effective rank is not finite.
    """
    names = list(effective_ranks)
    highest = {name: maximum if isinstance(maximum, int) else maximum[name] for name in names}
    _check(effective_ranks, budget, minimum, highest)
    weights = {name: math.log1p(effective_ranks[name]) for name in names}
    shares = _bounded_shares(weights, budget, minimum, highest)
    ranks = {name: math.floor(share) for name, share in shares.items()}
    by_remainder = sorted(names, key=lambda name: ranks[name] - shares[name])  # stable: ties keep their order
    for name in by_remainder[: budget - sum(ranks.values())]:
        ranks[name] += 1
    return ranks


def _check(effective_ranks: Mapping[str, float], budget: int, minimum: int, highest: Mapping[str, int]) -> None:
    if not effective_ranks:
        raise AstraError("no layers to share the rank budget over")
    bad = next((name for name, rank in effective_ranks.items() if not (math.isfinite(rank) and rank > 0)), None)
    if bad is not None:
        raise AstraError(f"layer {bad}: effective rank {effective_ranks[bad]} is not a positive number")
    if not 1 <= minimum <= min(highest.values()):
        raise AstraError(f"minimum rank {minimum} is not within 1..{min(highest.values())}, the smallest maximum")
    low, high = minimum * len(highest), sum(highest.values())
    if not low <= budget <= high:
        raise AstraError(f"rank budget {budget} is outside {low}..{high}, what the minima and maxima allow")


def _bounded_shares(
    weights: Mapping[str, float], budget: int, minimum: int, highest: Mapping[str, int]
) -> dict[str, float]:
    """Real shares min(max(weight * t, minimum), maximum) with t such that they sum to the budget.

    The sum grows with t, so bisection finds it; 200 halvings reach the last bit of a double.
    """

    def at(t: float) -> dict[str, float]:
        return {name: min(max(weight * t, float(minimum)), float(highest[name])) for name, weight in weights.items()}

    low, high = 0.0, max(highest[name] / weight for name, weight in weights.items())
    for _ in range(200):
        middle = (low + high) / 2
        if sum(at(middle).values()) <= budget:
            low = middle
        else:
            high = middle
    return at(low)
