"""Command lines: parsed in full and validated before anything starts."""

import errno
import re
from pathlib import Path
from typing import Any

import pytest

from utils.cli import main, parse
from utils.errors import UserError

FLAGS = {"force": False, "adapter": None}


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text("method: {rank: 8}", encoding="utf-8")
    return f"--config={path}"


def test_overrides_and_flags(config: str) -> None:
    parsed, flags = parse("usage", FLAGS, [config, "--eval.tasks=gsm8k,math", "--train.learning_rate=2e-5", "--force"])
    assert parsed.eval.tasks == ["gsm8k", "math"]
    assert parsed.train.learning_rate == 2e-5
    assert flags == {"force": True, "adapter": None}


@pytest.mark.parametrize(
    ("word", "section", "found"),
    [
        ("--data.dir=null", "data", {"dir": None}),
        ("--data.dir=None", "data", {"dir": None}),
        ("--eval.base=true", "eval", {"base": True}),
        ("--data.fields={messages:messages}", "data", {"fields": {"messages": "messages"}}),
        ("--method.target_modules=[q_proj,v_proj]", "method", {"target_modules": ["q_proj", "v_proj"]}),
        ("--sweep.method.rank=[8,16]", "sweep", {"method.rank": [8, 16]}),
        ("--sweep.method.rank=8,16", "sweep", {"method.rank": [8, 16]}),
        ("--eval.response_prefix=7#2", "eval", {"response_prefix": "7#2"}),
        ('--eval.stop=["#", b]', "eval", {"stop": ["#", "b"]}),
    ],
)
def test_values_are_read_as_python_and_as_yaml(config: str, word: str, section: str, found: dict[str, Any]) -> None:
    assert found.items() <= parse("usage", FLAGS, [config, word])[0].model_dump()[section].items()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["stray"], "unexpected word 'stray'"),
        (["-", "--force"], "unexpected word '-'"),
        (["--", "--trace"], "unexpected word '--'"),
        (["--bogus=1"], "unknown flag --bogus"),
        (["--train.max_step=3"], "unknown key train.max_step"),
        (["--force=3"], "--force: takes no value"),
        (["--adapter=2024"], "--adapter: takes a name or a path (such as ./2024), not 2024"),
        (["--adapter"], "--adapter: takes a name or a path (such as ./2024), not True"),
        (["stray#1"], "unexpected word 'stray#1'"),
        (["--method.rank=0"], "method.rank"),
    ],
)
def test_a_mistake_is_refused(config: str, words: list[str], named: str) -> None:
    with pytest.raises(UserError, match=re.escape(named)):
        parse("usage", FLAGS, [config, *words])


@pytest.mark.parametrize("words", [["--run=lora#2", "--adapter=a#b"], ["--run", "lora#2", "--adapter", "a#b"]])
def test_a_number_sign_begins_no_comment(config: str, words: list[str]) -> None:
    parsed, flags = parse("usage", FLAGS, [config, *words])
    assert (parsed.run, flags["adapter"]) == ("lora#2", "a#b")


def test_a_config_is_required() -> None:
    with pytest.raises(UserError, match="--config: name a YAML file"):
        parse("usage", FLAGS, ["--method.rank=4"])


@pytest.mark.parametrize("words", [["--help"], ["--config=x.yaml", "-h"], []])
def test_help_teaches_and_starts_nothing(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse("How to use it.", FLAGS, words)
    assert stop.value.code == (0 if words else 2)
    out = capsys.readouterr().out
    assert out.startswith("How to use it.") and "--calibration.samples=256" in out


def test_a_users_mistake_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise UserError("method.rank: 600 is larger\nthan the layer")

    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: method.rank: 600 is larger than the layer\n"


def test_a_defect_is_told_in_one_line_before_its_trace(capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> None:
        raise ZeroDivisionError("nothing to\nshare")

    with pytest.raises(ZeroDivisionError):
        main(broken)
    assert capsys.readouterr().err == "error: ZeroDivisionError: nothing to share\n"


def test_a_file_that_may_not_be_opened_is_named_in_the_systems_words(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "model.safetensors")

    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: model.safetensors: Permission denied\n"
