r"""MATH answers: read from a text, compared as mathematics, and many of them in processes that can be killed.

The answer is what the last `\boxed{}` or the last "answer is" states, whichever is later. Answers are compared by
math-verify (Hugging Face, SymPy underneath), numbers exactly first; a box that the length limit cut is no answer.
`grade_all` gives each answer a limited time: SymPy can take for ever, and math-verify's own limit fails in threads.
"""

import itertools
import logging
import multiprocessing
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from eval.numbers import numbers_equal, parse_number

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns at each call that its time limit is off
_ANSWER_IS = re.compile(r"\banswer is\b(?! not\b)(\s*:)?", re.IGNORECASE)
_FORMULA = r"(?:\$(?:\\.|[^$\\])+\$|\\\(.+?\\\)|\\\[.+?\\\]|-?[0-9]+(?:[./][0-9]+)?)"
_FORMULAS = re.compile(rf"{_FORMULA}(?:(?:\s*,\s*(?:and |or )?|\s+(?:and|or)\s+){_FORMULA})*", re.DOTALL)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:(\{)|([^\s${]+))")
_BETWEEN_BOXES = re.compile(r"[\s$]*(?:,|,?\s*(?:and|or)\b|\\text\{\s*(?:and|or)\s*\})[\s$]*")
_BASE = re.compile(r"[0-9A-F]_\{?([0-9]+)\}?$")
_WORDS = re.compile(r"\\(?:text|mathrm|textbf|mbox)\s*\{([^{}]*)\}")
_IMAGINARY = re.compile(r"(?<![a-zA-Z\\])i(?![a-zA-Z])|\\sqrt\s*\{\s*-")
_PLAIN = [  # what people write, and LaTeX
    (r"√\s*\(([^()]*)\)|√\s*(\w+)|(?<![\\a-z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1\2\3}"), (r"\$\$", "$"), ("−", "-"),
    ("∞", r"\\infty "), ("π|(?<![a-zA-Z\\\\])pi(?![a-zA-Z])", r"\\pi "), ("≤", r"\\le "), ("≥", r"\\ge "),
    ("∪", r"\\cup "), ("×", r"\\times "), ("·", r"\\cdot "), ("°", r"^\\circ "),
]  # fmt: skip


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` (or `\fbox`, or `\boxed 5`) that has any; None without.

    Boxes with nothing but a comma, "and" or "or" between them are one answer: `\boxed{2}, \boxed{3}` is "2, 3".
    """
    found: list[str] = []
    begin = len(text)
    for box in reversed(list(_BOX.finditer(text))):
        end = _closing(text, box.end()) if box[1] else box.end()
        content = (text[box.end() : end - 1].strip() if box[1] else box[2]) if end else ""
        if found and not _BETWEEN_BOXES.fullmatch(text[end or len(text) : begin]):
            break
        if not end:
            return None
        if content:
            found, begin = ([content, *found] if content not in found else found), box.start()
    return ", ".join(found) or None


def _closing(text: str, start: int) -> int | None:
    """Where the braces opened before `start` end; None if they don't."""
    depth = 1
    for brace in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return brace.end()
    return None


def extract_math(text: str) -> str | None:
    r"""The answer of a text: the last `\boxed{}`, or what follows the last "answer is", whichever is later.

    An "answer is" with no answer after it ("so the answer is correct") does not hide a box before it. All the
    formulas of "$2$ or $3$" are the answer.
    """
    boxes = list(_BOX.finditer(text))
    box = boxes[-1].start() if boxes else -1
    for mark in reversed(list(_ANSWER_IS.finditer(text))):
        if box > mark.start():
            break
        answer = _stated(text[mark.end() :])
        if answer and (box < 0 or mark[1] or re.search(r"[0-9$\\]", answer)):
            return answer
    return last_boxed(text)


def _stated(tail: str) -> str | None:
    """The answer at the beginning of what follows "answer is": the formulas there, else its first sentence."""
    line = _first_line(tail.replace("$$", "$").strip())
    formulas = _FORMULAS.match(line)
    if formulas and ("$" in formulas.group() or "\\" in formulas.group()):
        parts = re.findall(_FORMULA, formulas.group(), re.DOTALL)
        bare = [re.sub(r"^(?:\$|\\[(\[])|(?:\$|\\[)\]])$", "", part).strip().rstrip(" .") for part in parts]
        return ", ".join(bare) or None
    sentence = re.split(r"[.;?]\s+(?=[A-Z])", line, maxsplit=1)[0].strip("* ").rstrip(".").strip("* ")
    if parse_number(sentence) is None:
        sentence = re.sub(r"(?<=[0-9})])(?:,? (?:or|and) )(?=[-\\(0-9])", ", ", sentence)
    return sentence.removesuffix("$") or None


def _first_line(text: str) -> str:
    """The first line, with those after it that its formula or environment goes on over."""
    line, taken = text.partition("\n")[0], ""
    for piece in text.split("\n")[:50]:
        taken += piece + "\n"
        plain = taken.replace("\\\\", "")  # a row's end in "\\[2pt]" opens nothing
        is_open = plain.count("\\begin") > plain.count("\\end") or plain.count("\\[") > plain.count("\\]")
        if not is_open and plain.replace("\\$", "").count("$") % 2 == 0:
            return taken.strip()
    return line.strip()  # a currency sign, or cut off


def math_equal(prediction: str, gold: str) -> bool:
    r"""Whether two mathematical answers are equivalent (math-verify; plain numbers exactly).

    Each is an answer in LaTeX or plain text, or a text that states it. There is no time limit: see `grade_all`.
    """
    left, right = (_latex(extract_math(text) or text) for text in (prediction, gold))
    bare = [_squeeze(text) for text in (left, right)]
    if bare[0] == bare[1]:
        return bool(bare[0])
    products = [re.search(r"[0-9][a-z]{2,}$", text.strip("$ .")) for text in (left, right)]  # "2xy" is not 2
    if parse_number(left) and parse_number(right) and not all(products):  # "100,200" may be one number or two
        return numbers_equal(left, right) or sorted(bare[0].split(",")) == sorted(bare[1].split(","))
    bases = [_BASE.search(text.strip("$ .")) for text in (left, right)]
    if bases[0] and bases[1] and bases[0][1] != bases[1][1]:  # math-verify ignores the subscript
        return False
    ends = [re.fullmatch(r"([(\[]).*,.*([)\]])", text) for text in bare]
    if ends[0] and ends[1] and ends[0].groups() != ends[1].groups():  # and the brackets of "[3,-1]"
        return False
    return _verify(left, right)


def _latex(text: str) -> str:
    """An answer with what people write in place of LaTeX, and what math-verify can't read, in LaTeX."""
    for old, new in _PLAIN:
        text = re.sub(old, new, text)
    if re.search(r"\\(?:sin|cos|tan|sec|csc|cot)", text):
        text = re.sub(r"\{?([0-9.]+)\}?\s*\^\s*\{?\\circ\}?", r"{(\1 \\pi/180)}", text)
    return re.sub(r"([0-9]*)\.([0-9]*)\\overline\{([0-9]+)\}", _recurring, text)


def _recurring(match: re.Match[str]) -> str:
    whole, fixed, again = match.groups()
    value = Fraction(int(again), (10 ** len(again) - 1) * 10 ** len(fixed)) + Fraction(f"{whole or 0}.{fixed or 0}")
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _squeeze(text: str) -> str:
    text = re.sub(r"\\left|\\right|\\[!,; ]|[$\s]", "", _WORDS.sub(r"\1", text))
    return re.sub(r"\\[dt]frac", r"\\frac", text).rstrip(".")


def _verify(prediction: str, gold: str) -> bool:
    from math_verify import parse, verify  # here, because SymPy takes a second to import

    prediction, gold = (text if text.startswith(("$", "\\(", "\\[")) else f"${text}$" for text in (prediction, gold))
    parsed = [parse(text, parsing_timeout=None) for text in (gold, prediction)]
    if _IMAGINARY.search(gold + prediction):
        parsed = [[_imaginary(part) for part in parts] for parts in parsed]
    return all(parsed) and bool(verify(*parsed, timeout_seconds=None, allow_set_relation_comp=True))


def _imaginary(part: Any) -> Any:
    """An expression in which i is the imaginary unit; math-verify reads a variable, and leaves roots as they are."""
    from sympy import I

    unit = {symbol: I for symbol in getattr(part, "free_symbols", ()) if symbol.name == "i"}
    return part if isinstance(part, str) else part.subs(unit).doit()


@dataclass(frozen=True)
class Grade:
    """One verdict; `flag` is "" or why the answer counts as wrong unread: "timeout", or "error: ..."."""

    correct: bool
    flag: str = ""


def grade_all(
    pairs: Sequence[tuple[str, str]], grader: Callable[[str, str], bool], workers: int = 0, timeout: float = 10.0
) -> list[Grade]:
    """Grade (prediction, gold) pairs in `workers` processes (default: one per core), in order.

    An answer that takes more than `timeout` seconds, or ends its process, is flagged, and the process replaced.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["math_verify"])
    grades, left, count = [Grade(False)] * len(pairs), iter(range(len(pairs))), workers or len(os.sched_getaffinity(0))

    def work(_: int) -> None:
        for first in left:  # shared: each thread takes the next answer, and starts a process when it has none
            with context.Pool(1) as pool:
                pool.apply_async(_limit_memory).get(120)  # importing SymPy on a busy machine
                for number in itertools.chain([first], left):
                    try:
                        grades[number] = pool.apply_async(_grade, (grader, *pairs[number])).get(timeout)
                    except multiprocessing.TimeoutError:  # or the process has died, and never answers
                        grades[number] = Grade(False, "timeout")
                        break

    with ThreadPoolExecutor(count) as threads:
        list(threads.map(work, range(min(count, len(pairs)))))
    return grades


def _limit_memory() -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30 if hard < 0 else min(hard, 4 << 30), hard))


def _grade(grader: Callable[[str, str], bool], prediction: str, gold: str) -> Grade:
    try:
        return Grade(grader(prediction, gold))
    except Exception as error:  # one unreadable answer must not end the evaluation
        return Grade(False, f"error: {type(error).__name__}")
