"""The extra tests of evalplus (Liu et al., 2023) for HumanEval and MBPP, where its data files are at hand.

A record holds inputs, not outputs: the reference solution is run on each, in the test's process, and the candidate has
to agree. The rules of comparison follow evalplus 0.3: exact, floats to `atol` (1e-6 where the record has none), and
exceptions for the tasks that admit several answers.
"""

import gzip
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from eval.code import extract_code, humaneval_candidate, without_prose
from eval.sandbox import Program
from utils.errors import UserError

PLUS_FILES = {"humaneval": ("HumanEvalPlus", "{}"), "mbpp": ("MbppPlus", "Mbpp/{}")}  # file and form of its task ids
FIELDS = {"task_id", "canonical_solution", "entry_point", "base_input", "plus_input"}


def with_plus(task: str, problems: list[dict[str, Any]], data_dir: str | None) -> list[dict[str, Any]]:
    """The problems, each with its evalplus record as `plus` where the data has one.

    The data is `<data_dir>/<task>/HumanEvalPlus.jsonl[.gz]` or `MbppPlus.jsonl[.gz]`, as evalplus releases them.

    Raises:
        UserError: see `read_plus`.
    """
    name, form = PLUS_FILES[task]
    records = (read_plus(Path(data_dir) / task, name) if data_dir is not None else None) or {}
    found = [(problem, records.get(form.format(problem["task_id"]))) for problem in problems]
    return [problem if record is None else {**problem, "plus": record} for problem, record in found]


def read_plus(folder: Path, name: str) -> dict[str, dict[str, Any]] | None:
    """The records by task id ("HumanEval/0", "Mbpp/2") from `<folder>/<name>.jsonl[.gz]`; None if there is no file.

    Args:
        folder: the task's folder in a data mirror.
        name: "HumanEvalPlus" or "MbppPlus".

    Raises:
        UserError: a line is not such a record; names file and line.
    """
    for path, opened in ((folder / f"{name}.jsonl", open), (folder / f"{name}.jsonl.gz", gzip.open)):
        if path.exists():
            with opened(path, "rt", encoding="utf-8") as lines:
                records = [_record(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]
            return {record["task_id"]: record for record in records}
    return None


def _record(line: str, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"{place}: not JSON ({error})") from error
    missing = FIELDS - set(record) if isinstance(record, dict) else FIELDS
    if missing:
        raise UserError(f"{place}: no record of evalplus, without {', '.join(sorted(missing))}")
    return record


# ---------------------------------------------------------------------------------------------------------- arguments

# MBPP's arguments that JSON can't hold, by task number (evalplus: mbpp_deserialize_inputs).
_EACH_TUPLE = {2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616, 630, 726, 740, 744}
_EACH_TUPLE |= {809}
_EACH_LIST_OF_TUPLES = {63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780}
_EACH_TUPLE_OF_TUPLES = {259, 401, 445}
_FIRST_LIST_OF_TUPLES = {75, 413, 444, 753}
_FIRST_TUPLE = {250, 405, 446, 617, 720, 763, 808, 307}
_SECOND_TUPLE = {106, 750}
_ALL_TUPLES = {580, 615, 791}


def arguments(task_id: str, values: list[Any]) -> list[Any]:
    """The arguments of one call, from their form in JSON."""
    number = int(task_id.split("/")[-1]) if task_id.startswith("Mbpp") else -1
    if number in _EACH_TUPLE:
        return [tuple(value) for value in values]
    if number in _EACH_LIST_OF_TUPLES:
        return [[tuple(item) for item in value] for value in values]
    if number in _EACH_TUPLE_OF_TUPLES:
        return [tuple(tuple(item) for item in value) for value in values]
    if number in _ALL_TUPLES:
        return [_tuples(value) for value in values]
    if not values:
        return values
    first, *others = values
    if number in _FIRST_LIST_OF_TUPLES:
        return [[tuple(item) for item in first], *others]
    if number in _FIRST_TUPLE:
        return [tuple(first), *others]
    if number in _SECOND_TUPLE:
        return [first, tuple(others[0])]
    single: dict[int, Callable[[], list[Any]]] = {
        115: lambda: [[set(item) if isinstance(item, list) and item else {} for item in first]],
        124: lambda: [float(first), complex(others[0])],
        252: lambda: [complex(first)],
        278: lambda: [tuple(tuple(item) if isinstance(item, list) else item for item in first)],
        722: lambda: [{key: tuple(value) for key, value in first.items()}, *others],
    }
    return single[number]() if number in single else values


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


# ------------------------------------------------------------------------------------------------------------ programs

_SETS = (
    "similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly", "larg_nnum",
    "intersection_array", "find_dissimilar", "Diff",
)  # fmt: skip
_FOUND = ("check_str", "text_match_three", "text_starta_endb")
_TEST = """
import copy as _copy, math as _math
def _floats(value):
    return isinstance(value, float) or (isinstance(value, (list, tuple)) and all(isinstance(v, float) for v in value))
def _near(one, other):
    if isinstance(other, (list, tuple)):
        return isinstance(one, (list, tuple)) and len(one) == len(other) and all(map(_near, one, other))
    return isinstance(one, (int, float)) and (
        one == other or (one != one and other != other) or abs(one - other) <= _atol + 1e-7 * abs(other))
def _agree(answer, expected, values):
    if _rule == "root":
        return abs(sum(c * _math.pow(answer, i) for i, c in enumerate(values[0]))) <= (_atol or 1e-4)
    if _rule == "set":
        return set(answer) == set(expected)
    if _rule == "found":
        return (answer if isinstance(answer, bool) else answer is not None) == expected
    return (answer == expected or (_rule == "any" and isinstance(answer, bool)) or (_rule == "zero" and answer == 0)
            or ((_given or _floats(expected)) and _near(answer, expected)))
for _number, _values in enumerate(_inputs):
    _expected = _reference(*_copy.deepcopy(_values))
    assert _agree(_candidate(*_copy.deepcopy(_values)), _expected, _values), f"input {_number}"
"""


def plus_program(record: Mapping[str, Any], completion: str) -> Program:
    """The program for an evalplus record and a generation: passes if the reference agrees on all inputs."""
    task, entry = record["task_id"], record["entry_point"]
    human = task.startswith("HumanEval")
    inputs = [arguments(task, values) for values in (*record["base_input"], *record["plus_input"])]
    given = float(record.get("atol") or 0)
    test = (
        f"_candidate = {entry}\n{record['prompt'] if human else ''}{record['canonical_solution']}\n"
        f"_reference, _inputs, _rule = {entry}, {_literal(inputs)}, {_rule(entry)!r}\n"
        f"_given, _atol = {given > 0}, {given or 1e-6}\n{_TEST}"
    )
    candidate = humaneval_candidate(record, completion) if human else without_prose(extract_code(completion))
    return Program(candidate, test, (entry,))


def _rule(entry: str) -> str:
    """How an answer is compared: tasks with several right answers, or whose reference is wrong at times."""
    rules = {"find_zero": "root", "are_equivalent": "any", "sum_div": "zero"}
    rules |= dict.fromkeys(_SETS, "set") | dict.fromkeys(_FOUND, "found")
    return rules.get(entry, "equal")


def _literal(value: Any) -> str:
    """Python source of a value; infinities and NaN have no literal of their own."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"float({str(value)!r})"
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(_literal, value))}{',' * (len(value) == 1)})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
    return repr(value)
