"""Targets are named as PEFT names them, and what cannot be one is refused by name."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import inspect_matched_modules
from torch import nn

from astra import AstraError, calibrate
from astra.targets import find_targets
from tests.astra.families import FAMILIES
from tests.astra.test_adapter import fp8, of_bitsandbytes
from tests.astra.test_moments import build, tokens

CONFIGS: list[dict[str, Any]] = [
    {"target_modules": ["q_proj", "down_proj"]},
    {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]},
    {"target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*layers\.1.*"},
    {"target_modules": ["o_proj"], "layers_to_transform": [1]},
    {"target_modules": r".*\.1\.mlp\.(gate|up)_proj"},
    {"target_modules": "all-linear"},
    {},
]


@pytest.mark.parametrize("options", CONFIGS, ids=str)
def test_targets_are_those_that_peft_adapts(options: dict[str, Any]) -> None:
    model, _ = build("llama")
    config = LoraConfig(r=2, **options)
    adapted = get_peft_model(copy.deepcopy(model), copy.deepcopy(config))
    matched = [name for name in inspect_matched_modules(adapted.base_model)["matched"] if "lora_" not in name]
    wanted = [name.removesuffix(".base_layer") for name in matched]
    assert set(find_targets(model, config)) == set(wanted)


def test_a_config_names_targets_and_rank() -> None:
    model, _ = build("llama")
    config = LoraConfig(r=3, target_modules=["q_proj"], layers_to_transform=[1], rank_pattern={"layers.1": 5})
    found = calibrate(model, tokens(), config)
    assert list(found.layers) == ["model.layers.1.self_attn.q_proj"] and found.max_rank == 5


def test_of_a_peft_model_the_base_is_calibrated() -> None:
    model, targets = build("llama")
    plain = calibrate(model, tokens(), targets, 4)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    found = calibrate(adapted, tokens(), adapted.peft_config["default"], 4)
    assert found.layers == plain.layers
    for name in plain.layers:
        assert torch.equal(found.vectors(name, "tail", 4), plain.vectors(name, "tail", 4))


def test_all_linear_leaves_out_heads_routers_and_gates(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "astra")
    model, _ = FAMILIES["qwen2-moe"]()
    ends = {name.rpartition(".")[2] for name in find_targets(model, "all-linear")}
    assert ends == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert "2 routers and gates: model.layers.0.mlp.shared_expert_gate" in caplog.text
    assert "4 experts kept in one parameter: model.layers.0.mlp.experts.gate_up_proj" in caplog.text
    classifier, _ = FAMILIES["bert"]()
    assert "classifier" not in find_targets(classifier, "all-linear")


def test_names_shared_with_fused_experts_mean_the_linear_layers() -> None:
    model, _ = FAMILIES["deepseek-v3"]()
    assert set(find_targets(model, ["down_proj"])) == {
        "model.layers.0.mlp.down_proj", "model.layers.1.mlp.shared_experts.down_proj",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("family", "targets", "message"),
    [
        ("llama", ["q_prj"], "'q_prj' is not in LlamaForCausalLM; linear layers: .*q_proj"),
        ("llama", ["embed_tokens"], "a Embedding cannot be adapted"),
        ("llama", "nothing", "'nothing' matches no layer"),
        ("mixtral", ["gate_up_proj"], r"mlp.experts.gate_up_proj .*3-D"),
        ("mixtral", ["gate"], "gate: a MixtralTopKRouter cannot be adapted, only Linear"),
        ("llama4", ["router"], "router: a Llama4Router cannot be adapted, only Linear"),
        ("llama", LoraConfig(target_parameters=["mlp.experts.gate_up_proj"]), "target_parameters cannot be adapted"),
    ],
)
def test_what_cannot_be_a_target_is_named(family: str, targets: Any, message: str) -> None:
    with pytest.raises(AstraError, match=message):
        find_targets(FAMILIES[family]()[0], targets)


@pytest.mark.parametrize(
    "make",
    [fp8, of_bitsandbytes("Linear8bitLt", has_fp16_weights=False), of_bitsandbytes("Linear4bit", quant_type="nf4")],
)
def test_weights_that_are_not_plain_numbers_are_refused(make: Any) -> None:
    layer = make(nn.Linear(64, 32, bias=False))
    with pytest.raises(AstraError, match="layer 0: its weight is .*; load the model in plain floating"):
        calibrate(nn.Sequential(layer), [{"input": torch.randn(3, 64)}], ["0"], 2)


def test_weights_that_are_nowhere_are_refused() -> None:
    with pytest.raises(AstraError, match="layer 0: it has no weights"):
        calibrate(nn.Sequential(nn.Linear(4, 4, device="meta")), [{"input": torch.randn(3, 4)}], ["0"], 2)
