"""The generated task: solvable, checked step by step, and its splits share nothing that could be copied."""

import hashlib
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.arithmetic import _NAMES, _THINGS, TEMPLATES, generate
from utils.errors import UserError

SPLITS = ("train", "validation", "test")
EQUATION = re.compile(r"(\d+(?: [-+*/] \d+)+) = (\d+)")
WORDS = re.compile("|".join(word for pool in (_NAMES, _THINGS) for words in pool.values() for word in words))


def filling(record: dict[str, str]) -> str:
    """A question without its names and things: what is left is the template and its numbers."""
    return WORDS.sub("_", record["instruction"])


def test_there_are_many_structures_of_two_to_four_steps():
    assert len({template.name for template in TEMPLATES}) == len(TEMPLATES) >= 20
    steps = {record["type"]: record["output"].count("\n") for record in generate("train", 300, 0)}
    assert set(steps.values()) == {2, 3, 4}


@settings(max_examples=20, deadline=None)
@given(split=st.sampled_from(SPLITS), n=st.integers(1, 80), seed=st.integers(0, 10**6))
def test_every_worked_solution_is_right(split, n, seed):
    for record in generate(split, n, seed):
        *steps, last = record["output"].split("\n")
        equations = EQUATION.findall(record["output"])
        assert last == f"The answer is: {record['answer']}"
        assert set(record) == {"instruction", "output", "type", "answer"}
        assert len(equations) == len(steps) >= 2
        for left, right in equations:
            assert eval(left) == int(right), record  # digits and operators only: the pattern says so
        assert equations[-1][1] == record["answer"]
        assert 0 <= int(record["answer"]) < 200


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 60), more=st.integers(0, 60), seed=st.integers(0, 10**6))
def test_a_seed_gives_the_same_problems_and_a_shorter_list_begins_a_longer_one(n, more, seed):
    assert generate("train", n + more, seed)[:n] == generate("train", n, seed)


@settings(max_examples=5, deadline=None)
@given(seeds=st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6)))
def test_splits_share_no_filling_of_a_template(seeds):
    fillings = [
        {filling(record) for record in generate(split, 300, seed)} for split, seed in zip(SPLITS, seeds, strict=True)
    ]
    for i in range(3):
        for j in range(i):
            assert not fillings[i] & fillings[j]


@given(template=st.sampled_from(TEMPLATES), data=st.data())
def test_other_numbers_make_another_question(template, data):
    """Numbers decide the split, so no question is in two splits."""
    drawn = st.fixed_dictionaries({name: st.sampled_from(numbers) for name, numbers in template.ranges.items()})
    first, second = data.draw(drawn), data.draw(drawn)
    problems = [template.fill(**numbers, name="Ann", other="Bob", things="pens") for numbers in (first, second)]
    if None not in problems and first != second:
        assert problems[0]["instruction"] != problems[1]["instruction"]


@pytest.mark.parametrize(
    ("split", "digest"),
    [
        ("train", "f63b4664fcaa8e8526f445e7dd8b1e805b5fde4867907c370eb0edd41a5accb2"),
        ("validation", "c240cd28e6d4d68bd7acd09c59dd46d9e21b9dc4522b9533f5f57f17ffc3bd44"),
        ("test", "9aaf246bc9d627f59a2c8e81807feb5ee76737bff5d94adc8f4b0691bcd06a27"),
    ],
)
def test_a_seed_gives_the_same_letters_for_good(split, digest):
    assert hashlib.sha256(json.dumps(generate(split, 1000, 7)).encode()).hexdigest() == digest


def test_splits_share_no_name_and_no_thing():
    for pool in (_NAMES, _THINGS):
        everything = [word for split in SPLITS for word in pool[split]]
        assert len(everything) == len(set(everything))


def test_no_problem_comes_twice_and_templates_come_in_equal_shares():
    records = generate("test", 1000, 0)
    assert len({record["instruction"] for record in records}) == 1000
    counts = [sum(record["type"] == f"arithmetic/{template.name}" for record in records) for template in TEMPLATES]
    assert max(counts) - min(counts) <= 1


def test_it_says_when_there_are_no_more_problems():
    with pytest.raises(UserError, match="holds no"):
        generate("validation", 10**6, 0)
