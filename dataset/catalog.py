"""Every named data set in one table: where it is on the hub, where in a local mirror, and how its rows become records.

The hub's files are downloaded once, to its library's cache. A local mirror (`data.dir`) is a folder with the upstream
files under the paths of this table; docs/clusters.md lists them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from astra.manifest import sha256_file
from dataset import converters
from dataset.records import Converter, Record, converted, read_rows
from utils.errors import UserError, first_line

TIMEOUT = 10  # seconds to wait for the hub's first answer: its own library tries again for minutes
Role = Literal["train", "validation", "test", "text"]


@dataclass(frozen=True)
class Source:
    """A split of a named set. Every `data_dir` is a local mirror, or None for the hub."""

    task: str  # the set's name in a configuration
    repository: str  # where it is on the hub: all `configs`, the files of `folder` alone, at `revision`
    convert: Converter  # makes a record of a row of the hub
    count: int | None  # records as published; None if not known
    role: Role = "test"
    split: str | None = None  # on the hub; default: the role
    configs: tuple[str | None, ...] = (None,)
    folder: str | None = None
    revision: str | None = None
    # Its files in a mirror with the converter of their rows, or one file whose rows are those of the hub.
    mirror: dict[str, Converter] | str | None = None
    mirror_count: int | None = None  # records of those files as published; default: `count`
    columns: tuple[str, ...] = ()  # names of the columns of TSV files without a header line
    part: bool = False  # whether a mirror may hold fewer

    @property
    def key(self) -> str:
        """The setting that names the set, as errors begin."""
        return {"test": "eval.tasks", "text": "data.general_text"}.get(self.role, "data.train")

    @property
    def files(self) -> dict[str, Converter]:
        """The files of a mirror, relative to it, with the converter of their rows."""
        return {self.mirror: self.convert} if isinstance(self.mirror, str) else self.mirror or {}

    def records(self, data_dir: str | Path | None) -> Iterator[Record]:
        """Yield the records; a `UserError` says what the hub or the mirror lacks, or which row is malformed."""
        if data_dir is None:
            yield from self._hub_records()
        else:
            for records in self._mirror_records(data_dir).values():
                yield from records

    def check(self, data_dir: str | Path | None) -> None:
        """Raise a `UserError` early: unless the hub answers, or each file of the mirror gives a record."""
        if data_dir is None:
            self._snapshot(download=False)
            return
        for path, records in self._mirror_records(data_dir).items():
            if next(records, None) is None:
                raise UserError(f"{self.key}: {path} holds no records")

    def origin(self, data_dir: str | Path | None) -> dict[str, str]:
        """Return what the records were read from: the hub's repository and commit, or a mirror's files and sums."""
        if data_dir is None:
            return {self.repository: f"commit {self._snapshot().name}"}
        return {str(path): f"SHA-256 {sha256_file(path)}" for path in self._mirror_records(data_dir)}

    def _mirror_records(self, data_dir: str | Path) -> dict[Path, Iterator[Record]]:
        """The files of a mirror with their records, which are read as they are asked for."""
        if not Path(data_dir).is_dir():
            raise UserError(f"data.dir: {data_dir} is not a folder; name a local mirror, or none to use the hub")
        if not self.mirror:
            table = EVALUATION if self.role == "test" else TRAINING
            others = ", ".join(source.task for source in table.values() if source.mirror)
            where = f"only on the hub ({self.repository})"
            raise UserError(f"{self.key}: {self.task} is {where}; a mirror (data.dir) has: {others}")
        return {
            Path(data_dir, name): converted(read_rows(Path(data_dir, name), self.columns), convert, name)
            for name, convert in self.files.items()
        }

    def _hub_records(self) -> Iterator[Record]:
        from datasets import load_dataset

        count, folder, split = 0, self._snapshot(), self.split or self.role
        for config in self.configs:
            with self._hub_errors():
                rows = load_dataset(str(folder), config, data_dir=self.folder, split=split)
            places = (f"{self.repository}, {split} row {number}" for number in range(1, len(rows) + 1))
            for record in converted(zip(places, rows, strict=True), self.convert, self.repository):
                count += 1
                yield record
        if self.count is not None and count != self.count:
            given = f"{self.repository} gave {count:,} records"
            raise UserError(f"{self.key}: {self.task}: {given} and is known to have {self.count:,} ({folder})")

    def _snapshot(self, download: bool = True) -> Path:
        """Return the cached copy of the repository, whose name is the hub's commit; get it first if need be.

        Without `download` the hub is only asked whether it has it.
        """
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        files = f"{self.folder}/*" if self.folder else None
        fetch = partial(
            snapshot_download, self.repository, repo_type="dataset", revision=self.revision, allow_patterns=files
        )
        with suppress(LocalEntryNotFoundError):  # nothing, or not all of it
            return Path(fetch(local_files_only=True))
        with self._hub_errors():
            HfApi().dataset_info(self.repository, revision=self.revision, timeout=TIMEOUT)
            return Path(fetch() if download else "")

    @contextmanager
    def _hub_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the hub's libraries raise those of whatever HTTP library they are built on
            text = self.role == "text"
            local = "data.general_text to python-manual or a .txt file" if text else "data.dir to a local mirror"
            raise UserError(
                f"{self.key}: {self.task} comes from {self.repository} on the hub, which can't be read "
                f"({first_line(error)}); set {local}, or try again where the hub can be reached"
            ) from error


COMMONSENSE = ("boolq", "piqa", "social_i_qa", "hellaswag", "winogrande", "ARC-Easy", "ARC-Challenge", "openbookqa")
GROUPS = {"commonsense": COMMONSENSE}  # names of several test sets
_MATH_CONFIGS = (
    "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra",
    "precalculus",
)  # fmt: skip
_PARQUET = "refs/convert/parquet"  # the hub's own conversion of repositories that hold a loading script


def _by_name(*sources: Source) -> dict[str, Source]:
    return {source.task: source for source in sources}


def _choices(
    task: str,
    repository: str,
    convert: Converter,
    count: int,
    config: str | None = None,
    split: str = "validation",
    revision: str | None = None,
) -> Source:
    """A commonsense test set; a mirror has it in the form of LLM-Adapters."""
    mirror = {f"commonsense/{task}/test.json": converters.commonsense(task)} if task != "hellaswag" else None
    return Source(task, repository, convert, count, split=split, configs=(config,), revision=revision, mirror=mirror)


# fmt: off
TRAINING = _by_name(
    Source("metamath", "fxmeng/pissa-dataset", converters.instruction(converters.METAMATH_TYPES), 395_000, "train",
           folder="metamath"),
    Source("code", "fxmeng/pissa-dataset", converters.instruction(("python",)), None, "train", folder="python",
           mirror={"mbpp/mbpp.jsonl": converters.mbpp(converters.MBPP_TRAIN)}, mirror_count=374),
    Source("commonsense", "zwhe99/commonsense_170k", converters.commonsense("commonsense"), 170_420, "train",
           mirror={f"commonsense/{task}/train.json": converters.commonsense(task)
                   for task in ("boolq", "ARC-Easy", "ARC-Challenge", "openbookqa")}, mirror_count=17_754),
    Source("gsm8k", "openai/gsm8k", converters.gsm8k, 7_473, "train", configs=("main",), mirror="gsm8k/train.jsonl"),
)

EVALUATION = _by_name(
    Source("gsm8k", "openai/gsm8k", converters.gsm8k, 1_319, configs=("main",), mirror="gsm8k/test.jsonl"),
    Source("math", "EleutherAI/hendrycks_math", converters.math, 5_000, configs=_MATH_CONFIGS,
           mirror="math/test-1000.jsonl", mirror_count=1_000),
    Source("humaneval", "openai/openai_humaneval", converters.humaneval, 164,
           mirror="humaneval/HumanEval.jsonl.gz"),
    Source("mbpp", "google-research-datasets/mbpp", converters.mbpp(converters.MBPP_TEST), 500, configs=("full",),
           mirror="mbpp/mbpp.jsonl"),
    _choices("boolq", "google/boolq", converters.boolq, 3_270),
    _choices("piqa", "ybisk/piqa", converters.piqa, 1_838, revision=_PARQUET),
    _choices("social_i_qa", "allenai/social_i_qa", converters.social_i_qa, 1_954, revision=_PARQUET),
    _choices("hellaswag", "Rowan/hellaswag", converters.hellaswag, 10_042),
    _choices("winogrande", "allenai/winogrande", converters.winogrande, 1_267, "winogrande_xl"),
    _choices("ARC-Easy", "allenai/ai2_arc", converters.science("ARC-Easy"), 2_376, "ARC-Easy", "test"),
    _choices("ARC-Challenge", "allenai/ai2_arc", converters.science("ARC-Challenge"), 1_172, "ARC-Challenge", "test"),
    _choices("openbookqa", "allenai/openbookqa", converters.science("openbookqa"), 500, "main", "test"),
)

DISTINCT = tuple(EVALUATION)  # the sets below ask what sets above ask, otherwise or with other tests
EVALUATION |= _by_name(
    replace(EVALUATION["humaneval"], task="humaneval_completion"),
    Source("humaneval_plus", "evalplus/humanevalplus", converters.humaneval, 164, mirror="humanevalplus/test.jsonl"),
    Source("mbpp_plus", "evalplus/mbppplus", converters.mbpp_plus, 378, mirror="mbppplus/test.jsonl"),
)
# fmt: on

# The test sets whose questions must not be in a training set; of a set that is not named here, all.
TESTED_BY: dict[str, tuple[str, ...]] = {
    "metamath": ("gsm8k", "math"),
    "gsm8k": ("gsm8k", "math"),
    "code": ("humaneval", "mbpp"),
    "commonsense": COMMONSENSE,
}


def expand_groups(names: Sequence[str], folder: str | None) -> list[str]:
    """Return test sets with each group replaced by those of its members that the hub or the mirror `folder` has."""
    missing = left_out(names, folder)
    members = [member for name in names for member in GROUPS.get(name, (name,))]
    return [name for name in dict.fromkeys(members) if name in names or name not in missing]


def left_out(names: Sequence[str], folder: str | None) -> list[str]:
    """Return the members of the groups among `names` that the mirror `folder` does not have."""
    members = [member for name in names for member in GROUPS.get(name, ())]
    return [name for name in members if folder is not None and not EVALUATION[name].mirror]
