"""`python -m eval.show RUN`: print samples readably."""

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
    parts = [f"{f'{head}  {verdict} ':-<{WIDTH}}", _indent(prompt, "  | ")]
    output = sample.get("output", "")
    if isinstance(output, list):
        values = sample.get("logprobs") or [None] * len(output)
        output = "\n".join(f"{value:9.3f} {text}" for value, text in zip(values, output, strict=True))
    parts.append(_indent(output, "  > "))
    shown = ("extracted", "gold", "lenient", "flag", "note", "finish", "loss")
    parts.append("  " + ", ".join(f"{key}: {_short(sample[key])}" for key in shown if sample.get(key) is not None))
    return "\n".join(parts)


def _indent(text: str, mark: str) -> str:
    lines = [piece for line in text.splitlines() for piece in textwrap.wrap(line, WIDTH - len(mark)) or [""]]
    return "\n".join(mark + line for line in lines)


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= WIDTH else text[: WIDTH - 3] + "..."


def command() -> None:
    """Print samples of every task in a folder."""
    parser = argparse.ArgumentParser(prog="python -m eval.show", description="Print samples readably.")
    parser.add_argument("run", type=Path, help="run folder, eval folder or samples file")
    parser.add_argument("--task", help="only this task")
    parser.add_argument("--wrong", action="store_true", help="only wrong answers")
    parser.add_argument("--right", action="store_true", help="only right answers")
    parser.add_argument("--limit", type=int, default=5, help="samples of each task (default: 5)")
    given = parser.parse_args()
    for task, path in find_samples(given.run, given.task).items():
        for sample in select(read_samples(path), given.wrong, given.right, given.limit):
            print(render(task, sample), end="\n\n")


if __name__ == "__main__":
    main(command)
