"""The command `python -m dataset.prepare`."""

import json
import logging

import pytest

from dataset.prepare import command, prepare
from utils.errors import UserError


def test_a_mirror_is_checked_counted_and_compared_with_the_test_sets(mirror, caplog):
    with caplog.at_level(logging.INFO, logger="astra"):
        prepare("code", str(mirror))
    said = caplog.text
    assert "code train: 374 records" in said
    assert "mbpp test: 500 records" in said
    assert "SHA-256" in said
    assert "code: 5 training records contain a test question (humaneval: 0, mbpp: 5)" in said


def test_an_experiment_is_prepared_once(mirror, tmp_path, monkeypatch):
    (tmp_path / "code.yaml").write_text(
        f"output_dir: {tmp_path / 'out'}\ndata: {{train: code, dir: {mirror}}}\neval: {{tasks: [humaneval, mbpp]}}\n"
        "train: {forgetting: false}\n"
    )
    command(["--config", str(tmp_path / "code.yaml")])
    noted = json.loads((tmp_path / "out" / "data.json").read_text())
    assert noted["wanted"]["tasks"] == ["code"]  # whose test sets are the two it is judged by
    assert noted["found"]["code"]["train"]["records"] == 374
    assert noted["found"]["code"]["train"]["contain_a_test_question"] == {"humaneval": 0, "mbpp": 5, "any": 5}
    assert noted["found"]["code"]["train"]["share_13_words_with_a_test_question"]["mbpp"] >= 5
    monkeypatch.setattr("dataset.prepare.prepare", None)
    command(["--config", str(tmp_path / "code.yaml")])


def test_every_set_that_a_sweep_trains_on_is_prepared(mirror, tmp_path):
    row = json.loads((mirror / "gsm8k" / "train.jsonl").read_text().splitlines()[0])
    (tmp_path / "own.jsonl").write_text(json.dumps({"instruction": row["question"], "output": row["answer"]}) + "\n")
    (tmp_path / "sweep.yaml").write_text(
        f"output_dir: {tmp_path / 'out'}\ndata: {{dir: {mirror}}}\neval: {{tasks: [gsm8k]}}\n"
        f"train: {{forgetting: false}}\nsweep: {{data.train: [gsm8k, {tmp_path / 'own.jsonl'}]}}\n"
    )
    command(["--config", str(tmp_path / "sweep.yaml")])  # and not metamath, which only the hub has
    noted = json.loads((tmp_path / "out" / "data.json").read_text())["found"]
    assert noted["gsm8k"]["train"]["records"] == 7473
    assert noted[str(tmp_path / "own.jsonl")]["contain_a_test_question"] == {"gsm8k": 0, "any": 0}


def test_the_text_for_forgetting_is_among_what_an_experiment_needs(tmp_path):
    (tmp_path / "demo.yaml").write_text(f"output_dir: {tmp_path / 'out'}\ndata: {{train: arithmetic}}\n")
    words = ["--config", str(tmp_path / "demo.yaml"), "--eval.tasks=[arithmetic]"]
    with pytest.raises(UserError, match="data.general_text: wikitext-2 comes from Salesforce/wikitext on the hub"):
        command(words)
    command([*words, "--data.general_text=python-manual"])
    wanted = json.loads((tmp_path / "out" / "data.json").read_text())["wanted"]
    assert wanted["general_text"] == "python-manual"


def test_own_records_are_compared_with_the_test_sets_they_are_judged_by(mirror, tmp_path):
    question = json.loads((mirror / "gsm8k" / "test.jsonl").read_text().splitlines()[0])["question"]
    rows = [{"instruction": question, "output": "18"}, {"instruction": "What is 1 + 1?", "output": "2"}]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.yaml").write_text(
        f"output_dir: {tmp_path / 'out'}\ndata: {{train: {tmp_path / 'own.jsonl'}, dir: {mirror}}}\n"
        "eval: {tasks: [gsm8k]}\ntrain: {forgetting: false}\n"
    )
    for words, count in ([], 1), (["--data.decontaminate=true"], 0):
        command(["--config", str(tmp_path / "own.yaml"), *words])
        noted = json.loads((tmp_path / "out" / "data.json").read_text())["found"]
        assert noted[str(tmp_path / "own.jsonl")]["contain_a_test_question"].get("any", 0) == count


def test_own_records_are_counted_again_when_others_are_chosen(tmp_path):
    (tmp_path / "own.jsonl").write_text('{"instruction": "1 + 1?", "output": "2"}\n' * 2)
    (tmp_path / "own.yaml").write_text(
        f"output_dir: {tmp_path / 'out'}\ndata: {{train: {tmp_path / 'own.jsonl'}}}\n"
        "eval: {tasks: [arithmetic]}\ntrain: {forgetting: false}\n"
    )
    words = ["--config", str(tmp_path / "own.yaml")]
    for key, value in {"limit": 1, "validation": 0.5}.items():
        command([*words, f"--data.{key}={value}"])
        noted = json.loads((tmp_path / "out" / "data.json").read_text())["wanted"]["own"]
        assert noted[str(tmp_path / "own.jsonl")][key] == value
    for name, said in ("arithmetc", "no task 'arithmetc'; allowed: metamath"), ("x.jsonl", "x.jsonl: No such file"):
        with pytest.raises(UserError, match=said):
            command([*words, f"--data.train={name}"])


def mirror_with_a_short(split, mirror, tmp_path):
    folder = tmp_path / "glue" / "RTE"
    folder.mkdir(parents=True)
    for name in ("train", "dev"):
        lines = (mirror / f"glue/RTE/{name}.tsv").read_bytes().splitlines(keepends=True)
        (folder / f"{name}.tsv").write_bytes(b"".join(lines[:100] if name == split else lines))
    return str(tmp_path)


def test_a_part_of_what_glue_trains_on_is_said(mirror, tmp_path, caplog):
    assert prepare("rte", mirror_with_a_short("train", mirror, tmp_path))["train"]["records"] == 99
    assert "train.tsv: a part of rte, 99 of 2,490 records" in caplog.text


def test_a_part_of_what_glue_scores_is_an_error(mirror, tmp_path):
    with pytest.raises(UserError, match="dev.tsv: rte has 99 records here, 277 as published"):
        prepare("rte", mirror_with_a_short("dev", mirror, tmp_path))


def test_a_short_mirror_is_an_error(mirror, tmp_path):
    (tmp_path / "humaneval").symlink_to(mirror / "humaneval")
    (tmp_path / "mbpp").mkdir()
    lines = (mirror / "mbpp" / "mbpp.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "mbpp" / "mbpp.jsonl").write_text("".join(lines[:700]))
    with pytest.raises(UserError, match="mbpp.jsonl: code has 100 records here, 374 as published"):
        prepare("code", str(tmp_path))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "required: TASK"),
        (["nope"], "no task 'nope'; allowed: metamath, code"),
        (["gsm8k", "--data=x"], "unrecognized arguments: --data=x"),
        (["gsm8k", "--data.dir=no/such"], "data.dir: no/such is not a folder"),
    ],
)
def test_mistakes_are_one_line(argv, said):
    with pytest.raises(UserError, match=said) as error:
        command(argv)
    assert "\n" not in str(error.value)
