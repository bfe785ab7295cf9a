"""A comparison on disk: which of its runs have ended, which come next, and which are tested.

Each arm is a point of the sweep's grid without the rung and the seed. `utils.ladder` has the rule.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.config import Config, expand_sweep, grid, ladder_key, point_config
from utils.files import read_record
from utils.ladder import MOST, RUNGS, Choice, Losses, Runs, choose, nearest, next_runs, value
from utils.runs import run_folder
from utils.settings import flat_settings, require_shared, scored

SEED = "train.seed"


def planned(config: Config) -> list[Config]:
    """The runs to train now: of a plain sweep all of them, of a ladder those that its rule asks for next."""
    if ladder_key(config) is None:
        return expand_sweep(config)
    wanted = next_runs(ended(config), config.compare.start, seeds(config), config.compare.max_runs)
    return [run_config(config, arms(config)[run.arm], run.rung, run.seed) for run in wanted]


def tested(config: Config) -> list[Config]:
    """The runs whose test sets are generated: of a ladder those at the rungs that were chosen, unless all or none."""
    if ladder_key(config) is None:
        return expand_sweep(config)
    runs = ended(config)
    found = []
    for arm, point in arms(config).items():
        best = choose(runs[arm], seeds(config)[0]).best
        for rung, per_seed in sorted(runs[arm].items()):
            alive = [seed for seed, losses in per_seed.items() if losses is not None]
            if config.compare.test == "all" or (config.compare.test == "chosen" and rung == best):
                found += [run_config(config, point, rung, seed) for seed in alive]
    return found


def choices(config: Config) -> dict[str, Choice]:
    """Arm -> where its tuning stands."""
    return {arm: choose(runs, seeds(config)[0]) for arm, runs in ended(config).items()}


def most_runs(config: Config) -> int:
    """How many runs a comparison can take at most, those that ended included."""
    return min(config.compare.max_runs, len(arms(config)) * len(seeds(config)) * MOST)


def arms(config: Config) -> dict[str, dict[str, Any]]:
    """Name -> point of the grid, without rung and seed."""
    swept = {name: values for name, values in config.sweep.items() if name != SEED}
    points = grid(config.model_copy(update={"sweep": swept}))
    return {",".join(map(str, point.values())) or "run": point for point in points}


def seeds(config: Config) -> list[int]:
    """The seeds of a comparison, the one that tunes first."""
    swept = config.sweep.get(SEED)
    return list(swept) if isinstance(swept, list) else [config.train.seed]


def run_config(config: Config, point: dict[str, Any], rung: int, seed: int) -> Config:
    """The config of one run of an arm."""
    run = point_config(config, {**point, str(ladder_key(config)): value(rung), SEED: seed})
    return run.model_copy(update={"arm": run.arm or ""})  # without a name it is one of a comparison all the same


def ended(config: Config) -> dict[str, Runs]:
    """Arm -> rung -> seed -> what it is chosen by, of the runs that ended; None of those that diverged.

    A run that was made with other settings than the comparison's is a `UserError`.
    """
    first = nearest(config.compare.start)
    found: dict[str, Runs] = {}
    for arm, point in arms(config).items():
        runs: dict[int, dict[int, Losses]] = {}
        for rung in range(first - MOST - len(RUNGS), first + MOST + len(RUNGS)):
            for seed in seeds(config):
                for losses in _ended(run_config(config, point, rung, seed)):
                    runs.setdefault(rung, {})[seed] = losses
        found[arm] = runs
    return found


def _ended(run: Config) -> Iterator[Losses]:
    """What a run ended with, or nothing if it has not ended."""
    folder = run_folder(run)
    diverged = (folder / "diverged.json").is_file()
    record = folder / ("diverged.json" if diverged else "metrics.json")
    if record.is_file():
        made = read_record(record)
        now = flat_settings(run.model_dump(include={"model", "data", "method", "train", "calibration"}))
        if not any(key.startswith("calibration.") for key in made["settings"]):  # a method that needs none
            now = {key: value for key, value in now.items() if not key.startswith("calibration.")}
        require_shared(made, now | scored(run), str(folder))
        yield None if diverged else deciding(read_record(folder / "losses.json"), run.compare.select)


def deciding(losses: dict[str, Any], select: str) -> NDArray[np.float64]:
    """What a rung is chosen by, the lower the better, float64: (validation records,) losses, or (problems,) shares.

    Args:
        losses: what a run's `losses.json` holds.
        select: as `compare.select`; with `accuracy` the share of wrong answers to each problem of `train.eval_tasks`.
    """
    if select == "accuracy":
        return 1 - np.concatenate([np.zeros(0), *losses.get("solved", {}).values()])
    return np.asarray(losses.get("validation", []), dtype=np.float64)
