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
    )
    command(["--config", str(tmp_path / "code.yaml")])
    noted = json.loads((tmp_path / "out" / "data.json").read_text())
    assert noted["wanted"]["tasks"] == ["code"]  # whose test sets are the two it is judged by
    assert noted["found"]["code"]["train"]["records"] == 374
    assert noted["found"]["code"]["train"]["contain_a_test_question"] == {"humaneval": 0, "mbpp": 5, "any": 5}
    monkeypatch.setattr("dataset.prepare.prepare", None)
    command(["--config", str(tmp_path / "code.yaml")])


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
