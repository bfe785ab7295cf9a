"""Experiments killed at some moment, and processes that are lost: the same command ends with the same result."""

import shutil

import pytest

from benchmarks.reliability import kills, rank_trial


@pytest.mark.parametrize("count", [2, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])])
def test_killed_and_started_again_an_experiment_ends_the_same(finished, tmp_path, count):
    assert [trial["wrong"] for trial in kills(finished[1], tmp_path, count, 0)] == [None] * count


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["killed", "raises"])
@pytest.mark.parametrize("script", ["calibrate.py", "train.py"])
def test_a_lost_process_is_named_and_the_other_one_stops(finished, tmp_path, script, kind):
    config, path = finished
    if script == "train.py":
        shutil.copytree(f"{config.output_dir}/calibration", tmp_path / "out" / "calibration")
    text = path.read_text(encoding="utf-8").replace(config.output_dir, str(tmp_path / "out"))
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    assert rank_trial(tmp_path / "config.yaml", script, kind, tmp_path) is None
