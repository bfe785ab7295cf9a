"""Judging generated programs by running them in the sandbox."""

from collections.abc import Callable, Sequence

from eval.code import extract_code
from eval.evalplus import plus_program
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
    """Return a judge that runs `make(problem, text)` for every text; a program that ends its test passes.

    What passes has the extra tests of evalplus to pass too, where the problem has them.
    """

    def judge(problems: Sequence[Record], texts: Sequence[Sequence[str]], config: EvalConfig) -> list[list[Judged]]:
        tried = [(problem, text) for problem, group in zip(problems, texts, strict=True) for text in group]
        verdicts = run_all([make(problem, text) for problem, text in tried], unsafe=config.unsafe_code)
        passed = [k for k, verdict in enumerate(verdicts) if verdict.passed and "plus" in tried[k][0]]
        more = [plus_program(tried[k][0]["plus"], tried[k][1]) for k in passed]
        extra = dict(zip(passed, run_all(more, unsafe=config.unsafe_code), strict=True))
        judged = iter(
            Judged(
                extract_code(text) or None,
                verdicts[k].passed,
                plus=(k in extra and extra[k].passed) if "plus" in problem else None,
                note=verdicts[k].reason or (extra[k].reason if k in extra else ""),
            )
            for k, (problem, text) in enumerate(tried)
        )
        return [[next(judged) for _ in group] for group in texts]

    return judge
