"""Finding test questions in training data."""

from dataset.overlap import TestQuestions

LONG = "Tom has 3 red apples and buys 4 more. How many apples does Tom have?"


def questions():
    found = TestQuestions()
    found.add("long", [{"instruction": LONG}])
    found.add("short", [{"instruction": "Options: a, b", "question": "Who is Tom?"}])
    return found


def test_long_questions_are_found_anywhere_whatever_the_form():
    for text in (LONG, LONG.upper(), f"Read this:\n\n{LONG}\n\nThink.", LONG.replace(" ", "\n").replace(".", "")):
        assert questions().found_in({"instruction": text, "output": "7"}) == {"long"}
        assert questions().found_in({"instruction": "Repeat.", "output": text}) == {"long"}
    for text in (LONG.replace("4", "5"), LONG[:40]):
        assert not questions().found_in({"instruction": text, "output": "7"})


def test_short_questions_must_be_the_whole_question():
    assert questions().found_in({"instruction": "who is Tom", "output": ""}) == {"short"}
    assert questions().found_in({"instruction": "Options: c, d", "question": "Who is Tom?", "output": ""}) == {"short"}
    assert not questions().found_in({"instruction": "Say who is Tom and who is not.", "output": "Who is Tom?"})


def test_a_sign_is_not_punctuation():
    found = TestQuestions()
    found.add("signs", [{"instruction": "What is 2 + 3?"}])
    assert found.found_in({"instruction": "what is 2+3", "output": ""})
    assert not found.found_in({"instruction": "What is 2 - 3?", "output": ""})


def test_counts_name_each_set_and_each_record_once():
    both = {"instruction": "Who is Tom?", "output": LONG}
    counts = questions().count([both, {"instruction": LONG, "output": ""}, {"instruction": "x", "output": ""}])
    assert counts == {"long": 2, "short": 1, "any": 2}
