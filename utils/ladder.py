"""How a comparison chooses each arm's step: which rungs and seeds to run next, from what is there.

A ladder has four rungs per decade, 1, 1.8, 3.2 and 5.6, the same for every arm. Each arm starts with three rungs
around `start` and climbs towards the better side until its best rung, or the rungs that can't be told from it, have a
clearly worse rung on either side. "Clearly" is more than one standard error of the paired difference over the
validation records (over the problems, if accuracy chooses: then the loss of each is 1 or 0); a run that diverged is
worse than any that did not. The best rung and its ties are then run with more seeds, and the best is chosen again on
the mean over seeds. Nothing here reads files: a killed comparison goes on from whatever runs have ended.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RUNGS = (1.0, 1.8, 3.2, 5.6)  # of each decade
MOST = 9  # rungs of an arm

Losses = NDArray[np.float64] | None  # float64 (records,) of one run, or None of a run that diverged
Runs = Mapping[int, Mapping[int, Losses]]  # of one arm: rung -> seed -> what its run ended with


@dataclass(frozen=True)
class Wanted:
    """A run that a comparison asks for."""

    arm: str
    rung: int
    seed: int


@dataclass(frozen=True)
class Choice:
    """Where an arm's tuning stands."""

    best: int | None  # rung of the lowest mean loss over the seeds that all of `tied` have; None: all runs diverged
    tied: tuple[int, ...]  # `best` and the neighbouring rungs that are not clearly worse
    inside: bool  # whether a clearly worse rung was run on either side of `tied`
    tried: tuple[int, ...]  # the rungs that were run
    diverged: int  # runs that diverged, over all rungs and seeds


def value(rung: int) -> float:
    """The step of a rung: rung 0 is 1, rung 4 is 10, rung -12 is 1e-3."""
    decade, place = divmod(rung, len(RUNGS))
    return float(f"{RUNGS[place]:g}e{decade}")


def nearest(step: float) -> int:
    """The rung nearest to a step, by ratio."""
    around = round(np.log10(step) * len(RUNGS))
    return min(range(around - 1, around + 2), key=lambda rung: abs(np.log(value(rung) / step)))


def worse(losses: Losses, best: Losses) -> bool:
    """Whether a run's losses are above the best run's by more than one paired standard error."""
    if losses is None or best is None:
        return losses is None and best is not None
    change = losses - best
    return bool(change.mean() > change.std(ddof=1) / np.sqrt(len(change)))


def choose(runs: Runs, first_seed: int) -> Choice:
    """Judge an arm by the runs that ended; rungs are compared on the seeds that all rungs in question have."""
    tried = tuple(sorted(rung for rung, seeds in runs.items() if seeds))
    diverged = sum(losses is None for seeds in runs.values() for losses in seeds.values())
    first = {rung: runs[rung][first_seed] for rung in tried if first_seed in runs[rung]}
    alive = {rung: losses for rung, losses in first.items() if losses is not None}
    if not alive:
        return Choice(None, (), False, tried, diverged)
    best = min(alive, key=lambda rung: (alive[rung].mean(), rung))
    low = high = best
    while low - 1 in first and not worse(first[low - 1], first[best]):
        low -= 1
    while high + 1 in first and not worse(first[high + 1], first[best]):
        high += 1
    tied = tuple(range(low, high + 1))
    inside = low - 1 in first and high + 1 in first
    shared = set.intersection(*(set(runs[rung]) for rung in tied))
    return Choice(min(tied, key=lambda rung: (_mean(runs[rung], shared), rung)), tied, inside, tried, diverged)


def _mean(seeds: Mapping[int, Losses], shared: set[int]) -> float:
    """Mean loss over the seeds given; infinite if one of them diverged."""
    means = [np.inf if losses is None else losses.mean() for seed, losses in seeds.items() if seed in shared]
    return float(np.mean(means))


def next_runs(arms: Mapping[str, Runs], start: float, seeds: Sequence[int], max_runs: int) -> list[Wanted]:
    """The runs that can be started now, in the order of the arms; none where the comparison is over.

    Args:
        arms: arm -> what its runs ended with.
        start: the step around which every arm's first three rungs are.
        seeds: the first tunes; the others are run at the best rung and its ties.
        max_runs: of all arms together, those that ended included.
    """
    done = sum(len(seeds_) for runs in arms.values() for seeds_ in runs.values())
    wanted = [Wanted(arm, rung, seeds[0]) for arm, runs in arms.items() for rung in _climb(runs, start, seeds[0])]
    climbing = {run.arm for run in wanted}
    for arm, runs in arms.items():
        tied = choose(runs, seeds[0]).tied if arm not in climbing else ()  # a run that fails holds up no other arm
        wanted += [Wanted(arm, rung, seed) for seed in seeds[1:] for rung in tied if seed not in runs[rung]]
    return wanted[: max(max_runs - done, 0)]


def _climb(runs: Runs, start: float, seed: int) -> list[int]:
    """The rungs an arm still needs with the first seed: the three at the start, then one on each open side."""
    first = nearest(start)
    missing = [rung for rung in (first - 1, first, first + 1) if seed not in runs.get(rung, {})]
    if missing:
        return missing
    found = choose(runs, seed)
    room = max(MOST - len(found.tried), 0)
    if found.best is None:  # all diverged: the only way is down
        return [found.tried[0] - 1][:room]
    return [rung for rung in (found.tied[0] - 1, found.tied[-1] + 1) if seed not in runs.get(rung, {})][:room]
