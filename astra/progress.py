"""Progress of a pass over calibration batches, on disk, so that a killed one continues where it stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from astra.store import write_table

State = tuple[dict[str, Tensor], dict[str, Any]]


class Checkpoint:
    """One safetensors file holding sums and how many batches they cover; absent or whole, never half.

    Args:
        path: the file.
        key: what the sums belong to (fingerprints of model, data, batches); a file with another key is not used.
        seconds: time between saves. Saves that take long become rarer, so that they cost at most a twentieth.
    """

    def __init__(self, path: Path, key: str, seconds: float = 30.0) -> None:
        self.path, self._key, self._seconds = path, key, seconds
        self._due = time.monotonic() + seconds

    def maybe_save(self, done: int, state: Callable[[], State]) -> None:
        """Save if it is time to: `done` batches are in the tensors of `state()`."""
        if time.monotonic() < self._due:
            return
        start = time.monotonic()
        tensors, info = state()
        write_table(self.path, tensors, {"key": self._key, "done": str(done), "info": json.dumps(info)})
        took = time.monotonic() - start
        self._due = time.monotonic() + max(self._seconds, 20 * took)

    def load(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """(batches done, tensors, info), or None if there is nothing that belongs to this key."""
        try:
            with safe_open(self.path, "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("key") != self._key:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no dict
                return int(metadata["done"]), tensors, json.loads(metadata["info"])
        except (OSError, SafetensorError):
            return None

    def clear(self) -> None:
        """Forget what was saved."""
        self.path.unlink(missing_ok=True)
