"""Scoring models on tasks: what is finished is skipped, the rest is done with one engine for each base model."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset.templates import format_prompt
from eval.engines import Engine, Output, Sampling, encode, open_engine, serving_dtype
from eval.records import TaskRecord, wilson
from eval.targets import Target, servable
from eval.tasks import Judged, Record, Task, check_tasks, expand, get_task, load_problems
from utils.config import Config
from utils.files import fingerprint
from utils.log import Progress, log
from utils.runs import stage

Results = dict[str, dict[str, dict[str, Any]]]


@dataclass
class Job:
    """One task on one target, not yet finished."""

    target: Target
    task: Any
    problems: list[Record]
    record: TaskRecord


def evaluate(config: Config, targets: Sequence[Target], force: bool = False) -> Results:
    """Score targets on the tasks of `config.eval`.

    Args:
        config: The experiment; `eval`, `data` and `model` matter here.
        targets: From `eval.targets`; those on one base model share one engine.
        force: Redo what is finished.

    Returns:
        The results by target name and task, as written to `<target.folder>/<task>.json`.

    Raises:
        UserError: a task, its data, an adapter or the engine is not usable, or a finished record was made under
            other settings.
    """
    check_tasks(config)
    dtype = config.eval.dtype or serving_dtype(config.model.dtype)
    results: Results = {target.name: {} for target in targets}
    jobs = []
    for name in expand(config):
        task, problems = get_task(name), load_problems(name, config)
        for target in targets:
            record = TaskRecord(target.folder, name, _settings(config, target, task, problems, dtype))
            if force:
                record.clear()
            result = record.finished()
            if result is None:
                jobs.append(Job(target, task, problems, record))
            else:
                results[target.name][name] = result
                log.info("%s", _line(target, result) + " (finished earlier)")
    if jobs:
        with stage(Path(config.output_dir), "evaluate"):
            _run(config, jobs, dtype, results)
    return results


def _settings(config: Config, target: Target, task: Task, problems: list[Record], dtype: str) -> dict[str, Any]:
    """Return everything that may change a figure."""
    wanted = config.eval
    return {
        **target.fingerprints(),
        "data": fingerprint(problems),
        "problems": len(problems),
        "task_version": task.version,
        "template": config.data.template,
        "response_prefix": wanted.response_prefix,
        "max_new_tokens": wanted.max_new_tokens or task.max_new_tokens,
        "stop": list(task.stop),
        "n_samples": wanted.n_samples,
        "temperature": wanted.temperature,
        "seed": wanted.seed if wanted.temperature else None,
        "grader": wanted.grader,
        "engine": wanted.engine,
        "dtype": dtype,
        "max_model_len": wanted.max_model_len,
    }


def _run(config: Config, jobs: list[Job], dtype: str, results: Results) -> None:
    """Run jobs, those that share a base model on one engine."""
    if dtype != (config.eval.dtype or config.model.dtype):
        log.info("engine: %s, as this CPU has no fast %s; set eval.dtype to insist", dtype, config.model.dtype)
    with ExitStack() as stack:
        served = {job.target: stack.enter_context(servable(job.target, config.eval.engine, dtype)) for job in jobs}
        for model in dict.fromkeys(target.model for target in served.values()):
            here = [job for job in jobs if served[job.target].model == model]
            adapters = [adapter for job in here if (adapter := served[job.target].adapter)]
            prompts = _prompts(config, here, model)
            context = _context(config, here, prompts, model)
            with open_engine(model, config.eval, dtype, list(dict.fromkeys(adapters)), context) as engine:
                for job in here:
                    result = _do(config, job, prompts[job.task.name], engine, served[job.target])
                    results[job.target.name][job.task.name] = result
                    log.info("%s", _line(job.target, result))


def _prompts(config: Config, jobs: list[Job], model: Path) -> dict[str, list[str]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    data, prefix = config.data, config.eval.response_prefix
    return {
        job.task.name: [format_prompt(p["instruction"], data.template, tokenizer, prefix) for p in job.problems]
        for job in jobs
    }


def _context(config: Config, jobs: list[Job], prompts: dict[str, list[str]], model: Path) -> int:
    """Return the context in tokens: what the longest prompt and answer need, within what the model was made for."""
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    limit = getattr(AutoConfig.from_pretrained(model).get_text_config(), "max_position_embeddings", None) or 4096
    if config.eval.max_model_len is not None:
        return min(config.eval.max_model_len, limit)
    needed = max(
        max((len(encode(tokenizer, prompt)) for prompt in prompts[job.task.name]), default=1)
        + (config.eval.max_new_tokens or job.task.max_new_tokens)
        for job in jobs
    )
    return min(-(-needed // 64) * 64, limit)


def _do(config: Config, job: Job, prompts: list[str], engine: Engine, target: Target) -> dict[str, Any]:
    """Generate what is missing, judge everything, and write the record."""
    wanted = config.eval
    sampling = Sampling(
        wanted.max_new_tokens or job.task.max_new_tokens,
        job.task.stop,
        wanted.n_samples,
        wanted.temperature,
        wanted.seed,
    )
    outputs = job.record.resume()
    missing = {number: prompt for number, prompt in enumerate(prompts) if number not in outputs}
    if outputs:
        log.info("%s, %s: %d of %d problems done earlier", job.target.name, job.task.name, len(outputs), len(prompts))
    generated = _generate(job, engine, missing, sampling, target, outputs)
    started = time.monotonic()
    texts = [[output.text for output in outputs[number]] for number in range(len(prompts))]
    judged = job.task.judge(job.problems, texts, wanted)
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
        job.record.open(outputs) as writer,
        Progress(f"{job.target.name}, {job.task.name}", len(missing), "problem") as bar,
    ):
        for number, finished in engine.generate(missing, sampling, target.adapter):
            outputs[number] = finished
            writer.add(number, finished, earlier + time.monotonic() - started)
            bar.update()
    return earlier + time.monotonic() - started


def _scores(judged: list[list[Judged]], job: Job) -> dict[str, Any]:
    """Return accuracy (the mean over problems of the share of right samples), intervals and breakdowns."""
    n = len(judged)
    correct = [_share([verdict.correct for verdict in group]) for group in judged]
    accuracy = _share(correct)
    scores: dict[str, Any] = {"accuracy": accuracy, "n": n, "interval": list(wilson(accuracy, n))}
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
            **({"flag": verdict.flag} if verdict.flag else {}),
            "tokens": output.tokens,
            "finish": output.finish,
        }
        for number in range(len(prompts))
        for k, (output, verdict) in enumerate(zip(outputs[number], judged[number], strict=True))
    ]


def _tokens(outputs: dict[int, list[Output]]) -> int:
    return sum(output.tokens for group in outputs.values() for output in group)


def _share(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _line(target: Target, result: dict[str, Any]) -> str:
    low, high = result["interval"]
    text = f"{target.name}, {result['task']}: {result['accuracy']:.1%} [{low:.1%}, {high:.1%}] of {result['n']}"
    if "lenient" in result:
        text += f", last number {result['lenient']:.1%}"
    counts = ("unparsable", "length_stops", "too_long")
    noted = [f"{result[key]} {key.replace('_', ' ')}" for key in counts if result.get(key)]
    return text + (f" ({', '.join(noted)})" if noted else "")
