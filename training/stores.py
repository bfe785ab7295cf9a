"""Where an experiment keeps its calibrations, what its runs need of them, and whether an existing one suffices."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.methods import METHODS
from utils.config import Config, expand_sweep
from utils.errors import UserError
from utils.files import MANIFEST, fingerprint
from utils.models import model_fingerprint, resolve_model, tokenizer_fingerprint

if TYPE_CHECKING:
    from astra import Calibration
    from dataset.records import Record

FULL_SPECTRUM = "effective_rank"  # the rank allocation that needs whole spectra
ALLOCATION_HEADROOM = 2  # a shared rank budget may give a layer up to so many times the mean rank


@dataclass(frozen=True)
class Need:
    """What a store must serve."""

    rank: int  # the largest that is asked for
    subspaces: tuple[str, ...]  # in the order of their first use
    trained: int  # the largest `method.rank` of a run, which every target layer must have

    def met_by(self, max_rank: int, subspaces: Sequence[str]) -> bool:
        """Whether a store of that rank and those subspaces has it all."""
        return self.rank <= max_rank and set(self.subspaces) <= set(subspaces)


def stores(config: Config) -> dict[Path, tuple[Config, Need]]:
    """Every store that the runs of a config's sweep read, with one of their configs and the union of their needs."""
    runs: dict[Path, list[Config]] = {}
    for run in expand_sweep(config):
        if METHODS[run.method.name].needs == "calibration":
            runs.setdefault(store_folder(run), []).append(run)
    return {folder: (group[0], need(group)) for folder, group in runs.items()}


def need(runs: Sequence[Config]) -> Need:
    """What the runs that share a store need of it."""
    rank, subspaces = 0, []
    for run in runs:
        shared = run.method.rank_allocation == FULL_SPECTRUM
        if shared and run.calibration.spectrum == "ends":
            raise UserError("calibration.spectrum: ends has no effective ranks; method.rank_allocation needs full")
        wanted = run.method.rank * (ALLOCATION_HEADROOM if shared else 1)
        most = run.calibration.max_rank
        if most is not None and most < wanted:
            why = f" twice over, as {FULL_SPECTRUM} may give a layer" if shared else ""
            raise UserError(f"calibration.max_rank: {most} is less than method.rank, {run.method.rank}{why}")
        rank = max(rank, wanted if most is None else most)
        subspaces += [run.method.subspace, *(run.calibration.subspaces or [])]
    return Need(rank, tuple(dict.fromkeys(subspaces)), max(run.method.rank for run in runs))


def store_folder(config: Config) -> Path:
    """`<output_dir>/calibration/<fingerprint>`: one for all ranks and subspaces of the same activations."""
    return Path(config.output_dir) / "calibration" / fingerprint(store_settings(config))


def store_settings(config: Config) -> dict[str, Any]:
    """What the activations of a calibration depend on, as far as the config tells; not how they are computed."""
    chosen = {
        "model": {"name", "revision", "dtype", "task_type"},
        "data": {"train", "fields", "template", "limit", "validation", "reporting", "decontaminate", "seed"},
        "calibration": {"samples", "max_length", "seed", "spectrum"},
        "method": {"target_modules", "exclude_modules"},
    }
    sections = config.model_dump(include=chosen)
    return {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}


def require_store(config: Config) -> Calibration:
    """The calibration that a run reads."""
    from astra import Calibration

    folder = store_folder(config)
    command = "run calibrate.py with the same config and overrides"
    if not (folder / MANIFEST).exists():
        raise UserError(f"{folder}: no calibration for these settings; {command}")
    found = Calibration.load(folder)
    rank, subspace = need([config]).rank, config.method.subspace
    if found.max_rank < rank or subspace not in found.subspaces:
        raise UserError(
            f"{folder}: has rank {found.max_rank} of {', '.join(found.subspaces)}, not rank {rank} of {subspace}; "
            f"{command}"
        )
    return found


def fingerprints(config: Config, records: Sequence[Record]) -> dict[str, str]:
    """What the settings stand for: the model's weights, its tokenizer, and the records to choose samples from."""
    folder = resolve_model(config.model)
    return {
        "model.fingerprint": model_fingerprint(folder),
        "tokenizer.fingerprint": tokenizer_fingerprint(folder),
        "data.fingerprint": fingerprint(records),
    }


def check_settings(folder: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compare what a store was made of with what it should be made of."""
    for key, value in expected.items():
        if json.dumps(found.get(key)) != json.dumps(value):
            raise UserError(
                f"{folder}: made with {key} {found.get(key)!r}, now {value!r}; calibrate.py --force makes it anew"
            )
