"""Texts and verdicts: ask an engine for what is missing, and judge what is there.

The two are apart. `fill` adds answers to the texts files; `grade` reads them and needs no engine, so that another
grader, a mended one, or a smaller limit costs seconds.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from eval.candidates import Adapter, Target
from eval.code import pass_at_k
from eval.engines import Answer, Engine, Output, Prompt, Request
from eval.intervals import interval
from eval.task_record import TaskRecord, Texts
from eval.tasks import DirectTask, Judged, Record, Task
from utils.config import Config
from utils.errors import UserError
from utils.log import Progress

Verdicts = list[list[Judged]]  # per problem, per text


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

    @property
    def about(self) -> dict[str, Any]:
        adapter = self.target.adapter
        return {"target": self.target.name, "adapter": str(adapter.path) if adapter else None}


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


def grade(config: Config, job: Job) -> dict[str, Any]:
    """Judge the texts of a job of a `Task` by every grader, write the record, and return the result.

    Raises:
        UserError: texts are missing.
    """
    task, made = job.task, job.record.texts.made
    assert isinstance(task, Task)
    if job.missing:
        there = f"{len(job.prompts) - len(job.missing)} of {len(job.prompts)}"
        raise UserError(f"{job.record.texts.path}: holds {there} texts; run without --regrade")
    outputs: list[list[Output]] = [made[prompt.key][0] for prompt in job.prompts]  # type: ignore[misc]
    texts = [[output.text for output in group] for group in outputs]
    started = time.monotonic()
    judged = {grader: task.judge(job.problems, texts, config.eval, grader) for grader in task.graders}
    grading = time.monotonic() - started
    headline = config.eval.grader if config.eval.grader in judged else task.graders[0]
    ends = Counter(output.finish for group in outputs for output in group)
    tokens = sum(output.tokens for group in outputs for output in group)
    seconds = sum(made[key][1] for key in {prompt.key for prompt in job.prompts})
    graders = {grader: _scores(task, job.problems, verdicts) for grader, verdicts in judged.items()}
    result = {
        **job.about,
        "grader": headline,
        **graders[headline],
        "graders": graders,
        "length_stops": ends["length"],
        "length_share": ends["length"] / ends.total(),
        "too_long": ends["too_long"],
        "tokens": tokens,
        "seconds": round(seconds + grading, 3),
        "seconds_grading": round(grading, 3),
        "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
        "example_prompt": job.prompts[0].text,
        "base_model": config.model.name,
        "engine": job.record.texts.engine,
    }
    samples = [
        {
            "problem": number,
            "sample": k,
            "prompt": job.prompts[number].text,
            "output": output.text,
            "gold": task.gold(job.problems[number]),
            **_told(judged[headline][number][k]),
            "graders": {grader: _told(verdicts[number][k]) for grader, verdicts in judged.items()},
            "tokens": output.tokens,
            "finish": output.finish,
        }
        for number, group in enumerate(outputs)
        for k, output in enumerate(group)
    ]
    return job.record.complete(result, samples)


def ask_directly(
    config: Config, job: Job, tokenizer: Any, engine: Engine | None, adapter: Adapter | None
) -> dict[str, Any]:
    """Run a task that asks by itself, from its texts file and the engine, write the record, and return the result.

    Raises:
        UserError: there is no engine and an answer is not on file.
    """
    task, texts, asked = job.task, job.record.texts, dict[str, Request]()
    assert isinstance(task, DirectTask)

    def ask(requests: Sequence[Request]) -> list[Answer]:
        asked.update({request.key: request for request in requests})
        if engine is not None:
            name = f"{job.target.name}, {task.name}"
            fill(engine, [(texts, replace(request, adapter=adapter)) for request in requests], name)
        elif any(request.key not in texts.made for request in requests):
            raise UserError(f"{texts.path}: lacks answers that {task.name} asks for; run without --regrade")
        return [texts.made[request.key][0] for request in requests]

    figures, samples = task.run(ask, tokenizer, config)
    seconds = round(sum(texts.made[key][1] for key in asked), 3)
    about = {"base_model": config.model.name, "engine": texts.engine}
    return job.record.complete({**job.about, **figures, "requests": len(asked), "seconds": seconds, **about}, samples)


def _scores(task: Task, problems: Sequence[Record], judged: Verdicts) -> dict[str, Any]:
    """Accuracy (the mean over problems of the share of right samples) with its interval, and breakdowns."""
    right = [float(np.mean([verdict.correct for verdict in group])) for group in judged]
    every = [verdict for group in judged for verdict in group]
    scores: dict[str, Any] = _mean("accuracy", right)
    if any(verdict.lenient is not None for verdict in every):
        lenient = [float(np.mean([bool(verdict.lenient) for verdict in group])) for group in judged]
        scores |= {"lenient": float(np.mean(lenient)), "lenient_interval": interval(lenient)}
    if (samples := len(judged[0])) > 1:
        scores["pass_at_k"] = {
            str(k): _mean("score", [pass_at_k(samples, sum(one.correct for one in group), k) for group in judged])
            for k in (1, 2, 5, 10, 20, 50, 100, 200)
            if k <= samples
        }
        if task.votes:
            scores["maj_at_k"] = {str(samples): _mean("score", list(map(_vote, judged)))}
    unread = sum(verdict.extracted is None for verdict in every)
    scores |= {"unparsable": unread, "unparsable_share": unread / len(every)}
    if flags := Counter(verdict.flag for verdict in every if verdict.flag):
        scores["flags"] = dict(sorted(flags.items()))
    for key in task.groups:
        found: dict[str, list[float]] = {}
        for problem, share in zip(problems, right, strict=True):
            found.setdefault(str(problem.get(key)), []).append(share)
        scores.setdefault("by", {})[key] = {value: _mean("accuracy", found[value]) for value in sorted(found)}
    return scores


def _mean(name: str, values: Sequence[float]) -> dict[str, Any]:
    return {name: float(np.mean(values)), "n": len(values), "interval": interval(values)}


def _vote(group: Sequence[Judged]) -> float:
    """Whether the answer that most texts give is right; of equally many, the one given first."""
    answers = Counter(verdict.extracted for verdict in group if verdict.extracted is not None)
    chosen = answers.most_common(1)[0][0] if answers else None
    return float(next((verdict.correct for verdict in group if verdict.extracted == chosen), False))


def _told(verdict: Judged) -> dict[str, Any]:
    return {key: value for key, value in asdict(verdict).items() if key == "extracted" or value not in (None, "")}
