"""Forgetting as a task: the mean loss of a token on 256 windows of the text that was asked for."""

import pytest
from transformers import AutoTokenizer

from dataset.general_text import load_general_text
from eval.engines import Score
from eval.tasks import check_tasks, forgetting
from utils.config import Config
from utils.errors import UserError


def test_forgetting_is_the_mean_loss_of_a_token(base):
    asked = []

    def ask(pairs):
        asked.extend(pairs)
        lost = [2.0] * 255 + [4.0]
        return [Score(-loss * 127, 127, False) for loss in lost]

    config = Config(data={"general_text": "python-manual"}, eval={"tasks": ["forgetting"]})
    check_tasks(config)
    figures, samples = forgetting.run(ask, AutoTokenizer.from_pretrained(base), config)
    assert figures["loss"] == pytest.approx(2 + 2 / 256)
    assert (figures["n"], figures["tokens"], len(asked), len(samples)) == (256, 256 * 127, 256, 256)
    assert samples[0]["loss"] == pytest.approx(2.0) and samples[0]["prompt"]
    assert figures["text"] == "python-manual"
    assert figures["fingerprint"] == load_general_text("python-manual").fingerprint
    assert forgetting.settings(config)["data"] == figures["fingerprint"]


def test_a_text_that_cannot_be_read_is_found_early():
    with pytest.raises(UserError, match="data.general_text: no text 'books'"):
        check_tasks(Config(data={"general_text": "books"}, eval={"tasks": ["forgetting"]}))
