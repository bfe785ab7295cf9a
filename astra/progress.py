"""Progress of a pass over calibration batches, on disk, so that a killed one continues where it stopped."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from astra.errors import AstraError
from astra.store import write_table

log = logging.getLogger("astra")
State = tuple[dict[str, Tensor], dict[str, Any]]
_SHARE = 0.05  # of the time may go into saving
_RATE = 2e8  # bytes a second that a save is expected to write before one has been timed: a slow disk


def write_progress(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """`write_table` of what a run can do without: a full disk is a warning."""
    try:
        write_table(path, tensors, metadata)
    except AstraError as error:
        log.warning("no progress saved, a killed run would repeat more: %s", error)


class Checkpoint:
    """One safetensors file holding sums and how many batches they cover; absent or whole, never half.

    Args:
        path: the file.
        key: what the sums belong to (fingerprints of model, data, batches); a file with another key is not used.
        seconds: time between saves, more where saving would take above a twentieth of the time; 0 saves every batch.
    """

    def __init__(self, path: Path, key: str, seconds: float = 30.0) -> None:
        self.path, self._key, self._seconds = path, key, seconds
        self._started = self._last = time.monotonic()
        self._spent, self._took = 0.0, 0.0

    def maybe_save(self, done: int, state: Callable[[], State]) -> None:
        """Save if it is time to: `done` batches are in the tensors of `state()`, which go to the CPU one by one."""
        start = time.monotonic()
        if start - self._last < self._seconds:
            return
        tensors, info = state()
        cost = self._took or sum(tensor.nbytes for tensor in tensors.values()) / _RATE
        if self._seconds and self._spent + cost > _SHARE * (start - self._started):
            return
        write_progress(self.path, tensors, {"key": self._key, "done": str(done), "info": json.dumps(info)})
        self._last = time.monotonic()
        self._took = self._last - start
        self._spent += self._took

    def load(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """(batches done, tensors, info), or None if there is nothing that belongs to this key."""
        try:
            with safe_open(self.path, "pt") as file:
                metadata = self._own(file)
                if metadata is None:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no dict
                return int(metadata["done"]), tensors, json.loads(metadata["info"])
        except (OSError, SafetensorError):
            return None

    def info(self) -> dict[str, Any]:
        """The info that `load` would give, without reading the tensors; empty if there is none."""
        try:
            with safe_open(self.path, "pt") as file:
                metadata = self._own(file)
                return {} if metadata is None else json.loads(metadata["info"])
        except (OSError, SafetensorError):
            return {}

    def _own(self, file: Any) -> dict[str, str] | None:
        metadata: dict[str, str] = file.metadata() or {}
        return metadata if metadata.get("key") == self._key else None

    def clear(self) -> None:
        """Forget what was saved."""
        self.path.unlink(missing_ok=True)
