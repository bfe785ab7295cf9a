"""Tasks with generated answers: generate what is missing, judge, count, and write the record."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from eval.candidates import Target
from eval.code import pass_at_k
from eval.engines import Engine, Output, Sampling
from eval.task_record import TaskRecord, wilson
from eval.tasks import Judged, Record, Task
from utils.config import Config, EvalConfig
from utils.log import Progress, log


@dataclass
class Job:
    """One task on one target, not yet finished; `prompts` are one a problem where it generates, else none."""

    target: Target
    task: Any
    problems: list[Record]
    prompts: list[str]
    record: TaskRecord


def ends(wanted: EvalConfig, task: Task) -> tuple[int, tuple[str, ...]]:
    """Return the longest answer in tokens, and the strings that end it: the task's own unless configured."""
    tokens, stop = wanted.max_new_tokens, wanted.stop
    tokens = tokens.get(task.name) if isinstance(tokens, dict) else tokens
    stop = stop.get(task.name) if isinstance(stop, dict) else stop
    return tokens or task.max_new_tokens, task.stop if stop is None else tuple(stop)


def generate_task(config: Config, job: Job, engine: Engine, target: Target) -> dict[str, Any]:
    """Generate what is missing, judge everything, write the record, and return the result.

    Args:
        config: The experiment.
        job: The task, its problems with their prompts, and its record.
        engine: An open engine on `target.model`.
        target: The job's target as the engine serves it.
    """
    wanted, prompts = config.eval, job.prompts
    sampling = Sampling(
        *ends(wanted, job.task),
        wanted.n_samples,
        wanted.temperature,
        wanted.seed,
    )
    outputs = {number: [Output(**made) for made in group] for number, group in job.record.resume().items()}
    missing = {number: prompt for number, prompt in enumerate(prompts) if number not in outputs}
    if outputs:
        log.info("%s, %s: %d of %d problems done earlier", job.target.name, job.task.name, len(outputs), len(prompts))
    generated = _generate(job, engine, missing, sampling, target, outputs)
    started = time.monotonic()
    texts = [[output.text for output in outputs[number]] for number in range(len(prompts))]
    grader = wanted.grader if wanted.grader in job.task.graders else job.task.graders[0]
    judged = job.task.judge(job.problems, texts, wanted, grader)
    grading = time.monotonic() - started
    result = {
        "task": job.task.name,
        "target": job.target.name,
        **_scores(judged, job),
        **_counts(outputs),
        "seconds": round(generated + grading, 3),
        "seconds_grading": round(grading, 3),
        "tokens_per_second": round(_tokens(outputs) / generated, 1) if generated else None,
        "adapter": str(job.target.adapter.path) if job.target.adapter else None,
        "base_model": config.model.name,
        "engine": engine.describe(),
        "example_prompt": prompts[0] if prompts else None,
        "settings": job.record.settings,
    }
    job.record.complete(result, _samples(job, prompts, outputs, judged))
    return result


def _generate(
    job: Job,
    engine: Engine,
    missing: dict[int, str],
    sampling: Sampling,
    target: Target,
    outputs: dict[int, list[Output]],
) -> float:
    """Add the missing outputs, writing each to the partial file, and return the seconds, earlier ones included."""
    started, earlier = time.monotonic(), job.record.seconds
    with (
        job.record.open({number: _plain(group) for number, group in outputs.items()}) as writer,
        Progress(f"{job.target.name}, {job.task.name}", len(missing), "problem") as bar,
    ):
        for number, finished in engine.generate(missing, sampling, target.adapter):
            outputs[number] = finished
            writer.add(number, _plain(finished), earlier + time.monotonic() - started)
            bar.update()
    return earlier + time.monotonic() - started


def _scores(judged: list[list[Judged]], job: Job) -> dict[str, Any]:
    """Return accuracy (the mean over problems of the share of right samples), intervals and breakdowns."""
    n = len(judged)
    correct = [_share([verdict.correct for verdict in group]) for group in judged]
    accuracy = _share(correct)
    scores: dict[str, Any] = {"accuracy": accuracy, "n": n, "interval": list(wilson(accuracy, n))}
    scores |= _pass_at_k(judged)
    lenient = [_share([bool(verdict.lenient) for verdict in group]) for group in judged]
    if any(verdict.lenient is not None for group in judged for verdict in group):
        scores |= {"lenient": _share(lenient), "lenient_interval": list(wilson(_share(lenient), n))}
    every = [verdict for group in judged for verdict in group]
    scores["unparsable"] = sum(verdict.extracted is None for verdict in every)
    flags = [verdict.flag for verdict in every if verdict.flag]
    if flags:
        scores["flags"] = {flag: flags.count(flag) for flag in sorted(set(flags))}
    for key in job.task.groups:
        scores.setdefault("by", {})[key] = _breakdown(key, job.problems, correct)
    return scores


def _pass_at_k(judged: list[list[Judged]]) -> dict[str, Any]:
    """Return the unbiased pass@k for the usual k up to the samples a problem; nothing for one sample."""
    samples = min((len(group) for group in judged), default=1)
    if samples == 1:
        return {}
    passes = [sum(verdict.correct for verdict in group) for group in judged]
    ks = [k for k in (1, 2, 5, 10, 20, 50, 100, 200) if k <= samples]
    return {"pass_at": {str(k): _share([pass_at_k(samples, c, k) for c in passes]) for k in ks}}


def _breakdown(key: str, problems: list[Record], correct: list[float]) -> dict[str, Any]:
    found: dict[str, list[float]] = {}
    for problem, share in zip(problems, correct, strict=True):
        found.setdefault(str(problem[key]), []).append(share)
    return {
        value: {"accuracy": _share(shares), "n": len(shares), "interval": list(wilson(_share(shares), len(shares)))}
        for value, shares in sorted(found.items())
    }


def _counts(outputs: dict[int, list[Output]]) -> dict[str, Any]:
    every = [output for group in outputs.values() for output in group]
    return {
        "length_stops": sum(output.finish == "length" for output in every),
        "too_long": sum(output.finish == "too_long" for output in every),
        "tokens": _tokens(outputs),
    }


def _samples(
    job: Job, prompts: list[str], outputs: dict[int, list[Output]], judged: list[list[Judged]]
) -> list[dict[str, Any]]:
    return [
        {
            "problem": number,
            "sample": k,
            "prompt": prompts[number],
            "output": output.text,
            "extracted": verdict.extracted,
            "gold": job.task.gold(job.problems[number]),
            "correct": verdict.correct,
            **({} if verdict.lenient is None else {"lenient": verdict.lenient}),
            **{key: text for key in ("flag", "note") if (text := getattr(verdict, key))},
            "tokens": output.tokens,
            "finish": output.finish,
        }
        for number in range(len(prompts))
        for k, (output, verdict) in enumerate(zip(outputs[number], judged[number], strict=True))
    ]


def _plain(outputs: list[Output]) -> list[dict[str, Any]]:
    return [asdict(output) for output in outputs]


def _tokens(outputs: dict[int, list[Output]]) -> int:
    return sum(output.tokens for group in outputs.values() for output in group)


def _share(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
