"""Multiple choice by likelihood through lm-eval, with our engine as its model.

Without a mirror lm-eval's own task definitions and data are used. From a mirror, which holds the LLM-Adapters form,
questions and choices are read back out of the records and given to the task definition `choices.yaml`.
"""

import logging
import re
from pathlib import Path
from typing import Any

import yaml

from eval.engines import Engine
from eval.likelihood import LikelihoodTask, Scorer
from eval.task_record import wilson
from utils.config import Config
from utils.errors import UserError

LM_EVAL_NAMES = {
    "boolq": "boolq",
    "piqa": "piqa",
    "social_i_qa": "social_iqa",
    "hellaswag": "hellaswag",
    "winogrande": "winogrande",
    "ARC-Easy": "arc_easy",
    "ARC-Challenge": "arc_challenge",
    "openbookqa": "openbookqa",
}
DEFINITION = Path(__file__).parent / "choices.yaml"
_LEAD = re.compile(r"^Please [^:]*?(?:question|sentence): |^Please [^:]*?, question: ")
_OPTION = re.compile(r"(?:^|\s)(?:Answer|Solution|Option|Ending)(\d): ")


def parse_choices(record: dict[str, Any]) -> dict[str, Any]:
    """Return the `question`, `choices` and `gold` index of a record in the LLM-Adapters form.

    Raises:
        UserError: the record is not in that form.
    """
    text = _LEAD.sub("", record["instruction"])
    body, found, options = text.rpartition("Answer format:")
    names = options.strip().split("/")
    if not found or record["answer"] not in names:
        raise UserError(f"{record['type']}: not a multiple-choice record: {record['instruction'][:80]!r}")
    gold = names.index(record["answer"])
    if names == ["true", "false"]:
        return {"question": body.strip(), "choices": ["true", "false"], "gold": gold}
    parts = _OPTION.split(body)
    question, choices = parts[0].strip(), [part.strip() for part in parts[2::2]]
    if len(choices) != len(names):
        raise UserError(f"{record['type']}: {len(choices)} choices for {options.strip()}: {question[:80]!r}")
    return {"question": question, "choices": choices, "gold": gold}


def documents(source: str, problems: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what lm-eval reads: a query and its choices, or for WinoGrande the contexts of one continuation."""
    rows = [parse_choices(problem) for problem in problems]
    if source == "winogrande":
        return [_fill_blank(row) for row in rows]
    tail = "Answer:" if source != "openbookqa" else ""
    return [
        {
            "query": f"Question: {row['question']}\n{tail}" if tail else row["question"],
            "choices": row["choices"],
            "gold": row["gold"],
        }
        for row in rows
    ]


def _fill_blank(row: dict[str, Any]) -> dict[str, Any]:
    before, blank, after = row["question"].partition("_")
    if not blank:
        raise UserError(f"winogrande: no blank in {row['question'][:80]!r}")
    return {"query": after.strip(), "choices": [before + choice for choice in row["choices"]], "gold": row["gold"]}


def run(
    problems: list[dict[str, Any]], engine: Engine, scorer: Scorer, task: LikelihoodTask, config: Config
) -> tuple[dict[str, Any], list[Any]]:
    """Score a set with lm-eval; see `eval.likelihood.LikelihoodTask.run`.

    Raises:
        UserError: lm-eval is not installed.
    """
    lm_eval = _lm_eval()
    from eval.lm_eval_adapter import EngineLM

    name = LM_EVAL_NAMES[task.source]
    if config.data.dir is not None:
        name = f"{name}_mirror"
        asked: Any = {"task": name, **_definition(task.source, documents(task.source, problems))}
    else:
        asked = name
    found = lm_eval.simple_evaluate(
        EngineLM(engine, scorer),
        tasks=[asked],
        task_manager=lm_eval.tasks.TaskManager(include_defaults=config.data.dir is None),
        num_fewshot=0,
        limit=config.eval.limit,
        bootstrap_iters=0,
    )
    return _figures(found, name), _samples(found["samples"][name])


def hub_documents(source: str) -> list[dict[str, Any]]:
    """Return what lm-eval's own task scores, from the hub.

    Raises:
        UserError: lm-eval is not installed.
    """
    tasks, name = _lm_eval().tasks, LM_EVAL_NAMES[source]
    return list(tasks.get_task_dict([name], tasks.TaskManager())[name].eval_docs)


def _lm_eval() -> Any:
    try:
        import lm_eval
        import lm_eval.tasks
    except ImportError as error:
        raise UserError(f"eval.protocol: loglikelihood needs the package lm-eval ({error})") from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return lm_eval


def _definition(source: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    import datasets

    definition = yaml.safe_load(DEFINITION.read_text(encoding="utf-8"))
    kind = "blank" if source == "winogrande" else "question"
    data = {"test": datasets.Dataset.from_list(rows)}
    return {**definition["all"], **definition[kind], "custom_dataset": lambda **_: data}


def _figures(found: dict[str, Any], name: str) -> dict[str, Any]:
    scores, n = found["results"][name], len(found["samples"][name])
    figures: dict[str, Any] = {"accuracy": scores["acc,none"], "n": n, "interval": list(wilson(scores["acc,none"], n))}
    if "acc_norm,none" in scores:
        norm = scores["acc_norm,none"]
        figures |= {"acc_norm": norm, "acc_norm_interval": list(wilson(norm, n))}
    return figures | {"lm_eval": {"version": _lm_eval_version(), "task": name, "num_fewshot": 0}}


def _samples(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a sample for each problem; WinoGrande has a prompt for each choice, the others one for all."""
    return [
        {
            "problem": sample["doc_id"],
            "sample": 0,
            "prompt": _prompt([context for context, _ in sample["arguments"]]),
            "output": [continuation for _, continuation in sample["arguments"]],
            "logprobs": [response[0] for response in sample["filtered_resps"]],
            "extracted": max(range(len(sample["filtered_resps"])), key=lambda k: sample["filtered_resps"][k][0]),
            "gold": _gold(sample),
            "correct": bool(sample["acc"]),
            **({"correct_norm": bool(sample["acc_norm"])} if "acc_norm" in sample else {}),
        }
        for sample in samples
    ]


def _prompt(contexts: list[str]) -> str | list[str]:
    return contexts[0] if len(set(contexts)) == 1 else contexts


def _gold(sample: dict[str, Any]) -> int:
    """Return the index of the right choice; lm-eval's target is one, but for WinoGrande, where it is the sentence."""
    doc, target = sample["doc"], sample["target"]
    if "gold" in doc:
        return doc["gold"]
    return target if isinstance(target, int) else int(doc["answer"]) - 1


def _lm_eval_version() -> str:
    from importlib.metadata import version

    return version("lm-eval")
