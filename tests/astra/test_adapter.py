"""The adapted model equals the base model before training, whatever the family, the split and the scaling."""

import pytest
import torch
from peft import LoraConfig

from astra.adapter import attach, lora_layers
from astra.errors import AstraError
from tests.astra.tiny import calibration, disturb, relative_difference, targets, tiny_model, tokens


def config(family="llama", **options):
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": targets(family), **options})


@pytest.mark.parametrize("split", ["orthonormal", "balanced"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "gemma2", "gpt2", "bert"])
def test_the_model_computes_the_same_at_step_0(family, split):
    model, ids = tiny_model(family), tokens()
    before = model(ids).logits
    adapted = attach(model, calibration(model, targets(family)), config(family), split=split)
    assert relative_difference(adapted(ids).logits, before) < 1e-5


def test_the_start_is_the_projection_even_when_alpha_is_not_rank():
    model = tiny_model()
    weights = {name: module.weight.clone() for name, module in model.named_modules() if name.endswith("v_proj")}
    store = calibration(model, targets())
    adapted = attach(model, store, config(lora_alpha=12))
    for name, weight in weights.items():
        a, b = adapted.initial_lora[name]
        q = store.vectors(name, "tail", 4)
        assert torch.equal(b, q)
        torch.testing.assert_close(3.0 * b @ a, q @ q.T @ weight)


def test_a_balanced_split_has_equal_norms_and_the_same_product():
    factors = {}
    for split in ("orthonormal", "balanced"):
        model = tiny_model()
        factors[split] = attach(model, calibration(model, targets()), config(), split=split).initial_lora
    for name, (a, b) in factors["balanced"].items():
        torch.testing.assert_close(a.norm(dim=1), b.norm(dim=0))
        torch.testing.assert_close(b @ a, factors["orthonormal"][name][1] @ factors["orthonormal"][name][0])


def test_only_the_factors_train_and_they_get_gradients():
    model, ids = tiny_model(), tokens()
    adapted = attach(model, calibration(model, targets()), config())
    adapted(ids, labels=ids).loss.backward()
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapted.parameters() if p.requires_grad)


def test_a_tied_output_embedding_is_untied_before_it_is_edited():
    model, ids = tiny_model("llama"), tokens()
    before, embedding = model(ids).logits, model.get_input_embeddings().weight.clone()
    adapted = attach(model, calibration(model, ["lm_head"]), config(target_modules=["lm_head"]))
    assert torch.equal(adapted.get_input_embeddings().weight, embedding)
    assert relative_difference(adapted(ids).logits, before) < 1e-5


def test_ranks_may_differ_between_layers():
    model, ids = tiny_model(), tokens()
    before = model(ids).logits
    name = "model.layers.0.mlp.up_proj"
    pattern = config(rank_pattern={name: 7}, alpha_pattern={name: 14})
    adapted = attach(model, calibration(model, targets()), pattern)
    assert adapted.initial_lora[name][0].shape[0] == 7
    assert relative_difference(adapted(ids).logits, before) < 1e-5


def test_a_bfloat16_base_is_rounded_once_and_its_factors_stay_float32():
    model, ids = tiny_model().to(torch.bfloat16), tokens()
    weight = model.model.layers[0].mlp.up_proj.weight.float().clone()
    adapted = attach(model, calibration(model, targets()), config())
    layer = dict(lora_layers(adapted))["model.layers.0.mlp.up_proj"]
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert a.dtype == b.dtype == torch.float32
    whole = layer.get_base_layer().weight.float() + layer.scaling["default"] * b @ a
    assert (whole - weight).abs().max() <= weight.abs().max() * torch.finfo(torch.bfloat16).eps
    assert torch.isfinite(adapted(ids).logits).all()


def test_a_zero_product_has_no_balanced_split():
    model = tiny_model()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data.zero_()
    with pytest.raises(AstraError, match="orthonormal"):
        attach(model, calibration(model, targets()), config(), split="balanced")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"r": 9}, "rank 9"),
        ({"target_modules": ["lm_head"]}, "lm_head"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens"),
    ],
)
def test_a_request_that_cannot_be_met_names_what_is_wrong(options, words):
    model = tiny_model()
    with pytest.raises(AstraError, match=words):
        attach(model, calibration(model, targets()), config(**options))


def test_an_unknown_split_is_refused():
    model = tiny_model()
    with pytest.raises(AstraError, match="orthonormal, balanced"):
        attach(model, calibration(model, targets()), config(), split="halved")


def test_training_moves_what_it_computes():
    model, ids = tiny_model(), tokens()
    before = model(ids).logits
    adapted = attach(model, calibration(model, targets()), config())
    disturb(adapted)
    assert relative_difference(adapted(ids).logits, before) > 1e-3
