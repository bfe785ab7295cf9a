"""Loading training and evaluation sets: named tasks from the hub or a local mirror, and a user's own files."""

import random
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

from dataset.arithmetic import generate
from dataset.catalog import EVALUATION, TESTED_BY, TRAINING, Mirror, Source
from dataset.glue import GLUE, check_glue, load_glue
from dataset.hub import check_hub, fetch
from dataset.overlap import TestQuestions
from dataset.records import Record, check_fields, own_record, read_rows
from utils.config import DataConfig
from utils.errors import UserError
from utils.log import log

ARITHMETIC = "arithmetic"
ARITHMETIC_TRAIN = 10_000  # problems generated when data.limit doesn't say
ARITHMETIC_TEST = 1_000
ARITHMETIC_TEST_SEED = 0  # the test set is one and the same, whatever data.seed


def load_training(data: DataConfig) -> list[Record]:
    """The training records of a configuration; what `data.validation` holds out is not among them.

    Raises:
        UserError: see `check_training`.
    """
    return load_splits(data)[0]


def load_splits(data: DataConfig) -> tuple[list[Record], list[Record]]:
    """The training records of a configuration, and the validation records it holds out of them.

    `data.limit` keeps the first records; `data.decontaminate` then drops those that contain a test question;
    `data.validation` is held out last. `arithmetic` has a validation split of its own; a task of GLUE is validated on
    the split it is scored on, as is usual there, unless `data.validation` holds records out.

    Raises:
        UserError: see `check_training`.
    """
    if data.train == ARITHMETIC:
        n = data.limit or ARITHMETIC_TRAIN
        held = round(n * data.validation)
        if data.validation > 0 and held == 0:
            raise UserError(f"data.validation: {data.validation} of {n} records is none; name a larger fraction")
        return generate("train", n, data.seed), generate("validation", held, data.seed)
    if data.train in GLUE:
        records = load_glue(data.train, "train", data.dir)[: data.limit]
        if data.validation:
            return split_validation(records, data.validation, data.seed)
        return records, load_glue(data.train, "validation", data.dir)
    records = list(islice(_training_records(data), data.limit))
    if not records:
        raise UserError(f"data.train: {data.train} holds no records")
    if data.decontaminate:
        questions = test_questions(TESTED_BY.get(data.train, tuple(EVALUATION)), data.dir)
        kept = [record for record in records if not questions.found_in(record)]
        log.info("decontaminated: %d of %d records contain a test question", len(records) - len(kept), len(records))
        records = kept
    return split_validation(records, data.validation, data.seed)


def split_validation(records: list[Record], fraction: float, seed: int) -> tuple[list[Record], list[Record]]:
    """Hold a random `fraction` of the records out; both parts keep their order.

    Raises:
        UserError: nothing would be left to train on, or nothing held out.
    """
    if fraction == 0:
        return records, []
    count = round(len(records) * fraction)
    if not 0 < count < len(records):
        raise UserError(f"data.validation: {fraction} of {len(records)} records is {count}; both parts need one")
    held = set(random.Random(seed).sample(range(len(records)), count))
    return (
        [record for i, record in enumerate(records) if i not in held],
        [record for i, record in enumerate(records) if i in held],
    )


def check_training(data: DataConfig, task_type: str = "CAUSAL_LM") -> None:
    """Stop early when the training data can't be loaded. Own files are read in full, named tasks in part.

    Raises:
        UserError: an unknown task, one that is not of `task_type` (a classifier learns a task of GLUE), a missing file
            or folder, a malformed record (file and line), fields that the records lack, a conversation with the
            template alpaca, or a hub that can't be reached.
    """
    if (task_type == "SEQ_CLS") != (data.train in GLUE):
        wanted = "SEQ_CLS" if data.train in GLUE else "CAUSAL_LM"
        raise UserError(
            f"model.task_type: {data.train} needs {wanted}, not {task_type}; SEQ_CLS goes with {', '.join(GLUE)}"
        )
    if data.train == ARITHMETIC:
        return
    if data.train in GLUE:
        check_glue(data.train, data.dir)
        return
    if data.train in TRAINING:
        _check_source(data.train, "train", TRAINING, data.dir, key="data.train")
        return
    if not sum(1 for _ in islice(_own_records(data), data.limit)):
        raise UserError(f"data.train: {data.train} holds no records")


def load_evaluation(task: str, data_dir: str | Path | None = None) -> list[Record]:
    """The test set of a named task: `instruction`, `output`, `type`, and what grading needs.

    Beside those: `answer` for gsm8k and arithmetic (the number), math (the solution, with the answer in `\\boxed{}`)
    and the commonsense tasks (the option's name); `task_id` and tests for humaneval and mbpp.

    Args:
        task: A name of `dataset.catalog.EVALUATION`, or `arithmetic`.
        data_dir: Local mirror, or None for the hub.

    Raises:
        UserError: see `check_evaluation`.
    """
    if task == ARITHMETIC:
        return generate("test", ARITHMETIC_TEST, ARITHMETIC_TEST_SEED)
    source = _source(task, EVALUATION, key="eval.tasks")
    return list(_records(task, "test", source, data_dir, EVALUATION, key="eval.tasks"))


def check_evaluation(task: str, data_dir: str | Path | None = None) -> None:
    """Stop early when a test set can't be loaded.

    Raises:
        UserError: an unknown task, a mirror without it, or a hub that can't be reached.
    """
    if task != ARITHMETIC:
        _check_source(task, "test", EVALUATION, data_dir, key="eval.tasks")


def test_questions(tasks: Iterable[str], data_dir: str | Path | None) -> TestQuestions:
    """The questions of some test sets; those that a mirror lacks are left out, with a warning."""
    questions = TestQuestions()
    for name in tasks:
        if data_dir is not None and EVALUATION[name].mirror is None:
            log.warning("test set %s is not in the mirror: training data is not compared with it", name)
        else:
            questions.add(name, load_evaluation(name, data_dir))
    return questions


def _training_records(data: DataConfig) -> Iterator[Record]:
    if data.train in TRAINING:
        yield from _records(data.train, "train", TRAINING[data.train], data.dir, TRAINING, key="data.train")
    else:
        yield from _own_records(data)


def _own_records(data: DataConfig) -> Iterator[Record]:
    if not data.train.endswith((".json", ".jsonl", ".jsonl.gz")):
        raise UserError(
            f"data.train: no task {data.train!r}; allowed: {', '.join([*TRAINING, ARITHMETIC, *GLUE])}, "
            "or the path of a .json or .jsonl file"
        )
    check_fields(data.fields)
    if "messages" in data.fields and data.template != "chat":
        raise UserError("data.template: conversations (data.fields has messages) need chat, not alpaca")
    for place, row in read_rows(data.train):
        yield own_record(row, data.fields, place)


def _records(
    task: str, split: str, source: Source, data_dir: str | Path | None, table: Mapping[str, Source], key: str
) -> Iterator[Record]:
    if data_dir is not None:
        yield from _mirror_records(_mirror(task, source, data_dir, table, key), Path(data_dir))
        return
    for _, record in read_rows(fetch(task, split, source.hub, key)):
        yield record


def _mirror_records(mirror: Mirror, folder: Path) -> Iterator[Record]:
    for name, convert in mirror.files:
        for place, row in read_rows(folder / name):
            try:
                record = convert(row)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise UserError(f"{place}: not a row of {name} as published ({error!r})") from error
            if record is not None:
                yield record


def _mirror(task: str, source: Source, data_dir: str | Path, table: Mapping[str, Source], key: str) -> Mirror:
    if not Path(data_dir).is_dir():
        raise UserError(f"data.dir: {data_dir} is not a folder; name a local mirror, or leave it out to use the hub")
    if source.mirror is None:
        there = ", ".join(name for name, other in table.items() if other.mirror is not None)
        raise UserError(
            f"{key}: {task} is only on the hub ({source.hub.repository}); a mirror (data.dir) has: {there}"
        )
    return source.mirror


def _check_source(task: str, split: str, table: Mapping[str, Source], data_dir: str | Path | None, key: str) -> None:
    source = _source(task, table, key)
    if data_dir is None:
        check_hub(task, split, source.hub, key)
        return
    mirror = _mirror(task, source, data_dir, table, key)
    for name, convert in mirror.files:
        single = Mirror(((name, convert),), 1)
        if next(_mirror_records(single, Path(data_dir)), None) is None:
            raise UserError(f"{key}: {Path(data_dir) / name} holds no records of {task}")


def _source(task: str, table: Mapping[str, Source], key: str) -> Source:
    if task not in table:
        raise UserError(f"{key}: no task {task!r}; allowed: {', '.join([*table, ARITHMETIC])}")
    return table[task]
