"""Benchmarks: one small module each, registered under its name.

A module of this package defines `TASK`: how long an answer may be and how answers are judged. Its problems come from
`dataset.catalog`, and everything else (prompts, engines, records, resuming) is shared.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset.catalog import COMMONSENSE, GROUPS, expand_groups
from dataset.sources import check_evaluation, load_evaluation, load_splits
from eval.engines import Answer, Request
from eval.numbers import parse_number
from utils.config import Config, EvalConfig
from utils.errors import UserError
from utils.log import log

Record = dict[str, Any]

# Base models that do not stop by themselves go on with a new instruction of their own.
STOP = ("\n\n### Instruction", "### Instruction:")
LM_EVAL = "lm_eval/"  # what the names of lm-eval's tasks begin with
# The types of the training records that a task can judge (`eval.split: validation`); "" is any.
VALIDATED: dict[str, tuple[str, ...]] = {
    "arithmetic": ("",),
    "gsm8k": ("GSM", "gsm8k", "own"),
    "math": ("MATH", "own"),
}
_FILES = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py") if path.stem != "commonsense")
_MODULES = dict(zip(_FILES, _FILES, strict=True)) | dict.fromkeys(COMMONSENSE, "commonsense")


@dataclass(frozen=True)
class Judged:
    """The verdict on one answer."""

    extracted: str | None  # the answer as read from the text; None if there is none to read
    correct: bool  # under the grader's own, strict reading
    lenient: bool | None = None  # under a lenient reading, where the task has one
    flag: str = ""  # why it counts as wrong unread, such as `timeout`; counted in the result
    note: str = ""  # what else a reader of the sample should know, such as the error of a program


@dataclass(frozen=True)
class Task:
    """A benchmark whose answers are generated texts.

    `judge` takes a problem per text, the texts, settings and the name of a grader, and returns a verdict per text.
    """

    name: str  # in `eval.tasks`, in the data catalogue and of its files
    max_new_tokens: int  # longest answer, unless `eval.max_new_tokens` says otherwise
    judge: Callable[[Sequence[Record], Sequence[str], EvalConfig, str], list[Judged]]
    gold: Callable[[Record], str] = lambda record: str(record["answer"])  # the right answer, as written in the samples
    graders: tuple[str, ...] = ("exact",)  # the rules by which it can be judged; the first is its own
    groups: tuple[str, ...] = ()  # keys of a problem by which accuracy is broken down
    check: Callable[[Config], None] = lambda config: None  # raises `UserError` when the task can't run here
    stop: tuple[str, ...] = STOP  # strings that end an answer, unless `eval.stop` says otherwise
    completion: bool = False  # whether the problem's `prompt` itself is the prompt, without a template
    votes: bool = False  # whether the answers that are read from several texts can be counted (maj@k)
    version: int = 1  # counted up when its rules change, so that old verdicts are not taken for new ones
    packages: tuple[str, ...] = ()  # those whose version may change a verdict

    def headline(self, wanted: str) -> str:
        """The grader that counts: the one that is wanted, or the task's own where it has not that one."""
        return wanted if wanted in self.graders else self.graders[0]


Ask = Callable[[Sequence[Request]], list[Answer]]


@dataclass(frozen=True)
class DirectTask:
    """A benchmark that asks an engine by itself.

    `run` takes what asks (requests without an adapter; it returns answers in their order), the model's tokenizer and
    the configuration, and returns the result's figures and the samples.
    """

    name: str
    run: Callable[[Ask, Any, Config], tuple[dict[str, Any], list[dict[str, Any]]]]
    context: int  # tokens that its longest request may take
    settings: Callable[[Config], dict[str, Any]]  # what may change its figures besides the model and the engine
    check: Callable[[Config], None]  # raises `UserError` when the task can't run here


def names() -> list[str]:
    """What `eval.tasks` may hold."""
    return [*_MODULES, *GROUPS]


def get_task(name: str) -> Task | DirectTask:
    """The task of a name of `names()` that is no group, or of lm-eval (`lm_eval/NAME`)."""
    file = "_lm_eval" if name.startswith(LM_EVAL) else _MODULES.get(name)
    if file is None:
        raise UserError(f"eval.tasks: no task {name!r}; allowed: {', '.join(names())}, {LM_EVAL}NAME")
    module = importlib.import_module(f"eval.tasks.{file}")
    return module.task(name) if hasattr(module, "task") else module.TASK


def check_tasks(config: Config) -> None:
    """Raise a `UserError` when a task can't be evaluated: its name, its data, its sandbox, its sampling.

    A classifier is scored on the task it learns, whatever `eval.tasks` says.
    """
    if config.model.task_type == "SEQ_CLS":
        if config.eval.base:
            raise UserError("eval.base: a classifier without training has no head; allowed: false")
        return
    wanted = config.eval
    tasks = [get_task(name) for name in expand_groups(wanted.tasks, config.data.dir)]
    if wanted.n_samples > 1 and wanted.temperature == 0:
        raise UserError("eval.temperature: must be above 0 with eval.n_samples > 1; greedy samples are all the same")
    if wanted.chat_template_kwargs and config.data.template != "chat":
        raise UserError("eval.chat_template_kwargs: data.template alpaca takes none; set data.template=chat")
    for key in ("max_new_tokens", "stop"):
        given = getattr(wanted, key)
        for name in given if isinstance(given, dict) else ():
            if name not in _MODULES and not name.startswith(LM_EVAL):
                raise UserError(f"eval.{key}: no task {name!r}; allowed: {', '.join(_MODULES)}, {LM_EVAL}NAME")
    for key in ("num_fewshot", "task_dir"):
        if getattr(wanted, key) is not None and not any(task.name.startswith(LM_EVAL) for task in tasks):
            raise UserError(f"eval.{key}: is for lm-eval's tasks, and eval.tasks has no {LM_EVAL}NAME")
    for task in tasks:
        task.check(config)
        if wanted.split == "validation":
            check_held_out(task.name, config, "eval.split")
        elif isinstance(task, Task):
            check_evaluation(task.name, config.data.dir)


def check_scored_in_training(config: Config) -> None:
    """Raise a `UserError` for the first task of `train.eval_tasks` that validation records can't be scored on."""
    for name in config.train.eval_tasks:
        check_held_out(name, config, "train.eval_tasks")


def check_held_out(name: str, config: Config, key: str) -> None:
    """Raise a `UserError` that names `key` where validation records can't be scored on a task."""
    if name not in VALIDATED:
        raise UserError(f"{key}: validation records serve {', '.join(VALIDATED)}, not {name}")
    if config.data.validation == 0:
        raise UserError(f"{key}: validation needs records held out of training; set data.validation")
    if swept := [swept for swept in config.sweep if swept.startswith("data.")]:
        raise UserError(f"sweep.{swept[0]}: to score validation records all runs must hold out the same ones ({key})")


def load_problems(name: str, config: Config) -> list[Record]:
    """The first `eval.limit` problems of a task: of its test set, or of what is held out of training."""
    if config.eval.split == "test":
        return load_evaluation(name, config.data.dir)[: config.eval.limit]
    held = load_splits(config.data)[1]
    kept = [record for record in held if record.get("type", "").startswith(VALIDATED[name])]
    if not kept:
        raise UserError(f"eval.split: none of the {len(held)} validation records of {config.data.train} is of {name}")
    answers = [(record.get("answer") or record["output"]).rpartition("The answer is:")[2].strip() for record in kept]
    unread = [answer for answer in answers if name != "math" and parse_number(answer.rpartition("####")[2]) is None]
    if len(unread) == len(answers):
        raise UserError(
            f"eval.split: no answer of {config.data.train} is a number after 'The answer is:', as {name} wants"
        )
    if unread:
        log.warning(
            "%s: %d of %d answers are no number, and count as not solved: %s",
            name,
            len(unread),
            len(answers),
            unread[0][:80],
        )
    return [{**record, "answer": answer} for record, answer in zip(kept, answers, strict=True)][: config.eval.limit]
