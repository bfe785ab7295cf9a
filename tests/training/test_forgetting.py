"""Forgetting: one text, paired windows, the same before and after, in one go and resumed."""

import logging
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import train as training
from tests.runs import Crash, crash_at, metrics
from training.check import check
from training.forgetting import Forgetting, window_losses
from utils.errors import UserError
from utils.files import read_record


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


def base_file(this):
    (path,) = (Path(this.output_dir) / "base").iterdir()
    return path


def test_the_base_model_is_measured_once_for_all_runs(asked, monkeypatch):
    with crashing(monkeypatch):
        training.train(asked())
    kept = read_record(base_file(asked()))["losses"]
    monkeypatch.setattr("training.forgetting.PeftModel.disable_adapter", None)
    training.train(asked())
    training.train(asked(method__rank=4, run="another"))
    found = metrics(asked())["forgetting"]
    assert found["windows"] == len(kept) == 32
    assert found["before"] == metrics(asked(method__rank=4, run="another"))["forgetting"]["before"]
    assert found["before"] == pytest.approx(np.mean(kept))
    assert found["rise"] == pytest.approx(found["after"] - found["before"])
    assert found["standard_error"] > 0


def test_the_standard_error_is_that_of_paired_windows(asked, base):
    model = AutoModelForCausalLM.from_pretrained(base)
    measure = Forgetting(asked(), AutoTokenizer.from_pretrained(base))
    losses = window_losses(model, measure.windows)
    own = model(input_ids=measure.windows[:1], labels=measure.windows[:1]).loss.item()
    assert losses[0].item() == pytest.approx(own, rel=1e-5)
    spread = torch.linspace(-1, 1, 32, dtype=torch.float64)
    measure.before = losses - spread - 0.5
    found = measure.compare(model)
    assert found["rise"] == pytest.approx(0.5) and found["before"] == pytest.approx(found["after"] - 0.5)
    assert found["standard_error"] == pytest.approx(spread.std().item() / 32**0.5)


def test_an_adapter_that_goes_on_is_compared_with_the_base_all_the_same(config, asked, monkeypatch):
    with crashing(monkeypatch):
        training.train(config())
    training.train(asked())
    whole = metrics(asked())["forgetting"]
    training.train(asked(run="undisturbed"))
    assert whole["before"] == metrics(asked(run="undisturbed"))["forgetting"]["before"]


def test_a_whole_model_that_goes_on_has_no_base_to_compare_with(config, asked, monkeypatch, caplog):
    with crashing(monkeypatch):
        training.train(config(method__name="full"))
    with caplog.at_level(logging.INFO, logger="astra"):
        training.train(asked(method__name="full"))
    assert metrics(asked(method__name="full"))["forgetting"] is None and "forgetting is not known" in caplog.text


def test_a_text_that_cannot_be_read_is_found_before_anything_heavy(config, asked):
    with pytest.raises(UserError, match="data.general_text: no text 'books'"):
        check(asked(data__general_text="books"))
    check(config(data__general_text="books"))
