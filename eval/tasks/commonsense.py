"""The eight commonsense sets in the form of LLM-Adapters (Hu et al., 2023): the model writes "the correct answer is
answer2", and the first option that it names counts.

LLM-Adapters decodes with four beams and words its prompt and spacing a little differently; here decoding is greedy and
the prompt is the training prompt. Its BoolQ has no passages. For likelihoods (acc, acc_norm) use lm-eval's own tasks:
`eval.tasks: [lm_eval/boolq, lm_eval/piqa, ...]`.
"""

import re
from collections.abc import Sequence

from dataset.converters import OPTIONS
from eval.tasks import Judged, Record, Task
from utils.config import EvalConfig


def judge(problems: Sequence[Record], texts: Sequence[str], config: EvalConfig, grader: str) -> list[Judged]:
    """Judge by the first option that a text names, as in LLM-Adapters' `commonsense_evaluate.py`.

    Of answers it looks for five, whatever the problem has.
    """
    judged = []
    for problem, text in zip(problems, texts, strict=True):
        options = OPTIONS.findall(problem["instruction"])[0].split("/")  # a record without them is refused when read
        pattern = "answer[1-5]" if options[0] == "answer1" else "|".join(map(re.escape, options))
        named = re.search(pattern, text)
        answer = named.group() if named else None
        judged.append(Judged(answer, answer == problem["answer"]))
    return judged


def task(name: str) -> Task:
    """Return one of the eight sets."""
    return Task(name, max_new_tokens=32, judge=judge, votes=True, version=2)
