"""The grading rules that Astra's published scripts call, for comparison with its published tables only.

GSM8K: the first number after the last "The answer is: ", rounded to an integer, passes within a ten-thousandth, and
100 times too large or too small too. MATH: text is normalised as in `eval.metamath_rules`; what can't be (a single "/"
between anything but integers, a trailing `\\sqrt` or `\\frac`) is compared with *itself*, and so passes whatever the
answer is. Else numbers pass as above, texts that are equal without brackets, tuples part by part, and expressions
whose difference simplifies to zero or whose values lie within a thousandth.

Source: LyoAI/Astra, commit d793963, `utils/gsm8k_inference.py`, `MATH_inference.py`, `util.py` and `grader.py`. There
expressions go through SymPy's `parse_latex`, which needs a package that its requirements do not name, and through
`parse_expr`, which runs the text as Python. Here they go through math-verify's LaTeX parser alone: this is the lenient
reading where SymPy's parser was not installed, and text that only Python reads is not run.
"""

from contextlib import suppress
from math import isclose
from typing import Any

from eval.metamath_rules import gsm8k_number, math_answer, normalise


def gsm8k_equal(completion: str, gold: str) -> bool:
    """Whether `completion` passes for `gold`, a number."""
    number = gsm8k_number(completion)
    with suppress(ValueError):  # as in `metamath_rules`
        return number is not None and _numbers_equal(float(number), float(gold.replace(",", "")))
    return False


def math_equal(completion: str, gold: str) -> bool:
    """Whether `completion` passes for the answer `gold`, as it stands in the box. SymPy may take for ever."""
    answer = math_answer(completion)
    if answer is None:
        return False
    try:
        left, right = normalise(answer), normalise(gold)
    except (ValueError, IndexError):
        return bool(answer) or answer == gold  # the answer against itself
    return _texts_equal(left, right) or left == right


def _numbers_equal(number: float, gold: float) -> bool:
    return any(isclose(number, other, rel_tol=1e-4) for other in (gold / 100, gold, gold * 100))


def _float(text: str) -> float | None:
    with suppress(ValueError):
        return float(text.replace(",", ""))
    return None


def _texts_equal(text: str, gold: str) -> bool:
    number, other = _float(text), _float(gold)
    if number is not None and other is not None:
        return _numbers_equal(number, other)
    if not text:
        return False
    text, gold = text.strip(), gold.strip()
    square, round_ = _inside(text, "[]"), _inside(text, "()")
    bare = [text, gold]
    if (square and not gold.startswith("(")) or (round_ and not gold.startswith("[")):
        bare = [part.strip("[]()") for part in bare]
    bare = [part.translate(str.maketrans("", "", "{}()")) for part in bare]
    if bare[0] == bare[1]:
        return True
    if (square and _inside(gold, "[]")) or (round_ and _inside(gold, "()")):
        parts, others = text[1:-1].split(","), gold[1:-1].split(",")
        if len(parts) == len(others) and all(map(_texts_equal, parts, others)):
            return True
    return _expressions_equal(_parse(text), _parse(gold))


def _inside(text: str, brackets: str) -> bool:
    return text.startswith(brackets[0]) and text.endswith(brackets[1])


def _parse(text: str) -> Any:
    from math_verify import parse  # here, because SymPy takes a second to import

    found = parse(f"${text}$", fallback_mode="no_fallback", parsing_timeout=None)
    return found[0] if found else None


def _expressions_equal(left: Any, right: Any) -> bool:
    if left is None or right is None:
        return False
    with suppress(Exception):  # sets, matrices and the like have no difference, or no value; SymPy fails in many ways
        if (left - right).simplify() == 0:
            return True
    with suppress(Exception):
        return isclose(left.evalf(), right.evalf(), rel_tol=1e-3)
    return False
