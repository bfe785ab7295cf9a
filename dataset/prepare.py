"""Get the data of a task ready: download it once, or check a local mirror, and compare it with the test sets.

  python -m dataset.prepare TASK...                     from the hub, to the cache of its library (HF_HOME)
  python -m dataset.prepare TASK... --data.dir=FOLDER   checks the mirror's files; they are read where they are
  python -m dataset.prepare --config FILE [overrides]   what an experiment needs; once, noted in <output_dir>/data.json

TASK is a training set (metamath, code, commonsense, gsm8k), which also prepares the test sets it is judged by, a test
set by its name, or a GLUE task. An interrupted download goes on where it was when the command runs again. Training
records that contain a test question, and those that share 13 words in a row with one, are counted;
`data.decontaminate: true` or `13-gram` in a config leaves them out of training.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from astra.manifest import sha256_file
from dataset.catalog import DISTINCT, EVALUATION, TESTED_BY, TRAINING, Source, expand_groups
from dataset.general_text import load_general_text, measured_in_training
from dataset.glue import GLUE
from dataset.overlap import RULES, TestQuestions
from dataset.records import Record
from dataset.sources import ARITHMETIC, check_training, load_training, test_questions, test_sets, training_sources
from utils.cli import Parser, main, parse
from utils.config import Config, expand_sweep
from utils.errors import UserError
from utils.files import read_record, write_record
from utils.log import log, log_to, progress

TASKS = list(dict.fromkeys([*TRAINING, *EVALUATION, *GLUE]))


def prepare(task: str, data_dir: str | None = None) -> dict[str, Any]:
    """Prepare one task, the test sets that it is judged by first; log what it holds and return that."""
    if task not in TASKS:
        raise UserError(f"no task {task!r}; allowed: {', '.join(TASKS)}")
    sources = training_sources(task) or [EVALUATION[task]]
    if task in TRAINING:
        sources = [*test_sets(TESTED_BY.get(task, DISTINCT), data_dir), *sources]
    found: dict[str, Any] = {}
    questions = TestQuestions()
    for source in sources:
        records = list(source.records(data_dir))
        report = _report(source, len(records), data_dir)
        found[f"{source.task} test" if source.role == "test" else source.split or source.role] = report
        if source.role == "test":
            questions.add(source.task, records)
        elif task in TRAINING:
            report |= _overlap(task, records, questions)
    return found


def _report(source: Source, count: int, data_dir: str | None) -> dict[str, Any]:
    """Log what a set was read from, and its size; a mirror's must be the published one (the hub's was counted)."""
    origin = source.origin(data_dir)
    for place, digest in origin.items():
        log.info(f"{source.task} {source.role}: {count:,} records; {place}, {digest}")
    published = source.mirror_count or source.count
    if data_dir is not None and published is not None and count != published:
        file = next(iter(origin))
        if not source.part or count > published:
            raise UserError(f"{file}: {source.task} has {count:,} records here, {published:,} as published")
        log.warning(f"{file}: a part of {source.task}, {count:,} of {published:,} records")
    return {"records": count, "origin": origin}


def _overlap(task: str, records: list[Record], questions: TestQuestions) -> dict[str, dict[str, int]]:
    """Log and return how many training records hold a question of each test set, and of any, by both rules."""
    counts = questions.count(progress(records, f"{task}: looking for test questions", len(records), "records"))
    found: dict[str, dict[str, int]] = {}
    for rule, what in zip(RULES, ("contain a test question", "share 13 words with a test question"), strict=True):
        count = found[what.replace(" ", "_")] = dict(counts[rule])
        shares = ", ".join(f"{name}: {count[name]:,}" for name in questions.names)
        log.info(f"{task}: {count['any']:,} training records {what} ({shares})")
    return found


def prepare_experiment(config: Config) -> None:
    """Prepare what an experiment trains on and is judged by, once: it is noted in `<output_dir>/data.json`."""
    chosen = list({run.data.model_dump_json(): run.data for run in expand_sweep(config)}.values())
    for data in chosen:
        check_training(data, config.model.task_type)
    judged = expand_groups(config.eval.tasks, config.data.dir) if config.model.task_type == "CAUSAL_LM" else []
    trained = list(dict.fromkeys(data.train for data in chosen))
    covered = {test for name in trained if name in TRAINING for test in TESTED_BY.get(name, DISTINCT)}
    needed = dict.fromkeys([*trained, *(name for name in judged if name not in covered)])
    tasks = [name for name in needed if name in TASKS]
    # Of a file that is swept over, the most records: the last here.
    widest = sorted(chosen, key=lambda d: (d.limit or math.inf, not d.decontaminate, -(d.validation + d.reporting)))
    own = {data.train: data for data in widest if data.train not in (*TASKS, ARITHMETIC)}
    text = config.data.general_text if measured_in_training(config) or "forgetting" in judged else None
    counted = {"fields", "limit", "decontaminate", "validation", "reporting", "seed"}  # they choose own records
    files = {name: {"sha256": sha256_file(name), **data.model_dump(include=counted)} for name, data in own.items()}
    wanted = {"dir": config.data.dir, "tasks": tasks, "own": files, "general_text": text}
    path = Path(config.output_dir) / "data.json"
    if path.exists() and read_record(path)["wanted"] == wanted:
        return
    log_to(Path(config.output_dir) / "log.txt")
    found = {task: prepare(task, config.data.dir) for task in tasks}
    if text:
        log.info("general text %s: fingerprint %s", text, load_general_text(text).fingerprint)
    if own:
        questions = test_questions([name for name in judged if name in EVALUATION], config.data.dir)
        found |= {name: _overlap(name, load_training(data), questions) for name, data in own.items()}
    write_record(path, {"wanted": wanted, "found": found})


def command(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    if any(word.startswith("--config") for word in words) and not {"-h", "--help"} & set(words):
        prepare_experiment(parse(__doc__, {}, words)[0])
        return
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser("python -m dataset.prepare", description=__doc__, formatter_class=form, allow_abbrev=False)
    parser.add_argument("tasks", nargs="+", metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--data.dir", dest="data_dir", metavar="FOLDER", help="a local mirror instead of the hub")
    given = parser.parse_args(words)
    for task in given.tasks:
        prepare(task, given.data_dir)


if __name__ == "__main__":
    main(command)
