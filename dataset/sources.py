"""Loading training and evaluation sets: named tasks from the hub or a local mirror, and a user's own files."""

import json
import random
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from dataset.arithmetic import generate
from dataset.catalog import DISTINCT, EVALUATION, TESTED_BY, TRAINING, Source
from dataset.glue import GLUE, glue_sources, load_glue
from dataset.overlap import Rule, TestQuestions
from dataset.records import Record, Row, read_rows
from utils.config import DataConfig
from utils.errors import UserError
from utils.log import log

ARITHMETIC = "arithmetic"
ARITHMETIC_TRAIN = 10_000  # problems generated when data.limit doesn't say
ARITHMETIC_TEST = 1_000
ARITHMETIC_TEST_SEED = 0  # the test set is one and the same, whatever data.seed


class Splits(NamedTuple):
    """Records to train on, to choose by (checkpoints, rates), and to report a loss on that has chosen nothing."""

    train: list[Record]
    validation: list[Record]
    reporting: list[Record]


def load_training(data: DataConfig) -> list[Record]:
    """The training records of a configuration; what is held out is not among them."""
    return load_splits(data).train


def load_splits(data: DataConfig) -> Splits:
    """The records of a configuration, and those it holds out of them.

    `data.limit` keeps the first records; `data.decontaminate` then drops those that contain a test question;
    `data.validation` and `data.reporting` are held out last. `arithmetic` has a validation split of its own; a task of
    GLUE is validated on the split it is scored on, as is usual there, unless `data.validation` holds records out.
    """
    if data.train == ARITHMETIC:
        n = data.limit or ARITHMETIC_TRAIN
        first, second = (_held_out(n, getattr(data, key), key) for key in ("validation", "reporting"))
        held = generate("validation", first + second, data.seed)
        return Splits(generate("train", n, data.seed), held[:first], held[first:])
    records = _records(data)
    if data.decontaminate:
        questions = test_questions(TESTED_BY.get(data.train, DISTINCT), data.dir)
        rule: Rule = "13-gram" if data.decontaminate == "13-gram" else "verbatim"
        count = len(records)
        records = [record for record in records if not questions.found_in(record)[rule]]
        log.info("decontaminated (%s): %d of %d records left out", rule, count - len(records), count)
    key = "validation" if data.validation else "reporting"
    train, held = split_validation(records, data.validation + data.reporting, data.seed, key)
    if not data.validation:
        scored = load_glue(data.train, "validation", data.dir) if data.train in GLUE else []
        return Splits(train, scored, held)
    share = data.reporting / (data.validation + data.reporting)
    return Splits(train, *split_validation(held, share, data.seed, "reporting"))


def training_sources(task: str) -> list[Source]:
    """Where a named task's training records are, and those that a task of GLUE is scored on; of other names none."""
    if task in GLUE:
        return glue_sources(task)
    return [TRAINING[task]] if task in TRAINING else []


def _records(data: DataConfig) -> list[Record]:
    """The first `data.limit` records of a named task or of the user's own file."""
    sources = training_sources(data.train)
    records = list(islice(sources[0].records(data.dir) if sources else _own_records(data), data.limit))
    if not records:
        raise UserError(f"data.train: {data.train} holds no records")
    return records


def split_validation(
    records: list[Record], fraction: float, seed: int, key: str = "validation"
) -> tuple[list[Record], list[Record]]:
    """Hold a random `fraction` of the records out; both parts keep their order."""
    held = set(random.Random(seed).sample(range(len(records)), _held_out(len(records), fraction, key)))
    kept = [record for place, record in enumerate(records) if place not in held]
    return kept, [records[place] for place in sorted(held)]


def _held_out(n: int, fraction: float, key: str) -> int:
    """Return how many of `n` records a fraction is."""
    count = round(n * fraction)
    if fraction and not 0 < count < n:
        raise UserError(f"data.{key}: {fraction} of {n} records is {count}; both parts need one")
    return count


def check_training(data: DataConfig, task_type: str = "CAUSAL_LM") -> None:
    """Raise a `UserError` early if training data can't be loaded; own files are read in full, named tasks in part."""
    if (task_type == "SEQ_CLS") != (data.train in GLUE):
        wanted = "SEQ_CLS" if data.train in GLUE else "CAUSAL_LM"
        tasks = ", ".join(GLUE)
        raise UserError(f"model.task_type: {data.train} needs {wanted}, not {task_type}; SEQ_CLS goes with {tasks}")
    if data.decontaminate and data.train in (ARITHMETIC, *GLUE):
        raise UserError(f"data.decontaminate: {data.train} is not compared with test sets; allowed: false")
    for source in training_sources(data.train):
        source.check(data.dir)
    if data.train not in (ARITHMETIC, *GLUE, *TRAINING):
        _records(data)


def load_evaluation(task: str, data_dir: str | Path | None = None) -> list[Record]:
    """The test set of a named task: `instruction`, `output`, `type`, and what grading needs.

    Beside those: `answer` for gsm8k and arithmetic (the number), math (the solution, with the answer in `\\boxed{}`)
    and the commonsense tasks (the option's name); `task_id` and tests for humaneval and mbpp.
    """
    if task == ARITHMETIC:
        return generate("test", ARITHMETIC_TEST, ARITHMETIC_TEST_SEED)
    return list(EVALUATION[task].records(data_dir))


def check_evaluation(task: str, data_dir: str | Path | None = None) -> None:
    """Raise a `UserError` early for a mirror without a test set, or a hub that can't be reached."""
    if task != ARITHMETIC:
        EVALUATION[task].check(data_dir)


def test_sets(tasks: Iterable[str], data_dir: str | Path | None) -> list[Source]:
    """The test sets to compare training data with; those that a mirror lacks are left out, with a warning."""
    sources = [EVALUATION[name] for name in tasks]
    found = [source for source in sources if data_dir is None or source.mirror]
    for source in sources:
        if source not in found:
            log.warning("test set %s is not in the mirror: training data is not compared with it", source.task)
    return found


def test_questions(tasks: Iterable[str], data_dir: str | Path | None) -> TestQuestions:
    """The questions of some test sets, without those that a mirror lacks."""
    questions = TestQuestions()
    for source in test_sets(tasks, data_dir):
        questions.add(source.task, source.records(data_dir))
    return questions


def _own_records(data: DataConfig) -> Iterator[Record]:
    """Yield the records of a user's own file, whose fields `data.fields` names.

    They are `instruction` and `output`, and perhaps `input`, a text that may be empty and belongs below the
    instruction (Alpaca's form); or `messages`, a list of turns with `role` and `content`, of which the last assistant
    turn is the response and the turns before it the prompt.
    """
    fields = data.fields
    if not data.train.endswith((".json", ".jsonl", ".jsonl.gz")):
        tasks = ", ".join([*TRAINING, ARITHMETIC, *GLUE])
        raise UserError(f"data.train: no task {data.train!r}; allowed: {tasks}, or the path of a .json or .jsonl file")
    if set(fields) - {"input"} != {"instruction", "output"} and set(fields) != {"messages"}:
        given = ", ".join(fields) or "nothing"
        raise UserError(f"data.fields: has {given}; allowed: instruction, output (and input), or messages")
    if "messages" in fields and data.template != "chat":
        raise UserError("data.template: conversations (data.fields has messages) need chat, not alpaca")
    for place, row in read_rows(data.train):
        beside = str(row.get(fields.get("input", "")) or "").strip()
        held = {name: _field(row, name, key, place) for name, key in fields.items() if name != "input" or beside}
        if "messages" in held:
            record = _conversation(held["messages"], place)
        else:
            instruction = "\n\n".join(held[name] for name in ("instruction", "input") if name in held)
            record = {"instruction": instruction, "output": held["output"], "type": "own"}
        try:
            json.dumps(record, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{place}: holds half of a pair of surrogates, which is no text") from error
        yield record


def _field(row: Row, field: str, key: str, place: str) -> Any:
    if key not in row:
        raise UserError(f"{place}: no field {key!r} (data.fields.{field}); it has: {', '.join(row) or 'none'}")
    value = row[key]
    kind, wanted = (list, "a list of turns") if field == "messages" else (str, "text")
    if not isinstance(value, kind):
        raise UserError(f"{place}: field {key!r} holds {type(value).__name__}, not {wanted}")
    if not value or (isinstance(value, str) and value.isspace()):
        raise UserError(f"{place}: field {key!r} is empty")
    return value


def _conversation(turns: list[Any], place: str) -> Record:
    for turn in turns:
        if not isinstance(turn, dict) or not all(isinstance(turn.get(key), str) for key in ("role", "content")):
            raise UserError(f"{place}: each turn of messages needs role and content, both text")
    last = max((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), default=0)
    before = [{"role": turn["role"], "content": turn["content"]} for turn in turns[:last]]
    asked = [turn["content"] for turn in before if turn["role"] == "user"]
    if not asked or not turns[last]["content"].strip():
        raise UserError(f"{place}: messages needs a user turn and, after it, an assistant turn with text")
    return {"instruction": asked[-1], "output": turns[last]["content"], "type": "own", "messages": before}
