"""Texts and verdicts: ask an engine for what is missing, and judge what is there.

The two are apart. `fill` adds answers to the texts files; `finish` reads them and needs no engine for what is there,
so that another grader, a mended one, or a smaller limit costs seconds.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np

from eval.candidates import Target
from eval.code import pass_at_k
from eval.engines import Answer, Engine, Output, Prompt, Request
from eval.intervals import interval
from eval.numbers import parse_number
from eval.task_record import TaskRecord
from eval.tasks import DirectTask, Judged, Record, Task
from utils.config import Config
from utils.errors import UserError
from utils.log import Progress
from utils.models import tokenizer_in


@dataclass(eq=False)
class Job:
    """One task on one target; a task that asks by itself has neither problems nor prompts."""

    target: Target
    task: Task | DirectTask
    record: TaskRecord
    problems: list[Record] = field(default_factory=list)
    prompts: list[Prompt] = field(default_factory=list)

    @property
    def missing(self) -> list[Prompt]:
        """The prompts without an answer on file."""
        return [prompt for prompt in self.prompts if prompt.key not in self.record.made]


def fill(engine: Engine, wanted: Sequence[tuple[Job, Request]], label: str) -> None:
    """Answer the requests that a texts file lacks, each at most once, all at once, and append each as it is done.

    The time is shared out: each answer takes what has passed since the one before.
    """
    found = {(job.record.texts, request.key): (job, request) for job, request in wanted}
    missing = [(job, request) for job, request in found.values() if request.key not in job.record.made]
    asked = {number: replace(request, adapter=job.target.served) for number, (job, request) in enumerate(missing)}
    with Progress(label, len(missing), "requests") as bar:
        before = time.monotonic()
        for number, answer in engine.run(asked):
            now = time.monotonic()
            job, request = missing[number]
            job.record.add(request, answer, now - before, engine.describe())
            before = now
            bar.update()


def finish(config: Config, job: Job, engine: Engine | None = None) -> dict[str, Any]:
    """Turn the answers on file into figures, write the record, and return the result.

    What a task that asks by itself still lacks goes to the engine; without one, a `UserError` says what is missing.
    """
    task, record, asked = job.task, job.record, dict[str, Request]()

    def ask(requests: Sequence[Request]) -> list[Answer]:
        asked.update({request.key: request for request in requests})
        if engine is not None:
            fill(engine, [(job, request) for request in requests], f"{job.target.name}, {task.name}")
        if missing := sum(request.key not in record.made for request in requests):
            there = f"{len(requests) - missing} of {len(requests)}"
            raise UserError(f"{record.texts}: holds {there} texts; run without --regrade")
        return [record.made[request.key][0] for request in requests]

    if isinstance(task, Task):
        figures, samples = _grade(config, task, job, ask(job.prompts))
    else:
        figures, samples = task.run(ask, tokenizer_of(job.target.model), config)
    seconds = sum(record.made[key][1] for key in asked)
    result = {
        "target": job.target.name,
        "adapter": str(job.target.adapter.path) if job.target.adapter else None,
        **figures,
        "requests": len(asked),
        "seconds": round(seconds + figures.get("seconds_grading", 0.0), 3),
        "tokens_per_second": round(figures["tokens"] / seconds, 1) if seconds and "tokens" in figures else None,
        "base_model": config.model.name,
        "engine": record.engine,
    }
    return record.complete(result, samples)


tokenizer_of = cache(tokenizer_in)


def _grade(config: Config, task: Task, job: Job, answers: list[Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The figures and samples of generated texts, as many for each problem, judged by every grader."""
    outputs: list[Output] = [output for group in answers for output in group]
    places = [(number, k) for number, group in enumerate(answers) for k in range(len(group))]
    problems, texts = [job.problems[number] for number, _ in places], [output.text for output in outputs]
    started = time.monotonic()
    judged = {grader: task.judge(problems, texts, config.eval, grader) for grader in task.graders}
    grading = time.monotonic() - started
    headline = task.headline(config.eval.grader)
    ends = Counter(output.finish for output in outputs)
    graders = {grader: _scores(task, job.problems, verdicts) for grader, verdicts in judged.items()}
    figures = {
        "grader": headline,
        **graders[headline],
        "graders": graders,
        "length_stops": ends["length"],
        "length_share": ends["length"] / ends.total(),
        "too_long": ends["too_long"],
        "tokens": sum(output.tokens for output in outputs),
        "seconds_grading": round(grading, 3),
        "example_prompt": job.prompts[0].text,
    }
    samples = [
        {
            "problem": number,
            "sample": k,
            "prompt": job.prompts[number].text,
            "output": output.text,
            "gold": task.gold(problems[at]),
            **_told(judged[headline][at]),
            "graders": {grader: _told(verdicts[at]) for grader, verdicts in judged.items()},
            "tokens": output.tokens,
            "finish": output.finish,
        }
        for at, ((number, k), output) in enumerate(zip(places, outputs, strict=True))
    ]
    return figures, samples


def _scores(task: Task, problems: Sequence[Record], judged: Sequence[Judged]) -> dict[str, Any]:
    """Accuracy (the mean over problems of the share of right samples) with its interval, and breakdowns."""
    correct = np.reshape([verdict.correct for verdict in judged], (len(problems), -1))
    right, samples = correct.mean(axis=1), correct.shape[1]
    scores = _mean("accuracy", right)
    if any(verdict.lenient is not None for verdict in judged):
        lenient = np.reshape([bool(verdict.lenient) for verdict in judged], correct.shape).mean(axis=1)
        scores |= {"lenient": float(lenient.mean()), "lenient_interval": interval(lenient)}
    if samples > 1:
        scores["pass_at_k"] = {
            str(k): _mean("score", [pass_at_k(samples, count, k) for count in correct.sum(axis=1).tolist()])
            for k in (1, 2, 5, 10, 20, 50, 100, 200)
            if k <= samples
        }
        if task.votes:
            votes = [_vote(judged[k : k + samples]) for k in range(0, len(judged), samples)]
            scores["maj_at_k"] = {str(samples): _mean("score", votes)}
    unread = sum(verdict.extracted is None for verdict in judged)
    scores |= {"unparsable": unread, "unparsable_share": unread / len(judged)}
    if flags := Counter(verdict.flag for verdict in judged if verdict.flag):
        scores["flags"] = dict(sorted(flags.items()))
    for key in (key for key in task.groups if all(key in problem for problem in problems)):
        values = np.array([str(problem[key]) for problem in problems])
        by = {str(value): _mean("accuracy", right[values == value]) for value in np.unique(values)}
        scores.setdefault("by", {})[key] = by
    return scores


def _mean(name: str, values: Any) -> dict[str, Any]:
    return {name: float(np.mean(values)), "n": len(values), "interval": interval(values)}


def _vote(group: Sequence[Judged]) -> float:
    """Whether the answer that most texts give is right; of equally many, the one given first."""
    votes = Counter(_meaning(verdict) for verdict in group if verdict.extracted is not None)
    return float(bool(votes) and votes.most_common(1)[0][0] is None)


def _meaning(verdict: Judged) -> Fraction | str | None:
    """What makes answers equal: None for all right ones; of others the number, or the text where it is none."""
    if verdict.correct:
        return None
    number = parse_number(str(verdict.extracted))
    return str(verdict.extracted) if number is None else number.value


def _told(verdict: Judged) -> dict[str, Any]:
    return {key: value for key, value in asdict(verdict).items() if key == "extracted" or value not in (None, "")}
