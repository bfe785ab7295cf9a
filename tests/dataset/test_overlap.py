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
        for record in ({"instruction": text, "output": "7"}, {"instruction": "Repeat.", "output": text}):
            assert questions().found_in(record) == {"verbatim": {"long"}, "13-gram": {"long"}}
    for text in (LONG.replace("4", "5"), LONG[:40]):
        assert not any(questions().found_in({"instruction": text, "output": "7"}).values())


def test_short_questions_must_be_the_whole_question():
    found = {"verbatim": {"short"}, "13-gram": {"short"}}
    assert questions().found_in({"instruction": "who is Tom", "output": ""}) == found
    assert questions().found_in({"instruction": "Options: c, d", "question": "Who is Tom?", "output": ""}) == found
    other = {"instruction": "Say who is Tom and who is not.", "output": "Who is Tom?"}
    assert not any(questions().found_in(other).values())


def test_thirteen_words_in_a_row_are_shared_and_twelve_are_not():
    words = [f"w{number}" for number in range(30)]
    found = TestQuestions()
    found.add("long", [{"instruction": " ".join(words)}])
    found.add("shorter", [{"instruction": " ".join(words[15:25])}])
    for start, length, sets in ((3, 13, {"long"}), (0, 12, set()), (13, 13, {"long", "shorter"})):
        record = {"instruction": "Say", "output": " ".join(["x", *words[start : start + length], "y"])}
        assert found.found_in(record)["13-gram"] == sets
    assert found.found_in(record)["verbatim"] == {"shorter"}


def test_a_sign_is_not_punctuation():
    found = TestQuestions()
    found.add("signs", [{"instruction": "What is 2 + 3?"}])
    assert found.found_in({"instruction": "what is 2+3", "output": ""})["verbatim"]
    assert not found.found_in({"instruction": "What is 2 - 3?", "output": ""})["verbatim"]


def test_counts_name_each_set_and_each_record_once():
    both = {"instruction": "Who is Tom?", "output": LONG}
    counts = questions().count([both, {"instruction": LONG, "output": ""}, {"instruction": "x", "output": ""}])
    assert counts["verbatim"] == counts["13-gram"] == {"long": 2, "short": 1, "any": 2}
