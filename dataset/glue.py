"""GLUE: eight tasks of one or two sentences and a label, from the hub or from GLUE's own TSV files.

Records are `{"text": str, "text_pair": str | None, "label": int | float}`; the label is an index into the task's
`labels`, or a score from 0 to 5 (stsb). Source: Wang et al., GLUE (2019).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dataset.catalog import Hub
from dataset.converters import Record, Row
from dataset.hub import check_hub, fetch
from dataset.records import read_rows
from utils.config import Config
from utils.errors import UserError

Split = Literal["train", "validation"]


@dataclass(frozen=True)
class GlueTask:
    """Where a task's columns are.

    Attributes:
        counts: Records of the hub's train and validation splits.
        hub_texts: The hub's columns of the one or two texts; its label column is `label`.
        labels: Names of the classes in the hub's order; empty for a score.
        folder: Folder of the TSV files.
        texts: The TSV's columns of the texts, and `label` its column of the label.
        columns: Names of the TSV's columns where the file has no header line.
        numbered: Whether the TSV gives classes as numbers.
        metric: What GLUE ranks the task by.
        validation: Suffix of the split's name on the hub and of the TSV file (MNLI has two validation sets).
    """

    counts: tuple[int, int]
    hub_texts: tuple[str, ...]
    labels: tuple[str, ...]
    folder: str
    texts: tuple[str, ...]
    label: str
    columns: tuple[str, ...] = ()
    numbered: bool = True
    validation: str = ""
    metric: Literal["accuracy", "matthews_correlation", "pearson"] = "accuracy"

    @property
    def num_labels(self) -> int:
        """Outputs of a classification head: the number of classes, or 1 for a score."""
        return max(1, len(self.labels))


_PAIR = ("sentence1", "sentence2")
_QUESTIONS = ("question1", "question2")
_ENTAILMENT = ("entailment", "not_entailment")

GLUE: dict[str, GlueTask] = {
    "cola": GlueTask(
        (8_551, 1_043), ("sentence",), ("unacceptable", "acceptable"), "CoLA", ("sentence",), "label",
        columns=("source", "label", "mark", "sentence"), metric="matthews_correlation",
    ),
    "sst2": GlueTask((67_349, 872), ("sentence",), ("negative", "positive"), "SST-2", ("sentence",), "label"),
    "mrpc": GlueTask(
        (3_668, 408), _PAIR, ("not_equivalent", "equivalent"), "MRPC", ("#1 String", "#2 String"), "Quality"
    ),
    "qqp": GlueTask(
        (363_846, 40_430), _QUESTIONS, ("not_duplicate", "duplicate"), "QQP", _QUESTIONS, "is_duplicate"
    ),
    "stsb": GlueTask((5_749, 1_500), _PAIR, (), "STS-B", _PAIR, "score", metric="pearson"),
    "mnli": GlueTask(
        (392_702, 9_815), ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), "MNLI", _PAIR,
        "gold_label", numbered=False, validation="_matched",
    ),
    "qnli": GlueTask(
        (104_743, 5_463), ("question", "sentence"), _ENTAILMENT, "QNLI", ("question", "sentence"), "label",
        numbered=False,
    ),
    "rte": GlueTask((2_490, 277), _PAIR, _ENTAILMENT, "RTE", _PAIR, "label", numbered=False),
}  # fmt: skip


def load_glue(task: str, split: Split, data_dir: str | Path | None = None) -> list[Record]:
    """One split of a GLUE task.

    Raises:
        UserError: an unknown task, a missing or malformed file (file and line), or a hub that can't be reached.
    """
    glue = _task(task)
    if data_dir is not None:
        return list(_tsv_records(glue, glue_file(task, split, data_dir)))
    return [record for _, record in read_rows(fetch(task, split, glue_hub(task, split), key="data.train"))]


def check_glue(task: str, data_dir: str | Path | None = None) -> None:
    """Stop early when a task can't be loaded; raises as `load_glue`."""
    glue = _task(task)
    splits: tuple[Split, Split] = ("train", "validation")
    for split in splits:
        if data_dir is None:
            check_hub(task, split, glue_hub(task, split), key="data.train")
        elif next(_tsv_records(glue, glue_file(task, split, data_dir)), None) is None:
            raise UserError(f"{glue_file(task, split, data_dir)}: holds no records")


def glue_hub(task: str, split: Split) -> Hub:
    """Where a split is on the hub."""
    glue = _task(task)
    name = "train" if split == "train" else f"validation{glue.validation}"
    count = glue.counts[split != "train"]
    return Hub("nyu-mll/glue", _hub_converter(glue), count, configs=(task,), split=name)


def glue_file(task: str, split: Split, data_dir: str | Path) -> Path:
    """Where a split is in a local mirror."""
    glue = _task(task)
    name = "train" if split == "train" else f"dev{glue.validation}"
    return Path(data_dir) / "glue" / glue.folder / f"{name}.tsv"


def _task(task: str) -> GlueTask:
    if task not in GLUE:
        raise UserError(f"data.train: no GLUE task {task!r}; allowed: {', '.join(GLUE)}")
    return GLUE[task]


def _hub_converter(glue: GlueTask) -> Callable[[Row], Record]:
    def convert(row: Row) -> Record:
        return _record([row[column] for column in glue.hub_texts], row["label"])

    return convert


def _record(texts: list[str], label: Any) -> Record:
    return {"text": texts[0], "text_pair": texts[1] if len(texts) > 1 else None, "label": label}


def _tsv_records(glue: GlueTask, path: Path) -> Iterator[Record]:
    """GLUE's files quote nothing: a quotation mark is part of the text."""
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as file:
            columns = glue.columns or tuple(next(file, "").rstrip("\r\n").split("\t"))
            for number, line in enumerate(file, start=1 if glue.columns else 2):
                values = line.rstrip("\r\n").split("\t")
                try:
                    row = dict(zip(columns, values, strict=True))
                    yield _record([row[column] for column in glue.texts], _label(glue, row[glue.label]))
                except (KeyError, ValueError) as error:
                    raise UserError(f"{path}:{number}: not a line of {glue.folder} as published ({error})") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def _label(glue: GlueTask, value: str) -> int | float:
    if not glue.labels:
        return float(value)
    if glue.numbered:
        return range(len(glue.labels)).index(int(value))
    return glue.labels.index(value)


def num_labels(config: Config) -> int | None:
    """Return how many outputs the head of an experiment's classifier has; None for a language model."""
    return GLUE[config.data.train].num_labels if config.model.task_type == "SEQ_CLS" else None
