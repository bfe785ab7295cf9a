"""What an evaluation leaves behind in `<run>/eval`: texts, verdicts, and the settings that each was made under.

`<task>.texts.jsonl` holds what the model made, a line per request as it finishes, under the settings that decide a
text. Verdicts are computed from it and can be computed anew at any time: `<task>.samples.jsonl` (every text with its
verdicts, in the problems' order) and `<task>.json` (the figures).
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from astra.manifest import sealed, unsealed
from eval.engines import Answer, Output, Request, Score
from utils.errors import UserError
from utils.files import AGAIN, atomic_write, read_record, write_record

Settings = dict[str, Any]
FORMAT = 2  # of results and texts; files of another form are refused
RESAMPLES = 2_000


def wilson(accuracy: float, n: int) -> tuple[float, float]:
    """Return the 95% Wilson score interval of a proportion of n independent trials (Wilson, 1927); (0, 1) for none."""
    if n == 0:
        return 0.0, 1.0
    z = 1.959963984540054
    centre = (accuracy + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap(values: Sequence[float] | np.ndarray, resamples: int = RESAMPLES) -> tuple[float, float]:
    """Return the 95% percentile bootstrap interval of the mean of values, one per problem (seed 0)."""
    drawn, rng = np.asarray(values, dtype=float), np.random.default_rng(0)
    # One row at a time: all at once would take gigabytes on the 5,000 problems of MATH.
    means = [drawn[rng.integers(0, len(drawn), len(drawn))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def interval(values: Sequence[float]) -> list[float]:
    """Return the 95% interval of the mean of values, one per problem: Wilson's for 0 and 1 alone, else the bootstrap.

    Several samples of one problem are not independent trials: the problems are.
    """
    if all(value in (0, 1) for value in values):
        return list(wilson(sum(values) / max(len(values), 1), len(values)))
    return list(bootstrap(values))


def changes(old: Settings, new: Settings) -> str:
    """Return what differs between two sets of settings, such as `limit: 40 -> 100`."""
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return ", ".join(f"{key}: {old.get(key)} -> {new.get(key)}" for key in keys)


@dataclass
class Texts:
    """What one model made for one task, in `<task>.texts.jsonl`.

    The file has a line of settings and, below it, a line per request that was answered under them. Lines of other
    settings stay: to return to them costs nothing.

    Attributes:
        path: The file.
        settings: What decides an answer besides the request.
        engine: What the engine that answered last says of itself; known once `made` has been read.
    """

    path: Path
    settings: Settings
    engine: Settings = field(default_factory=dict, init=False)
    _begun: bool = field(default=False, init=False)

    @cached_property
    def made(self) -> dict[str, tuple[Answer, float]]:
        """Answers by `Request.key`, each with the seconds it took.

        Raises:
            UserError: the file has another form.
        """
        found, ours = {}, False
        for line in self._lines():
            if "settings" in line:
                if line["format"] != FORMAT:
                    raise UserError(f"{self.path}: written by another version; redo it with --force")
                ours = line["settings"] == self.settings
                self.engine = line["engine"] if ours else self.engine
            elif ours:
                found[line["key"]] = (_answer(line["made"]), line["seconds"])
        return found

    def add(self, request: Request, answer: Answer, seconds: float, engine: Settings) -> None:
        """Append an engine's answer; it is on its way to the disk when this returns.

        Raises:
            UserError: the file can't be written.
        """
        self.made[request.key] = answer, seconds
        if not self._begun:
            self._begun, self.engine = True, engine
            self._mend()
            self._append({"format": FORMAT, "settings": self.settings, "engine": engine})
        made = [asdict(output) for output in answer] if isinstance(answer, list) else asdict(answer)
        self._append(sealed({"key": request.key, "seconds": round(seconds, 4), "made": made}))

    def _append(self, value: Any) -> None:
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                _write_line(file, value)
        except OSError as error:
            raise UserError(f"{self.path}: can't be written ({error.strerror})") from error

    def _mend(self) -> None:
        """Make the folder, and cut off what a killed process left of the last line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.is_file():
            with open(self.path, "rb+") as file:
                file.truncate(file.read().rfind(b"\n") + 1)

    def _lines(self) -> Iterator[Any]:
        if not self.path.is_file():
            return
        # Not splitlines(): JSON may hold U+2028 and other line ends of Unicode as they are.
        lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
        for number, line in enumerate(lines, 1):
            try:
                yield unsealed(json.loads(line))
            except (AttributeError, ValueError) as error:
                raise UserError(f"{self.path}:{number}: damaged ({error}); {AGAIN}") from error


def _answer(made: Any) -> Answer:
    return [Output(**output) for output in made] if isinstance(made, list) else Score(**made)


@dataclass
class TaskRecord:
    """The files of one task in one `eval` folder.

    Attributes:
        folder: `<run>/eval`.
        task: The task's name; a slash in it is a hyphen in file names.
        settings: Everything that may change a figure; a result made under others is never taken for this one.
        deciding: Those that decide what the model makes, the requests apart.
    """

    folder: Path
    task: str
    settings: Settings
    deciding: Settings

    @property
    def result_path(self) -> Path:
        return self._path("json")

    @property
    def samples_path(self) -> Path:
        return self._path("samples.jsonl")

    @cached_property
    def texts(self) -> Texts:
        return Texts(self._path("texts.jsonl"), self.deciding)

    def _path(self, ending: str) -> Path:
        return self.folder / f"{self.task.replace('/', '-')}.{ending}"

    def earlier(self) -> dict[str, Any] | None:
        """Return the result that is there, whatever its settings, or None.

        Raises:
            UserError: it has another form, or is damaged.
        """
        earlier = read_record(self.result_path) if self.result_path.exists() else None
        if self._path("partial.jsonl").is_file() or (earlier is not None and earlier.get("format") != FORMAT):
            raise UserError(f"{self.result_path}: written by another version; redo it with --force")
        return earlier

    def keep(self, earlier: dict[str, Any], *keys: str) -> None:
        """Take settings from an earlier result: what made its texts may not be on this machine."""
        for settings in (self.settings, self.deciding):
            settings |= {key: earlier["settings"][key] for key in keys}

    def clear(self) -> None:
        """Remove what is there."""
        for ending in ("json", "samples.jsonl", "texts.jsonl", "partial.jsonl"):
            self._path(ending).unlink(missing_ok=True)
        self.__dict__.pop("texts", None)

    def complete(self, result: dict[str, Any], samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Write the samples, then the result, each atomically, and return the result as written."""
        with atomic_write(self.samples_path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            for sample in samples:
                _write_line(file, sample)
        result = {"format": FORMAT, "task": self.task, **result, "settings": self.settings}
        write_record(self.result_path, result, [self.samples_path])
        return result


def read_samples(path: Path) -> list[dict[str, Any]]:
    """Read a samples file.

    Raises:
        UserError: it is missing, or a line is not JSON.
    """
    try:
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
    for path in found.values():
        result = path.with_name(path.name.removesuffix(".samples.jsonl") + ".json")
        if result.exists():
            read_record(result)  # which knows the samples by their hash
    if not found:
        raise UserError(f"{place}: no samples here; name a run folder, its eval folder, or a .samples.jsonl file")
    if task is not None and task not in found:
        raise UserError(f"{place}: no samples of {task!r}; there are: {', '.join(found)}")
    return found if task is None else {task: found[task]}


def _write_line(file: Any, value: Any) -> None:
    file.write(json.dumps(value, ensure_ascii=False) + "\n")
