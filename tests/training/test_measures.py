"""What a run measures of its training: the size of its steps, the change of its weights, losses record by record."""

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

import train as training
from astra.adapter import lora_layers
from tests.astra.tiny import disturb, tokens
from tests.runs import calibrate, folder_of, losses, metrics
from tests.training.test_methods import built
from training import measures
from training.trainer import Diverged
from utils.files import read_record

STARTS = [
    {"method__name": "lora"},
    {"method__name": "rslora"},
    {"method__name": "pissa"},
    {"method__name": "milora"},
    {"method__name": "full"},
    {"method__name": "dora"},
    {"method__name": "mica"},
    {"method__name": "lora_matched"},
    {"method__name": "astra", "method__subspace": "tail"},
    {"method__name": "astra", "method__split": "rotated"},
    {"method__name": "astra", "method__subspace": "principal", "method__split": "balanced"},
    {"method__name": "astra", "method__subspace": "principal", "method__split": "balanced", "method__freeze_b": True},
]


@pytest.mark.parametrize("start", STARTS, ids=lambda start: "-".join(map(str, start.values())))
def test_a_relative_step_is_the_size_of_the_first_step_for_every_method(config, start):
    this = config(
        **start, train__relative_step=2e-3, train__warmup_ratio=0.0, train__max_steps=1, train__max_grad_norm=1e9,
        data__validation=0.25, data__reporting=0.25,
    )  # fmt: skip
    calibrate(this)
    training.train(this)
    found = metrics(this)
    assert found["relative_step"] == pytest.approx(2e-3)
    update = found["update"]
    assert update["first_step_predicted"] == pytest.approx(2e-3)
    # Adam's first step is the rate times the gradient's sign, short where a gradient is near zero.
    assert update["first_step"] == pytest.approx(2e-3, rel=0.12)
    assert update["relative_norm"] == pytest.approx(update["first_step"], rel=1e-4)
    assert "method__freeze_b" not in start or update["inside_span"] == pytest.approx(1, abs=1e-6)


def test_measures_of_the_update_are_those_of_the_weights(config, monkeypatch):
    this = config(method__name="astra", data__validation=0.25)
    calibrate(this)
    kept = {}

    def look(config, trainer, examples, tokenizer):
        squares = torch.zeros(4, dtype=torch.float64)
        for _, layer in lora_layers(trainer.model):
            change = layer.get_delta_weight("default").double()
            q = layer.lora_B["default"].start.double()
            weight = layer.get_base_layer().weight.double()
            squares += torch.stack([t.square().sum() for t in (change, weight, q.T @ change, q.T @ q)])
        kept.update(norm=(squares[0] / squares[1]).sqrt(), inside=squares[2] / squares[0])
        name, layer = next(lora_layers(trainer.model))
        seen = []
        handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        mask = torch.tensor([[1] * 6 + [0] * 2])
        found = measures.layer_output_changes(
            trainer.model, [{"input_ids": torch.arange(1, 9)[None], "attention_mask": mask}]
        )
        handle.remove()
        x = seen[0][0, :6].double()
        weights = layer.get_delta_weight("default").double(), layer.get_base_layer().weight.double()
        kept.update(found=found[name], expected=torch.stack([(x @ weight.T).square().sum() for weight in weights]))
        return real(config, trainer, examples, tokenizer)

    real = measures.update_figures
    monkeypatch.setattr(measures, "update_figures", look)
    training.train(this)
    update = metrics(this)["update"]
    assert update["relative_norm"] == pytest.approx(float(kept["norm"]), rel=1e-5)
    assert update["inside_span"] == pytest.approx(float(kept["inside"]), rel=1e-4)
    assert 0 < update["inside_span"] < 1 and update["output_change"] > 0 and update["median_output_change"] > 0
    torch.testing.assert_close(kept["found"], kept["expected"], rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["lora", "astra", "dora"])
def test_a_change_too_small_for_bfloat16_outputs_is_measured_all_the_same(name):
    model, seen = built(name, rank=2), {}
    disturb(model, 1e-4)
    for layer_name, layer in lora_layers(model):
        base = layer.get_base_layer()
        base.weight.data = base.weight.data.bfloat16()
        base.register_forward_pre_hook(lambda _, x, name=layer_name: seen.update({name: x[0][0].double()}))
    ids = tokens(1)
    with torch.autocast("cpu", torch.bfloat16):
        found = measures.layer_output_changes(model, [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}])
    for layer_name, layer in lora_layers(model):
        change = measures._lora_change(layer).double()
        expected = (seen[layer_name] @ change.T).square().sum()
        assert float(found[layer_name][0]) == pytest.approx(float(expected), rel=1e-3)


def test_losses_are_kept_record_by_record_and_their_mean_is_the_loss(config):
    this = config(data__validation=0.25, data__reporting=0.25, train__save_steps=6)
    training.train(this)
    kept, found = read_record(folder_of(this) / "losses.json"), metrics(this)
    assert {split: len(values) for split, values in kept.items()} == {"validation": 6, "reporting": 6}
    assert sum(kept["validation"]) / 6 == pytest.approx(found["validation_loss"], rel=1e-5)
    assert sum(kept["reporting"]) / 6 == pytest.approx(found["reporting_loss"], rel=1e-9)
    assert found["base_loss"] > found["reporting_loss"] != pytest.approx(found["validation_loss"], rel=1e-3)


def test_what_can_not_be_measured_stops_no_export(config, caplog):
    this = config(calibration__max_length=8)
    with caplog.at_level("WARNING", logger="astra"):
        training.train(this)
    assert metrics(this)["update"]["output_change"] is None
    assert "calibration.max_length: no example has a prompt shorter than 8 tokens" in caplog.text


def test_a_run_that_diverges_says_so_and_leaves_no_result(config):
    this = config(method__name="full", train__learning_rate=1e30, train__max_grad_norm=1e9)
    with pytest.raises(Diverged, match="not a number at step"):
        training.train(this)
    record = read_record(folder_of(this) / "diverged.json")
    assert record["settings"]["train.learning_rate"] == 1e30
    assert not (folder_of(this) / "metrics.json").exists()


def test_the_rate_that_is_set_is_the_rate_of_the_steps(config):
    rates = {}
    for name, wanted in (("by-rate", {"train__learning_rate": 1e-2}), ("by-step", None)):
        step = metrics(config(run="by-rate"))["relative_step"] if wanted is None else None
        this = config(run=name, **(wanted or {"train__relative_step": step}))
        training.train(this)
        rates[name] = losses(this)
    assert rates["by-step"] == pytest.approx(rates["by-rate"], rel=1e-6)


def test_losses_are_per_record_when_training_packs_too(config):
    found = []
    for packing in (False, True):
        this = config(run=f"packing {packing}", train__packing=packing, data__validation=0.25, train__save_steps=6)
        training.train(this)
        found.append(read_record(folder_of(this) / "losses.json")["validation"])
    assert found[0] == pytest.approx(found[1], rel=1e-3) and len(found[0]) == 6


def test_records_held_out_to_report_on_are_reported_on_without_validation(config):
    this = config(method__name="lora", data__reporting=0.25)
    training.train(this)
    kept = read_record(folder_of(this) / "losses.json")["reporting"]
    assert len(kept) == 6 and metrics(this)["reporting_loss"] == pytest.approx(np.mean(kept))


def test_full_training_is_measured_whatever_target_modules_name(config, tmp_path, base):
    folder = tmp_path / "gpt2"
    tokenizer = AutoTokenizer.from_pretrained(base)
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    this = config(model__name=str(folder), method__name="full", train__max_steps=2, train__save_steps=2)
    training.train(this)
    assert metrics(this)["update"]["relative_norm"] > 0
