"""Every named data set in one table: where it is on the hub, where in a local mirror, and how its rows become records.

A local mirror (`data.dir`) is a folder with the upstream files under the paths of this table:

    gsm8k/{train,test}.jsonl      math/test-1000.jsonl          humaneval/HumanEval.jsonl.gz
    mbpp/mbpp.jsonl               commonsense/<task>/{train,test}.json      glue/<task>/{train,dev}.tsv
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dataset import converters
from dataset.converters import Converter


@dataclass(frozen=True)
class Hub:
    """A split of a data set on the Hugging Face hub, and the number of records it must give (None: not known)."""

    repository: str
    convert: Converter
    count: int | None
    configs: tuple[str | None, ...] = (None,)
    split: str = "train"
    folder: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Mirror:
    """Upstream files, relative to the mirror's folder, each with the converter of its rows."""

    files: tuple[tuple[str, Converter], ...]
    count: int


@dataclass(frozen=True)
class Source:
    """A named set. Without `hub` it is in no repository we know; without `mirror` it comes from the hub alone."""

    hub: Hub
    mirror: Mirror | None = None


COMMONSENSE = ("boolq", "piqa", "social_i_qa", "hellaswag", "winogrande", "ARC-Easy", "ARC-Challenge", "openbookqa")
GROUPS = {"commonsense": COMMONSENSE}  # names of several test sets
_WITH_TRAIN = ("boolq", "ARC-Easy", "ARC-Challenge", "openbookqa")
_MATH_CONFIGS = (
    "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra",
    "precalculus",
)  # fmt: skip
_PARQUET = "refs/convert/parquet"  # the hub's own conversion of repositories that hold a loading script


def _adapters(task: str, split: str, count: int) -> Mirror:
    return Mirror(((f"commonsense/{task}/{split}.json", converters.commonsense(task)),), count)


TRAINING: dict[str, Source] = {
    "metamath": Source(
        Hub(
            "fxmeng/pissa-dataset", converters.instruction(converters.METAMATH_TYPES), count=395_000, folder="metamath"
        )
    ),
    "code": Source(
        Hub("fxmeng/pissa-dataset", converters.instruction(("python",)), count=None, folder="python"),
        Mirror((("mbpp/mbpp.jsonl", converters.mbpp(converters.MBPP_TRAIN)),), 374),
    ),
    "commonsense": Source(
        Hub("zwhe99/commonsense_170k", converters.commonsense("commonsense"), count=170_420),
        Mirror(
            tuple((f"commonsense/{task}/train.json", converters.commonsense(task)) for task in _WITH_TRAIN), 17_754
        ),
    ),
    "gsm8k": Source(
        Hub("openai/gsm8k", converters.gsm8k, 7_473, configs=("main",)),
        Mirror((("gsm8k/train.jsonl", converters.gsm8k),), 7_473),
    ),
}

EVALUATION: dict[str, Source] = {
    "gsm8k": Source(
        Hub("openai/gsm8k", converters.gsm8k, 1_319, configs=("main",), split="test"),
        Mirror((("gsm8k/test.jsonl", converters.gsm8k),), 1_319),
    ),
    "math": Source(
        Hub("EleutherAI/hendrycks_math", converters.math, 5_000, configs=_MATH_CONFIGS, split="test"),
        Mirror((("math/test-1000.jsonl", converters.math),), 1_000),
    ),
    "humaneval": Source(
        Hub("openai/openai_humaneval", converters.humaneval, 164, split="test"),
        Mirror((("humaneval/HumanEval.jsonl.gz", converters.humaneval),), 164),
    ),
    "mbpp": Source(
        Hub("google-research-datasets/mbpp", converters.mbpp(converters.MBPP_TEST), 500, ("full",), split="test"),
        Mirror((("mbpp/mbpp.jsonl", converters.mbpp(converters.MBPP_TEST)),), 500),
    ),
    "boolq": Source(
        Hub("google/boolq", converters.boolq, 3_270, split="validation"), _adapters("boolq", "test", 3_270)
    ),
    "piqa": Source(
        Hub("ybisk/piqa", converters.piqa, 1_838, split="validation", revision=_PARQUET),
        _adapters("piqa", "test", 1_838),
    ),
    "social_i_qa": Source(
        Hub("allenai/social_i_qa", converters.social_i_qa, 1_954, split="validation", revision=_PARQUET),
        _adapters("social_i_qa", "test", 1_954),
    ),
    "hellaswag": Source(Hub("Rowan/hellaswag", converters.hellaswag, 10_042, split="validation")),
    "winogrande": Source(
        Hub("allenai/winogrande", converters.winogrande, 1_267, ("winogrande_xl",), split="validation"),
        _adapters("winogrande", "test", 1_267),
    ),
    "ARC-Easy": Source(
        Hub("allenai/ai2_arc", converters.science("ARC-Easy", "question"), 2_376, ("ARC-Easy",), split="test"),
        _adapters("ARC-Easy", "test", 2_376),
    ),
    "ARC-Challenge": Source(
        Hub(
            "allenai/ai2_arc", converters.science("ARC-Challenge", "question"), 1_172, ("ARC-Challenge",), split="test"
        ),
        _adapters("ARC-Challenge", "test", 1_172),
    ),
    "openbookqa": Source(
        Hub("allenai/openbookqa", converters.science("openbookqa", "question_stem"), 500, ("main",), split="test"),
        _adapters("openbookqa", "test", 500),
    ),
}

# The test sets whose questions must not be in a training set.
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
