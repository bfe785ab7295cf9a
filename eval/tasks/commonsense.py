"""The eight commonsense sets in the form of LLM-Adapters (Hu et al., 2023): the model writes "the correct answer is
answer2", and the first option that it names counts.

LLM-Adapters decodes with four beams and words its prompt and spacing a little differently; here decoding is greedy and
the prompt is the training prompt. Its BoolQ has no passages. For likelihoods (acc, acc_norm) use lm-eval's own tasks:
`eval.tasks: [lm_eval/boolq, lm_eval/piqa, ...]`.
"""

import re
from collections.abc import Sequence

from dataset.converters import OPTIONS
from eval.tasks import Generated, Judged, Record, Task, Verdicts
from utils.config import EvalConfig


def options(instruction: str) -> list[str]:
    """The names that an answer may have, from the instruction's `Answer format: answer1/answer2`."""
    found = OPTIONS.search(instruction)
    if found is None:
        raise ValueError(f"no `Answer format:` at the end of {instruction[-80:]!r}")
    return found.group(1).split("/")


def judge(problems: Sequence[Record], texts: Generated, config: EvalConfig, grader: str) -> Verdicts:
    """Judge by the first option that a text names, as in LLM-Adapters' `commonsense_evaluate.py`."""
    judged = []
    for problem, group in zip(problems, texts, strict=True):
        pattern = re.compile("|".join(map(re.escape, options(problem["instruction"]))))
        found = [pattern.search(text) for text in group]
        answers = [match.group() if match else None for match in found]
        judged.append([Judged(answer, answer == problem["answer"]) for answer in answers])
    return judged


def task(name: str) -> Task:
    """Return one of the eight sets."""
    return Task(name, max_new_tokens=32, judge=judge, votes=True)
