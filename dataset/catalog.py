"""Every named data set in one table: where it is on the hub, where in a local mirror, and how its rows become records.

A local mirror (`data.dir`) is a folder with the upstream files under the paths of this table:

    gsm8k/{train,test}.jsonl      math/test-1000.jsonl          humaneval/HumanEval.jsonl.gz
    humanevalplus/test.jsonl      mbpp/mbpp.jsonl               mbppplus/test.jsonl
    commonsense/<task>/{train,test}.json      glue/<task>/{train,dev}.tsv
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from astra.manifest import sha256_file
from dataset import converters
from dataset.hub import Hub
from dataset.records import Converter, Record, converted, read_rows
from utils.errors import UserError


@dataclass(frozen=True)
class Mirror:
    """Upstream files, relative to the mirror's folder, each with the converter of its rows.

    Attributes:
        count: Records as published.
        columns: Names of the columns of TSV files without a header line.
        part: Whether fewer records than published will do.
    """

    files: dict[str, Converter]
    count: int
    columns: tuple[str, ...] = ()
    part: bool = False


@dataclass(frozen=True)
class Source:
    """A split (train, validation or test) of a named set, on the hub and perhaps in a mirror.

    Every `folder` is a local mirror, or None for the hub.
    """

    task: str
    split: str
    hub: Hub
    mirror: Mirror | None = None

    @property
    def what(self) -> str:
        """The setting that names the set, as errors begin."""
        return f"{'eval.tasks' if self.split == 'test' else 'data.train'}: {self.task}"

    def records(self, folder: str | Path | None) -> Iterator[Record]:
        """Yield the records.

        Raises:
            UserError: the hub can't be read or lacks records, the mirror lacks the set, or a row is malformed.
        """
        if folder is None:
            yield from self.hub.records(self.what)
            return
        for _, records in self._files(folder):
            yield from records

    def check(self, folder: str | Path | None) -> None:
        """Raise a `UserError` early: unless the hub answers, or each file of the mirror gives a record."""
        if folder is None:
            self.hub.check(self.what)
            return
        for path, records in self._files(folder):
            if next(records, None) is None:
                raise UserError(f"{self.what}: {path} holds no records")

    def origin(self, folder: str | Path | None) -> dict[str, str]:
        """Return what the records were read from: the hub's repository and commit, or a mirror's files and sums."""
        if folder is None:
            return {self.hub.repository: f"commit {self.hub.snapshot(self.what).name}"}
        return {str(path): f"SHA-256 {sha256_file(path)}" for path, _ in self._files(folder)}

    def _files(self, folder: str | Path) -> Iterator[tuple[Path, Iterator[Record]]]:
        """Yield each file of a mirror with its records."""
        if not Path(folder).is_dir():
            raise UserError(f"data.dir: {folder} is not a folder; name a local mirror, or leave it out to use the hub")
        if self.mirror is None:
            table = EVALUATION if self.split == "test" else TRAINING
            there = ", ".join(source.task for source in table.values() if source.mirror is not None)
            raise UserError(
                f"{self.what} is only on the hub ({self.hub.repository}); a mirror (data.dir) has: {there}"
            )
        for name, convert in self.mirror.files.items():
            path = Path(folder) / name
            yield path, converted(read_rows(path, self.mirror.columns), convert, name)


COMMONSENSE = ("boolq", "piqa", "social_i_qa", "hellaswag", "winogrande", "ARC-Easy", "ARC-Challenge", "openbookqa")
GROUPS = {"commonsense": COMMONSENSE}  # names of several test sets
_WITH_TRAIN = ("boolq", "ARC-Easy", "ARC-Challenge", "openbookqa")
_MATH_CONFIGS = (
    "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra",
    "precalculus",
)  # fmt: skip
_PARQUET = "refs/convert/parquet"  # the hub's own conversion of repositories that hold a loading script


def _sources(split: str, sets: dict[str, tuple[Hub, Mirror | None]]) -> dict[str, Source]:
    return {task: Source(task, split, hub, mirror) for task, (hub, mirror) in sets.items()}


def _adapters(task: str, count: int) -> Mirror:
    return Mirror({f"commonsense/{task}/test.json": converters.commonsense(task)}, count)


TRAINING = _sources(
    "train",
    {
        "metamath": (
            Hub("fxmeng/pissa-dataset", converters.instruction(converters.METAMATH_TYPES), 395_000, folder="metamath"),
            None,
        ),
        "code": (
            Hub("fxmeng/pissa-dataset", converters.instruction(("python",)), None, folder="python"),
            Mirror({"mbpp/mbpp.jsonl": converters.mbpp(converters.MBPP_TRAIN)}, 374),
        ),
        "commonsense": (
            Hub("zwhe99/commonsense_170k", converters.commonsense("commonsense"), 170_420),
            Mirror({f"commonsense/{task}/train.json": converters.commonsense(task) for task in _WITH_TRAIN}, 17_754),
        ),
        "gsm8k": (
            Hub("openai/gsm8k", converters.gsm8k, 7_473, ("main",)),
            Mirror({"gsm8k/train.jsonl": converters.gsm8k}, 7_473),
        ),
    },
)

EVALUATION = _sources(
    "test",
    {
        "gsm8k": (
            Hub("openai/gsm8k", converters.gsm8k, 1_319, ("main",), split="test"),
            Mirror({"gsm8k/test.jsonl": converters.gsm8k}, 1_319),
        ),
        "math": (
            Hub("EleutherAI/hendrycks_math", converters.math, 5_000, _MATH_CONFIGS, split="test"),
            Mirror({"math/test-1000.jsonl": converters.math}, 1_000),
        ),
        "humaneval": (
            Hub("openai/openai_humaneval", converters.humaneval, 164, split="test"),
            Mirror({"humaneval/HumanEval.jsonl.gz": converters.humaneval}, 164),
        ),
        "mbpp": (
            Hub("google-research-datasets/mbpp", converters.mbpp(converters.MBPP_TEST), 500, ("full",), split="test"),
            Mirror({"mbpp/mbpp.jsonl": converters.mbpp(converters.MBPP_TEST)}, 500),
        ),
        "boolq": (
            Hub("google/boolq", converters.boolq, 3_270, split="validation"),
            _adapters("boolq", 3_270),
        ),
        "piqa": (
            Hub("ybisk/piqa", converters.piqa, 1_838, split="validation", revision=_PARQUET),
            _adapters("piqa", 1_838),
        ),
        "social_i_qa": (
            Hub("allenai/social_i_qa", converters.social_i_qa, 1_954, split="validation", revision=_PARQUET),
            _adapters("social_i_qa", 1_954),
        ),
        "hellaswag": (
            Hub("Rowan/hellaswag", converters.hellaswag, 10_042, split="validation"),
            None,
        ),
        "winogrande": (
            Hub("allenai/winogrande", converters.winogrande, 1_267, ("winogrande_xl",), split="validation"),
            _adapters("winogrande", 1_267),
        ),
        "ARC-Easy": (
            Hub("allenai/ai2_arc", converters.science("ARC-Easy"), 2_376, ("ARC-Easy",), split="test"),
            _adapters("ARC-Easy", 2_376),
        ),
        "ARC-Challenge": (
            Hub("allenai/ai2_arc", converters.science("ARC-Challenge"), 1_172, ("ARC-Challenge",), split="test"),
            _adapters("ARC-Challenge", 1_172),
        ),
        "openbookqa": (
            Hub("allenai/openbookqa", converters.science("openbookqa"), 500, ("main",), split="test"),
            _adapters("openbookqa", 500),
        ),
    },
)

DISTINCT = tuple(EVALUATION)  # the sets below ask what sets above ask, otherwise or with other tests
EVALUATION |= _sources(
    "test",
    {
        "humaneval_completion": (EVALUATION["humaneval"].hub, EVALUATION["humaneval"].mirror),
        "humaneval_plus": (
            Hub("evalplus/humanevalplus", converters.humaneval, 164, split="test"),
            Mirror({"humanevalplus/test.jsonl": converters.humaneval}, 164),
        ),
        "mbpp_plus": (
            Hub("evalplus/mbppplus", converters.mbpp_plus, 378, split="test"),
            Mirror({"mbppplus/test.jsonl": converters.mbpp_plus}, 378),
        ),
    },
)

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
    return [name for name in members if folder is not None and EVALUATION[name].mirror is None]
