"""The task `arithmetic`: word problems of two to four steps, made from a seed, with worked solutions.

The splits share no filling of any template, by construction: the names and the things are divided among the splits,
and a template's tuple of numbers belongs to the one split that its hash says (70% train, 15% validation, 15% test).
So a test problem can't be answered by recalling a training problem.
"""

import hashlib
import random
from typing import Any, Literal, get_args

from dataset.problems import TEMPLATES, Template, Words
from utils.errors import UserError

Split = Literal["train", "validation", "test"]

_NAMES: dict[str, tuple[str, ...]] = {
    "train": (
        "Anna", "Ben", "Carla", "David", "Emma", "Frank", "Grace", "Henry", "Ivy", "Jack", "Kate", "Leo", "Mia",
        "Noah", "Olga", "Paul", "Rosa", "Sam", "Tina", "Victor", "Wendy", "Zoe", "Alice", "Bruno",
    ),
    "validation": ("Clara", "Daniel", "Elena", "George", "Hanna", "Ian", "Julia", "Kevin"),
    "test": ("Laura", "Martin", "Nina", "Oscar", "Peter", "Rita", "Simon", "Vera"),
}  # fmt: skip
_THINGS: dict[str, tuple[str, ...]] = {
    "train": (
        "apples", "marbles", "stickers", "pencils", "cards", "stamps", "shells", "buttons", "cups", "flowers", "balls",
        "toys", "candles", "coins", "oranges",
    ),
    "validation": ("beads", "plates", "lemons", "badges", "kites"),
    "test": ("pens", "cookies", "stones", "ribbons", "masks"),
}  # fmt: skip
assert set(_NAMES) == set(_THINGS) == set(get_args(Split))


def split_of(template: str, numbers: tuple[int, ...]) -> Split:
    """The split that a template's numbers belong to, the same on every machine and in every session."""
    bucket = hashlib.sha256(f"{template}{numbers}".encode()).digest()[0]
    if bucket < 180:
        return "train"
    return "validation" if bucket < 218 else "test"


def generate(split: Split, n: int, seed: int) -> list[dict[str, Any]]:
    """Make `n` different problems of one split, the templates in equal shares.

    A shorter list is the beginning of a longer one with the same seed.

    Returns:
        Records with `instruction`, `output` (worked solution ending in `The answer is: N`), `type`
        (`arithmetic/<template>`) and `answer` (the integer as a string).

    Raises:
        UserError: an unknown split, or more problems than the split holds.
    """
    if split not in _NAMES:
        raise UserError(f"arithmetic has no split {split!r}; allowed: {', '.join(_NAMES)}")
    rng = random.Random(f"arithmetic {split} {seed}")
    seen: set[str] = set()
    records: list[dict[str, Any]] = []
    order: list[Template] = []
    while len(records) < n:
        if not order:
            order = rng.sample(TEMPLATES, len(TEMPLATES))
        record = _new_record(order.pop(), split, rng, seen)
        if record is None:
            raise UserError(f"arithmetic: the {split} split holds no {n} different problems; ask for fewer")
        records.append(record)
    return records


def _new_record(template: Template, split: Split, rng: random.Random, seen: set[str]) -> dict[str, Any] | None:
    """One problem whose text is not in `seen`, or None when none turned up in many draws."""
    for _ in range(10_000):
        numbers = tuple(rng.choice(numbers) for numbers in template.ranges)
        if split_of(template.name, numbers) != split:
            continue
        name, other = rng.sample(_NAMES[split], 2)
        problem = template.fill(Words(name, other, rng.choice(_THINGS[split])), *numbers)
        if problem is None or problem.question in seen:
            continue
        seen.add(problem.question)
        return {
            "instruction": problem.question,
            "output": "\n".join((*problem.steps, f"The answer is: {problem.answer}")),
            "type": f"arithmetic/{template.name}",
            "answer": str(problem.answer),
        }
    return None
