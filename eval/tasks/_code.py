"""Judging generated programs by running them in the sandbox."""

from collections.abc import Callable, Sequence

from eval.sandbox import Program, available, run_all
from eval.tasks import Judged, Record, Task
from utils.config import EvalConfig
from utils.errors import UserError


def check(config: EvalConfig) -> None:
    """Refuse to start where generated code could do harm.

    Raises:
        UserError: there is no working sandbox and `eval.unsafe_code` is not set.
    """
    reason = available()
    if reason and not config.unsafe_code:
        raise UserError(f"eval.unsafe_code: {reason}; true runs generated code unprotected")


def code_task(name: str, program: Callable[[Record, str], Program], gold: Callable[[Record], str]) -> Task:
    """The task whose answers pass if `program(problem, text)` runs to its end."""

    def judge(
        problems: Sequence[Record], texts: Sequence[Sequence[str]], config: EvalConfig, grader: str
    ) -> list[list[Judged]]:
        programs = [program(record, text) for record, group in zip(problems, texts, strict=True) for text in group]
        verdicts = run_all(programs, unsafe=config.unsafe_code)
        judged = iter(
            Judged(tried.candidate.strip() or None, verdict.passed, flag=verdict.flag, note=verdict.reason)
            for tried, verdict in zip(programs, verdicts, strict=True)
        )
        return [[next(judged) for _ in group] for group in texts]

    return Task(name, max_new_tokens=512, judge=judge, gold=gold, check=check, version=3)
