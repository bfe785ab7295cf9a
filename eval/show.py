"""`python -m eval.show RUN`, or `--flipped A B`: print samples readably."""

import argparse
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eval.task_record import find_samples, read_samples
from utils.cli import main

WIDTH = 100


def select(samples: list[dict[str, Any]], wrong: bool, right: bool, limit: int) -> Iterator[dict[str, Any]]:
    """Yield the first `limit` samples that are wrong, right, or either."""
    shown = 0
    for sample in samples:
        if (wrong and sample.get("correct") is not False) or (right and sample.get("correct") is not True):
            continue  # a score, or a loss, is neither right nor wrong
        if shown == limit:
            return
        shown += 1
        yield sample


def render(task: str, sample: dict[str, Any]) -> str:
    """Return one sample as text: prompt, output, what was read from it and what it should have been."""
    verdict = {True: "RIGHT", False: "WRONG", None: ""}[sample.get("correct")]
    head = f"{task} #{sample['problem']}" + (f".{sample['sample']}" if sample.get("sample") else "")
    prompt = sample.get("prompt", "")
    prompt = "\n".join(prompt) if isinstance(prompt, list) else prompt
    return "\n".join([f"{f'{head}  {verdict} ':-<{WIDTH}}", _indent(prompt, "  | "), _answer(sample, "  > ")])


def _answer(sample: dict[str, Any], mark: str) -> str:
    output = sample.get("output", "")
    if isinstance(output, list):
        values = sample.get("logprobs") or [None] * len(output)
        output = "\n".join(f"{value:9.3f} {text}" for value, text in zip(values, output, strict=True))
    shown = ("extracted", "gold", "lenient", "flag", "note", "finish", "loss")
    facts = [f"{key}: {_short(sample[key])}" for key in shown if sample.get(key) is not None]
    for grader, found in sample.get("graders", {}).items():
        if found["correct"] != sample["correct"]:
            facts.append(f"{grader}: {'right' if found['correct'] else 'wrong'}")
    return _indent(output, mark) + "\n  " + ", ".join(facts)


def flipped(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the pairs of samples of one problem of which one is right and the other wrong."""
    others = {(sample["problem"], sample.get("sample", 0)): sample for sample in second}
    pairs = [(sample, others.get((sample["problem"], sample.get("sample", 0)))) for sample in first]
    return [(a, b) for a, b in pairs if b is not None and {True, False} == {a.get("correct"), b.get("correct")}]


def render_pair(task: str, a: dict[str, Any], b: dict[str, Any]) -> str:
    """Return one problem as text, with the answers of A and B."""
    head = f"{task} #{a['problem']}  only {'A' if a['correct'] else 'B'} is right "
    return "\n".join(
        [f"{head:-<{WIDTH}}", _indent(a.get("prompt", ""), "  | "), _answer(a, "  A "), _answer(b, "  B ")]
    )


def _indent(text: str, mark: str) -> str:
    lines = [piece for line in _plain(text).splitlines() for piece in textwrap.wrap(line, WIDTH - len(mark)) or [""]]
    return "\n".join(mark + line for line in lines)


def _plain(text: str) -> str:
    """Return model text without what could steer a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def _short(value: Any) -> str:
    text = " ".join(_plain(str(value)).split())
    return text if len(text) <= WIDTH else text[: WIDTH - 3] + "..."


def command() -> None:
    """Print samples of every task in a folder, or what two folders differ in."""
    parser = argparse.ArgumentParser(prog="python -m eval.show", description="Print samples readably.")
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
        first, second = (find_samples(place, given.task) for place in given.flipped)
        for task in (task for task in first if task in second):
            pairs = flipped(read_samples(first[task]), read_samples(second[task]))
            only_a = sum(a["correct"] for a, _ in pairs)
            print(f"{task}: A alone is right {only_a} times, B alone {len(pairs) - only_a} times\n")
            for a, b in pairs[: given.limit]:
                print(render_pair(task, a, b), end="\n\n")
        return
    for task, path in find_samples(given.run, given.task).items():
        for sample in select(read_samples(path), given.wrong, given.right, given.limit):
            print(render(task, sample), end="\n\n")


if __name__ == "__main__":
    main(command)
