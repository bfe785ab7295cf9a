"""The runs of configs/which-tail.yaml as small files, one per run, and what they say together.

    python benchmarks/which_tail.py --config configs/which-tail.yaml              # keep the runs that have ended
    python benchmarks/which_tail.py --config configs/which-tail.yaml --restore    # go on elsewhere: lay them out again
    python benchmarks/which_tail.py --config configs/which-tail.yaml --table      # the table of docs/which-tail.md

Keeps each ended run in benchmarks/results/which-tail/ (its figures and settings, its losses per held-out record and
per step) and writes benchmarks/results/which-tail.json from those files alone, which is printed as the last line.
Restored runs have all that a ladder asks of a run, but no adapter.
"""

import json
import re
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parent.parent))

from eval.intervals import difference, smallest_difference  # noqa: E402
from utils.cli import main, parse  # noqa: E402
from utils.comparison import arms, choices, run_config, seeds  # noqa: E402
from utils.config import Config  # noqa: E402
from utils.files import read_json, read_record, write_json, write_record  # noqa: E402
from utils.ladder import Choice, Runs, choose, nearest, value  # noqa: E402
from utils.runs import commit, run_folder  # noqa: E402

RESULTS = Path(__file__).parent / "results"
KEPT = RESULTS / "which-tail"
LADDER = 3  # rungs that every arm of a comparison starts with; an arm of fewer was not tuned by one
LOCAL = "data.dir"  # where the data is differs between machines; what it is stands in data.fingerprint


def keep(config: Config) -> None:
    """Write a file for every run of the comparison that has ended."""
    for arm in arms(config):
        for folder in sorted(Path(config.output_dir).glob(f"arm={arm},*")):
            diverged, metrics = folder / "diverged.json", folder / "metrics.json"
            if not (folder / "environment.json").is_file() or not (diverged.is_file() or metrics.is_file()):
                continue  # a run that was restored, or has not ended
            figures = read_record(diverged if diverged.is_file() else metrics)
            figures["settings"].pop(LOCAL, None)
            record = {"arm": arm, "diverged": diverged.is_file(), "figures": figures}
            record["commit"] = read_json(folder / "environment.json")["commit"]
            if metrics.is_file():
                losses = read_record(folder / "losses.json")
                record["losses"] = {split: [round(x, 6) for x in values] for split, values in losses.items()}
                lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
                record["training"] = [round(line["loss"], 6) for line in lines if "loss" in line]
            settings = figures["settings"]
            name = f"{arm}-{settings['train.relative_step']:g}-{settings['train.seed']}"
            write_json(KEPT / f"{name}.json", record)


def restore(config: Config) -> None:
    """Lay out the kept runs as the comparison expects them."""
    for record in records():
        folder = run_folder(run_config(config, arms(config)[record["arm"]], record["rung"], record["seed"]))
        if not record["diverged"]:
            write_record(folder / "losses.json", record["losses"])
        write_record(folder / ("diverged.json" if record["diverged"] else "metrics.json"), record["figures"])


def records() -> list[dict[str, Any]]:
    """All kept runs, each with its rung and its seed."""
    kept = [read_json(path) for path in sorted(KEPT.glob("*.json"))]
    for record in kept:
        settings = record["figures"]["settings"]
        record |= {"rung": nearest(settings["train.relative_step"]), "seed": settings["train.seed"]}
    return kept


def summary(config: Config) -> dict[str, Any]:
    """What the kept runs say; figures of an arm are those at its best rung, over seeds."""
    kept = records()
    first = seeds(config)[0]
    found: dict[str, Any] = {}
    chosen: dict[str, Choice] = {}
    for arm in dict.fromkeys(record["arm"] for record in kept):
        own = [record for record in kept if record["arm"] == arm]
        runs: dict[int, dict[int, Any]] = {}
        for record in own:
            losses = None if record["diverged"] else np.asarray(record["losses"]["validation"])
            runs.setdefault(record["rung"], {})[record["seed"]] = losses
        chosen[arm] = choice = choose(runs, first)
        found[arm] = {"runs": len(own), "diverged": choice.diverged, "rungs": [value(rung) for rung in choice.tried]}
        if choice.best is not None:
            found[arm] |= at_best(own, runs, choice)
    best = [record for record in kept if not record["diverged"] and record["rung"] == chosen[record["arm"]].best]
    # A best at an end of a ladder may lie beyond it; of `full`, and of some first runs, the outputs were not compared.
    settled = [
        entry for entry in found.values() if entry.get("inside_ladder") and entry["median_output_change"] is not None
    ]
    common = {"by_rate": "best_rate", "by_step": "best_step", "by_median_output_change": "median_output_change"}
    spreads = [entry["loss"]["sd"] for entry in found.values() if "loss" in entry and entry["loss"]["sd"] is not None]
    return {
        "model": "smollm2, float32", "data": "GSM8K train, whole records of at most 160 tokens",
        "arms": {arm: entry for arm, entry in found.items() if len(entry["rungs"]) >= LADDER},
        "extras": {arm: entry for arm, entry in found.items() if len(entry["rungs"]) < LADDER},
        "seeds": sorted({record["seed"] for record in kept}),
        "first_step_alignment": {
            key: float(np.std(np.log10([entry[what] for entry in settled]), ddof=1))
            for key, what in common.items()
            if len(settled) > 1
        },
        "difference_from_lora": differences(best),
        "intervals": intervals(best),
        "smallest_difference": smallest_difference(spreads, len(seeds(config))),
        "forgetting_at_equal_loss": forgetting_at_equal_loss(kept, chosen),
        "commit": commit(),
    }  # fmt: skip


def at_best(own: list[dict[str, Any]], runs: Runs, choice: Choice) -> dict[str, Any]:
    """The figures of an arm's runs at its best rung."""
    assert choice.best is not None
    ended = [record for record in own if not record["diverged"] and record["rung"] == choice.best]
    alive = [record["figures"] for record in ended]
    losses = [figures["reporting_loss"] for figures in alive]
    return {
        "best_step": value(choice.best),
        "best_rate": alive[0]["learning_rate"],
        "inside_ladder": choice.inside,
        "loss": {"mean": float(np.mean(losses)), "sd": float(np.std(losses, ddof=1)) if len(losses) > 1 else None},
        "accuracy": None,  # no generation: this model solves none of GSM8K
        "forgetting": mean(figures["forgetting"] and figures["forgetting"]["rise"] for figures in alive),
        "update_norm": float(np.mean([figures["update"]["relative_norm"] for figures in alive])),
        "output_change": mean(figures["update"]["output_change"] for figures in alive),
        "median_output_change": mean(map(median_change, ended)),
        "by_step": {
            f"{value(rung):g}": float(np.mean([x.mean() for x in per_seed.values() if x is not None]))
            for rung, per_seed in sorted(runs.items())
            if any(x is not None for x in per_seed.values())
        },
    }


def median_change(record: dict[str, Any]) -> float | None:
    """The change of the outputs in the median layer; the first runs did not record it: `by_layer.py` measured some."""
    settings, update = record["figures"]["settings"], record["figures"]["update"]
    run = f"arm={record['arm']},relative_step={settings['train.relative_step']:g},seed={settings['train.seed']}"
    measured = read_json(RESULTS / "by-layer.json")["runs"].get(run)
    return update.get("median_output_change", measured and measured["output_change"]["median"])


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def differences(best: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per arm the loss at its best rung less that of LoRA of its rank, mean over the seeds of both, and its error.

    On either held-out split the error is that over records, which are paired; in training that over steps, whose
    batches a seed fixes. `by_seed` is the difference on the reporting split, seed by seed.
    """
    losses: dict[str, dict[int, Any]] = {}
    for record in best:
        losses.setdefault(record["arm"], {})[record["seed"]] = record["losses"] | in_training(record)
    found: dict[str, dict[str, Any]] = {}
    for arm, of_seed in losses.items():
        pairs: dict[str, dict[int, Any]] = {}
        own = losses.get(reference(arm), {}) if reference(arm) != arm else {}
        for seed in sorted(of_seed.keys() & own.keys()):
            for part in of_seed[seed].keys() & own[seed].keys():
                pairs.setdefault(part, {})[seed] = np.subtract(of_seed[seed][part], own[seed][part])
        for part, by_seed in sorted(pairs.items()):
            change = np.mean(list(by_seed.values()), axis=0)
            error = change.std(ddof=1) / len(change) ** 0.5
            found.setdefault(arm, {})[part] = [round(float(change.mean()), 6), round(float(error), 6)]
            if part == "reporting":
                found[arm]["by_seed"] = {seed: round(float(values.mean()), 6) for seed, values in by_seed.items()}
    return dict(sorted(found.items()))


def intervals(best: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Per pair of arms at their best rungs, the second's loss less the first's with its 95% interval.

    As the report tests it: over records, which are paired, and over all seeds of both.
    """
    losses: dict[str, list[Any]] = {}
    for record in best:
        losses.setdefault(record["arm"], []).append(record["losses"])
    pairs = [(reference(arm), arm) for arm in sorted(losses)] + [("tail", "principal")]
    return {
        f"{second} - {first}": {
            split: [round(x, 6) for x in difference(*([run[split] for run in losses[arm]] for arm in (first, second)))]
            for split in ("validation", "reporting")
        }
        for first, second in pairs
        if first != second and first in losses and second in losses
    }


def reference(arm: str) -> str:
    """LoRA of the arm's rank: arms of another than the study's are called like `tail_r4`."""
    rank = re.search(r"_r\d+$", arm)
    return f"lora{rank.group() if rank else ''}"


def in_training(record: dict[str, Any]) -> dict[str, list[float]]:
    """The losses of a run's batches, ten steps at a time; nothing of the first runs, which did not keep them."""
    steps = record.get("training", [])
    return {f"steps {start + 1} to {start + 10}": steps[start : start + 10] for start in range(0, len(steps), 10)}


def forgetting_at_equal_loss(
    kept: list[dict[str, Any]], chosen: dict[str, Choice]
) -> dict[str, dict[str, dict[int, list[float | None]]]]:
    """Arm -> rung -> seed -> the run's forgetting, and that of LoRA of its rank at the same loss with that seed.

    LoRA's is interpolated between neighbouring rungs up to its best: beyond it the same losses come back, with more
    forgetting. Where LoRA passes a loss twice the lower value counts; at a loss that LoRA was not measured on both
    sides of it is None.
    """
    paths: dict[str, dict[int, list[tuple[int, float, float]]]] = {}
    for record in kept:
        figures, best = record["figures"], chosen[record["arm"]].best
        if not record["diverged"] and figures["forgetting"] and best is not None and record["rung"] <= best:
            point = record["rung"], figures["reporting_loss"], figures["forgetting"]["rise"]
            paths.setdefault(record["arm"], {}).setdefault(record["seed"], []).append(point)
    found: dict[str, dict[str, dict[int, list[float | None]]]] = {}
    for arm, per_seed in paths.items():
        for seed, own in per_seed.items() if arm != reference(arm) else ():
            lora = sorted(paths.get(reference(arm), {}).get(seed, []))
            for rung, loss, rise in own:
                there = []
                for (low, *first), (high, *second) in pairwise(lora):
                    losses, rises = zip(*sorted([first, second]), strict=True)
                    if high - low == 1 and losses[0] <= loss <= losses[1]:
                        there.append(float(np.interp(loss, losses, rises)))
                found.setdefault(arm, {}).setdefault(f"{value(rung):g}", {})[seed] = [rise, min(there, default=None)]
    return found


def frame(kept: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """A row per run that did not diverge: its arm and its figures.

    Among them, where they were measured, `rise`, the forgetting, and `median`, the change of a median layer's outputs.
    """
    return pd.DataFrame(
        {
            "arm": record["arm"],
            **record["figures"],
            **record["figures"]["update"],
            "rise": (record["figures"]["forgetting"] or {}).get("rise"),
            "median": median_change(record),
        }
        for record in kept
        if not record["diverged"]
    )


def table(runs: pd.DataFrame) -> str:
    """A row of Markdown per arm and rung: means over seeds, with the standard deviation of the losses."""

    def loss(values: pd.Series) -> str:
        return f"{values.mean():.3f}" + (f" ± {values.std():.3f}" if len(values) > 1 else "")

    def mean(values: pd.Series, form: str) -> str:
        return "" if values.isna().all() else f"{values.mean():{form}}"

    lines = []
    for (arm, step), own in runs.groupby(["arm", "relative_step"], sort=True):
        cells = [
            f"`{arm}`", f"{step:.1e}", mean(own["learning_rate"], ".1e"), str(len(own)),
            loss(own["validation_loss"]), loss(own["reporting_loss"]), mean(own["relative_norm"], ".3f"),
            mean(own["output_change"], ".1e"), mean(own["median"].astype(float), ".1e"),
            mean(own["inside_span"].astype(float), ".0%"),
            ", ".join(f"{rise:.3f}" for rise in own["rise"].dropna()),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def command() -> None:
    config, flags = parse(str(__doc__), {"restore": False, "table": False})
    if flags["restore"]:
        restore(config)
        for arm, choice in choices(config).items():
            print(f"{arm}: {len(choice.tried)} rungs", file=sys.stderr)
        return
    if flags["table"]:
        print(table(frame(records())))
        return
    keep(config)
    result = summary(config)
    write_json(RESULTS / "which-tail.json", result)
    print(json.dumps(result))


if __name__ == "__main__":
    main(command)
