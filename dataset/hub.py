"""Downloading named data sets from the Hugging Face hub, once, to JSON lines under `dataset/<task>/`.

A download streams row by row, so it needs no second copy on disk; it notes how far it is and goes on from there after
an interruption. The finished file has a manifest with its source, the hub's commit, its size and its SHA-256.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dataset.catalog import Hub
from utils.errors import UserError
from utils.files import read_json, sha256_file, write_json
from utils.log import Progress, log

PREPARED = Path(__file__).parent
_NOTE_EVERY = 1000  # rows between notes of progress


def prepared_file(task: str, split: str) -> Path:
    """Where the prepared file of a task's split is, or will be."""
    return PREPARED / task / f"{split}.jsonl"


def manifest_file(path: Path) -> Path:
    """The manifest of a prepared file."""
    return path.with_name(f"{path.stem}.manifest.json")


def is_prepared(path: Path, hub: Hub) -> bool:
    """Whether `path` was prepared from `hub` and is whole.

    Raises:
        UserError: the file is not the one that was prepared.
    """
    if not manifest_file(path).exists():
        return False
    manifest = read_json(manifest_file(path))
    if manifest["source"] != _describe(hub):
        return False
    if not path.exists() or path.stat().st_size != manifest["bytes"] or sha256_file(path) != manifest["sha256"]:
        raise UserError(
            f"{path}: is not the file that was prepared; delete {manifest_file(path).name} to download it again"
        )
    return True


def check_hub(task: str, split: str, hub: Hub, key: str) -> None:
    """Stop early when a set is neither prepared nor to be had from the hub; `key` is the setting to name."""
    if not is_prepared(prepared_file(task, split), hub):
        _commit(task, hub, key)


def fetch(task: str, split: str, hub: Hub, key: str) -> Path:
    """Return the prepared file of a split, downloading it first if need be; other processes wait meanwhile.

    Raises:
        UserError: the hub can't be reached, the number of records is not the published one, or the file was changed.
    """
    path = prepared_file(task, split)
    if is_prepared(path, hub):
        return path
    with _locked(path):
        if not is_prepared(path, hub):
            _download(task, path, hub, key)
    return path


def _download(task: str, path: Path, hub: Hub, key: str) -> None:
    commit = _commit(task, hub, key)
    partial, note = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.progress.json")
    done = _resume(partial, note, commit)
    with open(partial, "ab") as file, Progress(f"{task} {path.stem}", hub.count, "record") as bar:
        bar.update(done["records"])
        for place, row in _rows(task, hub, commit, done, key):
            record = hub.convert(row)
            if record is not None:
                file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
                done["records"] += 1
                bar.update()
            done["place"] = place
            if sum(place) % _NOTE_EVERY == 0:
                _note(file, note, done)
        file.flush()
    if hub.count is not None and done["records"] != hub.count:
        raise UserError(
            f"{key}: {task} gave {done['records']:,} records and {hub.repository} is known to have {hub.count:,}; "
            f"delete {partial} to start again"
        )
    os.replace(partial, path)
    manifest = {"source": _describe(hub), "commit": commit, "records": done["records"]}
    write_json(manifest_file(path), {**manifest, "bytes": path.stat().st_size, "sha256": sha256_file(path)})
    note.unlink(missing_ok=True)
    log.info("%s: %s records from %s", path, f"{done['records']:,}", hub.repository)


def _resume(partial: Path, note: Path, commit: str) -> dict[str, Any]:
    """How far an interrupted download of the same commit is; cuts the partial file back to what was noted."""
    fresh: dict[str, Any] = {"commit": commit, "place": [0, 0], "records": 0, "bytes": 0}
    done = read_json(note) if note.exists() and partial.exists() else fresh
    if done["commit"] != commit or (partial.exists() and partial.stat().st_size < done["bytes"]):
        done = fresh
    with open(partial, "ab") as file:
        file.truncate(done["bytes"])
    return done


def _note(file: Any, note: Path, done: dict[str, Any]) -> None:
    file.flush()
    os.fsync(file.fileno())
    done["bytes"] = file.tell()
    write_json(note, done)


def _rows(
    task: str, hub: Hub, commit: str, done: dict[str, Any], key: str
) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Yield `([index of config, rows read of it], row)` from where `done` says."""
    from datasets import load_dataset

    first, skip = done["place"]
    for index in range(first, len(hub.configs)):
        with _hub_errors(task, hub, key):
            rows = load_dataset(
                hub.repository,
                hub.configs[index],
                data_dir=hub.folder,
                split=hub.split,
                revision=hub.revision or commit,
                streaming=True,
            )
            start = skip if index == first else 0
            for number, row in enumerate(rows.skip(start), start=start + 1):
                yield [index, number], row


def _commit(task: str, hub: Hub, key: str) -> str:
    """The hub's commit of the data set, which is also the proof that it can be reached."""
    from huggingface_hub import HfApi

    with _hub_errors(task, hub, key):
        return str(HfApi().dataset_info(hub.repository, revision=hub.revision, timeout=20).sha)


@contextmanager
def _hub_errors(task: str, hub: Hub, key: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the hub's libraries raise those of whatever HTTP library they are built on
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"{key}: {task} comes from {hub.repository} on the hub, which can't be read ({reason[:160]}); "
            "set data.dir to a local mirror, or try again where the hub can be reached"
        ) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a prepared file: one process downloads, the others wait."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path.with_name(f".{path.name}.lock"), "w")  # noqa: SIM115  (closed below)
    except OSError as error:
        raise UserError(f"{path.parent}: can't be written ({error.strerror})") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _describe(hub: Hub) -> dict[str, Any]:
    source = asdict(hub)
    del source["convert"], source["count"]
    return json.loads(json.dumps(source))
