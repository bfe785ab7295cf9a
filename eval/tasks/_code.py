"""Judging generated programs by running them in the sandbox."""

from collections.abc import Callable, Sequence

from eval.sandbox import Program, check, run_all
from eval.tasks import Judged, Record, Task
from utils.config import EvalConfig
from utils.errors import UserError


def code_task(name: str, program: Callable[[Record, str], Program], gold: Callable[[Record], str]) -> Task:
    """The task whose answers pass if `program(problem, text)` runs to its end."""

    def judge(problems: Sequence[Record], texts: Sequence[str], config: EvalConfig, grader: str) -> list[Judged]:
        programs = list(map(program, problems, texts))
        verdicts = run_all(programs, unsafe=config.unsafe_code)
        if unstarted := [verdict.reason for verdict in verdicts if verdict.flag == "sandbox"]:
            raise UserError(
                f"{name}: {len(unstarted)} of {len(verdicts)} programs were not run ({unstarted[0]}); the texts are "
                "kept, and the same command judges them again"
            )
        return [
            Judged(tried.candidate.strip() or None, verdict.passed, flag=verdict.flag, note=verdict.reason)
            for tried, verdict in zip(programs, verdicts, strict=True)
        ]

    return Task(name, 512, judge, gold, check=lambda config: check(config.eval.unsafe_code), version=3)
