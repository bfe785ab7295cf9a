"""Get the data of a task ready: download it once, or check a local mirror, and compare it with the test sets.

  python -m dataset.prepare TASK...                     from the hub, to dataset/<task>/{train,test}.jsonl
  python -m dataset.prepare TASK... --data.dir=FOLDER   checks the mirror's files; they are read where they are
  python -m dataset.prepare --config FILE [overrides]   what an experiment needs; once, noted in <output_dir>/data.json

TASK is a training set (metamath, code, commonsense, gsm8k), which also prepares the test sets it is judged by, a test
set by its name, or a GLUE task. An interrupted download goes on where it was when the command runs again. Training
records that contain a test question are counted; `data.decontaminate: true` in a config leaves them out of training.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from dataset.catalog import EVALUATION, TESTED_BY, TRAINING, Source
from dataset.glue import GLUE, load_glue
from dataset.hub import prepared_file
from dataset.sources import load_evaluation, load_training, test_questions
from eval.tasks import expand
from utils.cli import main, parse
from utils.config import Config, DataConfig
from utils.errors import UserError
from utils.files import read_json, sha256_file, write_json
from utils.log import log, progress, setup_logging

TASKS = list(dict.fromkeys([*TRAINING, *EVALUATION, *GLUE]))


def prepare(task: str, data_dir: str | None = None) -> dict[str, Any]:
    """Prepare one task, log what it holds and return that.

    Raises:
        UserError: an unknown task, a file that is missing, malformed or not the published one, or no hub.
    """
    if task not in TASKS:
        raise UserError(f"no task {task!r}; allowed: {', '.join(TASKS)}")
    found: dict[str, Any] = {}
    if task in GLUE:
        for split in ("train", "validation"):
            found[split] = {"records": len(load_glue(task, split, data_dir))}
            log.info("%s %s: %s records", task, split, f"{found[split]['records']:,}")
        return found
    tests = TESTED_BY.get(task, (task,))
    for name in tests:
        if data_dir is None or EVALUATION[name].mirror is not None:
            count = len(load_evaluation(name, data_dir))
            found[f"{name} test"] = _report(name, "test", EVALUATION[name], count, data_dir)
    if task in TRAINING:
        records = load_training(DataConfig.model_validate({"train": task, "dir": data_dir}))
        found["train"] = _report(task, "train", TRAINING[task], len(records), data_dir)
        questions = test_questions(task, data_dir)
        overlap = questions.count(progress(records, f"{task}: looking for test questions", len(records), "record"))
        found["train"]["contain_a_test_question"] = dict(overlap)
        shares = ", ".join(f"{name}: {overlap[name]:,}" for name in questions.sizes)
        log.info("%s: %s training records contain a test question (%s)", task, f"{overlap['any']:,}", shares)
    return found


def prepare_experiment(config: Config) -> None:
    """Prepare what an experiment trains on and is judged by, once: it is noted in `<output_dir>/data.json`.

    Raises:
        UserError: see `prepare`.
    """
    names = [config.data.train, *(expand(config) if config.model.task_type == "CAUSAL_LM" else [])]
    covered = TESTED_BY.get(config.data.train, ())
    wanted = {"dir": config.data.dir, "tasks": [name for name in names if name in TASKS and name not in covered]}
    path = Path(config.output_dir) / "data.json"
    if not wanted["tasks"] or (path.is_file() and read_json(path)["wanted"] == wanted):
        return
    write_json(path, {"wanted": wanted, "found": {task: prepare(task, config.data.dir) for task in wanted["tasks"]}})


def _report(task: str, split: str, source: Source, count: int, data_dir: str | None) -> dict[str, Any]:
    """Log where a set is, its size and its checksum; a mirror must hold what was published."""
    if data_dir is None:
        files = [prepared_file(task, split)]
    else:
        assert source.mirror is not None  # otherwise loading it has raised
        files = [Path(data_dir) / name for name, _ in source.mirror.files]
        if count != source.mirror.count:
            raise UserError(f"{files[0]}: {task} has {count:,} records here, {source.mirror.count:,} as published")
    sums = {str(file): sha256_file(file) for file in files}
    for file, digest in sums.items():
        log.info("%s %s: %s records; %s, SHA-256 %s", task, split, f"{count:,}", file, digest)
    return {"records": count, "sha256": sums}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


def command(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    words = list(sys.argv[1:] if argv is None else argv)
    if any(word.startswith("--config") for word in words) and not {"-h", "--help"} & set(words):
        prepare_experiment(parse(__doc__, {}, words)[0])
        return
    parser = _Parser(
        prog="python -m dataset.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("tasks", nargs="+", metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--data.dir", dest="data_dir", metavar="FOLDER", help="a local mirror instead of the hub")
    given = parser.parse_args(words)
    setup_logging()
    for task in given.tasks:
        prepare(task, given.data_dir)


if __name__ == "__main__":
    main(command)
