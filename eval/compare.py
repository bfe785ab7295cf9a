"""`python -m eval.compare A B`: is B better than A on the same problems?"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from eval.task_record import bootstrap, changes, find_samples, read_samples
from utils.cli import main
from utils.errors import UserError
from utils.files import read_record

USAGE = """Compare two results problem by problem: the paired difference B - A with a 95% bootstrap interval, and the
exact McNemar test (the chance of so uneven a split of the problems that only one of them solves, were they equal)."""
RESAMPLES = 10_000
MODELS = ("model", "adapter")  # the settings that two results are compared for


def compare(first: list[float], second: list[float]) -> dict[str, Any]:
    """Compare two lists of scores of the same problems.

    Args:
        first: A's share of right samples for each problem, 0 to 1.
        second: B's, in the same order.

    Returns:
        `a`, `b` (accuracies), `difference` (b - a), its bootstrap `interval` (percentile, 95%), `n`, and where every
        score is 0 or 1 `only_a`, `only_b` and McNemar's exact two-sided `p` (McNemar, 1947).
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    found: dict[str, Any] = {
        "a": float(a.mean()),
        "b": float(b.mean()),
        "difference": float((b - a).mean()),
        "interval": list(bootstrap(b - a, RESAMPLES)),
        "n": len(a),
    }
    if np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all():
        only_a, only_b = int((a > b).sum()), int((b > a).sum())
        found |= {"only_a": only_a, "only_b": only_b, "p": mcnemar(only_a, only_b)}
    return found


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the exact two-sided p-value of McNemar's test from the problems that only A, or only B, solves."""
    from scipy.stats import binomtest

    total = only_a + only_b
    return float(binomtest(only_a, total).pvalue) if total else 1.0


def read_scores(path: Path) -> dict[int, float]:
    """Return each problem's share of right samples from a samples file.

    Raises:
        UserError: its samples are not judged right or wrong.
    """
    groups: dict[int, list[bool]] = {}
    for sample in read_samples(path):
        if sample.get("correct") is None:
            raise UserError(f"{path}: its samples are not right or wrong; nothing to compare")
        groups.setdefault(sample["problem"], []).append(sample["correct"])
    return {number: sum(group) / len(group) for number, group in groups.items()}


def compare_files(first: Path, second: Path) -> dict[str, Any]:
    """Compare two samples files of one task.

    Raises:
        UserError: they were not made on the same problems.
    """
    data = [_settings(path).get("data") for path in (first, second)]
    a, b = read_scores(first), read_scores(second)
    if data[0] != data[1] or a.keys() != b.keys():
        raise UserError(f"{first} and {second}: not the same problems; they can't be paired")
    return compare([a[number] for number in sorted(a)], [b[number] for number in sorted(a)])


def settings_differ(first: Path, second: Path) -> str:
    """Return the settings, other than the models', that two samples files were made under, where they differ."""
    a, b = ({k: v for k, v in _settings(path).items() if k not in MODELS} for path in (first, second))
    return changes(a, b)


def _settings(samples: Path) -> dict[str, Any]:
    result = samples.with_name(samples.name.removesuffix(".samples.jsonl") + ".json")
    return read_record(result).get("settings", {})


def describe(task: str, found: dict[str, Any]) -> str:
    """Return one line for a comparison."""
    low, high = found["interval"]
    text = (
        f"{task}: A {found['a']:.1%}, B {found['b']:.1%} of {found['n']}; "
        f"B - A = {100 * found['difference']:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"
    )
    if "p" in found:
        text += f"; only A right {found['only_a']}, only B {found['only_b']}, McNemar p = {found['p']:.3g}"
    return text


def command() -> None:
    """Compare every task that both have."""
    parser = argparse.ArgumentParser(prog="python -m eval.compare", description=USAGE)
    parser.add_argument("a", type=Path, help="run folder, eval folder or samples file")
    parser.add_argument("b", type=Path, help="likewise")
    parser.add_argument("--task", help="only this task")
    given = parser.parse_args()
    first, second = find_samples(given.a, given.task), find_samples(given.b, given.task)
    shared = [task for task in first if task in second]
    if not shared:
        raise UserError(f"{given.a} and {given.b}: no task in common ({', '.join(first)}; {', '.join(second)})")
    for task in shared:
        if differ := settings_differ(first[task], second[task]):
            print(f"{task}: A and B were made under other settings ({differ})")
        print(describe(task, compare_files(first[task], second[task])))


if __name__ == "__main__":
    main(command)
