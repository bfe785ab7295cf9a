"""GLUE: eight tasks of one or two sentences and a label, from the hub or from GLUE's own TSV files.

Records are `{"text": str, "text_pair": str | None, "label": int | float}`; the label is an index into the task's
`labels`, or a score from 0 to 5 (stsb). Source: Wang et al., GLUE (2019).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dataset.catalog import Source
from dataset.records import Record, Row
from utils.config import Config
from utils.errors import UserError

Split = Literal["train", "validation", "mismatched"]  # the last is MNLI's other validation set


@dataclass(frozen=True)
class GlueTask:
    """Where a task's columns are: on the hub, where the label's is `label`, and in GLUE's TSV files."""

    counts: tuple[int, int]  # records of the hub's train and validation splits
    hub_texts: tuple[str, ...]  # the hub's columns of the one or two texts
    labels: tuple[str, ...]  # names of the classes in the hub's order; empty for a score
    folder: str  # of the TSV files
    texts: tuple[str, ...]  # the TSV's columns of the texts
    label: str  # and of the label
    columns: tuple[str, ...] = ()  # names of the TSV's columns where the file has no header line
    numbered: bool = True  # whether the TSV gives classes as numbers
    suffix: str = ""  # of the validation split's name, on the hub and as TSV file (MNLI has two)

    @property
    def num_labels(self) -> int:
        """Outputs of a classification head: the number of classes, or 1 for a score."""
        return max(1, len(self.labels))

    def from_hub(self, row: Row) -> Record:
        """The record of a row of the hub."""
        return self._record([row[column] for column in self.hub_texts], row["label"])

    def from_tsv(self, row: Row) -> Record:
        """The record of a row of a TSV file."""
        label = row[self.label]
        if not self.labels:
            label = float(label)
        else:
            label = range(len(self.labels)).index(int(label)) if self.numbered else self.labels.index(label)
        return self._record([row[column] for column in self.texts], label)

    def _record(self, texts: list[str], label: int | float) -> Record:
        return {"text": texts[0], "text_pair": texts[1] if len(texts) > 1 else None, "label": label}


MISMATCHED = 9_832  # records of MNLI's mismatched validation set
_PAIR = ("sentence1", "sentence2")
_QUESTIONS = ("question1", "question2")
_ENTAILMENT = ("entailment", "not_entailment")

GLUE: dict[str, GlueTask] = {
    "cola": GlueTask(
        (8_551, 1_043), ("sentence",), ("unacceptable", "acceptable"), "CoLA", ("sentence",), "label",
        columns=("source", "label", "mark", "sentence"),
    ),
    "sst2": GlueTask((67_349, 872), ("sentence",), ("negative", "positive"), "SST-2", ("sentence",), "label"),
    "mrpc": GlueTask(
        (3_668, 408), _PAIR, ("not_equivalent", "equivalent"), "MRPC", ("#1 String", "#2 String"), "Quality"
    ),
    "qqp": GlueTask(
        (363_846, 40_430), _QUESTIONS, ("not_duplicate", "duplicate"), "QQP", _QUESTIONS, "is_duplicate"
    ),
    "stsb": GlueTask((5_749, 1_500), _PAIR, (), "STS-B", _PAIR, "score"),
    "mnli": GlueTask(
        (392_702, 9_815), ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), "MNLI", _PAIR,
        "gold_label", numbered=False, suffix="_matched",
    ),
    "qnli": GlueTask(
        (104_743, 5_463), ("question", "sentence"), _ENTAILMENT, "QNLI", ("question", "sentence"), "label",
        numbered=False,
    ),
    "rte": GlueTask((2_490, 277), _PAIR, _ENTAILMENT, "RTE", _PAIR, "label", numbered=False),
}  # fmt: skip


def glue_source(task: str, split: Split) -> Source:
    """Return where a split of a GLUE task is; part of what a task learns from will do, a score is of the whole."""
    if task not in GLUE:
        raise UserError(f"data.train: no GLUE task {task!r}; allowed: {', '.join(GLUE)}")
    glue, learn = GLUE[task], split == "train"
    suffix, count = glue.suffix, glue.counts[0 if learn else 1]
    if split == "mismatched":
        suffix, count = "_mismatched", MISMATCHED
    return Source(
        task, "nyu-mll/glue", glue.from_hub, count, role="train" if learn else "validation",
        split="train" if learn else f"validation{suffix}", configs=(task,),
        mirror={f"glue/{glue.folder}/{'train' if learn else f'dev{suffix}'}.tsv": glue.from_tsv},
        columns=glue.columns, part=learn,
    )  # fmt: skip


def glue_sources(task: str) -> list[Source]:
    """Return what a GLUE task learns from and is scored on, MNLI's mismatched set too."""
    splits: tuple[Split, ...] = ("train", "validation", "mismatched")
    return [glue_source(task, split) for split in splits if task == "mnli" or split != "mismatched"]


def load_glue(task: str, split: Split, data_dir: str | Path | None = None) -> list[Record]:
    """Return one split of a GLUE task; see `dataset.catalog.Source.records`."""
    return list(glue_source(task, split).records(data_dir))


def num_labels(config: Config) -> int | None:
    """Return how many outputs the head of an experiment's classifier has; None for a language model."""
    return GLUE[config.data.train].num_labels if config.model.task_type == "SEQ_CLS" else None
