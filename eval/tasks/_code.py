"""Judging generated programs by running them in the sandbox."""

from collections.abc import Callable, Sequence

from eval.code import extract_code
from eval.sandbox import Program, available, run_all
from eval.tasks import Judged, Record
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


def judge_with(
    make: Callable[[Record, str], Program],
) -> Callable[[Sequence[Record], Sequence[Sequence[str]], EvalConfig], list[list[Judged]]]:
    """Return a judge that runs `make(problem, text)` for every text; a program that ends its test passes."""

    def judge(problems: Sequence[Record], texts: Sequence[Sequence[str]], config: EvalConfig) -> list[list[Judged]]:
        programs = [make(problem, text) for problem, group in zip(problems, texts, strict=True) for text in group]
        verdicts = iter(run_all(programs, unsafe=config.unsafe_code))
        return [
            [Judged(extract_code(text) or None, verdict.passed, note=verdict.reason) for text in group
             for verdict in [next(verdicts)]]
            for group in texts
        ]  # fmt: skip

    return judge
