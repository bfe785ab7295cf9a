"""Configurations and records that nobody would write: each passes or is refused in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.fuzz import fuzz_commands, fuzz_configs, fuzz_records

ROOT = Path(__file__).parents[2]
COUNTS = [100, pytest.param(2000, marks=pytest.mark.slow)]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("fuzz", [fuzz_configs, fuzz_records])
def test_whatever_is_given_passes_or_is_refused_in_one_line(fuzz, count):
    found = fuzz(count)
    assert found.cases >= count and found.refused and not found.tracebacks


@pytest.mark.slow
def test_a_process_of_its_own_says_the_same():
    found = fuzz_commands(50)
    assert found.cases == 50 and found.refused and not found.tracebacks


@pytest.mark.parametrize("words", [("--run=../up",), ("--method.name=../up",), ("--train.seed=-1",)])
def test_a_command_line_refuses_before_it_writes(tmp_path, words):
    path = tmp_path / "config.yaml"
    path.write_text(f"output_dir: {tmp_path}/out\n", encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, "train.py", "--config", str(path), *words], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and words[0][2:].split("=")[0] in ended.stderr
    assert [found.name for found in tmp_path.iterdir()] == ["config.yaml"]
