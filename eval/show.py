"""`python -m eval.show RUN`, or `--flipped A B`: print samples readably."""

import signal
import textwrap
from pathlib import Path
from typing import Any

from eval.task_record import find_samples, paired_samples
from utils.cli import Parser, main
from utils.files import read_lines

WIDTH = 100
Sample = dict[str, Any]


def render(task: str, sample: Sample, other: Sample | None = None) -> str:
    """One sample as text: prompt, output, what was read from it and what it should have been; or those of A and B."""
    if other is None:
        verdict = {True: "RIGHT", False: "WRONG", None: ""}[sample.get("correct")]
        number = f"{sample['problem']}" + (f".{sample['sample']}" if sample.get("sample") else "")
        head, answers = f"{task} #{number}  {verdict} ", [_answer(sample, "  > ")]
    else:
        head = f"{task} #{sample['problem']}  only {'A' if sample['correct'] else 'B'} is right "
        answers = [_answer(sample, "  A "), _answer(other, "  B ")]
    prompt = sample.get("prompt", "")
    text = "\n".join(prompt) if isinstance(prompt, list) else prompt
    return "\n".join([f"{head:-<{WIDTH}}", _indent(text, "  | "), *answers])


def flipped(first: list[Sample], second: list[Sample]) -> list[tuple[Sample, Sample]]:
    """The pairs of samples of one problem of which one is right and the other wrong."""
    others = {(sample["problem"], sample.get("sample", 0)): sample for sample in second}
    pairs = [(sample, others.get((sample["problem"], sample.get("sample", 0)), {})) for sample in first]
    return [(a, b) for a, b in pairs if {True, False} == {a.get("correct"), b.get("correct")}]


def _answer(sample: Sample, mark: str) -> str:
    output = sample.get("output", "")
    if isinstance(output, list):  # choices, with their likelihoods
        output = "\n".join(f"{value:9.3f} {text}" for value, text in zip(sample["logprobs"], output, strict=True))
    shown = ("extracted", "gold", "lenient", "flag", "note", "finish", "loss")
    facts = [f"{key}: {_short(sample[key])}" for key in shown if sample.get(key) is not None]
    for grader, found in sample.get("graders", {}).items():
        if found["correct"] != sample["correct"]:
            facts.append(f"{grader}: {'right' if found['correct'] else 'wrong'}")
    return _indent(output, mark) + "\n  " + ", ".join(facts)


def _indent(text: str, mark: str) -> str:
    lines = [piece for line in _plain(text).splitlines() for piece in textwrap.wrap(line, WIDTH - len(mark)) or [""]]
    return "\n".join(mark + line for line in lines)


def _plain(text: str) -> str:
    """Model text without what could steer a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def _short(value: Any) -> str:
    text = " ".join(_plain(str(value)).split())
    return text if len(text) <= WIDTH else text[: WIDTH - 3] + "..."


def command() -> None:
    """Print samples of every task in a folder, or what two folders differ in."""
    parser = Parser(prog="python -m eval.show", description="Print samples readably.")
    parser.add_argument("run", type=Path, nargs="?", help="run folder, eval folder or samples file")
    parser.add_argument("--task", help="only this task")
    parser.add_argument("--wrong", action="store_true", help="only wrong answers")
    parser.add_argument("--right", action="store_true", help="only right answers")
    parser.add_argument("--flipped", type=Path, nargs=2, metavar=("A", "B"), help="what one solves and the other not")
    parser.add_argument("--limit", type=int, default=5, help="samples of each task (default: 5)")
    given = parser.parse_args()
    if (given.run is None) == (given.flipped is None):
        parser.error("name one run, or two after --flipped")
    if given.flipped:
        a, b = given.flipped
        for task, first, second in paired_samples(a, b, given.task):
            pairs = flipped(read_lines(first), read_lines(second))
            only_a = sum(of_a["correct"] for of_a, _ in pairs)
            print(f"{task}: A alone is right {only_a} times, B alone {len(pairs) - only_a} times\n")
            for pair in pairs[: given.limit]:
                print(render(task, *pair), end="\n\n")
        return
    wanted = {verdict for verdict, asked in ((False, given.wrong), (True, given.right)) if asked}
    for task, path in find_samples(given.run, given.task).items():
        samples = [sample for sample in read_lines(path) if not wanted or sample.get("correct") in wanted]
        for sample in samples[: given.limit]:
            print(render(task, sample), end="\n\n")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a word
    main(command)
