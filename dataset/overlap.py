"""Test questions in training data: found by their words, whatever the case, punctuation and line breaks."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

_WINDOW = 8  # words looked up at once; a question this long or longer is found anywhere in a record
_WORD = re.compile(r"\w+|[-+*/^=<>]")


class TestQuestions:
    """The questions of some test sets, ready to be looked up in training records.

    A question of 8 words or more counts as found when a record's instruction or output contains it. A shorter one
    must be the whole question: a few common words in a row prove nothing.
    """

    __test__ = False  # not a test case, whatever pytest makes of the name

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self._short: dict[tuple[str, ...], set[str]] = {}
        self._long: dict[tuple[str, ...], list[tuple[tuple[str, ...], str]]] = {}

    def add(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Add the test set `name`: each record's `question`, or its `instruction` if it has none."""
        self.sizes[name] = 0
        for record in records:
            words = _words(_question(record))
            self.sizes[name] += 1
            if len(words) < _WINDOW:
                self._short.setdefault(words, set()).add(name)
            else:
                self._long.setdefault(words[:_WINDOW], []).append((words, name))

    def found_in(self, record: Mapping[str, Any]) -> set[str]:
        """The names of the test sets of which a question is in a training record."""
        found = set(self._short.get(_words(_question(record)), ()))
        for words in (_words(record["instruction"]), _words(record["output"])):
            for start in range(len(words) - _WINDOW + 1):
                for question, name in self._long.get(words[start : start + _WINDOW], ()):
                    if words[start : start + len(question)] == question:
                        found.add(name)
        return found

    def count(self, records: Iterable[Mapping[str, Any]]) -> Counter[str]:
        """How many records contain a question of each test set; `any` counts each record once."""
        counts: Counter[str] = Counter({name: 0 for name in self.sizes})
        for record in records:
            found = self.found_in(record)
            counts.update(found)
            counts["any"] += bool(found)
        return counts


def _question(record: Mapping[str, Any]) -> str:
    return record.get("question") or record["instruction"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.lower()))
