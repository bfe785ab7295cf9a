"""The eight commonsense sets, in both protocols in use.

`generate` (LLM-Adapters, Hu et al., 2023): the model writes "the correct answer is answer2"; the first option named
counts. `loglikelihood` (lm-eval): the likeliest choice counts, as is (acc) and by its length in
characters (acc_norm).

Data: BoolQ, PIQA, SIQA, HellaSwag, WinoGrande, ARC-e, ARC-c and OBQA from their hub repositories (see
`dataset.catalog`), or `commonsense/<task>/test.json` in a mirror, which has no HellaSwag.
"""

import re
from collections.abc import Sequence

from eval.likelihood import LikelihoodTask
from eval.tasks import Judged, Record, Task
from eval.tasks._choices import run
from utils.config import EvalConfig

_FORMAT = re.compile(r"Answer format:\s*(\S+)\s*$")


def options(instruction: str) -> list[str]:
    """Return the names that an answer may have, from the instruction's `Answer format: answer1/answer2`."""
    found = _FORMAT.search(instruction)
    if found is None:
        raise ValueError(f"no `Answer format:` at the end of {instruction[-80:]!r}")
    return found.group(1).split("/")


def judge(
    problems: Sequence[Record], texts: Sequence[Sequence[str]], config: EvalConfig, grader: str
) -> list[list[Judged]]:
    """Judge by the first option that a text names, as in LLM-Adapters' `commonsense_evaluate.py`."""
    judged = []
    for problem, group in zip(problems, texts, strict=True):
        pattern = re.compile("|".join(map(re.escape, options(problem["instruction"]))))
        found = [pattern.search(text) for text in group]
        answers = [match.group() if match else None for match in found]
        judged.append([Judged(answer, answer == problem["answer"]) for answer in answers])
    return judged


def task(name: str, protocol: str) -> Task | LikelihoodTask:
    """Return one of the eight sets in a protocol."""
    if protocol == "generate":
        return Task(name, max_new_tokens=32, judge=judge)
    return LikelihoodTask(f"{name}_loglikelihood", source=name, run=run, own_data=True)
