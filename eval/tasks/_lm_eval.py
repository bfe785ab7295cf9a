"""Any task of lm-eval (EleutherAI), named `lm_eval/NAME`, or your own in `eval.task_dir`, on the engine at hand.

lm-eval builds the requests and computes its metrics; the engine answers. Likelihoods, rolling likelihoods and
generated texts are served. Prompts, stop strings and sampling are the task's own: of the configuration count
`eval.num_fewshot`, `eval.limit`, and `max_new_tokens` and `stop` where they name the task. With `data.template: chat`
the chat template is applied.
"""

import logging
from collections import Counter
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd

from astra.manifest import sha256_file
from eval.engines import Pair, Prompt, Request, Sampling
from eval.tasks import LM_EVAL, Ask, DirectTask
from utils.config import Config, EvalConfig
from utils.errors import UserError
from utils.runs import package_version

CONTEXT = 4096  # where eval.max_model_len doesn't say
# The figure that a result is known by: the first of these that a task has, else its first.
HEADLINES = ("acc", "exact_match", "prompt_level_strict_acc", "pass@1", "pass_at_1")


def task(name: str) -> DirectTask:
    """A task of lm-eval."""
    bare = name.removeprefix(LM_EVAL)
    return DirectTask(name, partial(_run, bare), CONTEXT, partial(_settings, name), partial(_check, bare))


def _check(name: str, config: Config) -> None:
    """Raise a `UserError` when lm-eval is not installed or does not know a task."""
    known = _tasks(config.eval.task_dir).all_tasks
    if name not in known:
        near = [other for other in known if name[:4] in other][:10]
        raise UserError(f"eval.tasks: lm-eval has no task {name!r}; it has {len(known):,}, {', '.join(near)}, ...")


def _settings(name: str, config: Config) -> dict[str, Any]:
    """What may change the figures: lm-eval's version, the examples, the limit, and your own definitions."""
    wanted, folder = config.eval, Path(config.eval.task_dir or "")
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if wanted.task_dir else []
    return {
        "lm_eval": package_version("lm-eval"),
        **{key: getattr(wanted, key) for key in ("num_fewshot", "limit", "chat_template_kwargs", "seed")},
        "template": config.data.template if config.data.template == "chat" else None,
        **_of_this(wanted, name),
        "task_dir": {str(path.relative_to(folder)): sha256_file(path)[:16] for path in files if path.suffix != ".pyc"},
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
    lm, chat, limit = _engine_lm(name, ask, tokenizer, config), config.data.template == "chat", config.eval.limit
    found: Any = evaluate(
        lm, loaded, limit=limit, apply_chat_template=chat, bootstrap_iters=1000, confirm_run_unsafe_code=unsafe
    )
    figures, filtered = _figures(name, found)
    samples = [(task, sample) for task, those in found["samples"].items() for sample in those]
    kept = [_sample(task, sample) for task, sample in samples if sample["filter"] == filtered]
    return {**figures, "too_long": lm.too_long}, [{"problem": number, **one} for number, one in enumerate(kept)]


def _figures(name: str, found: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Every metric of every subtask, with the one that the result is known by, and that one's filter.

    A set of tasks for which lm-eval has no mean is known by the mean over its tasks.
    """
    metrics = {
        task: {key: value for key, value in values.items() if isinstance(value, int | float) and key != "sample_len"}
        for task, values in {**found["results"], **found.get("groups", {})}.items()
    }
    counts = {task: count["effective"] for task, count in found["n-samples"].items()}
    frame = pd.DataFrame([metrics[task] for task in counts]).dropna(axis="columns")
    whole = metrics.get(name) or frame.mean().filter(regex="^((?!stderr).)*$").to_dict()
    if not (keys := [key for key in whole if "stderr" not in key]):
        raise UserError(f"eval.tasks: {LM_EVAL}{name} has no metric that all its tasks have; name {', '.join(counts)}")
    headline = next(iter([*(key for start in HEADLINES for key in keys if key.split(",")[0] == start), *keys]))
    metric, _, filtered = headline.partition(",")
    value, error = whole[headline], whole.get(f"{metric}_stderr,{filtered}")
    directions = found.get("higher_is_better", {})
    figures = {
        "metric": metric,
        "score": value,
        "higher_is_better": {**directions, **directions.get(next(iter(counts)), {})}.get(metric) is not False,
        "interval": [value - 1.96 * error, value + 1.96 * error] if error is not None else None,
        **({"acc_norm": whole["acc_norm,none"]} if "acc_norm,none" in whole else {}),
        "n": sum(counts.values()),
        "metrics": metrics,
        "lm_eval": {"version": package_version("lm-eval"), "num_fewshot": found.get("n-shot", {}), "counts": counts},
    }
    return figures, filtered


def _sample(task: str, sample: dict[str, Any]) -> dict[str, Any]:
    """One problem as `eval.show` prints it."""
    contexts = [arguments[0] for arguments in sample["arguments"]]
    likelihoods = isinstance(sample["arguments"][0][-1], str) and len(sample["arguments"][0]) > 1
    metrics = {key: sample[key] for key in sample["metrics"]}
    headline = next((metrics[key] for key in HEADLINES if key in metrics), None)
    answers = [answer[0] if isinstance(answer, list | tuple) else answer for answer in sample["filtered_resps"]]
    return {
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
    """lm-eval's catalogue, with the definitions in `task_dir`."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(f"eval.tasks: {LM_EVAL}NAME needs the package lm-eval ({error})") from error
    if task_dir is not None and not Path(task_dir).is_dir():
        raise UserError(f"eval.task_dir: {task_dir} is not a folder")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return TaskManager(include_path=task_dir)


def _engine_lm(name: str, ask: Ask, tokenizer: Any, config: Config) -> Any:
    """An engine as a model of lm-eval; a function, as the package is optional and slow to import."""
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    class EngineLM(TemplateLM):
        too_long = 0
        eot_token_id = tokenizer.eos_token_id
        prefix_token_id = eot_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        tokenizer_name = tokenizer.name_or_path

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
            self.too_long += sum(score.cut > 0 for score in scores)  # answered without their beginning, as by lm-eval
            return [(score.logprob, score.greedy) for score in scores]

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
            width, windows = (config.eval.max_model_len or CONTEXT) // 2, []
            for request in requests:
                ids = self.tok_encode(request.args[0], add_special_tokens=False)
                parts = get_rolling_token_windows(ids, self.prefix_token_id, width, 1)
                pairs = [make_disjoint_window(part) for part in parts]
                windows.append([Pair(tuple(before), tuple(scored)) for before, scored in pairs])
            asked = [pair for pairs in windows for pair in pairs]
            answers: list[Any] = ask(asked)
            if any(score.tokens < len(pair.continuation) for score, pair in zip(answers, asked, strict=True)):
                raise UserError(f"eval.max_model_len: windows of {width} tokens don't fit the model; set its context")
            scores = iter(answers)
            return [sum(next(scores).logprob for _ in pairs) for pairs in windows]

        def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
            """Generate up to the task's stop strings; a request that is asked again draws another text."""
            bos, asked = tokenizer.bos_token, Counter[Prompt]()
            added = bos is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
            prompts: list[Request] = []
            for request in requests:
                text, sampling = request.args[0], _sampling(name, normalize_gen_kwargs(request.args[1]), config)
                prompt = Prompt(text.removeprefix(bos) if added else text, sampling)
                prompts.append(replace(prompt, sampling=replace(sampling, seed=sampling.seed + asked[prompt])))
                asked[prompt] += 1
            answers: list[Any] = ask(prompts)
            self.too_long += sum(outputs[0].finish == "too_long" for outputs in answers)
            return [outputs[0].text for outputs in answers]

    lm = EngineLM()
    lm.tokenizer = tokenizer
    return lm


def _sampling(name: str, settings: Any, config: Config) -> Sampling:
    """A request's own settings, but for what the configuration says of this very task."""
    ours = _of_this(config.eval, LM_EVAL + name)
    return Sampling(
        ours["max_new_tokens"] or settings["max_gen_toks"],
        tuple(ours["stop"] or settings["until"]),
        temperature=settings["temperature"] if settings["do_sample"] else 0.0,
        top_p=settings.get("top_p", 1.0),
        seed=config.eval.seed,
    )


def _of_this(wanted: EvalConfig, task: str) -> dict[str, Any]:
    """What the configuration says of this very task; a value for all tasks leaves those of lm-eval alone."""
    given = {"max_new_tokens": wanted.max_new_tokens, "stop": wanted.stop}
    return {key: value.get(task) if isinstance(value, dict) else None for key, value in given.items()}
