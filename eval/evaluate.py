"""Scoring models on tasks: what is finished is skipped, the rest is done with one engine for each base model."""

from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dataset.catalog import GROUPS, left_out
from dataset.templates import format_prompt
from eval.candidates import Target, servable
from eval.engines import encode, engine_version, open_engine
from eval.generation import Job, ends, generate_task
from eval.likelihood import LikelihoodTask, score_task
from eval.task_record import TaskRecord
from eval.tasks import Record, Task, check_tasks, expand, get_task, load_problems
from utils.config import Config
from utils.files import fingerprint, write_json
from utils.log import log
from utils.models import usable_dtype
from utils.runs import stage

Results = dict[str, dict[str, dict[str, Any]]]


def evaluate(config: Config, targets: Sequence[Target], force: bool = False) -> Results:
    """Score targets on the tasks of `config.eval`.

    Args:
        config: The experiment; `eval`, `data` and `model` matter here.
        targets: From `eval.candidates`; those on one base model share one engine.
        force: Redo what is finished.

    Returns:
        The results by target name and task, as written to `<target.folder>/<task>.json`.

    Raises:
        UserError: a task, its data, an adapter or the engine is not usable, or a finished record was made under
            other settings.
    """
    check_tasks(config)
    dtype = config.eval.dtype or usable_dtype(config.model.dtype)
    results: Results = {target.name: {} for target in targets}
    if missing := left_out(config.eval.tasks, config.data.dir):
        log.warning("commonsense: left out, as the mirror (data.dir) has none: %s", ", ".join(missing))
    jobs = []
    for name in expand(config):
        task = get_task(name, config.eval.protocol)
        problems = load_problems(name, config)
        for target in targets:
            prompts = _prompts(config, target.model, problems, task) if isinstance(task, Task) else []
            record = TaskRecord(target.folder, task.name, _settings(config, target, task, problems, prompts, dtype))
            if force:
                record.clear()
            result = record.finished()
            if result is None:
                jobs.append(Job(target, task, problems, prompts, record))
            else:
                results[target.name][task.name] = result
                log.info("%s", describe(result) + " (finished earlier)")
    if jobs:
        with stage(Path(config.output_dir), "evaluate"):
            _run(config, jobs, dtype, results)
    _write_groups(config, targets, results)
    return results


def _settings(
    config: Config, target: Target, task: Any, problems: list[Record], prompts: list[str], dtype: str
) -> dict[str, Any]:
    """Return everything that may change a figure."""
    wanted = config.eval
    shared = {
        **target.fingerprints(),
        "data": fingerprint(problems),
        "problems": len(problems),
        "task_version": task.version,
        "engine": wanted.engine,
        "engine_version": engine_version(wanted.engine),
        "dtype": dtype,
        "max_model_len": wanted.max_model_len,
    }
    if isinstance(task, LikelihoodTask):
        return {**shared, "lm_eval": _version("lm-eval")} if task.own_data else shared
    return {
        **shared,
        "template": config.data.template,
        "prompts": fingerprint(prompts),
        "response_prefix": wanted.response_prefix,
        "max_new_tokens": ends(wanted, task)[0],
        "stop": list(ends(wanted, task)[1]),
        "n_samples": wanted.n_samples,
        "temperature": wanted.temperature,
        "seed": wanted.seed if wanted.temperature else None,
        "grader": wanted.grader,
        **{package: _version(package) for package in task.packages},
    }


def _run(config: Config, jobs: list[Job], dtype: str, results: Results) -> None:
    """Run jobs, those that share a base model on one engine; an adapter to be merged has an engine of its own."""
    if dtype != (config.eval.dtype or config.model.dtype):
        log.info("engine: %s, as this CPU has no fast %s; set eval.dtype to insist", dtype, config.model.dtype)
    groups: dict[Any, list[Job]] = {}
    for job in jobs:
        merged = job.target.adapter is not None and job.target.adapter.is_merged(config.eval.engine)
        groups.setdefault(job.target if merged else job.target.model, []).append(job)
    for group in groups.values():
        with servable(group[0].target, config.eval.engine, dtype) as first:
            alone = first is not group[0].target
            _run_on_one_engine(config, group, first if alone else None, dtype, results)


def _run_on_one_engine(config: Config, jobs: list[Job], merged: Target | None, dtype: str, results: Results) -> None:
    """Run jobs on one base model; `merged` stands for the target of all of them, if given."""
    model = (merged or jobs[0].target).model
    targets = {job.target: merged or job.target for job in jobs}
    adapters = [target.adapter for target in targets.values() if target.adapter is not None]
    context = _context(config, jobs, model)
    with open_engine(model, config.eval, dtype, adapters, context) as engine:
        for job in jobs:
            target = targets[job.target]
            if isinstance(job.task, LikelihoodTask):
                result = score_task(config, job.task, job.problems, job.record, engine, target)
            else:
                result = generate_task(config, job, engine, target)
            results[job.target.name][job.task.name] = result
            log.info("%s", describe(result))


def _prompts(config: Config, model: Path, problems: list[Record], task: Task) -> list[str]:
    """Return the prompts of a task that generates."""
    if task.completion:
        return [problem["prompt"] for problem in problems]
    template, prefix = config.data.template, config.eval.response_prefix
    tokenizer = _tokenizer(model) if template == "chat" else None
    return [format_prompt(problem["instruction"], template, tokenizer, prefix) for problem in problems]


@cache
def _tokenizer(model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


def _context(config: Config, jobs: list[Job], model: Path) -> int:
    """Return the context in tokens: what the longest prompt and answer need, within what the model was made for."""
    from transformers import AutoConfig

    tokenizer = _tokenizer(model)
    limit = getattr(AutoConfig.from_pretrained(model).get_text_config(), "max_position_embeddings", None) or 4096
    if config.eval.max_model_len is not None:
        return min(config.eval.max_model_len, limit)
    needed = [job.task.context for job in jobs if isinstance(job.task, LikelihoodTask)]
    texts = {job.task.name: job.prompts for job in jobs if job.prompts}
    longest = {name: max(len(encode(tokenizer, text)) for text in found) for name, found in texts.items()}
    for job in jobs:
        if job.task.name in longest:
            needed.append(longest[job.task.name] + ends(config.eval, job.task)[0])
    return min(-(-max(needed) // 64) * 64, limit)


def _write_groups(config: Config, targets: Sequence[Target], results: Results) -> None:
    """Write the mean over the tasks of each group asked for, as published tables state it."""
    for group in (name for name in config.eval.tasks if name in GROUPS):
        members = {name: get_task(name, config.eval.protocol).name for name in GROUPS[group]}
        suffix = "_loglikelihood" if config.eval.protocol == "loglikelihood" else ""
        for target in targets:
            there = results[target.name]
            found = {name: there[task] for name, task in members.items() if task in there}
            if not found:
                continue
            mean = {
                "task": group + suffix,
                "target": target.name,
                "accuracy": sum(result["accuracy"] for result in found.values()) / len(found),
                "n": sum(result["n"] for result in found.values()),
                "tasks": {name: result["accuracy"] for name, result in found.items()},
                "missing": [name for name in members if name not in found],
            }
            write_json(target.folder / f"{group}{suffix}.json", mean)
            results[target.name][group + suffix] = mean
            log.info("%s", describe(mean))


def describe(result: dict[str, Any]) -> str:
    """Return one line for a result: accuracy with its interval, and the counts that qualify it."""
    text = f"{result['target']}, {result['task']}: "
    if "loss" in result:
        return text + f"loss {result['loss']:.4f} a token on {result['text']}"
    if result.get("metric", "accuracy") != "accuracy":
        return text + f"{result['metric'].replace('_', ' ')} {result['score']:.4f} of {result['n']}"
    text += f"{result['accuracy']:.1%}"
    if "interval" in result:
        text += f" [{result['interval'][0]:.1%}, {result['interval'][1]:.1%}]"
    text += f" of {result['n']}"
    if "lenient" in result:
        text += f", last number {result['lenient']:.1%}"
    if "acc_norm" in result:
        text += f", acc_norm {result['acc_norm']:.1%}"
    counts = ("unparsable", "length_stops", "too_long")
    noted = [f"{result[key]} {key.replace('_', ' ')}" for key in counts if result.get(key)]
    noted += [f"without {name}" for name in result.get("missing", [])]
    return text + (f" ({', '.join(noted)})" if noted else "")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
