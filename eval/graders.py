"""Graders: pure functions from a generated answer and the gold answer to a verdict, and the processes they run in.

`numbers_equal` (`eval.exact_numbers`) compares exactly: 3.4 is not 3. `math_equal` compares mathematics with
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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from eval import metamath_rules
from eval.exact_numbers import numbers_equal, parse_number

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
