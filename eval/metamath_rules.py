"""The grading rules of the MetaMath and PiSSA evaluation scripts, for comparison with published tables only.

They are looser and stricter than one would choose: GSM8K answers are *rounded* to integers (3.4 passes for 3) and only
the first number after the marker counts, cut at its second thousands separator; MATH answers are compared as strings
after the normalisation of Hendrycks et al. (2021), so that x+1 and 1+x differ.
Sources: meta-math/MetaMath `eval_gsm8k.py`, `eval_math.py`; GraphPKU/PiSSA `test_acc.py`.
"""

import re
from contextlib import suppress
from fractions import Fraction

MARKER = "The answer is: "
_FIRST_NUMBER = re.compile(r"[\-+]?\d*[.,/]?\d+")


def gsm8k_number(completion: str) -> int | None:
    """The integer those scripts read from a completion: first number after the last marker, rounded half to even."""
    _, found, tail = completion.rpartition(MARKER)
    match = _FIRST_NUMBER.search(tail) if found else None
    if match is None:
        return None
    number = match.group().replace(",", "")
    numerator, slash, denominator = number.partition("/")
    try:
        if not slash:
            return round(float(number))
        if denominator == "0":
            return round(float(numerator))
        return round(float(Fraction(int(numerator), int(denominator))))
    except (ValueError, OverflowError, ZeroDivisionError):
        return None


def gsm8k_equal(completion: str, gold: str) -> bool:
    """Whether `completion` passes for `gold` (a number, or a GSM8K answer ending in "#### N")."""
    number = gsm8k_number(completion)
    with suppress(ValueError):  # an answer of your own records that those scripts could not read
        return number is not None and float(number) == float(gold.rpartition("#### ")[2].replace(",", ""))
    return False


def math_answer(completion: str) -> str | None:
    """What follows the last marker, up to a full stop at the end of a line."""
    _, found, tail = completion.rpartition(MARKER)
    if not found:
        return None
    return tail.split(".\n")[0].strip().removesuffix(".").strip()


def math_equal(completion: str, gold: str) -> bool:
    """Whether `completion` passes for the answer `gold` (as it stands in the box) under string normalisation."""
    answer = math_answer(completion)
    if answer is None:
        return False
    try:
        return normalise(answer) == normalise(gold)
    except (ValueError, IndexError):  # their `except Exception`: what can't be normalised is compared as it is
        return answer == gold


def normalise(text: str) -> str:
    """Canonical spelling of a MATH answer; raises ValueError or IndexError where the original fails."""
    for old, new in (
        ("\n", ""), ("\\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"), ("\\left", ""), ("\\right", ""),
        ("^{\\circ}", ""), ("^\\circ", ""), ("\\$", ""),
    ):  # fmt: skip
        text = text.replace(old, new)
    if "\\text{ " in text:
        text, _ = text.split("\\text{ ")  # ValueError if there are two
    text = text.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if not text:
        return text
    if text[0] == ".":
        text = "0" + text
    sides = text.split("=")
    if len(sides) == 2 and len(sides[0]) <= 2:
        text = sides[1]
    text = _brace_fracs(_brace_roots(text).replace(" ", ""))
    return _slash_to_frac("\\frac{1}{2}" if text == "0.5" else text)


def _brace_roots(text: str) -> str:
    r"""`\sqrt3` to `\sqrt{3}`."""
    if re.search(r"\\sqrt(?=\\sqrt|\Z)", text):
        raise IndexError("a root of nothing")
    return re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text)


def _brace_fracs(text: str) -> str:
    r"""`\frac12` and `\frac1{72}` to `\frac{1}{2}` and `\frac{1}{72}`, but not `\frac{72}1`; none if one is cut."""
    if cut := re.search(r"\\frac([^{]?)(?=\\frac|\Z)", text):
        if not cut[1]:
            raise IndexError("a fraction of nothing")
        return text
    return re.sub(r"\\frac([^{])([^{])", r"\\frac{\1}{\2}", re.sub(r"\\frac([^{])(?={)", r"\\frac{\1}", text))


def _slash_to_frac(text: str) -> str:
    r"""`a/b` with integers in canonical form to `\frac{a}{b}`; ValueError for other single slashes."""
    parts = text.split("/")
    if len(parts) != 2:
        return text
    a, b = int(parts[0]), int(parts[1])
    return f"\\frac{{{a}}}{{{b}}}" if text == f"{a}/{b}" else text
