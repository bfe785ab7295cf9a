"""Scoring models on tasks: what is finished is skipped, what is on file is graded, the rest goes to engines.

Jobs on one base model share its engines; an adapter that has to be merged has engines of its own.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dataset.catalog import EVALUATION, GROUPS, expand_groups, left_out
from dataset.templates import format_prompt
from eval.candidates import Adapter, Target, weights
from eval.engines import Prompt, Sampling, engine_version, open_engine
from eval.generation import Job, fill, finish, tokenizer_of
from eval.task_record import FORMAT, TaskRecord, changes, same
from eval.tasks import DirectTask, Record, Task, get_task, load_problems
from eval.tracking import check_trackers, track
from utils.config import Config
from utils.errors import memory_for
from utils.files import fingerprint, read_record, write_record
from utils.log import log
from utils.models import usable_dtype
from utils.runs import held, package_version, spent, stage
from utils.settings import flat_settings, require_shared

Results = dict[str, dict[str, dict[str, Any]]]


def evaluate(config: Config, targets: Sequence[Target], force: bool = False, regrade: bool = False) -> Results:
    """Score targets on the tasks of `config.eval`; return what their `<task>.json` hold, by target and task.

    `force` forgets what is there, texts included; `regrade` computes all verdicts anew from the texts that are there
    and starts no engine.
    """
    check_trackers(config)
    results: Results = {target.name: {} for target in targets}
    with ExitStack() as stack:
        for target in targets:
            stack.enter_context(held(target.folder.parent))
        left = []
        for job in jobs(config, targets):
            name, record = f"{job.target.name}, {job.record.task}", job.record
            if force:
                record.clear()
            earlier = record.earlier()
            if earlier and regrade:
                record.keep(earlier, "engine", "engine_version", "dtype")
            elif earlier and same(earlier["settings"], record.settings):
                results[job.target.name][record.task] = earlier
                log.info("%s (finished earlier)", describe(earlier))
                continue
            elif earlier:
                log.info("%s: settings changed (%s)", name, changes(earlier["settings"], record.settings))
            if missing := len(job.missing):
                log.info("%s: %d of %d texts on file", name, len(job.prompts) - missing, len(job.prompts))
            left.append(job)
        for job, result in run(config, left, force, regrade):
            results[job.target.name][job.record.task] = result
            log.info("%s", describe(result))
        _write_groups(config, targets, results)
        for target in targets if left else ():
            track(config, target, results[target.name])
    return results


def jobs(config: Config, targets: Sequence[Target]) -> Iterator[Job]:
    """Every task on every target, finished or not."""
    for target in targets if config.eval.split == "validation" else ():
        _check_held_out(config, target.folder.parent)
    engine = {
        "engine": config.eval.engine,
        "engine_version": engine_version(config.eval.engine),
        "dtype": config.eval.dtype or usable_dtype(config.model.dtype),
        "max_model_len": config.eval.max_model_len,
    }
    for name in expand_groups(config.eval.tasks, config.data.dir):
        task = get_task(name)
        problems = load_problems(name, config) if isinstance(task, Task) else []
        for target in targets:
            deciding = {**target.fingerprints(), **engine}
            if isinstance(task, DirectTask):
                settings = {**deciding, **task.settings(config)}
                yield Job(target, task, TaskRecord(target.folder, name, settings, deciding))
            else:
                asked = prompts(config, task, target.model, problems)
                settings = {**deciding, **_settings(config, task, problems, asked)}
                record = TaskRecord(target.folder, name + _suffix(config), settings, deciding)
                yield Job(target, task, record, problems, asked)


def _check_held_out(config: Config, run: Path) -> None:
    """Refuse to score a run on records that it may have been trained on: its data settings say what it held out."""
    if (run / "metrics.json").is_file():
        now = flat_settings({"data": config.data.model_dump()})
        remedy = "eval.split: only with the data settings of its training is it known what it was not trained on"
        require_shared(read_record(run / "metrics.json"), now, str(run), remedy)


def _suffix(config: Config) -> str:
    return "" if config.eval.split == "test" else f"-{config.eval.split}"


def _settings(config: Config, task: Task, problems: list[Record], prompts: list[Prompt]) -> dict[str, Any]:
    """What may change the figures of a task with generated texts besides the model and the engine."""
    sampling = prompts[0].sampling
    return {
        "data": fingerprint(problems),
        "source": _source(task.name, config),
        "problems": len(problems),
        "template": None if task.completion else config.data.template,
        "prompts": fingerprint([prompt.text for prompt in prompts]),
        "response_prefix": config.eval.response_prefix,
        "max_new_tokens": sampling.max_new_tokens,
        "stop": list(sampling.stop),
        "n_samples": sampling.n,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p if sampling.temperature else None,
        "seed": sampling.seed if sampling.temperature else None,
        "grader": config.eval.grader,
        "task_version": task.version,
        **{package: package_version(package) for package in task.packages},
    }


def _source(name: str, config: Config) -> str:
    """Where the problems come from; a mirror may hold fewer than the hub."""
    if config.eval.split == "validation":
        return f"{config.data.train}, {config.data.validation:g} held out"
    if name not in EVALUATION:
        return "generated"
    if config.data.dir is None:
        return EVALUATION[name].repository
    return "mirror: " + ", ".join(EVALUATION[name].files)


def prompts(config: Config, task: Task, model: Path, problems: list[Record]) -> list[Prompt]:
    """A prompt per problem, in the task's own ways unless the configuration says otherwise."""
    wanted, template = config.eval, config.data.template
    tokens, stop = wanted.max_new_tokens, wanted.stop  # for all tasks, or for each
    tokens = tokens.get(task.name) if isinstance(tokens, dict) else tokens
    stop = stop.get(task.name) if isinstance(stop, dict) else stop
    limits = (tokens or task.max_new_tokens, task.stop if stop is None else tuple(stop))
    sampling = Sampling(*limits, wanted.n_samples, wanted.temperature, wanted.top_p, wanted.seed)
    if task.completion:
        return [Prompt(problem["prompt"], sampling) for problem in problems]
    tokenizer = tokenizer_of(model) if template == "chat" else None
    how = (template, tokenizer, wanted.response_prefix, wanted.chat_template_kwargs)
    return [Prompt(format_prompt(problem, *how), sampling) for problem in problems]


def run(config: Config, jobs: Sequence[Job], force: bool, regrade: bool) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Each job with its result, those first that need no engine."""
    done = [job for job in jobs if regrade or (isinstance(job.task, Task) and not job.missing)]
    for job in done:
        yield job, finish(config, job)
    if not (left := [job for job in jobs if job not in done]):
        return
    dtype = left[0].record.deciding["dtype"]
    if dtype != (config.eval.dtype or config.model.dtype):
        log.info("engine: %s, as this CPU has no fast %s; set eval.dtype to insist", dtype, config.model.dtype)
    engines: dict[tuple[Path, Adapter | None], list[Job]] = {}
    for job in left:
        engines.setdefault((job.target.model, job.target.merged), []).append(job)
    with stage(Path(config.output_dir), "evaluate", 0.0 if force else spent(Path(config.output_dir), "evaluate")):
        for (model, merged), members in engines.items():
            adapters = list(dict.fromkeys(job.target.served for job in members if job.target.served))
            asked = [prompt for job in members for prompt in job.missing]
            needed = [job.task.context for job in members if isinstance(job.task, DirectTask)]
            room = context(config, model, asked, max(needed, default=0))
            with (
                memory_for(
                    f"eval.batch_size: there is no room for {config.model.name} and {config.eval.batch_size} prompts; "
                    "set fewer, or eval.dtype=bfloat16; what is generated is kept"
                ),
                weights(model, merged, dtype) as folder,
                open_engine(folder, config.eval, dtype, adapters, room) as engine,
            ):
                wanted = [(job, prompt) for job in members for prompt in job.prompts]
                names = {job.target.name for job in members}
                fill(engine, wanted, f"{len(names)} models" if len(names) > 1 else names.pop())
                for job in members:
                    if isinstance(job.task, DirectTask):
                        yield job, finish(config, job, engine)
            for job in members:
                if isinstance(job.task, Task):
                    yield job, finish(config, job)


def context(config: Config, model: Path, asked: Sequence[Prompt], least: int = 0) -> int:
    """The context in tokens: what the longest prompt and answer need, within what the model was made for."""
    from transformers import AutoConfig

    limit = getattr(AutoConfig.from_pretrained(model).get_text_config(), "max_position_embeddings", None) or 4096
    if config.eval.max_model_len is not None:
        return min(config.eval.max_model_len, limit)
    texts = {(prompt.text, prompt.sampling.max_new_tokens) for prompt in asked}
    lengths = (len(tokenizer_of(model)(text)["input_ids"]) + tokens for text, tokens in texts)
    needed = max([least, *lengths])
    return min(-(-needed // 64) * 64, limit)


def _write_groups(config: Config, targets: Sequence[Target], results: Results) -> None:
    """Write the mean over the tasks of each group asked for, as published tables state it.

    The mean over a group of which the mirror lacks a task has a name of its own: it is no figure of that group.
    """
    for group in (name for name in config.eval.tasks if name in GROUPS):
        missing = left_out([group], config.data.dir)
        if missing:
            log.warning("%s: the mirror (data.dir) has no %s; the mean is of the others", group, ", ".join(missing))
        for target in targets:
            kept = [name for name in GROUPS[group] if name not in missing]
            found = {name: results[target.name][name + _suffix(config)]["accuracy"] for name in kept}
            mean = {
                "format": FORMAT,
                "task": "_without_".join([group, *missing]) + _suffix(config),
                "target": target.name,
                "accuracy": sum(found.values()) / len(found),
                "n": len(found),
                "tasks": found,
                "missing": missing,
            }
            write_record(target.folder / f"{mean['task']}.json", mean)
            results[target.name][mean["task"]] = mean
            log.info("%s", describe(mean))


def describe(result: dict[str, Any]) -> str:
    """One line for a result: accuracy with its interval, and the counts that qualify it."""
    text = f"{result['target']}, {result['task']}: "
    if "loss" in result:
        return text + f"loss {result['loss']:.4f} per token on {result['text']}"
    if "tasks" in result:
        return text + f"mean {result['accuracy']:.1%} of {result['n']} tasks"
    if "accuracy" not in result:
        return text + f"{result['metric'].replace('_', ' ')} {result['score']:.4f} of {result['n']}"
    low, high = result["interval"]
    text += f"{result['accuracy']:.1%} [{low:.1%}, {high:.1%}] of {result['n']}"
    text += f", last number {result['lenient']:.1%}" if "lenient" in result else ""
    for kind in ("pass", "maj"):
        text += "".join(f", {kind}@{k} {found['score']:.1%}" for k, found in result.get(f"{kind}_at_k", {}).items())
    for name, found in result.get("graders", {}).items():
        text += f", by {name} {found['accuracy']:.1%}" if name != result["grader"] else ""
    counts = {"unparsable": "unreadable", "length_stops": "cut", "too_long": "too long"}
    noted = [f"{result[key]} {word}" for key, word in counts.items() if result.get(key)]
    noted += [f"{count} {flag}" for flag, count in result.get("flags", {}).items()]
    return text + (f" ({', '.join(noted)})" if noted else "")
