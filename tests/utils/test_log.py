"""Progress where there is no terminal: lines of the log."""

import logging

import pytest

from utils import log


def test_progress_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(log, "SECONDS_BETWEEN_LINES", 0.0)
    with caplog.at_level(logging.INFO, logger="astra"), log.Progress("training", 4) as bar:
        bar.update(3)
    assert caplog.messages[-1].startswith("training: 3 of 4 steps, ") and caplog.messages[-1].endswith(" left")
    assert bar.n == 3


def test_short_work_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="astra"):
        assert list(log.progress(range(3), "tokenizing", unit="records")) == [0, 1, 2]
    assert not caplog.messages
