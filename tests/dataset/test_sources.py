"""Loading: every named set of the mirror, own files, and one clear line for whatever is wrong."""

import json

import pytest

from dataset.catalog import DISTINCT, EVALUATION, TRAINING
from dataset.sources import (
    check_evaluation,
    check_training,
    load_evaluation,
    load_splits,
    load_training,
    split_validation,
)
from utils.config import DataConfig
from utils.errors import UserError


def config(train, **values):
    return DataConfig.model_validate({"train": str(train), **values})


def write(path, rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


GOOD = {"question": "1 + 1?", "reply": "2"}
FIELDS = {"instruction": "question", "output": "reply"}


@pytest.mark.parametrize(("task", "count"), [("gsm8k", 7473), ("code", 374), ("commonsense", 17754)])
def test_the_mirror_trains(mirror, task, count):
    data = config(task, dir=str(mirror))
    check_training(data)
    records = load_training(data)
    assert len(records) == count == (TRAINING[task].mirror_count or TRAINING[task].count)
    assert all(record["instruction"] and record["output"] and record["type"] for record in records)
    assert load_training(config(task, dir=str(mirror), limit=3)) == records[:3]


@pytest.mark.parametrize("task", [name for name in DISTINCT if EVALUATION[name].mirror])
def test_the_mirror_evaluates(mirror, task):
    check_evaluation(task, mirror)
    records = load_evaluation(task, mirror)
    assert len(records) == (EVALUATION[task].mirror_count or EVALUATION[task].count)
    assert all(record["instruction"] and (record.get("answer") or record["task_id"]) for record in records)


def test_gsm8k_is_cleaned(mirror):
    first = load_training(config("gsm8k", dir=str(mirror), limit=1))[0]
    assert first["output"] == (
        "Natalia sold 48/2 = 24 clips in May.\nNatalia sold 48+24 = 72 clips altogether in April and May.\n"
        "The answer is: 72"
    )
    assert all("<<" not in r["output"] and "," not in r["answer"] for r in load_evaluation("gsm8k", mirror))


def test_code_sets_keep_their_tests(mirror):
    problem = load_evaluation("humaneval", mirror)[0]
    assert {"task_id", "prompt", "test", "entry_point"} <= set(problem)
    ids = [r["task_id"] for r in load_evaluation("mbpp", mirror)]
    trained = [r["task_id"] for r in load_training(config("code", dir=str(mirror)))]
    assert (min(ids), max(ids), min(trained), max(trained)) == (11, 510, 601, 974)


def test_decontamination_drops_what_the_test_sets_ask(mirror):
    kept = load_training(config("code", dir=str(mirror), decontaminate=True))
    asked = {r["question"] for r in load_evaluation("mbpp", mirror)}
    everything = load_training(config("code", dir=str(mirror)))
    assert any(r["question"] in asked for r in everything)
    assert not any(r["question"] in asked for r in kept)
    assert 0 < len(everything) - len(kept) < 20


def test_metamath_names_what_the_mirror_has(tmp_path):
    with pytest.raises(UserError, match="metamath is only on the hub .* a mirror .* has: code, commonsense, gsm8k"):
        check_training(config("metamath", dir=str(tmp_path)))
    with pytest.raises(UserError, match="hellaswag is only on the hub"):
        check_evaluation("hellaswag", tmp_path)


def test_arithmetic_needs_no_files():
    data = config("arithmetic", limit=50, validation=0.2)
    check_training(data)
    train, validation, _ = load_splits(data)
    assert (len(train), len(validation)) == (50, 10)
    assert len(load_evaluation("arithmetic")) == 1000
    check_evaluation("arithmetic")


@pytest.mark.parametrize("name", ["own.jsonl", "own.json"])
def test_own_fields(tmp_path, name):
    rows = [GOOD, {"question": "2 + 2?", "reply": "4", "source": "me"}]
    path = write(tmp_path / name, rows)
    if name == "own.json":
        path.write_text("\n" + json.dumps(rows, indent=1))
    data = config(path, fields=FIELDS)
    check_training(data)
    assert load_training(data) == [
        {"instruction": "1 + 1?", "output": "2", "type": "own"},
        {"instruction": "2 + 2?", "output": "4", "type": "own"},
    ]


def test_an_input_belongs_to_the_instruction(tmp_path):
    rows = [{**GOOD, "text": "Briefly."}, {**GOOD, "text": ""}, {**GOOD, "text": " "}, GOOD]
    data = config(write(tmp_path / "own.jsonl", rows), fields={**FIELDS, "input": "text"})
    assert [r["instruction"] for r in load_training(data)] == ["1 + 1?\n\nBriefly.", *["1 + 1?"] * 3]
    with pytest.raises(UserError, match=r"data\.reporting: 0\.01 of 4 records is 0"):
        load_splits(data.model_copy(update={"reporting": 0.01}))


def test_own_conversations_end_with_the_last_answer(tmp_path):
    turns = [("user", "Hi"), ("assistant", "Hello"), ("user", "2 + 2?"), ("assistant", "4"), ("user", "Thanks")]
    row = {"chat": [{"role": role, "content": content} for role, content in turns]}
    path = write(tmp_path / "own.jsonl", [row])
    record = load_training(config(path, fields={"messages": "chat"}, template="chat"))[0]
    assert (record["instruction"], record["output"], record["messages"]) == ("2 + 2?", "4", row["chat"][:3])
    with pytest.raises(UserError, match="data.template: .* need chat, not alpaca"):
        check_training(config(path, fields={"messages": "chat"}))


def turn(role, content):
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("{oops\n", "own.jsonl:3: not JSON"),
        ("[1]\n", "own.jsonl:3: holds list, not an object"),
        ({"question": "1"}, "own.jsonl:3: no field 'reply' .data.fields.output.; it has: question"),
        ({"question": 1, "reply": "2"}, "own.jsonl:3: field 'question' holds int, not text"),
        ({"question": "1", "reply": "  "}, "own.jsonl:3: field 'reply' is empty"),
    ],
)
def test_a_bad_line_is_named(tmp_path, bad, said):
    data = config(write(tmp_path / "own.jsonl", [GOOD, "\n", bad]), fields=FIELDS)
    for act in (check_training, load_training):
        with pytest.raises(UserError, match=said):
            act(data)
    check_training(data.model_copy(update={"limit": 1}))


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("Hi", "holds str, not a list of turns"),
        ([turn("user", "Hi")], "needs a user turn and, after it, an assistant turn"),
        ([turn("assistant", "Hi")], "needs a user turn and, after it, an assistant turn"),
        ([turn("user", "Hi"), turn("assistant", " ")], "an assistant turn with text"),
        ([{"from": "user"}], "each turn of messages needs role and content"),
    ],
)
def test_a_bad_conversation_is_named(tmp_path, messages, said):
    path = write(tmp_path / "own.jsonl", [{"messages": messages}])
    with pytest.raises(UserError, match=f"own.jsonl:1: .*{said}"):
        check_training(config(path, fields={"messages": "messages"}, template="chat"))


def test_other_mistakes_are_named(tmp_path):
    empty = write(tmp_path / "empty.jsonl", [])
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b"\xff\xfe\x00")
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(b"\x1f\x8b\x08")
    broken = write(tmp_path / "list.json", ['[{"instruction": "a"},\n {]\n'])
    for data, said in [
        (config("nope"), "data.train: no task 'nope'; allowed: metamath, code, commonsense, gsm8k, arithmetic"),
        (config(tmp_path / "missing.jsonl"), "missing.jsonl: No such file"),
        (config(empty), "empty.jsonl holds no records"),
        (config(binary), "binary.jsonl:1: not UTF-8"),
        (config(cut), "cut.jsonl.gz: "),
        (config(broken), "list.json:2: not JSON"),
        (config(empty, fields={"input": "a"}), "data.fields: has input; allowed: instruction, output"),
        (config("arithmetic", decontaminate=True), "data.decontaminate: arithmetic is not compared with test sets"),
        (config("gsm8k", dir="no/such/folder"), "data.dir: no/such/folder is not a folder"),
        (config("gsm8k", dir=str(tmp_path)), "gsm8k/train.jsonl: No such file"),
    ]:
        with pytest.raises(UserError, match=said):
            check_training(data)


def test_a_malformed_mirror_is_named(tmp_path):
    (tmp_path / "gsm8k").mkdir()
    write(tmp_path / "gsm8k" / "train.jsonl", [{"question": "a", "answer": "no marks"}])
    with pytest.raises(UserError, match="gsm8k/train.jsonl:1: not a row of gsm8k/train.jsonl as published"):
        check_training(config("gsm8k", dir=str(tmp_path)))


@pytest.mark.parametrize(
    ("instruction", "answer"), [("Why?", "answer1"), ("Why?\n\nAnswer format: answer1/answer2", "answer3")]
)
def test_a_multiple_choice_row_without_its_options_is_named(tmp_path, instruction, answer):
    good = {"instruction": "Why?\n\nAnswer format: answer1/answer2", "output": "", "answer": "answer1"}
    (tmp_path / "commonsense" / "piqa").mkdir(parents=True)
    path = tmp_path / "commonsense" / "piqa" / "test.json"
    path.write_text(json.dumps([good, good | {"instruction": instruction, "answer": answer}], indent=1))
    with pytest.raises(UserError, match=r"piqa/test\.json.*not a row of .* is not among the options"):
        load_evaluation("piqa", tmp_path)


def test_validation_is_held_out():
    records = [{"instruction": str(i)} for i in range(50)]
    train, held = split_validation(records, 0.1, seed=3)
    assert len(held) == 5
    assert sorted(train + held, key=records.index) == records
    assert split_validation(records, 0.1, seed=3) == (train, held) != split_validation(records, 0.1, seed=4)
    assert split_validation(records, 0.0, seed=3) == (records, [])
    with pytest.raises(UserError, match="data.validation: 0.001 of 50 records is 0"):
        split_validation(records, 0.001, seed=3)
    for key in ("validation", "reporting"):
        with pytest.raises(UserError, match=rf"data\.{key}: 0\.01 of 20 records is 0"):
            load_splits(config("arithmetic", limit=20, **{key: 0.01}))
