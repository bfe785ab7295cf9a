"""The rule by which a comparison chooses rungs and seeds, on simulated losses."""

import random

import numpy as np
import pytest

from utils.ladder import MOST, Wanted, choose, nearest, next_runs, value

SEEDS = (1, 2, 3)
START = nearest(1e-3)


def simulate(best: float, noise: float = 0.002, diverges_above: int = 10**6, flat: float = 0.0, curve: float = 0.02):
    """Losses over 200 records of a run at a rung: a parabola in the logarithm of the step, shared record noise."""
    records = np.random.default_rng(0).normal(1.0, 0.3, 200)

    def run(rung: int, seed: int):
        if rung > diverges_above:
            return None
        distance = max(abs(rung - best) - flat, 0.0)
        own = np.random.default_rng((rung % 1000, seed)).normal(0, noise, 200)
        return records + curve * distance**2 + own

    return run


def tune(arms, start=1e-3, seeds=SEEDS, max_runs=1000, known=None, stop_after=None):
    """Run a comparison to its end, or until so many runs have ended."""
    runs = {arm: {} for arm in arms} if known is None else known
    count = 0
    while wanted := next_runs(runs, start, seeds, max_runs):
        for run in wanted:
            if stop_after is not None and count >= stop_after:
                return runs
            assert run.seed not in runs[run.arm].get(run.rung, {})  # nothing is run twice
            runs[run.arm].setdefault(run.rung, {})[run.seed] = arms[run.arm](run.rung, run.seed)
            count += 1
    return runs


def test_rungs_are_four_a_decade_on_the_same_grid_for_all():
    assert [value(rung) for rung in range(-12, -7)] == [1e-3, 1.8e-3, 3.2e-3, 5.6e-3, 1e-2]
    assert all(nearest(value(rung)) == rung for rung in range(-40, 10))
    assert nearest(1.3e-3) == nearest(1e-3) and nearest(1.4e-3) == nearest(1.8e-3)


def test_three_rungs_are_first_and_every_arm_gets_the_same():
    wanted = next_runs({"lora": {}, "tail": {}}, 1e-3, SEEDS, 100)
    assert wanted == [Wanted(arm, rung, 1) for arm in ("lora", "tail") for rung in (START - 1, START, START + 1)]


@pytest.mark.parametrize("best", [-20, -14, -12, -11, -9, -6])
def test_the_best_is_found_wherever_it_lies_with_worse_rungs_on_both_sides(best):
    runs = tune({"tail": simulate(best)})
    found = choose(runs["tail"], 1)
    if abs(best - START) > MOST - 2:
        assert not found.inside and len(found.tried) == MOST  # said to be at the edge, not taken for tuned
        return
    assert found.best == best and found.inside
    assert {best - 1, best + 1} <= set(found.tried)
    assert set(runs["tail"][best]) == set(SEEDS)


def test_a_tie_adds_a_rung_and_the_seeds_decide_between_the_tied():
    runs = tune({"tail": simulate(START + 0.5, flat=0.5)})
    found = choose(runs["tail"], 1)
    assert set(found.tied) >= {START, START + 1} and found.inside
    assert {found.tied[0] - 1, found.tied[-1] + 1} <= set(found.tried)
    for rung in found.tied:
        assert set(runs["tail"][rung]) == set(SEEDS)
    means = {rung: np.mean([runs["tail"][rung][seed].mean() for seed in SEEDS]) for rung in found.tied}
    assert found.best == min(means, key=means.get)


def test_a_plateau_without_end_stops_at_nine_rungs_and_is_not_inside():
    runs = tune({"tail": simulate(START, curve=0.0, noise=0.0)})
    found = choose(runs["tail"], 1)
    assert len(found.tried) == MOST and not found.inside


def test_runs_that_diverge_are_worse_and_counted():
    runs = tune({"tail": simulate(START + 4, diverges_above=START)})
    found = choose(runs["tail"], 1)
    assert found.best == START and found.inside and found.diverged == 1


def test_an_arm_that_always_diverges_climbs_down_and_ends():
    runs = tune({"tail": simulate(START, diverges_above=-(10**6))})
    found = choose(runs["tail"], 1)
    assert found.best is None and found.tied == () and found.diverged == len(found.tried) == MOST


def test_the_budget_is_kept():
    arms = {name: simulate(START + shift) for name, shift in (("lora", 0), ("tail", 3), ("principal", -3))}
    runs = tune(arms, max_runs=11)
    assert sum(len(seeds) for rungs in runs.values() for seeds in rungs.values()) == 11
    assert next_runs(runs, 1e-3, SEEDS, 11) == []


def test_a_comparison_killed_anywhere_ends_with_the_same_runs():
    arms = {"lora": simulate(START), "tail": simulate(START + 3), "full": simulate(START - 2, diverges_above=START)}
    whole = tune(arms)
    total = sum(len(seeds) for rungs in whole.values() for seeds in rungs.values())

    def keys(runs):
        return {(arm, rung, seed) for arm, rungs in runs.items() for rung, seeds in rungs.items() for seed in seeds}

    for stop in range(total):
        assert keys(tune(arms, known=tune(arms, stop_after=stop))) == keys(whole)
    rng = random.Random(0)
    for _ in range(20):  # any subset that survives, such as after a disk was cleaned
        kept = {arm: {} for arm in arms}
        for arm, rung, seed in keys(whole):
            if rng.random() < 0.5:
                kept[arm].setdefault(rung, {})[seed] = whole[arm][rung][seed]
        assert keys(tune(arms, known=kept)) >= keys(whole)


def test_an_arm_whose_run_fails_holds_up_no_other_arm():
    runs = tune({"lora": simulate(START)}, seeds=(1,))
    wanted = next_runs({**runs, "broken": {START - 1: {1: np.ones(200)}}}, 1e-3, SEEDS, 100)
    assert {run.arm for run in wanted[:2]} == {"broken"}  # tuning comes first
    assert {(run.arm, run.seed) for run in wanted[2:]} == {("lora", 2), ("lora", 3)}
