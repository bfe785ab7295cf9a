"""Downloading: the real `datasets` streams from a folder that stands in for the hub; interrupted, resumed, checked."""

import json
import re
from dataclasses import replace
from functools import partial

import pytest

from dataset import converters, hub
from dataset.catalog import EVALUATION, TRAINING, Hub
from dataset.records import read_rows
from dataset.sources import load_evaluation
from utils.errors import UserError

ROWS = [
    {"instruction": f"question {i}", "output": f"answer {i}", "type": ("GSM_SV", "other")[i % 3 == 0]}
    for i in range(40)
]
WANTED = [row for row in ROWS if row["type"] == "GSM_SV"]


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A data set in a folder, a place for prepared files, and a hub that is reachable."""
    folder = tmp_path / "upstream" / "metamath"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.setattr(hub, "PREPARED", tmp_path / "prepared")
    monkeypatch.setattr(hub, "_commit", lambda task, source, key: "commit-1")
    monkeypatch.setattr(hub, "_NOTE_EVERY", 7)
    convert = converters.instruction(converters.METAMATH_TYPES)
    return Hub(str(folder), convert, count=len(WANTED))


fetch = partial(hub.fetch, "metamath", "train", key="data.train")


def records(path):
    return [record for _, record in read_rows(path)]


def test_a_download_is_filtered_recorded_and_done_once(source, monkeypatch):
    path = fetch(source)
    assert records(path) == WANTED
    manifest = json.loads(hub.manifest_file(path).read_text())
    assert (manifest["records"], manifest["commit"]) == (len(WANTED), "commit-1")
    assert sorted(p.name for p in path.parent.iterdir() if p.suffix != ".lock") == [
        "train.jsonl",
        "train.manifest.json",
    ]
    monkeypatch.setattr(hub, "_commit", lambda *_: pytest.fail("asked the hub again"))
    assert fetch(source) == path
    hub.check_hub("metamath", "train", source, "data.train")


@pytest.mark.parametrize("stop", [1, 8, 25, 39])
def test_an_interrupted_download_goes_on(source, stop):
    seen = []

    def interrupted(row):
        seen.append(row)
        if len(seen) == stop:
            raise KeyboardInterrupt
        return source.convert(row)

    with pytest.raises(KeyboardInterrupt):
        fetch(replace(source, convert=interrupted))
    assert not hub.prepared_file("metamath", "train").exists()
    again = []
    path = fetch(replace(source, convert=lambda row: again.append(row) or source.convert(row)))
    assert records(path) == WANTED
    assert again[-1] == ROWS[-1]
    assert len(again) == len(ROWS) - (stop - 1) // 7 * 7


def test_it_starts_again_when_the_hub_has_another_commit(source, monkeypatch):
    rows = iter(range(100))

    def interrupted(row):
        if next(rows) == 20:
            raise KeyboardInterrupt
        return source.convert(row)

    with pytest.raises(KeyboardInterrupt):
        fetch(replace(source, convert=interrupted))
    monkeypatch.setattr(hub, "_commit", lambda *_: "commit-2")
    again = []
    path = fetch(replace(source, convert=lambda row: again.append(row) or source.convert(row)))
    assert (len(again), records(path)) == (len(ROWS), WANTED)


def test_a_wrong_count_and_a_changed_file_are_errors(source):
    with pytest.raises(UserError, match="data.train: metamath gave 26 records and .* is known to have 30"):
        fetch(replace(source, count=30))
    assert not hub.prepared_file("metamath", "train").exists()
    path = fetch(source)
    path.write_text(path.read_text().replace("answer 1", "answer X", 1))
    with pytest.raises(UserError, match="train.jsonl: is not the file that was prepared"):
        fetch(source)


def test_a_file_from_another_source_is_not_taken_for_this_one(source):
    fetch(source)
    assert not hub.is_prepared(hub.prepared_file("metamath", "train"), replace(source, split="test"))


def test_a_hub_that_fails_is_one_line(source):
    with pytest.raises(UserError, match="data.train: metamath comes from .* can't be read") as error:
        fetch(replace(source, repository=source.repository + "/missing"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("boolq", {"question": "is ice cold", "answer": True, "passage": "..."}),
        ("piqa", {"goal": "Open it", "sol1": "Pull.", "sol2": "Push.", "label": 1}),
        (
            "social_i_qa",
            {"context": "A.", "question": "Why?", "answerA": "x", "answerB": "y", "answerC": "z", "label": "2"},
        ),
        ("hellaswag", {"activity_label": "Run", "ctx": "He", "endings": ["a", "b", "c", "d"], "label": "1"}),
        ("winogrande", {"sentence": "The _ is.", "option1": "cat", "option2": "dog", "answer": "2"}),
        ("ARC-Easy", {"question": "Q?", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"}),
        ("openbookqa", {"question_stem": "Q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"}),
    ],
)
def test_the_hubs_commonsense_sets_take_the_form_of_the_mirrors(task, row):
    record = EVALUATION[task].hub.convert(row)
    assert record["answer"] == {"boolq": "true", "piqa": "solution2", "hellaswag": "ending2"}.get(
        task, "option2" if task == "winogrande" else "answer2"
    )
    assert record["output"] == f"the correct answer is {record['answer']}"
    assert record["question"] in record["instruction"]


@pytest.mark.parametrize("task", ["piqa", "social_i_qa", "winogrande", "ARC-Easy", "openbookqa", "boolq"])
def test_their_prompts_are_the_mirrors_to_the_letter(mirror, task):
    """A row in the hub's form, taken apart from a prompt of the mirror, gives that prompt again."""
    for record in load_evaluation(task, mirror)[:50]:
        row = hub_row(task, record)
        assert EVALUATION[task].hub.convert(row)["instruction"] == record["instruction"]


def hub_row(task, record):
    body = re.search(r"(?:question|sentence): (.*?)(?:\n\n| )Answer format", record["instruction"], re.DOTALL)[1]
    if task == "boolq":
        return {"question": body.removesuffix("?"), "answer": True}
    word = {"piqa": "Solution", "winogrande": "Option"}.get(task, "Answer")
    parts = re.split(rf"{word}\d: ", body)
    gap = "\n\n" if task == "piqa" else " "
    options = [part.removesuffix(gap) for part in parts[1:-1]] + [parts[-1]]
    question = parts[0].removesuffix("\n\n")
    if task == "piqa":
        return {"goal": question, "sol1": options[0], "sol2": options[1], "label": 0}
    if task == "winogrande":
        return {"sentence": question, "option1": options[0], "option2": options[1], "answer": "1"}
    if task == "social_i_qa":
        context, asked = question.rsplit(". ", 1) if ". " in question else question.split(" ", 1)
        context = f"{context}." if ". " in question else context
        answers = dict(zip(("answerA", "answerB", "answerC"), options, strict=True))
        return {"context": context, "question": asked, **answers, "label": "1"}
    letters = "ABCDE"[: len(options)]
    choices = {"text": options, "label": list(letters)}
    return {"question": question, "question_stem": question, "choices": choices, "answerKey": "A"}


def test_the_table_names_each_hub_set_once():
    for table in (TRAINING, EVALUATION):
        seen = [(s.hub.repository, s.hub.configs, s.hub.folder, s.hub.split) for s in table.values()]
        assert len(seen) == len(set(seen))
