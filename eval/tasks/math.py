"""MATH (Hendrycks et al., 2021): 5,000 competition problems, broken down by level and subject."""

from collections.abc import Sequence

from eval import metamath_rules, published_rules
from eval.maths import Grade, extract_math, grade_all, math_equal
from eval.tasks import Judged, Record, Task
from utils.config import EvalConfig


def gold(record: Record) -> str:
    """The answer in the solution's last box, as published scripts take it; "either point" may fill two."""
    solution = record["answer"]
    box = solution.rfind("\\boxed" if "\\boxed" in solution else "\\fbox")
    return extract_math(solution[max(box, 0) :]) or solution


def judge(problems: Sequence[Record], texts: Sequence[str], config: EvalConfig, grader: str) -> list[Judged]:
    """Judge answers by mathematical equivalence (exact), or by the rules of published scripts."""
    pairs = [(text, gold(problem)) for problem, text in zip(problems, texts, strict=True)]
    read = extract_math if grader == "exact" else metamath_rules.math_answer
    answers = list(map(read, texts))
    if grader == "metamath":
        grades = [Grade(metamath_rules.math_equal(*pair)) for pair in pairs]
    elif grader == "published":
        grades = grade_all(pairs, published_rules.math_equal)
    else:
        stated = [(answer, right) for answer, (_, right) in zip(answers, pairs, strict=True) if answer is not None]
        graded = iter(grade_all(stated, math_equal))
        grades = [Grade(False) if answer is None else next(graded) for answer in answers]
    return [Judged(answer, grade.correct, flag=grade.flag) for answer, grade in zip(answers, grades, strict=True)]


TASK = Task(
    "math",
    max_new_tokens=1024,
    judge=judge,
    gold=gold,
    graders=("exact", "metamath", "published"),
    groups=("level", "type"),
    votes=True,
    version=5,
    packages=("math-verify", "sympy"),
)
