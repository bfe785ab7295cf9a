import multiprocessing
import time

import pytest

from eval import metamath_rules
from eval.maths import Grade, extract_math, grade_all, math_equal
from eval.numbers import extract_number, last_number, numbers_equal
from eval.tasks import get_task
from tests.eval.graded_pairs import MATH, METAMATH_GSM8K, METAMATH_MATH, NUMBERS, THREE_GRADERS
from utils.config import EvalConfig


@pytest.mark.timeout(60)  # reading must not take for ever on a long word
@pytest.mark.parametrize(("prediction", "gold", "equal"), NUMBERS)
def test_numbers(prediction, gold, equal):
    assert numbers_equal(prediction, gold) is equal
    assert numbers_equal(gold, prediction) is equal


JUDGES = {
    math_equal: MATH,
    metamath_rules.gsm8k_equal: METAMATH_GSM8K,
    metamath_rules.math_equal: METAMATH_MATH,
}


@pytest.mark.parametrize(
    ("grader", "prediction", "gold", "equal"), [(grader, *pair) for grader, pairs in JUDGES.items() for pair in pairs]
)
def test_graders_of_mathematics_and_of_metamath(grader, prediction, gold, equal):
    assert grader(prediction, gold) is equal


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        ("9 * 2 = 18. The answer is: 18", "18", "18"),
        ("The answer is: $1,234.50.", "$1,234.50", "1,234.50"),
        ("The answer is: 5.\nCheck: 2 + 3 = 6", "5", "6"),
        ("The answer is: 3/4 cup", "3/4 cup", "3/4"),
        ("The answer is: $\\boxed{12}$", "$\\boxed{12}$", "12"),
        ("The answer is: -3%", "-3%", "-3%"),
        ("The answer is: 7 apples and 5 pears", None, "5"),
        ("The answer is: 18 dollars for 3 days", "18 dollars", "3"),
        ("The answer is:\n42", "42", "42"),
        ("First, the answer is: 1. The answer is: 2", "2", "2"),
        ("He has 16-3=13 left", None, "13"),
        ("The answer is: 16-3", None, "3"),
        ("The answer is: x+1", None, "1"),
        ("no marker, no number", None, None),
        ("The answer is: unknown", None, None),
        ("", None, None),
    ],
)
def test_extract_number(text, strict, lenient):
    assert extract_number(text) == strict
    assert last_number(text) == lenient


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{\\text{a}_{b}} and more", "\\text{a}_{b}"),
        ("\\boxed 5$ done", "5"),
        ("\\boxed{unclosed", None),
        ("\\boxed{3} and \\boxed{unclosed", None),
        ("\\boxed{A}. Note \\boxed{}", "A"),
        ("\\boxed{}", None),
        ("\\boxed{2}, \\boxed{3}", "2, 3"),
        ("The answer is: $\\$6$.", "\\$6"),
        ("The answer is: $x+1$.\nNote.", "x+1"),
        ("The answer is:\n\\[\n\\frac{1}{2}\n\\]\nNote.", "\\frac{1}{2}"),
        (
            "The answer is: \\begin{pmatrix}1\\\\[2pt]\n2\\end{pmatrix}\nNote.",
            "\\begin{pmatrix}1\\\\[2pt]\n2\\end{pmatrix}",
        ),
        ("The answer is: $5 a day.\nNote.", "$5 a day"),
        ("The answer is: \\boxed{7}", "7"),
        ("The answer is 7.", "7"),
        ("nothing", None),
    ],
)
def test_extract_math(text, answer):
    assert extract_math(text) == answer


@pytest.mark.parametrize("name", ["gsm8k", "math"])
def test_the_graders_disagree_as_they_should(name):
    rows = [row for row in THREE_GRADERS if row[0] == name]
    problems = [{"answer": gold if name == "gsm8k" else f"\\boxed{{{gold}}}"} for _, _, gold, *_ in rows]
    task = get_task(name)
    assert task.graders == ("exact", "metamath", "published")
    for k, grader in enumerate(task.graders):
        judged = task.judge(problems, [text for _, text, *_ in rows], EvalConfig(), grader)
        assert [(row[1], row[2], verdict.correct) for row, verdict in zip(rows, judged, strict=True)] == [
            (row[1], row[2], row[3 + k]) for row in rows
        ]


def test_grade_all_keeps_order_and_agrees():
    pairs = [(p, g) for p, g, _ in NUMBERS]
    assert [grade.correct for grade in grade_all(pairs, numbers_equal, workers=2)] == [equal for *_, equal in NUMBERS]
    assert grade_all([], numbers_equal) == []


def fail(prediction: str, gold: str) -> bool:
    raise ValueError(prediction)


def test_stuck_answer_is_flagged_and_the_rest_is_graded():
    pairs = [("1/2", "0.5"), ("9^{9^{9^{9}}}+1", "x^{9^{9^9}}"), ("x+1", "1+x"), ("2", "3")]
    start = time.monotonic()
    grades = grade_all(pairs, math_equal, workers=1, timeout=6)
    assert time.monotonic() - start < 60
    assert grades == [Grade(True), Grade(False, "timeout"), Grade(True), Grade(False)]
    assert grade_all([("1", "1")], fail) == [Grade(False, "error: ValueError")]
    assert not multiprocessing.active_children()
