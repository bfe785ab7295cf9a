"""Every method starts where the base model is, trains, and ends as a plain LoRA if it says so."""

from dataclasses import replace

import pytest
import torch

from astra.adapter import as_matrix, lora_layers
from astra.convert import starting_factors
from astra.errors import AstraError
from tests.astra.tiny import calibration, disturb, relative_difference, targets, tiny_model, tokens
from training.methods import METHODS, Request, build, freeze_b, restore, usual_rates
from utils.config import MethodConfig

ADAPTERS = [name for name in METHODS if name != "full"]
PASSED = ("eigens", "covariance_matrix", "_peft_loraga_grad")


def samples(size):
    for k in range(4):
        ids = tokens(size, seed=10 + k)
        yield {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


def request_for(name, family="llama", rank=4, names=None, **options):
    method = MethodConfig(name=name, rank=rank, alpha=2 * rank, target_modules=names or targets(family))
    return Request(method, calibration=calibration(tiny_model(family), targets(family)), samples=samples, **options)


def built(name, family="llama", **options):
    return build(tiny_model(family), request_for(name, family, **options)).eval()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_the_model_computes_the_same_at_step_0(name, family):
    ids = tokens()
    found, expected = built(name, family)(ids).logits, tiny_model(family)(ids).logits
    assert torch.equal(found, expected) if name != "dora" else relative_difference(found, expected) < 1e-5


@pytest.mark.parametrize(
    ("name", "rank"), [("eva", 1), *((name, 4) for name, method in METHODS.items() if method.keeps_start)]
)
def test_a_resumed_run_gets_the_same_start_without_its_data(name, rank):
    model, ids = built(name, rank=rank), tokens()
    disturb(model)
    initial = {layer: starting_factors(module) for layer, module in lora_layers(model)}
    assert rank > 1 or len(initial) < 2 * len(targets())  # EVA leaves layers out
    request = replace(request_for(name, rank=rank), calibration=None, samples=None)
    resumed = restore(tiny_model(), request, initial)
    for layer, module in lora_layers(resumed):
        torch.testing.assert_close(starting_factors(module), initial[layer])
    state = {key: value for key, value in model.state_dict().items() if "lora_" in key}
    assert not resumed.load_state_dict(state, strict=False).unexpected_keys
    assert relative_difference(resumed.eval()(ids).logits, model(ids).logits) < 1e-5


@pytest.mark.parametrize("name", ["pissa", "mica"])
def test_a_frozen_b_stays_frozen_when_the_adapter_is_switched_off_and_on(name):
    adapted = built(name)
    initial = {layer: starting_factors(module) for layer, module in lora_layers(adapted)}
    adapted = restore(tiny_model(), request_for(name), initial)
    if name == "pissa":
        freeze_b(adapted)
    with adapted.disable_adapter():
        pass
    trained = [key for key, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert trained and all("lora_A" in key for key in trained)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_magnitude_of_a_dora_is_not_rounded_to_the_data_type_of_its_base(family):
    adapted = build(tiny_model(family).to(torch.bfloat16), request_for("dora", family))
    for _, module in lora_layers(adapted):
        expected = as_matrix(module.get_base_layer()).double().norm(dim=1)
        magnitude = module.lora_magnitude_vector["default"]
        beside = magnitude.get_weight_norm(module.get_base_layer().weight, torch.zeros(()), 1.0)
        for found in (magnitude.weight, beside):
            torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(("name", "part"), [("pissa", slice(None, 4)), ("milora", slice(-4, None))])
def test_pissa_and_milora_take_the_ends_of_the_singular_values(family, name, part):
    for _, module in lora_layers(built(name, family)):
        a, b = starting_factors(module)
        u, s, vh = torch.linalg.svd(as_matrix(module.get_base_layer()), full_matrices=False)
        torch.testing.assert_close(2.0 * b @ a, u[:, part] * s[part] @ vh[part], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(a.norm(dim=1).sort()[0], b.norm(dim=0).sort()[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["corda", "lora_ga"])
def test_what_a_pass_over_the_model_leaves_is_taken_away(name):
    adapted = built(name)
    assert not any(hasattr(layer.get_base_layer(), key) for _, layer in lora_layers(adapted) for key in PASSED)


def test_what_the_config_says_of_an_adapter_is_so():
    request = request_for("astra")
    changes = {"split": "balanced", "dropout": 0.5, "exclude_modules": ["up_proj"]}
    request.method = request.method.model_copy(update=changes)
    layers = dict(lora_layers(build(tiny_model(), request)))
    assert layers and not any(name.endswith("up_proj") for name in layers)
    for layer in layers.values():
        a, b = starting_factors(layer)
        torch.testing.assert_close(a.norm(dim=1), b.norm(dim=0))
        assert layer.lora_dropout["default"].p == 0.5


def test_a_classifier_trains_its_head_too():
    adapted = built("astra", "bert", task_type="SEQ_CLS")
    assert any("classifier" in n for n, p in adapted.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_method_adapts_the_same_layers_however_they_are_named(name):
    request = request_for(name, names="all-linear")
    layers = set(request.calibration.layers)
    if METHODS[name].needs == "calibration":
        request.calibration.left_out = (max(layers),)  # one that it never reached
        layers -= {request.calibration.layers.pop(max(layers)).name}
    else:
        request.calibration = None
    assert {layer for layer, _ in lora_layers(build(tiny_model(), request))} == layers


@pytest.mark.parametrize("name", ["lora", "astra"])
def test_targets_that_are_not_there_are_named(name):
    with pytest.raises(AstraError, match="nothing"):
        built(name, names=["nothing"])


def test_principal_directions_take_pissas_rates_and_the_tail_loras():
    assert usual_rates("astra", "principal") == usual_rates("pissa", "tail")
    assert usual_rates("astra", "tail") == usual_rates("lora", "tail") > usual_rates("astra", "principal")


def test_a_matched_lora_takes_a_step_as_long_as_astras_in_every_layer():
    found = []
    for name in ("astra", "lora_matched"):
        model = built(name)
        starts = {layer: starting_factors(module) for layer, module in lora_layers(model)}
        found.append({
            layer: (len(b) * a.square().sum() + a.shape[1] * b.square().sum()).item()
            for layer, (a, b) in starts.items()
        })  # fmt: skip
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_mica_trains_a_alone_from_the_minor_singular_vectors():
    model = built("mica")
    for _, layer in lora_layers(model):
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        u = torch.linalg.svd(as_matrix(layer.get_base_layer()).double())[0][:, : min(layer.base_layer.weight.shape)]
        assert a.requires_grad and not b.requires_grad and not a.any()
        assert (u[:, -4:].T @ b.double()).square().sum().item() == pytest.approx(4, rel=1e-4)


def test_a_resumed_mica_keeps_its_b_whatever_signs_a_decomposition_gives_now():
    started = {name: starting_factors(layer) for name, layer in lora_layers(built("mica"))}
    turned = {name: (a, -b) for name, (a, b) in started.items()}
    for name, layer in lora_layers(restore(tiny_model(), request_for("mica"), turned)):
        b = layer.lora_B["default"].weight
        assert torch.equal(b, turned[name][1]) and not b.requires_grad
