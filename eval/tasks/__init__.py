"""Benchmarks: one small module each, registered under its name.

A module of this package defines `TASK`. A task says where its problems come from, how long an answer may be and how
answers are judged; everything else (prompts, engines, records, resuming) is shared.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset.catalog import COMMONSENSE, EVALUATION, GROUPS, expand_groups
from dataset.sources import check_evaluation, load_evaluation
from utils.config import Config, EvalConfig
from utils.errors import UserError

Record = dict[str, Any]

# Base models that do not stop by themselves go on with a new instruction of their own.
STOP = ("\n\n### Instruction", "### Instruction:")
_FILES = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py") if path.stem != "commonsense")
_MODULES = dict(zip(_FILES, _FILES, strict=True)) | dict.fromkeys(COMMONSENSE, "commonsense")


@dataclass(frozen=True)
class Judged:
    """What became of one answer.

    Attributes:
        extracted: The answer as read from the text; None if there is none to read.
        correct: Whether it is right under the task's own, strict reading.
        lenient: Whether it is right under a lenient reading; None where a task has none.
        flag: Why it counts as wrong unread, such as `timeout`; or empty. Counted in the result.
        note: What else a reader of the sample should know, such as the error of a program; or empty.
    """

    extracted: str | None
    correct: bool
    lenient: bool | None = None
    flag: str = ""
    note: str = ""


def _no_check(config: EvalConfig) -> None:
    """Most tasks need nothing but an engine."""


@dataclass(frozen=True)
class Task:
    """A benchmark whose answers are generated texts.

    Attributes:
        name: Its name in `eval.tasks`, in the data catalogue and of its files.
        max_new_tokens: Longest answer, unless `eval.max_new_tokens` says otherwise.
        judge: From problems, the texts generated for each (`eval.n_samples` of them), settings and the name of a
            grader to a verdict per text.
        gold: The right answer of a problem, as written in the samples.
        graders: The rules by which it can be judged; the first is its own.
        groups: Keys of a problem by which accuracy is broken down.
        check: Raises `UserError` when the task can't run here.
        completion: Whether the problem's `prompt` itself is the prompt, without a template.
        version: Counted up when its rules change, so that old records are not taken for new ones.
        packages: Those whose version may change a verdict.
    """

    name: str
    max_new_tokens: int
    judge: Callable[[Sequence[Record], Sequence[Sequence[str]], EvalConfig, str], list[list[Judged]]]
    gold: Callable[[Record], str] = lambda record: str(record["answer"])
    graders: tuple[str, ...] = ("exact",)
    groups: tuple[str, ...] = ()
    check: Callable[[EvalConfig], None] = _no_check
    stop: tuple[str, ...] = STOP
    completion: bool = False
    version: int = 1
    packages: tuple[str, ...] = ()


def names() -> list[str]:
    """Return what `eval.tasks` may hold."""
    return [*_MODULES, *GROUPS]


def get_task(name: str, protocol: str = "generate") -> Any:
    """Return the task of this name: a `Task`, or an `eval.likelihood.LikelihoodTask`.

    Args:
        name: One of `names()` that is no group.
        protocol: `eval.protocol`; only the commonsense sets have more than one.

    Raises:
        UserError: there is none; lists what there is.
    """
    if name not in _MODULES:
        raise UserError(f"eval.tasks: no task {name!r}; allowed: {', '.join(names())}")
    module = importlib.import_module(f"eval.tasks.{_MODULES[name]}")
    return module.task(name, protocol) if hasattr(module, "task") else module.TASK


def expand(config: Config) -> list[str]:
    """Return the tasks asked for, each group replaced by its members that the data source has.

    Raises:
        UserError: an unknown task.
    """
    found = expand_groups(config.eval.tasks, config.data.dir)
    for name in found:
        get_task(name)
    return found


def check_tasks(config: Config) -> None:
    """Stop early when a task can't be evaluated: its name, its data, its sandbox, its sampling.

    A classifier is scored on the task it learns, whatever `eval.tasks` says.

    Raises:
        UserError: the first thing found, in one line.
    """
    if config.model.task_type == "SEQ_CLS":
        return
    if config.eval.n_samples > 1 and config.eval.temperature == 0:
        raise UserError("eval.temperature: must be above 0 with eval.n_samples > 1; greedy samples are all the same")
    for name in expand(config):
        task = get_task(name)
        if isinstance(task, Task):
            task.check(config.eval)
        if name in EVALUATION or name == "arithmetic":
            check_evaluation(name, config.data.dir)


def load_problems(name: str, config: Config) -> list[Record]:
    """Return the first `eval.limit` problems of a task; where lm-eval loads its own, its documents.

    Raises:
        UserError: the data is missing or malformed (file and line).
    """
    if name == "forgetting":
        from eval.tasks.forgetting import load

        return load()
    if name in COMMONSENSE and config.eval.protocol == "loglikelihood" and config.data.dir is None:
        from eval.tasks._choices import hub_documents

        return hub_documents(name)[: config.eval.limit]
    return load_evaluation(name, config.data.dir)[: config.eval.limit]
