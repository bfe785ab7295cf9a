"""Generated programs: whether correct ones pass, how fast, and whether hostile ones do nothing.

    python benchmarks/programs.py --data-dir MIRROR

The last line is one JSON object; in it

    canonical_passed         of the 1,138 reference solutions of HumanEval and MBPP
    canonical_seconds        to run them all, one sandbox per core
    correct_shapes_passed    of the correct programs of `tests/eval/shapes.py`, `correct_shapes` in all
    hostile_programs         of `tests/eval/hostile_programs.py`
    escapes                  those that passed, got through, or left a process
    regrade_seconds          to grade 1,000 stored answers of GSM8K and MATH with three graders
"""

import argparse
import gzip
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil  # noqa: E402

from benchmarks.provenance import provenance  # noqa: E402
from dataset.sources import load_evaluation  # noqa: E402
from eval import sandbox  # noqa: E402
from eval.code import humaneval_program, mbpp_program  # noqa: E402
from eval.sandbox import Program, run_all  # noqa: E402
from eval.tasks import get_task  # noqa: E402
from tests.eval.hostile_programs import HOSTILE, REPORT  # noqa: E402
from tests.eval.shapes import HUMAN, HUMANEVAL_SHAPES, MBPP, MBPP_SHAPES  # noqa: E402
from utils.config import EvalConfig  # noqa: E402


def canonical(mirror: Path) -> list[Program]:
    """Return the programs of all reference solutions, HumanEval's 164 as completions and MBPP's 974."""
    with gzip.open(mirror / "humaneval" / "HumanEval.jsonl.gz", "rt") as lines:
        human = [json.loads(line) for line in lines]
    with open(mirror / "mbpp" / "mbpp.jsonl", encoding="utf-8") as lines:
        mbpp = [json.loads(line) for line in lines]
    programs = [humaneval_program(record, record["canonical_solution"]) for record in human]
    return programs + [mbpp_program(record, record["code"]) for record in mbpp]


def hostile() -> dict[str, int]:
    """Run the hostile programs and count those that achieve anything."""
    with tempfile.TemporaryDirectory() as folder:
        canary = Path(folder) / "canary"
        canary.write_text("alive")
        header = f"CANARY, REPOSITORY = {str(canary)!r}, {str(Path(__file__).resolve())!r}\n{REPORT}"
        programs = [Program(header + source, "assert f(2) == 3\nassert f(10) == 11") for source, _ in HOSTILE.values()]
        verdicts = run_all(programs)
        escapes = sum(verdict.passed or "DONE" in verdict.output for verdict in verdicts)
        escapes += canary.read_text() != "alive"
    time.sleep(1)
    escapes += sum(process.info["name"] == "astra-hostile" for process in psutil.process_iter(["name"]))
    return {"hostile_programs": len(programs), "escapes": escapes}


def regrade(mirror: Path, count: int) -> float:
    """Return the seconds that three graders take for 500 answers of GSM8K and 500 of MATH, half of them wrong."""
    seconds = 0.0
    for name in ("gsm8k", "math"):
        task: Any = get_task(name)
        problems = load_evaluation(name, str(mirror))[: min(500, count)]
        answers = [task.gold(problem) for problem in problems]
        given = [answers[k if k % 2 else k - 1] for k in range(len(answers))]
        texts = [f"So it goes.\nThe answer is: {answer}" for answer in given]
        started = time.perf_counter()
        for grader in task.graders:
            task.judge(problems, texts, EvalConfig(), grader)
        seconds += time.perf_counter() - started
    return seconds


def programs(mirror: Path, count: int = 2000) -> dict[str, Any]:
    """Measure everything, on the first `count` of each kind, and return the figures."""
    solutions = canonical(mirror)[:count]
    started = time.perf_counter()
    passed = sum(verdict.passed for verdict in run_all(solutions))
    seconds = time.perf_counter() - started
    shapes = [humaneval_program(HUMAN, text) for text in HUMANEVAL_SHAPES.values()]
    shapes += [mbpp_program(MBPP, text) for text in MBPP_SHAPES.values()]
    return {
        "canonical": len(solutions),
        "canonical_passed": passed,
        "canonical_seconds": round(seconds, 1),
        "correct_shapes": len(shapes),
        "correct_shapes_passed": sum(verdict.passed for verdict in run_all(shapes)),
        **hostile(),
        "regrade_seconds": round(regrade(mirror, count), 1),
        "sandbox": sandbox._mode(),
        "memory_by_cgroup": sandbox._cgroup_parent() is not None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="local mirror")
    parser.add_argument("--programs", type=int, default=2000, help="at most this many of each kind, to try it out")
    given = parser.parse_args()
    figures = programs(given.data_dir, given.programs)
    print(json.dumps({**provenance("none", "HumanEval, MBPP, GSM8K and MATH"), **figures}))


if __name__ == "__main__":
    main()
