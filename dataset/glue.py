"""GLUE: eight tasks of one or two sentences and a label, from the hub or from GLUE's own TSV files.

Records are `{"text": str, "text_pair": str | None, "label": int | float}`; the label is an index into the task's
`labels`, or a score from 0 to 5 (stsb). Source: Wang et al., GLUE (2019).
"""

from dataclasses import dataclass
from pathlib import Path

from dataset.catalog import Source
from dataset.records import Record, Row
from utils.config import Config
from utils.errors import UserError


@dataclass(frozen=True)
class GlueTask:
    """Where a task's columns are: on the hub, where the label's is `label`, and in GLUE's TSV files."""

    counts: tuple[int, ...]  # records of the hub's splits
    texts: tuple[str, ...]  # columns of the one or two texts
    labels: tuple[str, ...]  # names of the classes in the hub's order; empty for a score
    folder: str  # of the TSV files
    label: str = "label"  # the TSV's column of the label
    tsv_texts: tuple[str, ...] = ()  # and those of the texts, where they have other names
    columns: tuple[str, ...] = ()  # names of the TSV's columns where the file has no header line
    numbered: bool = True  # whether the TSV gives classes as numbers
    splits: tuple[str, ...] = ("train", "validation")  # on the hub: what it learns from, and is scored on

    @property
    def num_labels(self) -> int:
        """Outputs of a classification head: the number of classes, or 1 for a score."""
        return max(1, len(self.labels))

    def from_hub(self, row: Row) -> Record:
        """The record of a row of the hub."""
        return self._record(row, self.texts, row["label"])

    def from_tsv(self, row: Row) -> Record:
        """The record of a row of a TSV file."""
        label = row[self.label]
        if not self.labels:
            label = float(label)
        else:
            label = range(len(self.labels)).index(int(label)) if self.numbered else self.labels.index(label)
        return self._record(row, self.tsv_texts or self.texts, label)

    def _record(self, row: Row, columns: tuple[str, ...], label: int | float) -> Record:
        texts = [row[column] for column in columns]
        return {"text": texts[0], "text_pair": texts[1] if len(texts) > 1 else None, "label": label}


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")

GLUE: dict[str, GlueTask] = {
    "cola": GlueTask(
        (8_551, 1_043), ("sentence",), ("unacceptable", "acceptable"), "CoLA",
        columns=("source", "label", "mark", "sentence"),
    ),
    "sst2": GlueTask((67_349, 872), ("sentence",), ("negative", "positive"), "SST-2"),
    "mrpc": GlueTask(
        (3_668, 408), _PAIR, ("not_equivalent", "equivalent"), "MRPC", "Quality", ("#1 String", "#2 String")
    ),
    "qqp": GlueTask(
        (363_846, 40_430), ("question1", "question2"), ("not_duplicate", "duplicate"), "QQP", "is_duplicate"
    ),
    "stsb": GlueTask((5_749, 1_500), _PAIR, (), "STS-B", "score"),
    "mnli": GlueTask(
        (392_702, 9_815, 9_832), ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), "MNLI",
        "gold_label", _PAIR, numbered=False, splits=("train", "validation_matched", "validation_mismatched"),
    ),
    "qnli": GlueTask((104_743, 5_463), ("question", "sentence"), _ENTAILMENT, "QNLI", numbered=False),
    "rte": GlueTask((2_490, 277), _PAIR, _ENTAILMENT, "RTE", numbered=False),
}  # fmt: skip


def glue_sources(task: str) -> list[Source]:
    """Return what a GLUE task learns from, of which a part will do, and what it is scored on: of MNLI two sets."""
    if task not in GLUE:
        raise UserError(f"data.train: no GLUE task {task!r}; allowed: {', '.join(GLUE)}")
    glue = GLUE[task]
    return [
        Source(
            task, "nyu-mll/glue", glue.from_hub, count, "train" if split == "train" else "validation", split, (task,),
            mirror={f"glue/{glue.folder}/{split.replace('validation', 'dev')}.tsv": glue.from_tsv},
            columns=glue.columns, part=split == "train",
        )
        for split, count in zip(glue.splits, glue.counts, strict=True)
    ]  # fmt: skip


def load_glue(task: str, split: str, data_dir: str | Path | None = None) -> list[Record]:
    """Return a split of a GLUE task: `train`, `validation`, or `mismatched`, which is MNLI's other validation set."""
    place = ("train", "validation", "mismatched").index(split)
    return list(glue_sources(task)[place].records(data_dir))


def num_labels(config: Config) -> int | None:
    """Return how many outputs the head of an experiment's classifier has; None for a language model."""
    return GLUE[config.data.train].num_labels if config.model.task_type == "SEQ_CLS" else None
