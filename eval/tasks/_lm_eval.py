"""Any task of lm-eval (EleutherAI), named `lm_eval/NAME`, or your own in `eval.task_dir`, on the engine at hand.

lm-eval builds the requests and computes its metrics; the engine answers. Likelihoods, rolling likelihoods and
generated texts are served. Prompts, stop strings and sampling are the task's own: of the configuration count
`eval.num_fewshot`, `eval.limit`, and `max_new_tokens` and `stop` where they name the task. With `data.template: chat`
the chat template is applied.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from astra.manifest import sha256_file
from eval.engines import Pair, Prompt, Request, Sampling
from eval.tasks import LM_EVAL, Ask, DirectTask
from utils.config import Config
from utils.errors import UserError

CONTEXT = 4096  # where eval.max_model_len doesn't say
# The figure that a result is known by: the first of these that a task has, else its first.
HEADLINES = ("acc", "exact_match", "prompt_level_strict_acc", "pass@1", "pass_at_1")


def check(names: Sequence[str], config: Config) -> None:
    """Stop early when lm-eval is not installed or does not know a task.

    Raises:
        UserError: in one line.
    """
    known = _tasks(config.eval.task_dir).all_tasks
    for name in names:
        if (bare := name.removeprefix(LM_EVAL)) not in known:
            near = [other for other in known if bare[:4] in other][:10]
            raise UserError(f"eval.tasks: lm-eval has no task {bare!r}; it has {len(known):,}, {', '.join(near)}, ...")


def task(name: str) -> DirectTask:
    """Return a task of lm-eval."""
    bare = name.removeprefix(LM_EVAL)

    def run(ask: Ask, tokenizer: Any, config: Config) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        return _run(bare, ask, tokenizer, config)

    return DirectTask(name, run, CONTEXT, lambda config: _settings(name, config))


def _settings(name: str, config: Config) -> dict[str, Any]:
    """Return what may change the figures: lm-eval's version, the examples, the limit, and your own definitions."""
    given = {"max_new_tokens": config.eval.max_new_tokens, "stop": config.eval.stop}
    own = sorted(Path(config.eval.task_dir).rglob("*.*")) if config.eval.task_dir else []
    return {
        "lm_eval": _version(),
        "num_fewshot": config.eval.num_fewshot,
        "limit": config.eval.limit,
        "template": config.data.template if config.data.template == "chat" else None,
        "chat_template_kwargs": config.eval.chat_template_kwargs,
        "seed": config.eval.seed,
        **{key: value.get(name) for key, value in given.items() if isinstance(value, dict)},
        "task_dir": {path.name: sha256_file(path)[:16] for path in own if path.suffix in (".yaml", ".py", ".jsonl")},
    }


def _run(name: str, ask: Ask, tokenizer: Any, config: Config) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from lm_eval.evaluator import evaluate

    try:
        loaded = _tasks(config.eval.task_dir).load([name])
    except Exception as error:  # whatever a data set's host, file or loader raises
        raise UserError(f"eval.tasks: {LM_EVAL}{name} can't be loaded ({type(error).__name__}: {error})") from error
    unsafe = config.eval.unsafe_code
    for one in loaded["tasks"].values():
        if getattr(one, "UNSAFE_CODE", False) and not unsafe:
            raise UserError(f"eval.unsafe_code: {LM_EVAL}{name} runs generated code without a sandbox; true allows it")
        if config.eval.num_fewshot is not None and one.get_config("num_fewshot") != 0:  # 0: it takes none
            one.set_config("num_fewshot", config.eval.num_fewshot)
        one.set_fewshot_seed(config.eval.seed)
    chat = config.data.template == "chat"
    lm = _engine_lm(name, ask, tokenizer, config)
    limit = config.eval.limit
    found: Any = evaluate(
        lm, loaded, limit=limit, apply_chat_template=chat, bootstrap_iters=1000, confirm_run_unsafe_code=unsafe
    )
    figures, filtered = _figures(name, found, lm)
    samples = [(task, sample) for task, those in found["samples"].items() for sample in those]
    kept = [pair for pair in samples if pair[1]["filter"] == filtered]
    return figures, [_sample(number, task, sample) for number, (task, sample) in enumerate(kept)]


def _figures(name: str, found: dict[str, Any], lm: Any) -> tuple[dict[str, Any], str]:
    """Return every metric of every subtask, with the one that the result is known by, and that one's filter.

    A set of tasks for which lm-eval has no mean is known by the mean over its tasks.
    """
    metrics = {}
    for task, values in {**found["results"], **found.get("groups", {})}.items():
        metrics[task] = {
            key: value for key, value in values.items() if isinstance(value, int | float) and key != "sample_len"
        }
    counts = {task: count["effective"] for task, count in found["n-samples"].items()}
    whole = metrics.get(name)
    if not whole:
        tasks = [metrics[task] for task in counts]
        shared = [key for key in tasks[0] if "stderr" not in key and all(key in task for task in tasks)]
        whole = {key: sum(task[key] for task in tasks) / len(tasks) for key in shared}
    keys = [key for key in whole if "stderr" not in key]
    known = [key for start in HEADLINES for key in keys if key.split(",")[0] == start]
    headline = next(iter([*known, *keys]))
    metric, _, filtered = headline.partition(",")
    value, error = whole[headline], whole.get(f"{metric}_stderr,{filtered}")
    figures = {
        "metric": metric,
        "score": value,
        "interval": [value - 1.96 * error, value + 1.96 * error] if error is not None else None,
        **({"acc_norm": whole["acc_norm,none"]} if "acc_norm,none" in whole else {}),
        "n": sum(counts.values()),
        "too_long": lm.too_long,
        "metrics": metrics,
        "lm_eval": {"version": _version(), "num_fewshot": found.get("n-shot", {}), "counts": counts},
    }
    return figures, filtered


def _sample(number: int, task: str, sample: dict[str, Any]) -> dict[str, Any]:
    """Return one problem as `eval.show` prints it; problems are numbered over all subtasks."""
    contexts = [arguments[0] for arguments in sample["arguments"]]
    likelihoods = isinstance(sample["arguments"][0][-1], str) and len(sample["arguments"][0]) > 1
    metrics = {key: sample[key] for key in sample["metrics"]}
    headline = next((metrics[key] for key in HEADLINES if key in metrics), None)
    answers = [
        response[0] if isinstance(response, list | tuple) else response for response in sample["filtered_resps"]
    ]
    return {
        "problem": number,
        "subtask": task,
        "prompt": contexts[0] if len(set(contexts)) == 1 else contexts,
        "output": [arguments[1] for arguments in sample["arguments"]] if likelihoods else str(answers[0]),
        **({"logprobs": answers} if likelihoods else {}),
        "gold": str(sample["target"]),
        "correct": bool(headline) if headline in (0, 1) else None,
        "metrics": {key: value for key, value in metrics.items() if isinstance(value, int | float | str)},
    }


@cache
def _tasks(task_dir: str | None) -> Any:
    """Return lm-eval's catalogue, with the definitions in `task_dir`.

    Raises:
        UserError: lm-eval is not installed, or there is no such folder.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(f"eval.tasks: {LM_EVAL}NAME needs the package lm-eval ({error})") from error
    if task_dir is not None and not Path(task_dir).is_dir():
        raise UserError(f"eval.task_dir: {task_dir} is not a folder")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return TaskManager(include_path=task_dir)


def _version() -> str:
    from importlib.metadata import version

    return version("lm-eval")


def _engine_lm(name: str, ask: Ask, tokenizer: Any, config: Config) -> Any:
    """Return an engine as a model of lm-eval; a function, as the package is optional and slow to import."""
    from lm_eval.api.model import TemplateLM

    class EngineLM(TemplateLM):
        too_long = 0

        def __init__(self) -> None:
            super().__init__()
            self.tokenizer = tokenizer

        @property
        def eot_token_id(self) -> int:
            return tokenizer.eos_token_id

        @property
        def prefix_token_id(self) -> int:
            return self.eot_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id

        @property
        def tokenizer_name(self) -> str:
            return tokenizer.name_or_path

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            return tokenizer.apply_chat_template(
                chat_history, tokenize=False, add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt, **config.eval.chat_template_kwargs,
            )  # fmt: skip

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            if add_special_tokens is None:
                add_special_tokens = not (tokenizer.bos_token and string.startswith(tokenizer.bos_token))
            return tokenizer(string, add_special_tokens=add_special_tokens)["input_ids"]

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
            return super().loglikelihood(requests, disable_tqdm=True)  # our own bar is enough

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            scores: list[Any] = ask([Pair(tuple(prefix), tuple(text)) for _, prefix, text in requests])
            return [(score.logprob, score.greedy) for score in scores]

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
            """Score whole texts in windows of the context that overlap by one token, as lm-eval does."""
            width = (config.eval.max_model_len or CONTEXT) // 2
            pairs, owners = [], []
            for place, request in enumerate(requests):
                ids = self.tok_encode(request.args[0], add_special_tokens=False)
                for start in range(0, len(ids), width):
                    before = ids[start - 1 : start] or [self.prefix_token_id]
                    pairs.append(Pair(tuple(before), tuple(ids[start : start + width])))
                    owners.append(place)
            totals, scores = [0.0] * len(requests), list[Any](ask(pairs))
            for owner, score in zip(owners, scores, strict=True):
                totals[owner] += score.logprob
            return totals

        def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
            """Generate up to the task's stop strings; a request that is asked again draws another text."""
            bos, asked = tokenizer.bos_token, Counter[Prompt]()
            added = bos is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
            prompts: list[Request] = []
            for request in requests:
                text, sampling = request.args[0], _sampling(name, request.args[1], config)
                prompt = Prompt(text.removeprefix(bos) if added else text, sampling)
                prompts.append(replace(prompt, sampling=replace(sampling, seed=sampling.seed + asked[prompt])))
                asked[prompt] += 1
            answers: list[Any] = ask(prompts)
            self.too_long += sum(outputs[0].finish == "too_long" for outputs in answers)
            return [outputs[0].text for outputs in answers]

    return EngineLM()


def _sampling(name: str, settings: dict[str, Any], config: Config) -> Sampling:
    """Return a request's own settings, but for what the configuration says of this very task."""
    tokens, stop = config.eval.max_new_tokens, config.eval.stop
    tokens = tokens.get(LM_EVAL + name) if isinstance(tokens, dict) else None
    stop = stop.get(LM_EVAL + name) if isinstance(stop, dict) else None
    until = stop or settings.get("until") or []
    sampled = settings.get("do_sample", False)
    return Sampling(
        tokens or settings.get("max_gen_toks") or settings.get("max_new_tokens") or 256,
        tuple([until] if isinstance(until, str) else until),
        temperature=settings.get("temperature", 1.0) if sampled else 0.0,
        top_p=settings.get("top_p", 1.0),
        seed=config.eval.seed,
    )
