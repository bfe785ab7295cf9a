"""What an evaluation leaves behind: every sample, a summary, and the settings that both were made under.

While a task runs, `<task>.partial.jsonl` gains a line for each finished problem; a later start goes on where it ends.
Complete, it becomes `<task>.samples.jsonl` (graded, in the problems' order) and then `<task>.json`.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from utils.errors import UserError
from utils.files import atomic_write, read_json, write_json
from utils.log import log

Settings = dict[str, Any]


def wilson(accuracy: float, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion (Wilson, 1927), by default at 95%.

    Args:
        accuracy: The proportion, 0 to 1.
        n: Independent trials; 0 gives (0, 1).
        z: Quantile of the normal distribution.
    """
    if n == 0:
        return 0.0, 1.0
    centre = (accuracy + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def changes(old: Settings, new: Settings) -> str:
    """Return what differs between two sets of settings, such as `limit: 40 -> 100`."""
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return ", ".join(f"{key}: {old.get(key)} -> {new.get(key)}" for key in keys)


@dataclass
class TaskRecord:
    """The files of one task in one `eval` folder.

    Attributes:
        folder: `<run>/eval`.
        task: The task's name.
        settings: Everything that may change a figure; a record made under others is never taken for this one.
    """

    folder: Path
    task: str
    settings: Settings
    seconds: float = field(default=0.0, init=False)

    @property
    def result_path(self) -> Path:
        return self.folder / f"{self.task}.json"

    @property
    def samples_path(self) -> Path:
        return self.folder / f"{self.task}.samples.jsonl"

    @property
    def partial_path(self) -> Path:
        return self.folder / f"{self.task}.partial.jsonl"

    def finished(self) -> dict[str, Any] | None:
        """Return the complete result, or None if there is none yet.

        Raises:
            UserError: there is one that was made under other settings; says which.
        """
        if not self.result_path.is_file():
            return None
        result = read_json(self.result_path)
        if result.get("settings") != self.settings:
            changed = changes(result.get("settings") or {}, self.settings)
            raise UserError(f"{self.result_path}: made under other settings ({changed}); redo it with --force")
        return result

    def clear(self) -> None:
        """Remove what is there."""
        for path in (self.result_path, self.samples_path, self.partial_path):
            path.unlink(missing_ok=True)

    def resume(self) -> dict[int, list[Any]]:
        """Return what an interrupted run under the same settings has made, by problem; nothing if there was none."""
        if not self.partial_path.is_file():
            return {}
        lines = list(_whole_lines(self.partial_path))
        made = lines[0].get("settings") if lines else None
        if made != self.settings:
            log.warning("%s: started over, settings changed (%s)", self.task, changes(made or {}, self.settings))
            self.partial_path.unlink()
            return {}
        self.seconds = max((line["seconds"] for line in lines[1:]), default=0.0)
        return {line["problem"]: line["made"] for line in lines[1:]}

    def open(self, kept: dict[int, list[Any]]) -> "Writer":
        """Start (or go on with) the partial file; what an interruption tore off its last line is dropped."""
        with atomic_write(self.partial_path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            _write_line(file, {"settings": self.settings})
            for problem, made in kept.items():
                _write_line(file, _partial(problem, made, self.seconds))
        return Writer(open(self.partial_path, "a", encoding="utf-8"))

    def complete(self, result: dict[str, Any], samples: Sequence[dict[str, Any]]) -> None:
        """Write the samples, then the result, each atomically, and remove the partial file."""
        with atomic_write(self.samples_path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            for sample in samples:
                _write_line(file, sample)
        write_json(self.result_path, result)
        self.partial_path.unlink(missing_ok=True)


@dataclass
class Writer:
    """Appends finished problems to a partial file; each line is on its way to the disk when `add` returns."""

    file: TextIO

    def add(self, problem: int, made: Sequence[Any], seconds: float) -> None:
        """Append what was made for a problem and the seconds spent on the task so far."""
        _write_line(self.file, _partial(problem, made, seconds))
        self.file.flush()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def read_samples(path: Path) -> list[dict[str, Any]]:
    """Read a samples file.

    Raises:
        UserError: it is missing, or a line is not JSON.
    """
    try:
        # Not splitlines(): JSON may hold U+2028 and other line ends of Unicode as they are.
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    samples = []
    for number, line in enumerate(lines, 1):
        try:
            samples.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: not JSON ({error.msg})") from error
    return samples


def find_samples(place: Path, task: str | None = None) -> dict[str, Path]:
    """Return the samples files of a run folder, an `eval` folder or a samples file, by task.

    Raises:
        UserError: there are none, or none of `task`.
    """
    if place.is_file():
        found = {place.name.removesuffix(".samples.jsonl"): place}
    else:
        folders = [folder for folder in (place / "eval", place) if folder.is_dir()]
        paths = [path for folder in folders[:1] for path in sorted(folder.glob("*.samples.jsonl"))]
        found = {path.name.removesuffix(".samples.jsonl"): path for path in paths}
    if not found:
        raise UserError(f"{place}: no samples here; name a run folder, its eval folder, or a .samples.jsonl file")
    if task is not None and task not in found:
        raise UserError(f"{place}: no samples of {task!r}; there are: {', '.join(found)}")
    return found if task is None else {task: found[task]}


def _partial(problem: int, made: Sequence[Any], seconds: float) -> dict[str, Any]:
    return {"problem": problem, "seconds": round(seconds, 3), "made": list(made)}


def _write_line(file: TextIO, value: Any) -> None:
    file.write(json.dumps(value, ensure_ascii=False) + "\n")


def _whole_lines(path: Path) -> Iterator[Any]:
    """Yield the JSON lines of a file up to the first that a killed process left torn."""
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return
