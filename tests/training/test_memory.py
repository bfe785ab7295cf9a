"""What the stages are said to need in memory, against what a model of the same shape really keeps."""

import pytest
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from scripts import preflight
from training import memory
from utils.errors import UserError


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["lora", "full"])
def test_what_autograd_keeps_of_the_shape_is_what_it_keeps_of_the_model(config, monkeypatch, name, checkpointing):
    this = config(method__name=name, train__gradient_checkpointing=checkpointing)
    shape, real = memory.shape_of_model(this), AutoModelForCausalLM.from_pretrained(this.model.name)
    for model in (shape, real):
        memory.add_shape_of_adapter(this, model)
    said = memory.kept_bytes(this, shape, 2, 64)
    real_attention = F.scaled_dot_product_attention
    monkeypatch.setattr(memory.FusedAttention, "apply", lambda q, k, v: real_attention(q, k, v, is_causal=True))
    assert said == pytest.approx(memory.kept_bytes(this, real, 2, 64), rel=0.05)


def test_checkpointing_keeps_less(config):
    kept = []
    for this in (config(), config(train__gradient_checkpointing=True)):
        shape = memory.shape_of_model(this)
        memory.add_shape_of_adapter(this, shape)
        kept.append(memory.kept_bytes(this, shape, 2, 64))
    assert kept[1] < kept[0] / 2


def test_examples_are_as_long_as_they_are_and_no_longer_than_the_limit(config):
    this = config()
    lengths, targets = memory.lengths_of_examples(this)
    assert max(lengths) <= this.data.max_length and all(a > b > 0 for a, b in zip(lengths, targets, strict=True))
    short = config(data__max_length=max(lengths) - 3)
    assert max(memory.lengths_of_examples(short)[0]) == max(lengths) - 3


def test_what_cannot_fit_is_refused_with_what_to_set(config, monkeypatch):
    monkeypatch.setattr(memory, "room", lambda: 2**20)
    with pytest.raises(UserError, match=r"model\.name: calibrate: about .* set model\.device_map=auto"):
        preflight.state_costs(config())
    with pytest.raises(UserError, match=r"train: about .* set train\.gradient_checkpointing=true"):
        preflight.state_costs(config(model__device_map="auto"))
    with pytest.raises(UserError, match=r"activations: about .* a smaller train\.micro_batch_size"):
        preflight.state_costs(config(model__device_map="auto", train__deepspeed="configs/deepspeed/zero2.json"))


def test_more_that_trains_needs_more(config):
    def train(**changes):
        found = memory.needed_bytes(config(**changes))
        return found["train"] - found["calibrate"]  # both hold what this process holds, which grows

    assert train(method__rank=8) > train(method__rank=4)
    assert train(train__micro_batch_size=4) > train(train__micro_batch_size=1)
