import json
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval import sandbox
from eval.code import find_program, humaneval_program, mbpp_program, pass_at_k
from eval.sandbox import run_all
from eval.tasks import get_task, load_problems
from tests.eval.shapes import BODY, HUMAN, HUMANEVAL_SHAPES, MBPP, MBPP_SHAPES, WRONG
from utils.config import Config, EvalConfig

needs_bubblewrap = pytest.mark.skipif(sandbox.available() is not None, reason=str(sandbox.available()))


@needs_bubblewrap
def test_correct_programs_of_every_shape_pass():
    programs = {name: humaneval_program(HUMAN, text) for name, text in HUMANEVAL_SHAPES.items()}
    programs |= {name: mbpp_program(MBPP, text) for name, text in MBPP_SHAPES.items()}
    verdicts = dict(zip(programs, run_all(programs.values(), 2), strict=True))
    assert {name: verdict.reason for name, verdict in verdicts.items() if not verdict.passed} == {}


@needs_bubblewrap
def test_wrong_programs_fail():
    programs = [(humaneval_program if r is HUMAN else mbpp_program)(r, text) for r, text in WRONG]
    assert [verdict.passed for verdict in run_all(programs, 2)] == [False] * len(WRONG)


@needs_bubblewrap
def test_what_the_set_up_uses_is_taken_from_the_candidate():
    node = {
        "code": "class Node:\n  pass\ndef depth(n): return 0",
        "test_list": ["assert depth(root) == 5"],
        "test_setup_code": "root = Node()\r\nroot.depth = 5",
    }
    program = mbpp_program(node, "class Node: pass\ndef depth(n): return n.depth")
    assert run_all([program], 1)[0].passed


def test_what_the_program_does_not_need_is_left_out():
    text = (
        "import re\nx = f(1)\nprint(x)\ndef g():\n    return 2\ndef f(n):\n    return n\ndef test():\n    return f(1)"
    )
    assert find_program(text, {"f"}) == "import re\ndef f(n):\n    return n\n"
    assert find_program("nothing here", {"f"}) == find_program("", {"f"}) == ""
    assert find_program("(" * 10**5, {"f"}) == ""
    assert "def f" in find_program(f"x = {'+'.join('1' * 5000)}\ndef f():\n    return 1\n", {"f"})


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_pass(numbers):
    n, c, k = numbers
    drawn = list(combinations(range(n), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(min(subset) < c for subset in drawn) / len(drawn))


# Rows of the form of evalplus/humanevalplus and evalplus/mbppplus, their test programs shortened.
ASSERTION = """import numpy as np

def is_floats(x) -> bool:
    return isinstance(x, float) or isinstance(x, np.ndarray) and x.dtype in (np.float64, np.float32)

def assertion(out, exp, atol):
    exact_match = out == exp
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if not exact_match and atol != 0:
        assert np.allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert exact_match
"""
HUMAN_PLUS = HUMAN | {
    "test": f"{ASSERTION}\n\ndef check(candidate):\n    inputs = [[4], [7], [9]]\n    results = [2, 3, 4]\n"
    "    for i, (inp, exp) in enumerate(zip(inputs, results)):\n        assertion(candidate(*inp), exp, 0)\n"
}
MBPP_PLUS = {
    "task_id": 2,
    "code": '\n"""\nWrite a function to add.\n"""\n\n\ndef add(a, b):\n    return a + b\n',
    "prompt": "Write a function to add.",
    "source_file": "mbpp.ipynb",
    "test_imports": [],
    "test_list": ["assert add(1, 2) == 3"],
    "test": f"{ASSERTION}\n\ninputs = [[1, 2], [0.1, 0.2]]\nresults = [3, 0.3]\n"
    "for i, (inp, exp) in enumerate(zip(inputs, results)):\n    assertion(add(*inp), exp, 0)\n",
}


@needs_bubblewrap
@pytest.mark.parametrize(
    ("name", "file", "row", "good", "shallow"),
    [
        ("humaneval_plus", "humanevalplus", HUMAN_PLUS, BODY, "    return {4: 2, 7: 3}.get(x)\n"),
        ("mbpp_plus", "mbppplus", MBPP_PLUS, "def add(a, b): return a + b", "def add(a, b): return {(1, 2): 3}[a, b]"),
    ],
)
def test_the_tests_of_evalplus(tmp_path, name, file, row, good, shallow):
    (tmp_path / file).mkdir()
    (tmp_path / file / "test.jsonl").write_text(json.dumps(row) + "\n")
    (problem,) = load_problems(name, Config.model_validate({"data": {"dir": str(tmp_path)}}))
    assert "half" in problem["instruction"] or "assert add(1, 2) == 3" in problem["instruction"]
    right, wrong = get_task(name).judge([problem] * 2, [good, shallow], EvalConfig(), "exact")
    assert right.correct and not wrong.correct and wrong.note


@needs_bubblewrap
def test_completion_of_a_bare_signature(mirror):
    config = Config.model_validate({"data": {"dir": str(mirror)}, "eval": {"limit": 1}})
    (problem,), task = load_problems("humaneval_completion", config), get_task("humaneval_completion")
    assert task.completion and "\ndef" in task.stop
    text = "    return any(abs(a - b) < threshold for k, a in enumerate(numbers) for b in numbers[:k])\n"
    (judged,) = task.judge([problem], [text], EvalConfig(), "exact")
    assert judged.correct and judged.extracted
