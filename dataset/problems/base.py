"""The templates of the task `arithmetic`: word problems of two to four steps, one function a structure.

A template receives words (two names and a plural noun) and the numbers that were drawn from its ranges, and returns
the question, the steps of the solution and the answer; it returns None for numbers that make no sensible problem.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """What fills a template beside its numbers: two different first names and a countable noun in the plural."""

    name: str
    other: str
    things: str


@dataclass(frozen=True)
class Problem:
    """A question, the steps that solve it (one sentence each, with its equation) and the answer."""

    question: str
    steps: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Template:
    """A structure of problem: `fill(words, *numbers)` with one number from each range."""

    name: str
    ranges: tuple[Sequence[int], ...]
    fill: Callable[..., Problem | None]


TEMPLATES: list[Template] = []


def template(*ranges: Sequence[int]) -> Callable[[Callable[..., Problem | None]], Callable[..., Problem | None]]:
    """Registers a function as the template of its own name, its numbers drawn from `ranges` in order."""

    def register(fill: Callable[..., Problem | None]) -> Callable[..., Problem | None]:
        TEMPLATES.append(Template(fill.__name__, ranges, fill))
        return fill

    return register


def between(low: int, high: int) -> range:
    """The integers from `low` to `high`, both included."""
    return range(low, high + 1)
