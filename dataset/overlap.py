"""Test questions in training data: found by their words, whatever the case, punctuation and line breaks."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal

Rule = Literal["verbatim", "13-gram"]
RULES: tuple[Rule, Rule] = ("verbatim", "13-gram")
_GRAM = 13  # words in a row that training data and a test question should not share
_WINDOW = 8  # words looked up at once; a shorter question has to be the record's whole question
_WORD = re.compile(r"\w+|[-+*/^=<>]")

Words = tuple[str, ...]


class TestQuestions:
    """The questions of some test sets, ready to be looked up in training records.

    By the rule `verbatim` a question is found when a record's instruction or output contains it; by `13-gram` when
    they contain 13 words of it in a row, or all of a shorter one (Brown et al., 2020, appendix C). By both a question
    of less than 8 words must be the record's whole question: a few common words in a row prove nothing.
    """

    __test__ = False  # not a test case, whatever pytest makes of the name

    def __init__(self) -> None:
        self.names: list[str] = []
        self._short: dict[Words, set[str]] = {}
        self._long: dict[Words, set[tuple[Words, str, Rule]]] = {}  # by their first words

    def add(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Add the test set `name`: each record's `question`, or its `instruction` if it has none."""
        self.names.append(name)
        for record in records:
            words = _words(_question(record))
            if len(words) < _WINDOW:
                self._short.setdefault(words, set()).add(name)
                continue
            self._long.setdefault(words[:_WINDOW], set()).add((words, name, "verbatim"))
            for start in range(max(len(words) - _GRAM, 0) + 1):
                gram = words[start : start + _GRAM]
                self._long.setdefault(gram[:_WINDOW], set()).add((gram, name, "13-gram"))

    def found_in(self, record: Mapping[str, Any]) -> dict[Rule, set[str]]:
        """The names of the test sets of which a question is in a training record, by each rule."""
        found: dict[Rule, set[str]] = {rule: set(self._short.get(_words(_question(record)), ())) for rule in RULES}
        for words in (_words(record["instruction"]), _words(record["output"])):
            for start in range(len(words) - _WINDOW + 1):
                for asked, name, rule in self._long.get(words[start : start + _WINDOW], ()):
                    if words[start : start + len(asked)] == asked:
                        found[rule].add(name)
        return found

    def count(self, records: Iterable[Mapping[str, Any]]) -> dict[Rule, Counter[str]]:
        """By each rule, in how many records a question of each test set is; `any` counts each record once."""
        counts = {rule: Counter(dict.fromkeys([*self.names, "any"], 0)) for rule in RULES}
        for record in records:
            for rule, names in self.found_in(record).items():
                counts[rule].update(names)
                counts[rule]["any"] += bool(names)
        return counts


def _question(record: Mapping[str, Any]) -> str:
    return record.get("question") or record["instruction"]


def _words(text: str) -> Words:
    return tuple(_WORD.findall(text.lower()))
