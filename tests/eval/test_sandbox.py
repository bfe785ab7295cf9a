import re
import time
from pathlib import Path

import psutil
import pytest

from eval import sandbox
from eval.sandbox import Program, Verdict, run_all
from tests.eval.hostile_programs import HOSTILE, REPORT
from utils.errors import UserError

needs_bubblewrap = pytest.mark.skipif(sandbox.available() is not None, reason=str(sandbox.available()))
TEST = "assert f(2) == 3\nassert f(10) == 11"
HONEST = "def f(x):\n    return x + 1\n"


def run(candidate: str, test: str = TEST, **settings) -> Verdict:
    return run_all([Program(candidate, test)], 1, **settings)[0]


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    """All hostile programs in one run, with an honest one after each fifth."""
    canary = tmp_path_factory.mktemp("host") / "canary"
    canary.write_text("alive")
    header = f"CANARY, REPOSITORY = {str(canary)!r}, {str(Path(sandbox.__file__).resolve())!r}\n{REPORT}"
    sources = [header + source for source, _ in HOSTILE.values()]
    honest = [HONEST] * (len(sources) // 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sandbox, "MEMORY", 1 << 28)
        found = run_all([Program(source, TEST) for source in sources + honest], workers=4, wall=2.5)
    assert canary.read_text() == "alive"
    assert all(verdict.passed for verdict in found[len(sources) :]), found[len(sources) :]
    return dict(zip(HOSTILE, found, strict=False))


@needs_bubblewrap
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_program_fails(verdicts, name):
    verdict = verdicts[name]
    assert not verdict.passed and re.search(HOSTILE[name][1], verdict.reason), verdict
    assert "DONE" not in verdict.output
    assert len(verdict.output) <= sandbox.OUTPUT + (1 << 16)


@needs_bubblewrap
def test_processes_are_bounded(verdicts):
    for name in ("fork count", "thread bomb"):
        (count,) = re.findall(r"started (\d+)", verdicts[name].output)
        assert int(count) <= sandbox.PROCESSES


@needs_bubblewrap
def test_nothing_is_left(verdicts):
    deadline = time.monotonic() + 5
    while left := [p.info for p in psutil.process_iter(["name"]) if p.info["name"] == "astra-hostile"]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    parent = sandbox._cgroup_parent()
    assert parent is None or not list(parent.glob("astra-*"))


@needs_bubblewrap
def test_verdicts_of_honest_programs():
    assert run(HONEST) == Verdict(True)
    assert run("print('hello')\ndef f(x):\n    return x") == Verdict(
        False, "AssertionError [assert f(2) == 3]", "hello\n"
    )
    assert run("def f(x) return").reason.startswith("SyntaxError")
    assert run("def g(x): pass").reason.startswith("NameError")
    assert run(HONEST, "raise ValueError('no')").reason == "ValueError: no [raise ValueError('no')]"
    assert run("import nosuchmodule").reason.startswith("ModuleNotFoundError")
    assert run("x = '\ud800'\n" + HONEST).passed
    assert run("import numpy as np\ndef f(x):\n    return int(np.arange(x).size + np.linalg.det(np.eye(9)))").passed
    assert run("import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()\n" + HONEST).passed
    assert run("from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n" + HONEST).passed
    assert run("open('/tmp/x', 'w').write('1')\nx = open('x').read()\ndef f(n): return n + int(x)").passed
    stuck = run(HONEST, "while True: pass", wall=1)
    assert stuck == Verdict(False, "timeout", "", "timeout")


@needs_bubblewrap
@pytest.mark.parametrize("mode", sandbox._MODES)
def test_both_ways_to_start_bubblewrap(monkeypatch, mode):
    monkeypatch.setattr(sandbox, "_mode", lambda: mode)
    if run("").flag:
        pytest.skip(f"bubblewrap can't start here as {mode}")
    assert run("import numpy\n" + HONEST).passed
    assert "refused" in run(REPORT + "attempt('home', lambda: open('/etc/passwd'))", "assert 0").output


@needs_bubblewrap
def test_memory_without_a_cgroup_is_watched(monkeypatch):
    monkeypatch.setattr(sandbox, "_cgroup_parent", lambda: None)
    monkeypatch.setattr(sandbox, "MEMORY", 1 << 28)
    found = run(REPORT + HOSTILE["memory over processes"][0], wall=20)
    assert found.reason == "out of memory"


@needs_bubblewrap
def test_a_sandbox_that_fails_is_tried_again_and_then_marked(monkeypatch):
    runs, real = [], sandbox._run

    def fail(program, command, wall):
        runs.append(program)
        if len(runs) < 2 or program.candidate == "never":
            raise OSError("fork failed")
        return real(program, command, wall)

    monkeypatch.setattr(sandbox, "_run", fail)
    assert run(HONEST).passed and len(runs) == 2
    found = run_all([Program("never", ""), Program(HONEST, TEST)], 1)
    assert found[0] == Verdict(False, "the sandbox failed to start: fork failed", "", "sandbox")
    assert found[1].passed
    monkeypatch.undo()
    broken = sandbox._run_twice(Program(HONEST, TEST), [*sandbox._bubblewrap(sandbox._mode()), "--no-such-option"], 1)
    assert broken.flag == "sandbox" and "no-such-option" in broken.reason


def test_refuses_without_bubblewrap(monkeypatch, caplog):
    monkeypatch.setattr(sandbox, "available", lambda: "bubblewrap is not installed")
    with pytest.raises(UserError, match="eval.unsafe_code"):
        run(HONEST)
    monkeypatch.setattr(sandbox.log, "propagate", True)
    assert run(HONEST, unsafe=True).passed
    assert "UNPROTECTED" in caplog.text
    assert not run("def f(x): return 0", unsafe=True).passed
    assert run("while True: pass", unsafe=True, wall=1).reason == "timeout"
    assert run("import os\nos._exit(0)", unsafe=True).reason == "ended itself with status 0"


def test_the_refusal_says_what_to_allow(monkeypatch):
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    assert "apt install bubblewrap" in sandbox.available.__wrapped__()
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: "/bin/false")
    monkeypatch.setattr(sandbox, "_mode", sandbox._mode.__wrapped__)
    assert "user namespaces" in sandbox.available.__wrapped__() and "\n" not in sandbox.available.__wrapped__()


@needs_bubblewrap
@pytest.mark.slow
def test_canonical_solutions_pass(mirror):
    from benchmarks.programs import canonical

    programs = canonical(mirror)
    failed = {n: verdict for n, verdict in enumerate(run_all(programs, 2)) if not verdict.passed}
    assert len(programs) == 1138 and not failed
