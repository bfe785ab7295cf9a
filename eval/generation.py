"""Texts and verdicts: ask an engine for what is missing, and judge what is there.

The two are apart. `fill` adds answers to the texts files; `grade` reads them and needs no engine, so that another
grader, a mended one, or a smaller limit costs seconds.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from eval.candidates import Adapter, Target
from eval.code import pass_at_k
from eval.engines import Answer, Engine, Output, Prompt, Request
from eval.task_record import TaskRecord, Texts, interval
from eval.tasks import DirectTask, Judged, Record, Task
from utils.config import Config
from utils.errors import UserError
from utils.log import Progress, log


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
        return [prompt for prompt in self.prompts if prompt.key not in self.record.texts.made]

    def wanted(self, adapter: Adapter | None) -> list[tuple[Texts, Request]]:
        """Its requests to an engine that serves its model with `adapter`."""
        return [(self.record.texts, replace(prompt, adapter=adapter)) for prompt in self.prompts]


def fill(engine: Engine, wanted: Sequence[tuple[Texts, Request]], label: str) -> None:
    """Answer the requests that a texts file lacks, each at most once, all at once, and append each as it is done.

    The time is shared out: each answer takes what has passed since the one before.
    """
    found = {(texts.path, request.key): (texts, request) for texts, request in wanted}
    missing = dict(enumerate(pair for pair in found.values() if pair[1].key not in pair[0].made))
    with Progress(label, len(missing), "request") as bar:
        before = time.monotonic()
        for number, answer in engine.run({number: request for number, (_, request) in missing.items()}):
            texts, request = missing[number]
            now = time.monotonic()
            texts.add(request, answer, now - before, engine.describe())
            before = now
            bar.update()


def grade(config: Config, job: Job, about: dict[str, Any]) -> dict[str, Any]:
    """Judge the texts of a job by every grader of its task, write the record, and return the result.

    Args:
        config: The experiment; `eval.grader` says whose verdict is the headline where a task has several.
        job: A job of a `Task`.
        about: What the result should say besides.

    Raises:
        UserError: texts are missing.
    """
    if job.missing:
        path, there = job.record.texts.path, len(job.prompts) - len(job.missing)
        raise UserError(f"{path}: holds {there} of {len(job.prompts)} texts; run without --regrade")
    task, made = job.task, job.record.texts.made
    assert isinstance(task, Task)
    outputs: list[list[Output]] = [made[prompt.key][0] for prompt in job.prompts]  # type: ignore[misc]
    texts = [[output.text for output in group] for group in outputs]
    started = time.monotonic()
    judged = {grader: task.judge(job.problems, texts, config.eval, grader) for grader in task.graders}
    grading = time.monotonic() - started
    headline = config.eval.grader if config.eval.grader in judged else task.graders[0]
    tokens = sum(output.tokens for group in outputs for output in group)
    seconds = sum(made[key][1] for key in {prompt.key for prompt in job.prompts})
    result = {
        "target": job.target.name,
        "grader": headline,
        **_scores(task, job.problems, judged[headline]),
        "graders": {grader: _scores(task, job.problems, verdicts) for grader, verdicts in judged.items()},
        **_ends(outputs),
        "tokens": tokens,
        "seconds": round(seconds + grading, 3),
        "seconds_grading": round(grading, 3),
        "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
        "example_prompt": job.prompts[0].text if job.prompts else None,
        **about,
        "engine": job.record.texts.engine,
    }
    return job.record.complete(result, _samples(job, outputs, judged, headline))


def ask_directly(
    config: Config, job: Job, about: dict[str, Any], tokenizer: Any, engine: Engine | None, adapter: Adapter | None
) -> dict[str, Any]:
    """Run a task that asks by itself, from its texts file and the engine, write the record, and return the result.

    Raises:
        UserError: there is no engine and an answer is not on file.
    """
    task, texts, asked = job.task, job.record.texts, list[Request]()
    assert isinstance(task, DirectTask)

    def ask(requests: Sequence[Request]) -> list[Answer]:
        asked.extend(requests)
        if engine is not None:
            fill(engine, [(texts, replace(request, adapter=adapter)) for request in requests], label([job]))
        elif any(request.key not in texts.made for request in requests):
            raise UserError(f"{texts.path}: lacks answers that {task.name} asks for; run without --regrade")
        return [texts.made[request.key][0] for request in requests]

    figures, samples = task.run(ask, tokenizer, config)
    seconds = sum(texts.made[key][1] for key in {request.key for request in asked})
    result = {"target": job.target.name, **figures, "requests": len(asked), "seconds": round(seconds, 3)}
    return job.record.complete({**result, **about, "engine": texts.engine}, samples)


def label(jobs: Sequence[Job]) -> str:
    """Return what jobs are, in words: `base, gsm8k`, or `4 models, 2 tasks`."""
    targets, tasks = {job.target.name for job in jobs}, {job.task.name for job in jobs}
    words = [f"{len(targets)} models" if len(targets) > 1 else targets.pop()]
    return ", ".join([*words, f"{len(tasks)} tasks" if len(tasks) > 1 else tasks.pop()])


def _scores(task: Task, problems: Sequence[Record], judged: Sequence[Sequence[Judged]]) -> dict[str, Any]:
    """Return accuracy (the mean over problems of the share of right samples) with its interval, and breakdowns."""
    right = [_mean([verdict.correct for verdict in group]) for group in judged]
    every = [verdict for group in judged for verdict in group]
    scores: dict[str, Any] = {"accuracy": _mean(right), "n": len(right), "interval": interval(right)}
    if any(verdict.lenient is not None for verdict in every):
        lenient = [_mean([bool(verdict.lenient) for verdict in group]) for group in judged]
        scores |= {"lenient": _mean(lenient), "lenient_interval": interval(lenient)}
    scores |= _of_several(task, judged)
    unread = sum(verdict.extracted is None for verdict in every)
    scores |= {"unparsable": unread, "unparsable_share": unread / max(len(every), 1)}
    if flags := Counter(verdict.flag for verdict in every if verdict.flag):
        scores["flags"] = dict(sorted(flags.items()))
    for key in task.groups:
        scores.setdefault("by", {})[key] = _by([str(problem.get(key)) for problem in problems], right)
    return scores


def _by(values: Sequence[str], right: Sequence[float]) -> dict[str, Any]:
    found: dict[str, list[float]] = {}
    for value, share in zip(values, right, strict=True):
        found.setdefault(value, []).append(share)
    return {
        value: {"accuracy": _mean(shares), "n": len(shares), "interval": interval(shares)}
        for value, shares in sorted(found.items())
    }


def _of_several(task: Task, judged: Sequence[Sequence[Judged]]) -> dict[str, Any]:
    """Return pass@k (unbiased) for the usual k up to the samples per problem, and maj@k for all of them."""
    samples = min((len(group) for group in judged), default=1)
    if samples == 1:
        return {}
    found: dict[str, Any] = {"pass_at_k": {}}
    for k in (k for k in (1, 2, 5, 10, 20, 50, 100, 200) if k <= samples):
        passes = [pass_at_k(samples, sum(verdict.correct for verdict in group), k) for group in judged]
        found["pass_at_k"][str(k)] = {"score": _mean(passes), "interval": interval(passes)}
    if task.votes:
        votes = [_vote(group) for group in judged]
        found["maj_at_k"] = {str(samples): {"score": _mean(votes), "interval": interval(votes)}}
    return found


def _vote(group: Sequence[Judged]) -> bool:
    """Whether the answer that most texts give is right; of equally many, the one given first."""
    answers = Counter(verdict.extracted for verdict in group if verdict.extracted is not None)
    if not answers:
        return False
    chosen = answers.most_common(1)[0][0]
    return next(verdict.correct for verdict in group if verdict.extracted == chosen)


def _ends(outputs: Sequence[Sequence[Output]]) -> dict[str, Any]:
    ends = Counter(output.finish for group in outputs for output in group)
    return {
        "length_stops": ends["length"],
        "length_share": ends["length"] / max(ends.total(), 1),
        "too_long": ends["too_long"],
    }


def _samples(
    job: Job, outputs: list[list[Output]], judged: dict[str, list[list[Judged]]], headline: str
) -> list[dict[str, Any]]:
    assert isinstance(job.task, Task)
    return [
        {
            "problem": number,
            "sample": k,
            "prompt": job.prompts[number].text,
            "output": output.text,
            "gold": job.task.gold(job.problems[number]),
            **_verdict(judged[headline][number][k]),
            "graders": {grader: _verdict(verdicts[number][k]) for grader, verdicts in judged.items()},
            "tokens": output.tokens,
            "finish": output.finish,
        }
        for number, group in enumerate(outputs)
        for k, output in enumerate(group)
    ]


def _verdict(verdict: Judged) -> dict[str, Any]:
    lenient = {} if verdict.lenient is None else {"lenient": verdict.lenient}
    notes = {key: text for key in ("flag", "note") if (text := getattr(verdict, key))}
    return {"extracted": verdict.extracted, "correct": verdict.correct, **lenient, **notes}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def say_missing(jobs: Sequence[Job]) -> None:
    """Log how many texts each job still needs, where some are on file."""
    for job in jobs:
        if job.prompts and len(job.missing) < len(job.prompts):
            there = len(job.prompts) - len(job.missing)
            log.info("%s, %s: %d of %d texts on file", job.target.name, job.record.task, there, len(job.prompts))
