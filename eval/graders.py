"""Graders: pure functions from a generated answer and the gold answer to a verdict.

`numbers_equal` compares numbers exactly (`fractions.Fraction`): 3.4 is not 3. `math_equal` compares mathematics with
math-verify (Hugging Face, SymPy underneath), numbers exactly first. `grade_all` runs any grader of `GRADERS` in worker
processes with a wall-clock limit an answer: SymPy can take for ever, and math-verify's own limit fails in threads.
"""

import json
import logging
import os
import queue
import re
import select
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from eval import metamath_rules

MARKER = "The answer is:"

# --------------------------------------------------------------------------------------------------------- numbers

_LONGEST = 400  # characters of a number: beyond, it is noise, and conversion is quadratic
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12, "k": 3, "K": 3}
_DECIMAL = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3}(?![0-9]))?"
_CURRENCY = r"(?:US\$|[$€£¥₹]|USD|EUR|GBP|Rs\.?)"
_CORE = (
    rf"(?:{_CURRENCY}\s*)?(?:(?P<whole>[0-9]+)\s+(?:and\s+)?(?P<part>[0-9]+)\s*/\s*(?P<of>[0-9]+)"
    rf"|(?P<top>{_DECIMAL})(?:\s*/\s*(?P<bottom>{_DECIMAL}))?)"
    r"(?:\s*(?P<scale>hundred|thousand|million|billion|trillion)\b|(?P<kilo>[kK])\b)?"
    r"(?P<percent>\s*(?:%|percent\b|per cent\b))?"
)
_WHOLE = re.compile(
    rf"(?:[A-Za-z]\w{{0,15}}\s*=\s*)?(?P<sign>(?:[-+]|minus\s|negative\s)?)\s*(?:{_CURRENCY}\s*)?(?P<sign2>-?)\s*{_CORE}"
    r"(?P<unit>.*)",
    re.DOTALL,
)
_WITHIN = re.compile(
    rf"(?P<sign>(?<![\w)\]}}%.])[-+]|\bnegative\s+|(?<=is )minus\s+)?(?:{_CURRENCY}\s?)?(?P<sign2>-?){_CORE}"
)
_UNIT = re.compile(r"[/·-]?[^\W\d_°]|°")  # how a word of a unit begins; then letters and these:
_UNIT_REST = re.compile(r"(?:[^\W\d_]|[°²³.'’/·-]|\^\{?-?[0-9]\}?)*")
_LONGEST_UNIT = 100
_LETTER_UNITS = frozenset("mgshlLAVWJNKCF")
_NOT_UNITS = frozenset(
    ["and", "or", "to", "half", "halves", "thirds", "fourths", "fifths", "plus", "minus", "times", "over", "by"]
)
_SENTENCE_END = re.compile(r"(?<!Rs)[.;!?]\s")
_ASIDE = re.compile(r",\s+(?!\d|or\b|and\b)|\s(?:because|since|as|if|when)\b")


@dataclass(frozen=True)
class Number:
    """An exact value as written: 50% has value 50 and `percent` set."""

    value: Fraction
    percent: bool = False


def _plain(text: str) -> str:
    """Text with the LaTeX, Unicode and Markdown spellings of numbers replaced by plain ones."""
    for old, new in (
        ("\u2212", "-"), ("\u2013", "-"), ("\u00a0", " "), ("\u202f", " "), ("\u2009", " "), ("％", "%"), ("{,}", ","),
        ("\\left", ""), ("\\right", ""), ("\\!", ""), ("\\,", ""), ("\\;", ""), ("\\ ", " "), ("\\%", "%"),
        ("\\$", "$"), ("^{\\circ}", " degrees"), ("^\\circ", " degrees"), ("\\(", ""), ("\\)", ""), ("\\[", ""),
        ("\\]", ""), ("$$", ""),
    ):  # fmt: skip
        text = text.replace(old, new)
    text = "".join(_vulgar(c) for c in text)
    text = re.sub(r"\*\*(.+?)\*\*", r"\1", text)
    text = re.sub(r"\\(?:text|mathrm|textbf|mathbf|mbox)\s*\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"\\[dtc]?frac\s*\{( *-)?([^{}]*)\}\s*\{([^{}]*)\}", r"\1 \2/\3", text)
    text = re.sub(r"\\[dtc]?frac\s*([0-9])\s*([0-9])", r" \1/\2", text)
    text = re.sub(r"\\f?box(?:ed)?\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"(?<=[0-9])\s*(?:\\times|\\cdot|×)\s*10\s*\^\s*\{?([+-]?[0-9]{1,3})\}?", r"e\1", text)
    text = re.sub(r"\$\s*\$|(?<=[^\sA-Z$])\$(?=[\s.,]|$)", "", text)  # closing $ of inline mathematics
    return re.sub(r"^\s*\$(.*)\$\s*$", r"\1", text)


def _vulgar(char: str) -> str:
    """A character such as "½" as " 1/2"; any other as it is."""
    decomposed = unicodedata.normalize("NFKC", char)
    return " " + decomposed.replace("\u2044", "/") if "\u2044" in decomposed and len(decomposed) > 1 else char


def _number(match: re.Match[str]) -> Number | None:
    """The value of a match of `_CORE` and its signs."""
    if len(match.group()) > _LONGEST:
        return None
    try:
        if match["whole"]:
            value = int(match["whole"]) + Fraction(int(match["part"]), int(match["of"]))
        else:
            value = Fraction(match["top"].replace(",", ""))
            if match["bottom"]:
                value /= Fraction(match["bottom"].replace(",", ""))
    except ZeroDivisionError:
        return None
    value *= 10 ** _SCALES.get(match["scale"] or match["kilo"], 0)
    negative = (match["sign"] or "").strip() in ("-", "minus", "negative") or match["sign2"] == "-"
    return Number(-value if negative else value, bool(match["percent"]))


def parse_number(text: str) -> Number | None:
    """Reads a text that is one number, with sign, currency, scale word, percent sign or unit; None if it is not."""
    if len(text) > 4 * _LONGEST:
        return None
    plain = _plain(text).strip().rstrip(".").strip()
    plain = re.sub(r"(?<![\w.,])([0-9]{1,3})((?: [0-9]{3})+)(?![\w,/]| ?/)", _without_spaces, plain)
    while plain[:1] == "(" and plain[-1:] == ")" and plain.count("(") == 1:
        plain = plain[1:-1].strip()
    match = _WHOLE.fullmatch(plain)
    return _number(match) if match and _is_unit(match["unit"]) else None


def _without_spaces(match: re.Match[str]) -> str:
    return match.group().replace(" ", "")


def _is_unit(text: str) -> bool:
    """Whether what follows a number leaves its value alone: nothing, or a few words of unit; "3x" is not 3."""
    text = re.sub(r"\(([^()\d]*)\)", r" \1", text).strip()
    if not text:
        return True
    tokens = text.rstrip(" .!").split()
    if not 1 <= len(tokens) <= 6 or len(text) > _LONGEST_UNIT or not all(map(_is_unit_word, tokens)):
        return False
    words = re.findall(r"[^\W\d_]+", text)
    if any(word.lower() in _NOT_UNITS for word in words):
        return False
    first = words[0] if words else ""
    return len(first) != 1 or first in _LETTER_UNITS or (first == "a" and len(words) > 1)


def _is_unit_word(token: str) -> bool:
    start = _UNIT.match(token)
    return start is not None and _UNIT_REST.fullmatch(token, start.end()) is not None


def extract_number(text: str, marker: str = MARKER) -> str | None:
    """Strict reading of a generation: the number after the last `marker`, on that line, as written; None without.

    Of "5 + 3 = 8" it takes the last side that is a number, and of "18 dollars, as ..." what stands before the reason.
    Any other sentence must hold one number only: "3 or 4", "10:30" and "5 feet 3 inches" are no answer.
    """
    _, found, tail = text.rpartition(marker)
    if not found:
        return None
    line = re.sub(r"^[\s$\\\[]*(?=\n)", "", tail).strip().partition("\n")[0].strip()
    sentence = _SENTENCE_END.split(line, maxsplit=1)[0]
    head = _ASIDE.split(re.sub(r"\([^()]*\)", "", sentence), maxsplit=1)[0]
    for part in (line, sentence, *reversed(head.split("=")), head.split(" for ")[0]):
        if parse_number(part) is not None:
            return part.strip().rstrip(".").strip()
    plain = _plain(sentence)
    matches = list(_WITHIN.finditer(plain))
    return matches[0].group().strip() if len(matches) == 1 and _stands_alone(matches[0]) else None


def _stands_alone(match: re.Match[str]) -> bool:
    """Whether a number is no part of a formula or name, as in "3x", "x^2" and "A4"."""
    before, after = match.string[: match.start()], match.string[match.end() :]
    letters = re.match(r"[^\W\d_]+", after)
    if letters and len(letters.group()) == 1 and letters.group() not in _LETTER_UNITS:
        return False
    return not re.search(r"[\w^{\\√]$", before) and not re.match(r"\s*[\^\\_{]", after)


def last_number(text: str) -> str | None:
    """Lenient reading of a generation: its last number, as written, wherever it stands."""
    matches = [match.group().strip() for match in _WITHIN.finditer(_plain(text))]
    return matches[-1] if matches else None


def numbers_equal(prediction: str | None, gold: str) -> bool:
    """Whether two texts denote exactly the same number.

    Each is a number with or without decoration, or ends in "The answer is: N" or "#### N". 50% equals both 0.5 and 50,
    since questions that ask for a percentage have 50 as their answer. What can't be read equals nothing.
    """
    left, right = _read(prediction), _read(gold)
    if left is None or right is None:
        return False
    if left.percent == right.percent:
        return left.value == right.value
    percent, other = (left, right) if left.percent else (right, left)
    return other.value in (percent.value, percent.value / 100)


def _read(text: str | None) -> Number | None:
    if text is None:
        return None
    text = str(text).rpartition("####")[2]
    answer = extract_number(text) if MARKER in text else text
    return None if answer is None else parse_number(answer)


# ----------------------------------------------------------------------------------------------------- mathematics

_ANSWER_IS = re.compile(r"\banswer is\b(?! not\b)(\s*:)?", re.IGNORECASE)
_FORMULA = r"(?:\$[^$]+\$|\\\(.+?\\\)|\\\[.+?\\\]|-?[0-9]+(?:[./][0-9]+)?)"
_FORMULAS = re.compile(rf"{_FORMULA}(?:(?:\s*,\s*(?:and |or )?|\s+(?:and|or)\s+){_FORMULA})*", re.DOTALL)
_BETWEEN_BOXES = re.compile(r"[\s$]*(?:,|,?\s*(?:and|or)\b|\\text\{\s*(?:and|or)\s*\})[\s$]*")
_BASE = re.compile(r"[0-9A-F]_\{?([0-9]+)\}?$")


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` (or `\fbox`, or `\boxed 5`), braces balanced; None without.

    Boxes with nothing but a comma, "and" or "or" between them are one answer: `\boxed{2}, \boxed{3}` is "2, 3".
    """
    found: list[str] = []
    end = len(text)
    while (start := max(text.rfind("\\boxed", 0, end), text.rfind("\\fbox", 0, end))) >= 0:
        content, after = _box(text, start)
        if found and (end - after > 20 or not _BETWEEN_BOXES.fullmatch(text[after:end])):
            break
        if content is None:
            return None
        if content not in found:
            found.insert(0, content)
        end = start
    return ", ".join(found) or None


def _box(text: str, start: int) -> tuple[str | None, int]:
    """The content of the box at `start`, None if it is empty or not closed, and where what follows it begins."""
    at = re.compile(r"\\(?:boxed|fbox)\s*").match(text, start)
    assert at is not None
    if text[at.end() : at.end() + 1] != "{":
        end = re.compile(r"[^\s$]*").match(text, at.end()).end()  # type: ignore[union-attr]
        return text[at.end() : end] or None, end
    depth = 0
    for brace in re.compile(r"[{}]").finditer(text, at.end()):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return text[at.end() + 1 : brace.start()].strip(), brace.end()
    return None, len(text)


def extract_math(text: str) -> str | None:
    r"""The answer of a generation: the last `\boxed{}`, or what follows the last "answer is", whichever is later.

    An "answer is" with no answer after it ("so the answer is correct") does not hide a box before it. All the
    formulas of "$2$ or $3$" are the answer.
    """
    box = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
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
        return (
            ", ".join(re.sub(r"^(?:\$|\\[(\[])|(?:\$|\\[)\]])$", "", part).strip().rstrip(" .") for part in parts)
            or None
        )
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


def math_equal(prediction: str | None, gold: str) -> bool:
    r"""Whether two mathematical answers are equivalent (math-verify; plain numbers exactly).

    Each is an answer in LaTeX or plain text, or a text that holds it in `\boxed{}` or after "The answer is:". There is
    no time limit: use `grade_all` on answers from a model.
    """
    if prediction is None:
        return False
    left, right = (extract_math(text) or text for text in (prediction, gold))
    if _squeeze(left) == _squeeze(right):
        return bool(_squeeze(left))
    if parse_number(left) and parse_number(right):  # "100,200" may be one number or two
        return numbers_equal(left, right) or sorted(_squeeze(left).split(",")) == sorted(_squeeze(right).split(","))
    bases = [_BASE.search(text.strip("$ .")) for text in (left, right)]
    if bases[0] and bases[1] and bases[0][1] != bases[1][1]:  # math-verify ignores the subscript
        return False
    return _verify(left, right)


def _squeeze(text: str) -> str:
    text = re.sub(r"\\(?:text|mathrm|textbf|mbox)\s*\{([^{}]*)\}|\\left|\\right|\\[!,; ]|[$\s]", r"\1", text)
    return re.sub(r"\\[dt]frac", r"\\frac", text).rstrip(".")


def _verify(prediction: str, gold: str) -> bool:
    from math_verify import parse, verify  # here, because SymPy takes a second to import

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns at each call that its limit is off
    prediction, gold = (text if text.startswith(("$", "\\(", "\\[")) else f"${text}$" for text in (prediction, gold))
    parsed = parse(gold, parsing_timeout=None), parse(prediction, parsing_timeout=None)
    return all(parsed) and bool(verify(*parsed, timeout_seconds=None))


# ---------------------------------------------------------------------------------------------------- many answers

GRADERS: dict[str, Callable[[str, str], bool]] = {
    "numbers": numbers_equal,
    "math": math_equal,
    "metamath_gsm8k": metamath_rules.gsm8k_equal,
    "metamath_math": metamath_rules.math_equal,
}
_START_SECONDS = 120  # importing SymPy on a busy machine


@dataclass(frozen=True)
class Grade:
    """One verdict; `flag` is "" or why the answer counts as wrong unread: "timeout", or "error: ..."."""

    correct: bool
    flag: str = ""


def grade_all(
    pairs: Sequence[tuple[str, str]], grader: str = "math", workers: int = 2, timeout: float = 10.0
) -> list[Grade]:
    """Grades (prediction, gold) pairs in worker processes, in order.

    Args:
        pairs: what the grader takes.
        grader: a name in `GRADERS`.
        workers: processes; each imports nothing but the grader.
        timeout: wall-clock seconds an answer; beyond, its worker is killed and replaced.

    Raises:
        KeyError: no such grader.
    """
    GRADERS[grader]
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for i in range(len(pairs)):
        waiting.put(i)
    grades = [Grade(False, "error: not graded")] * len(pairs)

    def drain(_: int) -> None:
        worker: _Worker | None = None
        try:
            while True:
                i = waiting.get_nowait()
                worker = worker or _Worker(grader)
                grades[i] = worker.grade(pairs[i], timeout)
                if not worker.alive:
                    worker = None
        except queue.Empty:
            return
        finally:
            if worker:
                worker.close()

    count = max(1, min(workers, len(pairs)))
    with ThreadPoolExecutor(count) as pool:
        for future in [pool.submit(drain, n) for n in range(count)]:
            future.result()
    return grades


class _Worker:
    """A process that grades one pair at a time: JSON lines in, JSON lines out."""

    def __init__(self, grader: str) -> None:
        command = [sys.executable, "-c", "import sys; from eval.graders import serve; serve(sys.argv[1])", grader]
        root = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, stdin=-1, stdout=-1, stderr=subprocess.DEVNULL, bufsize=0, env=env)
        self.alive = True
        if self._answer(_START_SECONDS) != ["ready"]:
            self.close()
            raise RuntimeError("a grading process could not be started")

    def grade(self, pair: tuple[str, str], timeout: float) -> Grade:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(list(pair)).encode() + b"\n")
            answer = self._answer(timeout)
        except BrokenPipeError:
            answer = []
        if answer is None or not answer:
            self.close()
            return Grade(False, "timeout" if answer is None else "error: the grader died")
        return Grade(*answer)

    def _answer(self, timeout: float) -> list | None:
        """The next line; None if it doesn't come in time, [] if the process died."""
        out = self.process.stdout
        assert out is not None
        if not select.select([out], [], [], timeout)[0]:
            return None
        line = out.readline()
        return json.loads(line) if line.endswith(b"\n") else []

    def close(self) -> None:
        self.alive = False
        self.process.kill()
        self.process.communicate()


def serve(grader: str) -> None:
    """The worker's side of `grade_all`."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30 if hard < 0 else min(hard, 4 << 30), hard))
    if grader == "math":
        _verify("1", "1")
    print('["ready"]', flush=True)
    for line in sys.stdin:
        try:
            answer: list = [GRADERS[grader](*json.loads(line))]
        except Exception as error:  # one unreadable answer must not end the evaluation: it is flagged in the record
            answer = [False, f"error: {type(error).__name__}"]
        print(json.dumps(answer), flush=True)
