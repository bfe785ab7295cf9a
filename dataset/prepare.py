"""Get the data of a task ready: download it once, or check a local mirror, and compare it with the test sets.

  python -m dataset.prepare TASK...                     from the hub, to dataset/<task>/{train,test}.jsonl
  python -m dataset.prepare TASK... --data.dir=FOLDER   checks the mirror's files; they are read where they are

TASK is a training set (metamath, code, commonsense, gsm8k), which also prepares the test sets it is judged by, a test
set by its name, or a GLUE task. An interrupted download goes on where it was when the command runs again. Training
records that contain a test question are counted; `data.decontaminate: true` in a config leaves them out of training.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from dataset.catalog import EVALUATION, TESTED_BY, TRAINING, Source
from dataset.glue import GLUE, load_glue
from dataset.hub import prepared_file
from dataset.sources import load_evaluation, load_training, test_questions
from utils.cli import main
from utils.config import DataConfig
from utils.errors import UserError
from utils.files import sha256_file
from utils.log import log, setup_logging

TASKS = list(dict.fromkeys([*TRAINING, *EVALUATION, *GLUE]))


def prepare(task: str, data_dir: str | None = None) -> None:
    """Prepare one task and log what it holds.

    Raises:
        UserError: an unknown task, a file that is missing, malformed or not the published one, or no hub.
    """
    if task not in TASKS:
        raise UserError(f"no task {task!r}; allowed: {', '.join(TASKS)}")
    if task in GLUE:
        for split in ("train", "validation"):
            log.info("%s %s: %s records", task, split, f"{len(load_glue(task, split, data_dir)):,}")
        return
    tests = TESTED_BY.get(task, (task,))
    for name in tests:
        if data_dir is None or EVALUATION[name].mirror is not None:
            _report(name, "test", EVALUATION[name], len(load_evaluation(name, data_dir)), data_dir)
    if task in TRAINING:
        records = load_training(DataConfig.model_validate({"train": task, "dir": data_dir}))
        _report(task, "train", TRAINING[task], len(records), data_dir)
        questions = test_questions(task, data_dir)
        found = questions.count(records)
        shares = ", ".join(f"{name}: {found[name]:,}" for name in questions.sizes)
        log.info("%s: %s training records contain a test question (%s)", task, f"{found['any']:,}", shares)


def _report(task: str, split: str, source: Source, count: int, data_dir: str | None) -> None:
    """Log where a set is, its size and its checksum; a mirror must hold what was published."""
    if data_dir is None:
        files = [prepared_file(task, split)]
    else:
        assert source.mirror is not None  # otherwise loading it has raised
        files = [Path(data_dir) / name for name, _ in source.mirror.files]
        if count != source.mirror.count:
            raise UserError(f"{files[0]}: {task} has {count:,} records here, {source.mirror.count:,} as published")
    for file in files:
        log.info("%s %s: %s records; %s, SHA-256 %s", task, split, f"{count:,}", file, sha256_file(file))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


def command(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = _Parser(
        prog="python -m dataset.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("tasks", nargs="+", metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--data.dir", dest="data_dir", metavar="FOLDER", help="a local mirror instead of the hub")
    given = parser.parse_args(sys.argv[1:] if argv is None else argv)
    setup_logging()
    for task in given.tasks:
        prepare(task, given.data_dir)


if __name__ == "__main__":
    main(command)
