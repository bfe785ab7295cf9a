import gzip
import json
import os
import re
import time
from pathlib import Path

import psutil
import pytest

from eval import sandbox
from eval.code import humaneval_program, mbpp_program
from eval.sandbox import Program, Verdict, free_names, run_all, run_program
from tests.eval.hostile_programs import HOSTILE
from utils.errors import UserError

needs_bubblewrap = pytest.mark.skipif(sandbox.available() is not None, reason=str(sandbox.available()))
TEST = "assert f(2) == 3\nassert f(10) == 11"
HONEST = "def f(x):\n    return x + 1\n"


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    """All hostile programs in one run, with an honest one after each fifth."""
    canary = tmp_path_factory.mktemp("host") / "canary"
    canary.write_text("alive")
    header = f"CANARY, REPOSITORY = {str(canary)!r}, {str(Path(sandbox.__file__).resolve())!r}\n"
    programs = []
    for i, (source, _) in enumerate(HOSTILE.values()):
        programs.append(Program(header + source, TEST, ("f",)))
        programs += [Program(HONEST, TEST)] if i % 5 == 4 else []
    results = run_all(programs, workers=4, timeout=1, memory=1 << 28)
    assert canary.read_text() == "alive"
    honest = [verdict for program, verdict in zip(programs, results, strict=True) if program.candidate == HONEST]
    assert honest and all(verdict.passed for verdict in honest), honest
    hostile = [verdict for program, verdict in zip(programs, results, strict=True) if program.candidate != HONEST]
    return dict(zip(HOSTILE, hostile, strict=True))


@needs_bubblewrap
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_program_fails(verdicts, name):
    verdict = verdicts[name]
    assert not verdict.passed
    assert re.search(HOSTILE[name][1], verdict.reason)
    assert "DONE" not in verdict.output and "FOUND" not in verdict.output
    assert len(verdict.output) <= 1 << 16


@needs_bubblewrap
def test_hostile_programs_achieve_nothing(verdicts):
    assert re.findall(r"forked (\d+)|threads (\d+)", verdicts["fork count"].output + verdicts["thread bomb"].output)
    for count in re.findall(
        r"(?:forked|threads) (\d+)", verdicts["fork count"].output + verdicts["thread bomb"].output
    ):
        assert int(count) <= sandbox.PROCESSES
    entries = verdicts["reading files"].output
    assert "'home'" not in entries and "'proc'" not in entries and "PATH" not in entries
    for call in ("unshare", "mount", "setuid", "chroot", "clone"):
        assert f"{call} -1" in verdicts["namespaces and mounts"].output
    assert "ptrace -1\nreadv -1" in verdicts["tracing the supervisor"].output
    assert "shmget -1" in verdicts["memory outside the limit"].output


@needs_bubblewrap
def test_no_process_is_left(verdicts):
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        left = [p.info for p in psutil.process_iter(["name", "ppid", "cmdline"]) if _is_ours(p)]
        if not left:
            return
        time.sleep(0.1)
    raise AssertionError(left)


def _is_ours(process: psutil.Process) -> bool:
    child = process.info["ppid"] == os.getpid() and "bwrap" in " ".join(process.info["cmdline"] or ())
    return child or process.info["name"] == "astra-hostile"


@needs_bubblewrap
def test_verdicts_of_honest_programs():
    assert run_program(HONEST, TEST) == Verdict(True)
    wrong = run_program("print('hello')\ndef f(x):\n    return x", TEST)
    assert wrong == Verdict(False, "AssertionError [assert f(2) == 3]", "hello\n")
    assert run_program("def f(x) return", TEST).reason.startswith("SyntaxError")
    assert run_program("def g(x): pass", TEST).reason.startswith("NameError")
    assert run_program("", TEST).reason.startswith("NameError")
    assert run_program(HONEST, "raise ValueError('no')").reason == "ValueError: no [raise ValueError('no')]"
    assert run_program("import nosuchmodule", TEST).reason.startswith("ModuleNotFoundError")
    assert run_program("x = '\ud800'\n" + HONEST, TEST).passed


VALUES = """
[None, True, False, 0, -1, 10**30, -2**63, 1.5, float('inf'), -0.0, 1+2j, '', 'é\\ud800', b'\\x00', bytearray(b'a')]
[(), [], {}, set(), frozenset({1}), (1, [2, {3: (4,)}]), {'a': [1], (1, 2): None}, {1, 'b', (2,)}, range(3), int, str]
[__import__('decimal').Decimal('1.10'), __import__('fractions').Fraction(1, 3)]
[__import__('collections').deque([1], 2)]
[__import__('datetime').date(2020, 2, 29), __import__('datetime').timedelta(1, 2, 3)]
"""


@needs_bubblewrap
@pytest.mark.parametrize("values", VALUES.strip().splitlines())
def test_values_arrive_unchanged(values):
    test = f"for v in {values}:\n    w = f(v)\n    assert type(w) is type(v) and repr(w) == repr(v), (v, w)"
    assert run_program("def f(x):\n    return x", test) == Verdict(True)


@needs_bubblewrap
def test_objects_of_the_candidate():
    source = (
        "from collections import Counter, namedtuple\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass P:\n    x: int\n    y: int = 0\n    def total(self): return self.x + self.y\n"
        "def points(n): return [P(i) for i in range(n)]\ndef squares(n): return (i * i for i in range(n))\n"
        "def count(text): return Counter(text)\nN = namedtuple('N', 'a b')\ndef named(): return N(1, 2)\n"
        "def fail(x): raise KeyError(x)\ndef add(n): return lambda m: n + m\nLIMIT = 5\n"
    )
    test = (
        "assert P(1, y=2).total() == 3 and P(4).x == 4 and P(1) == P(1) and P(1) != P(2)\n"
        "assert [p.x for p in points(3)] == [0, 1, 2] and str(P(1)) == 'P(x=1, y=0)'\n"
        "assert list(squares(4)) == [0, 1, 4, 9] and sum(squares(3)) == 5 and squares(2) != [0, 1]\n"
        "assert count('aab') == {'a': 2, 'b': 1} and named() == (1, 2) and LIMIT == 5 and add(2)(3) == 5\n"
        "try:\n    fail('k')\n    assert False\nexcept KeyError as error:\n    assert 'k' in str(error)\n"
    )
    assert run_program(source, test) == Verdict(True)


@needs_bubblewrap
def test_candidate_may_not_replace_what_the_test_uses():
    source = "def sorted(x): return [1, 2]\ndef len(x): return 2\ndef abs(x): return 0\ndef f(x): return [2, 1]"
    assert not run_program(source, "assert sorted(f(1)) == [3, 4]").passed
    assert not run_program(source, "assert abs(len(f(1)) - 7) < 1").passed
    assert run_program(source, "assert sorted(9) == [1, 2]", names=["sorted"]).passed  # the function under test


@needs_bubblewrap
def test_stuck_test_is_ended():
    start = time.monotonic()
    assert run_program(HONEST, "while True: pass", timeout=1).reason in (
        "timeout",
        "the sandbox ended without a verdict",
    )
    assert time.monotonic() - start < 30


def test_free_names():
    assert free_names("import math\nfor i in range(3):\n    assert f(i) == math.pi + g.h") == ("f", "g")
    assert free_names("def check(c):\n    assert c(1)\ncheck(entry)") == ("entry",)
    assert free_names("not a python") == ()


def test_refuses_without_bubblewrap(monkeypatch, caplog):
    monkeypatch.setattr(sandbox, "available", lambda: "bubblewrap is not installed")
    with pytest.raises(UserError, match="eval.unsafe_code"):
        run_program(HONEST, TEST)
    with pytest.raises(UserError):
        run_all([Program(HONEST, TEST)])
    sandbox._warn_unprotected.cache_clear()
    monkeypatch.setattr(sandbox.log, "propagate", True)
    assert run_program(HONEST, TEST, unsafe=True).passed
    assert "UNPROTECTED" in caplog.text
    assert not run_program("def f(x): return 0", TEST, unsafe=True).passed
    assert run_program("while True: pass", TEST, unsafe=True, timeout=1).reason == "timeout"
    assert run_program("import os\nos._exit(0)", TEST, unsafe=True).reason == "the program ended itself"


def test_available_names_what_is_missing(monkeypatch):
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    assert "apt install bubblewrap" in sandbox.available.__wrapped__()


@needs_bubblewrap
@pytest.mark.slow
def test_canonical_solutions_pass(mirror):
    with gzip.open(mirror / "humaneval" / "HumanEval.jsonl.gz", "rt") as lines:
        records = [json.loads(line) for line in lines]
    programs = [humaneval_program(record, record["canonical_solution"]) for record in records]
    with open(mirror / "mbpp" / "mbpp.jsonl") as lines:
        records += [json.loads(line) for line in lines]
    programs += [mbpp_program(record, record["code"]) for record in records[len(programs) :]]
    failed = {r["task_id"]: v for r, v in zip(records, run_all(programs, 2), strict=True) if not v.passed}
    assert len(programs) == 1138 and not failed
