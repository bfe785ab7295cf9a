"""The adapted model is the base model before training, whatever the family, the split and the data type."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from astra.adapter import attach, attach_factors, initialize_lora_weights, lora_layers
from astra.errors import AstraError
from tests.astra.tiny import calibration, relative_difference, targets, tiny_model, tokens, train


def config(family="llama", **options):
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": targets(family), **options})


def attached(family="llama", split="orthonormal", **options):
    model = tiny_model(family)
    return attach(model, calibration(model, targets(family)), config(family, **options), split=split)


def starts(adapted):
    """A0 and B0 by layer."""
    return {
        name: (layer.lora_A["default"].start, layer.lora_B["default"].start) for name, layer in lora_layers(adapted)
    }


@pytest.mark.parametrize("split", ["orthonormal", "balanced", "rotated"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "gemma2", "gpt2", "bert"])
def test_the_model_is_the_base_model_at_step_0_and_whenever_the_adapter_is_off(family, split):
    ids = tokens()
    before = tiny_model(family)(ids).logits
    adapted = attached(family, split)
    assert torch.equal(adapted(ids).logits, before)
    train(adapted, ids)
    assert relative_difference(adapted(ids).logits, before) > 1e-3
    with adapted.disable_adapter():
        assert torch.equal(adapted(ids).logits, before)
    assert torch.equal(adapted.unload()(ids).logits, before)


def test_what_an_adapter_starts_from_is_computed_in_exact_products():
    found = []

    def factors(target, weight):
        found.append(torch.backends.cuda.matmul.fp32_precision)
        return torch.ones(target.rank, weight.shape[1]), torch.ones(weight.shape[0], target.rank)

    torch.set_float32_matmul_precision("high")
    try:
        attach_factors(tiny_model(), config(), factors)
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert set(found) == {"ieee"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_step_0_adds_nothing_in_any_data_type(dtype):
    model, ids = tiny_model().to(dtype), tokens()
    before = model(ids).logits
    adapted = attach(model, calibration(model, targets()), config(use_rslora=True))
    assert torch.equal(adapted(ids).logits, before)
    assert {p.dtype for p in adapted.parameters() if p.requires_grad} == {torch.float32}


def test_the_start_is_the_projection_even_when_alpha_is_not_rank():
    model = tiny_model()
    weights = {name: module.weight.clone() for name, module in model.named_modules() if name.endswith("v_proj")}
    store = calibration(model, targets())
    adapted = attach(model, store, config(lora_alpha=12))
    for name, weight in weights.items():
        a, b = starts(adapted)[name]
        q = store.vectors(name, "tail", 4)
        assert torch.equal(b, q)
        torch.testing.assert_close(3.0 * b @ a, q @ q.T @ weight)


def test_a_balanced_split_has_equal_norms_and_the_same_product():
    plain = starts(attached())
    for name, (a, b) in starts(attached(split="balanced")).items():
        torch.testing.assert_close(a.norm(dim=1), b.norm(dim=0))
        torch.testing.assert_close(b @ a, plain[name][1] @ plain[name][0])


def test_where_the_projection_is_rounding_a_starts_at_zero():
    model = tiny_model()
    weight = model.model.layers[0].mlp.up_proj.weight
    store = calibration(model, ["up_proj"])
    store.tensors("tail")["model.layers.0.mlp.up_proj"] = torch.linalg.svd(weight.double())[0][:, -4:].float()
    a, b = starts(attach(model, store, config(target_modules=["up_proj"])))["model.layers.0.mlp.up_proj"]
    assert not a.any() and b.any()


def test_the_gradients_are_those_of_the_residual_form():
    ids = tokens()
    adapted = attached(lora_alpha=12)
    plain = get_peft_model(tiny_model(), config(lora_alpha=12))
    ours, theirs = dict(lora_layers(adapted)), dict(lora_layers(plain))
    for name, (a, b) in starts(adapted).items():
        theirs[name].lora_A["default"].weight.data.copy_(a)
        theirs[name].lora_B["default"].weight.data.copy_(b)
        theirs[name].get_base_layer().weight.data.sub_(3.0 * b @ a)
    for model in (adapted, plain):
        model(ids, labels=ids).loss.backward()
    for name, layer in ours.items():
        for side in ("lora_A", "lora_B"):
            found, expected = getattr(layer, side)["default"].delta.grad, getattr(theirs[name], side)["default"].weight
            assert found.abs().max() > 0
            torch.testing.assert_close(found, expected.grad, atol=1e-6, rtol=1e-3)


def test_as_many_parameters_train_as_in_a_lora_of_that_rank():
    plain = get_peft_model(tiny_model(), config())
    assert attached().get_nb_trainable_parameters()[0] == plain.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize("names", [["lm_head"], r".*lm_head"])
def test_a_tied_output_embedding_leaves_the_input_embedding_alone(names):
    model, ids = tiny_model("llama"), tokens()
    before, embedding = model(ids).logits, model.get_input_embeddings().weight.clone()
    adapted = attach(model, calibration(model, ["lm_head"]), config(target_modules=names))
    train(adapted, ids)
    assert torch.equal(adapted.get_input_embeddings().weight, embedding)
    assert relative_difference(adapted(ids).logits, before) > 1e-3


def test_ranks_may_differ_between_layers():
    name = "model.layers.0.mlp.up_proj"
    adapted = attached(rank_pattern={name: 7}, alpha_pattern={name: 14})
    assert starts(adapted)[name][0].shape[0] == 7
    assert torch.equal(adapted(tokens()).logits, tiny_model()(tokens()).logits)


def test_dropout_acts_on_the_adapter_alone():
    adapted = attached(lora_dropout=0.5).train()
    assert torch.equal(adapted(tokens()).logits, tiny_model()(tokens()).logits)


def test_no_random_number_is_drawn_and_the_config_stays_the_users():
    model, state, asked = tiny_model(), torch.get_rng_state(), config()
    attach(model, calibration(model, targets()), asked)
    assert torch.equal(torch.get_rng_state(), state)
    assert asked.r == 4 and asked.lora_alpha == 8


def test_an_existing_peft_model_is_started_and_its_optimizer_kept():
    ids, model = tokens(), tiny_model()
    store, before = calibration(model, targets()), model(ids).logits
    adapted = get_peft_model(model, config(), adapter_name="mine")
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    initialize_lora_weights(adapted, store, adapter_name="mine")
    assert torch.equal(adapted(ids).logits, before)
    adapted(ids, labels=ids).loss.backward()
    optimizer.step()
    other = attach(tiny_model(), store, config())
    for (_, ours), (_, theirs) in zip(lora_layers(adapted, "mine"), lora_layers(other), strict=True):
        assert torch.equal(ours.lora_A["mine"].start, theirs.lora_A["default"].start)
    assert relative_difference(adapted(ids).logits, before) > 1e-3
    with pytest.raises(AstraError, match="has a start already"):
        initialize_lora_weights(adapted, store, adapter_name="mine")
    with pytest.raises(AstraError, match="'default' is not one of mine"):
        initialize_lora_weights(adapted, store)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"r": 9}, "rank 9"),
        ({"target_modules": ["lm_head"]}, "lm_head"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens"),
        ({"init_lora_weights": "pissa"}, r"LoraConfig\.init_lora_weights: 'pissa'"),
        ({"init_lora_weights": "gaussian"}, r"LoraConfig\.init_lora_weights: 'gaussian'"),
        ({"bias": "lora_only"}, r"LoraConfig\.bias: 'lora_only'"),
        ({"lora_bias": True}, r"LoraConfig\.lora_bias"),
        ({"trainable_token_indices": [1, 2]}, r"LoraConfig\.trainable_token_indices"),
        ({"use_dora": True}, r"LoraConfig\.use_dora"),
        ({"layer_replication": [(0, 2)]}, r"LoraConfig\.layer_replication"),
        ({"alora_invocation_tokens": [5]}, r"LoraConfig\.alora_invocation_tokens"),
    ],
)
def test_a_request_that_cannot_be_met_names_what_is_wrong_and_changes_nothing(options, words):
    model = tiny_model()
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(AstraError, match=words):
        attach(model, calibration(model, targets()), config(**options))
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert all(p.requires_grad for p in model.parameters()) and not hasattr(model, "peft_config")


def test_a_rotated_split_has_the_same_product_and_span_in_another_basis():
    plain, rotated = starts(attached()), starts(attached(split="rotated"))
    for name, (a, b) in rotated.items():
        a0, b0 = plain[name]
        assert relative_difference(b @ a, b0 @ a0) < 1e-5
        assert relative_difference(b @ (b.T @ b0), b0) < 1e-5 and relative_difference(b, b0) > 0.1


def test_a_zero_product_has_no_balanced_split_and_changes_nothing():
    model = tiny_model()
    model.model.layers[1].mlp.up_proj.weight.data.zero_()
    store = calibration(model, targets())
    with pytest.raises(AstraError, match="orthonormal"):
        attach(model, store, config(), split="balanced")
    adapted = get_peft_model(model, config())
    with pytest.raises(AstraError, match="orthonormal"):
        initialize_lora_weights(adapted, store, split="balanced")
    assert {type(layer.lora_A["default"]) for _, layer in lora_layers(adapted)} == {nn.Linear}


def test_an_unknown_split_is_refused():
    model = tiny_model()
    with pytest.raises(AstraError, match="orthonormal, balanced"):
        attach(model, calibration(model, targets()), config(), split="halved")


def quantised(model, make):
    """The model with a quantised up projection in its first layer."""
    mlp = model.model.layers[0].mlp
    mlp.up_proj = make(mlp.up_proj)
    return model


def fp8(layer):
    layer.weight = nn.Parameter(layer.weight.data.to(torch.float8_e4m3fn), requires_grad=False)
    return layer


def of_bitsandbytes(kind, **options):
    def make(layer):
        modules = pytest.importorskip("bitsandbytes.nn")
        replaced = getattr(modules, kind)(layer.in_features, layer.out_features, bias=False, **options)
        replaced.load_state_dict({"weight": layer.weight.data}, strict=False)
        return replaced.to("cpu")

    return make


@pytest.mark.parametrize(
    "make",
    [fp8, of_bitsandbytes("Linear8bitLt", has_fp16_weights=False), of_bitsandbytes("Linear4bit", quant_type="fp4")],
)
def test_weights_that_are_neither_floating_point_nor_nf4_are_refused(make):
    store = calibration(tiny_model(), targets())
    with pytest.raises(AstraError, match=r"layers\.0\.mlp\.up_proj: its weight is .*nf4"):
        attach(quantised(tiny_model(), make), store, config())


def test_on_an_nf4_weight_step_0_adds_nothing_and_the_start_is_of_what_it_stands_for():
    from bitsandbytes.functional import dequantize_4bit

    store, ids = calibration(tiny_model(), targets()), tokens()
    model = quantised(tiny_model(), of_bitsandbytes("Linear4bit", quant_type="nf4", compute_dtype=torch.float32))
    before = model(ids).logits
    adapted = attach(model, store, config())
    assert torch.equal(adapted(ids).logits, before)
    layer = dict(lora_layers(adapted))["model.layers.0.mlp.up_proj"]
    weight = layer.get_base_layer().weight
    a, b = starts(adapted)["model.layers.0.mlp.up_proj"]
    torch.testing.assert_close(a, b.T @ dequantize_4bit(weight.data, weight.quant_state) / 2)
    train(adapted, ids)
    assert relative_difference(adapted(ids).logits, before) > 1e-3


def test_a_copy_of_an_adapted_model_saves_itself(tmp_path):
    adapted, ids = attached(), tokens()
    twin = copy.deepcopy(adapted)
    train(twin, ids)
    twin.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path)
    assert relative_difference(loaded(ids).logits, twin(ids).logits) < 1e-6
