"""Results go where training reported to."""

from pathlib import Path

import pytest

from eval.candidates import Target
from eval.tracking import check_trackers, figures, track
from utils.config import Config
from utils.errors import UserError

RESULT = {
    "accuracy": 0.5, "n": 4, "lenient": 0.75, "length_share": 0.25,
    "graders": {"exact": {"accuracy": 0.5}, "metamath": {"accuracy": 0.75}}, "pass_at_k": {"2": {"score": 0.9}},
}  # fmt: skip


def test_a_tracker_that_is_not_installed_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"train.report_to: wandb is not installed; install it, or set"):
        check_trackers(Config(train={"report_to": ["wandb"]}))
    check_trackers(Config(train={"report_to": ["mlflow"]}))
    track(Config(), Target("base", Path("m"), None, tmp_path / "base" / "eval"), {"gsm8k": RESULT})
    assert not list(tmp_path.iterdir())


def test_every_reading_of_a_result_is_a_figure():
    found = figures("gsm8k", RESULT)
    assert found["eval/gsm8k/accuracy"] == 0.5 and found["eval/gsm8k/grader metamath"] == 0.75
    assert found["eval/gsm8k/pass@2"] == 0.9 and found["eval/gsm8k/lenient"] == 0.75
    assert figures("forgetting", {"loss": 3.0}) == {"eval/forgetting/loss": 3.0}


def test_tensorboard_reads_what_was_scored(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = Config(train={"report_to": ["tensorboard"]})
    track(config, Target("mine", Path("m"), None, tmp_path / "eval"), {"gsm8k": RESULT})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Scalars("eval/gsm8k/accuracy")[0].value == 0.5
