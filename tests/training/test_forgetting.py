"""Forgetting: one text, paired windows, the same before and after, in one go and resumed."""

import json
import logging
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import train as training
from tests.runs import Crash, crash_at, folder_of, metrics
from training.check import check
from training.forgetting import Forgetting, window_losses
from utils.errors import UserError


@pytest.fixture
def asked(config, monkeypatch):
    """A config of runs that measure forgetting, on fewer windows: the logits of a real vocabulary take their time."""
    monkeypatch.setattr("dataset.general_text.WINDOWS", 32)
    return lambda **changes: config(**{"train__forgetting": True, **changes})


@contextmanager
def crashing(monkeypatch, step=3):
    with monkeypatch.context() as patched, pytest.raises(Crash):
        crash_at(patched, step)
        yield


def before(this):
    return folder_of(this) / "checkpoints" / "before.json"


def test_a_resumed_run_compares_with_the_windows_it_began_with(asked, monkeypatch):
    with crashing(monkeypatch):
        training.train(asked())
    training.train(asked())
    kept, found = json.loads(before(asked()).read_text()), metrics(asked())["forgetting"]
    assert found["windows"] == len(kept["losses"]) == 32
    assert found["before"] == pytest.approx(np.mean(kept["losses"]))
    assert found["rise"] == pytest.approx(found["after"] - found["before"])
    assert (found["text"], found["fingerprint"]) == (kept["text"], kept["fingerprint"])
    assert found["standard_error"] > 0


def test_the_standard_error_is_that_of_paired_windows(asked, base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(base)
    measure = Forgetting(asked(), AutoTokenizer.from_pretrained(base), tmp_path / "before.json")
    losses = window_losses(model, measure.windows)
    own = model(input_ids=measure.windows[:1], labels=measure.windows[:1]).loss.item()
    assert losses[0].item() == pytest.approx(own, rel=1e-5)
    spread = torch.linspace(-1, 1, 32, dtype=torch.float64)
    measure.before = losses - spread - 0.5
    found = measure.compare(model)
    assert found["rise"] == pytest.approx(0.5) and found["before"] == pytest.approx(found["after"] - 0.5)
    assert found["standard_error"] == pytest.approx(spread.std().item() / 32**0.5)


def test_another_text_than_at_the_start_is_no_comparison(asked, monkeypatch, caplog):
    with crashing(monkeypatch):
        training.train(asked())
    kept = json.loads(before(asked()).read_text())
    before(asked()).write_text(json.dumps({**kept, "fingerprint": "0123456789abcdef"}))
    with caplog.at_level(logging.INFO, logger="astra"):
        training.train(asked())
    assert metrics(asked())["forgetting"] is None and "forgetting is not known" in caplog.text


def test_forgetting_asked_for_only_later_does_not_cost_the_result(config, asked, monkeypatch, caplog):
    with crashing(monkeypatch):
        training.train(config())
    with caplog.at_level(logging.INFO, logger="astra"):
        training.train(asked())
    assert metrics(asked())["forgetting"] is None and "forgetting is not known" in caplog.text


def test_a_text_that_cannot_be_read_is_found_before_anything_heavy(config, asked):
    with pytest.raises(UserError, match="data.general_text: no text 'books'"):
        check(asked(data__general_text="books"))
    check(config(data__general_text="books"))
