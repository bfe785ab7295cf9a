"""What an evaluation leaves behind in `<run>/eval`: texts, verdicts, and the settings that each was made under.

`<task>.texts.jsonl` holds what the model made, a line per request as it finishes, under the settings that decide a
text. Verdicts are computed from it and can be computed anew at any time: `<task>.samples.jsonl` (every text with its
verdicts, in the problems' order) and `<task>.json` (the figures).
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from astra.manifest import sealed, unsealed
from eval.engines import Answer, Output, Request, Score
from utils.errors import UserError
from utils.files import AGAIN, read_lines, read_record, write_record, write_text

Settings = dict[str, Any]
OF_MODEL = dict.fromkeys(("model", "adapter", "tokenizer"))  # without what tells models apart
FORMAT = 2  # of results and texts; files of another form are refused


def changes(old: Settings, new: Settings) -> str:
    """What differs between two sets of settings, such as `limit: 40 -> 100`."""
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return ", ".join(f"{key}: {old.get(key)} -> {new.get(key)}" for key in keys)


def same(old: Settings, new: Settings) -> bool:
    """Whether two sets of settings are equal; those of an earlier version do not hold the tokenizer."""
    return {"tokenizer": new.get("tokenizer")} | old == {"tokenizer": None} | new


def _check_format(path: Path, found: dict[str, Any]) -> None:
    if found.get("format") != FORMAT:
        raise UserError(f"{path}: written by another version; redo it with --force")


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


@dataclass
class TaskRecord:
    """The files of one task in one `eval` folder.

    That of texts has a line of settings and, below it, a line per request that was answered under them. Lines of other
    settings stay: to return to them costs nothing.
    """

    folder: Path  # `<run>/eval`
    task: str  # a slash in its name is a hyphen in file names
    settings: Settings  # all that may change a figure; a result made under others is never taken for this one
    deciding: Settings = field(default_factory=dict)  # those that decide what the model makes, the requests apart
    # What the engine that answered last says of itself; known once `made` has been read.
    engine: Settings = field(default_factory=dict, init=False)
    _begun: bool = field(default=False, init=False)

    def path(self, ending: str) -> Path:
        return self.folder / f"{self.task.replace('/', '-')}.{ending}"

    @property
    def texts(self) -> Path:
        return self.path("texts.jsonl")

    @cached_property
    def made(self) -> dict[str, tuple[Answer, float]]:
        """Answers by `Request.key`, each with the seconds it took."""
        try:
            lines = self.texts.read_bytes().split(b"\n")[:-1] if self.texts.is_file() else []
        except OSError as error:
            raise UserError(f"{self.texts}: can't be read ({error.strerror})") from error
        found, ours = {}, False
        for number, text in enumerate(lines, 1):
            try:
                line = unsealed(json.loads(text))
            except (AttributeError, ValueError) as error:
                raise UserError(f"{self.texts}:{number}: damaged ({error}); {AGAIN}") from error
            if "settings" in line:
                _check_format(self.texts, line)
                ours = same(line["settings"], self.deciding)
                self.engine = line["engine"] if ours else self.engine
            elif ours:
                made = line["made"]
                answer = [Output(**one) for one in made] if isinstance(made, list) else Score(**made)
                found[line["key"]] = (answer, line["seconds"])
        return found

    def add(self, request: Request, answer: Answer, seconds: float, engine: Settings) -> None:
        """Append an engine's answer; it is on its way to the disk when this returns."""
        self.made[request.key] = answer, seconds
        made = [asdict(output) for output in answer] if isinstance(answer, list) else asdict(answer)
        line = _line(sealed({"key": request.key, "seconds": round(seconds, 4), "made": made}))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.texts, "ab+") as file:
                if not self._begun:
                    self._begun, self.engine = True, engine
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)  # what a killed process left of the last line
                    line = _line({"format": FORMAT, "settings": self.deciding, "engine": engine}) + line
                file.write(line.encode())
        except OSError as error:
            raise UserError(f"{self.texts}: can't be written ({error.strerror})") from error

    def earlier(self) -> dict[str, Any] | None:
        """The result that is there, whatever its settings, or None."""
        if not self.path("json").exists():
            return None
        result = read_record(self.path("json"))
        _check_format(self.path("json"), result)
        return result

    def keep(self, earlier: dict[str, Any], *keys: str) -> None:
        """Take settings from an earlier result: what made its texts may not be on this machine."""
        for settings in (self.settings, self.deciding):
            settings |= {key: earlier["settings"][key] for key in keys}

    def clear(self) -> None:
        """Remove what is there, before any of it is read."""
        for ending in ("json", "samples.jsonl", "texts.jsonl"):
            self.path(ending).unlink(missing_ok=True)

    def complete(self, result: dict[str, Any], samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Write the samples, then the result, each atomically, and return the result as written."""
        self.path("json").unlink(missing_ok=True)  # it knows the samples that are about to go by their hash
        write_text(self.path("samples.jsonl"), "".join(map(_line, samples)))
        result = {"format": FORMAT, "task": self.task, **result, "settings": self.settings}
        write_record(self.path("json"), result, [self.path("samples.jsonl")])
        return result


def readings(result: Settings) -> dict[str, float]:
    """The shares in a result beside its headline: other readings, of several samples, by other graders, by group."""
    names = ("lenient", "acc_norm", "length_share", "unparsable_share")
    found: dict[str, float] = {name: result[name] for name in names if name in result}
    for kind in ("pass", "maj"):
        found |= {f"{kind}@{k}": scores["score"] for k, scores in result.get(f"{kind}_at_k", {}).items()}
    if len(graders := result.get("graders", {})) > 1:
        found |= {f"grader {name}": scores["accuracy"] for name, scores in graders.items()}
    for groups in result.get("by", {}).values():
        found |= {name: scores["accuracy"] for name, scores in groups.items()}
    return found


def find_samples(place: Path, task: str | None = None) -> dict[str, Path]:
    """The samples files of a run folder, an `eval` folder or a samples file, by task: all, or that of `task`."""
    folder = place / "eval" if (place / "eval").is_dir() else place
    alone = place.is_file() and place.name.endswith(".samples.jsonl")
    paths = [place] if alone else sorted(folder.glob("*.samples.jsonl"))
    found = {path.name.removesuffix(".samples.jsonl"): path for path in paths}
    for name, path in found.items():
        if (result := path.with_name(f"{name}.json")).exists():
            read_record(result)  # which knows the samples by their hash
    if not found:
        raise UserError(f"{place}: no samples here; name a run folder, its eval folder, or a .samples.jsonl file")
    if task is not None and task not in found:
        raise UserError(f"{place}: no samples of {task!r}; there are: {', '.join(found)}")
    return found if task is None else {task: found[task]}


def paired_samples(a: Path, b: Path, task: str | None = None) -> Iterator[tuple[str, Path, Path]]:
    """The tasks that two places share, each with its two samples files.

    Raises:
        UserError: there is no such task, or two files are not of the same problems.
    """
    first, second = find_samples(a, task), find_samples(b, task)
    if not (shared := [name for name in first if name in second]):
        raise UserError(f"{a} and {b}: no task in common ({', '.join(first)}; {', '.join(second)})")
    for name in shared:
        (data, numbers), (others_data, others) = (_problems(found[name]) for found in (first, second))
        if numbers != others or (data != others_data and None not in (data, others_data)):
            raise UserError(f"{first[name]} and {second[name]}: not the same problems; they can't be paired")
        yield name, first[name], second[name]


def _problems(samples: Path) -> tuple[Any, set[int]]:
    return made_under(samples).get("data"), {sample["problem"] for sample in read_lines(samples)}


def made_under(samples: Path) -> Settings:
    """The settings of the result that a samples file belongs to; none where it stands alone."""
    result = Path(str(samples).removesuffix(".samples.jsonl") + ".json")
    return read_record(result).get("settings", {}) if result.exists() else {}
