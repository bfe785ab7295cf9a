"""MATH (Hendrycks et al., 2021): 5,000 competition problems, broken down by level and subject.

Data: `EleutherAI/hendrycks_math` on the hub, `math/test-1000.jsonl` (1,000 of them) in a mirror.
"""

import os
from collections.abc import Sequence

from eval.graders import extract_math, grade_all
from eval.metamath_rules import math_answer
from eval.tasks import Judged, Record, Task
from utils.config import EvalConfig


def gold(record: Record) -> str:
    """Return the answer in the solution's box."""
    return extract_math(record["answer"]) or record["answer"]


def judge(
    problems: Sequence[Record], texts: Sequence[Sequence[str]], config: EvalConfig, grader: str
) -> list[list[Judged]]:
    """Judge answers by mathematical equivalence, in worker processes; each has ten seconds."""
    metamath = grader == "metamath"
    extracted = [[(math_answer if metamath else extract_math)(text) for text in group] for group in texts]
    pairs, places = [], []
    for number, problem in enumerate(problems):
        for k, text in enumerate(texts[number]):
            answer = text if metamath else extracted[number][k]
            if answer is not None:
                places.append((number, k))
                pairs.append((answer, gold(problem)))
    rules = "metamath_math" if metamath else "math"
    grades = grade_all(pairs, rules, workers=len(os.sched_getaffinity(0)))
    found = dict(zip(places, grades, strict=True))
    return [
        [
            Judged(answer, found[number, k].correct, flag=found[number, k].flag)
            if (number, k) in found
            else Judged(answer, False)
            for k, answer in enumerate(group)
        ]
        for number, group in enumerate(extracted)
    ]


TASK = Task(
    "math",
    max_new_tokens=1024,
    judge=judge,
    gold=gold,
    groups=("level", "type"),
    version=2,
    packages=("math-verify", "sympy"),
)
