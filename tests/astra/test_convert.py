"""A trained adapter becomes a plain LoRA on the untouched base, exactly and for anybody's PEFT."""

import json
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from astra.adapter import attach, lora_layers
from astra.convert import save_lora, to_lora
from astra.errors import AstraError
from astra.ranks import served_rank
from tests.astra.tiny import calibration, disturb, relative_difference, targets, tiny_model, tokens


def trained(family="llama", size=0.02, **options):
    model = tiny_model(family)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": targets(family), "lora_dropout": 0.1, **options}
    adapted = attach(model, calibration(model, targets(family)), LoraConfig(**settings)).eval()
    disturb(adapted, size)
    return adapted


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "bert"])
def test_the_converted_lora_on_the_untouched_base_equals_the_trained_model(tmp_path, family):
    adapted, ids = trained(family), tokens()
    report = save_lora(adapted, tmp_path, "the-base")
    loaded = PeftModel.from_pretrained(tiny_model(family), tmp_path)
    assert report["truncation_error"] == 0 and report["rank"] == 8 and report["trained_rank"] == 4
    assert relative_difference(loaded(ids).logits, adapted(ids).logits) < 1e-5


def test_a_classification_head_travels_with_the_adapter(tmp_path):
    adapted, ids = trained("bert", task_type="SEQ_CLS"), tokens()
    save_lora(adapted, tmp_path, "the-base")
    loaded = PeftModel.from_pretrained(tiny_model("bert"), tmp_path)
    assert any("classifier" in key for key in load_file(tmp_path / "adapter_model.safetensors"))
    assert relative_difference(loaded(ids).logits, adapted(ids).logits) < 1e-5


def test_differing_ranks_are_filled_up_to_one_that_vllm_serves(tmp_path):
    name = "model.layers.0.mlp.up_proj"
    adapted, ids = trained(rank_pattern={name: 7}, alpha_pattern={name: 14}), tokens()
    weights = to_lora(adapted)
    assert weights.rank == 16 and {a.shape[0] for a, _ in weights.layers.values()} == {16}
    save_lora(adapted, tmp_path, "the-base")
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path)
    assert relative_difference(loaded(ids).logits, adapted(ids).logits) < 1e-5


def test_the_change_is_exact_where_it_is_small_beside_where_it_started():
    adapted = trained(size=1e-5)
    weights = to_lora(adapted)
    for name, layer in lora_layers(adapted):
        (a0, da), (b0, db) = (
            (factor.start.double(), factor.delta.double())
            for factor in (layer.lora_A["default"], layer.lora_B["default"])
        )
        expected = layer.scaling["default"] * ((b0 + db) @ (a0 + da) - b0 @ a0)
        found = weights.layers[name][1].double() @ weights.layers[name][0].double()
        assert (found - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize(("rank", "served"), [(1, 1), (2, 8), (200, 256), (300, 320), (512, 512), (900, 512)])
def test_a_rank_is_filled_up_or_cut_to_one_that_vllm_serves(rank, served):
    assert served_rank(rank) == served


def test_a_cut_rank_states_its_error():
    whole, cut = to_lora(trained()), to_lora(trained(), max_rank=3)
    assert cut.rank == 3 and 0 < cut.truncation_error < 1
    worst = max(
        float((cut.layers[name][1] @ cut.layers[name][0] - b @ a).norm() / (b @ a).norm())
        for name, (a, b) in whole.layers.items()
    )
    assert cut.truncation_error == pytest.approx(worst, rel=1e-3)


def test_an_untrained_adapter_converts_to_nothing():
    weights = to_lora(trained(size=0.0))
    assert to_lora(trained(size=0.0), max_rank=2).truncation_error == 0
    assert all(float((b @ a).abs().max()) < 1e-12 for a, b in weights.layers.values())


def test_a_lora_that_started_at_zero_keeps_its_rank():
    adapted = get_peft_model(tiny_model(), LoraConfig(r=4, lora_alpha=8, target_modules=targets()))
    disturb(adapted)
    weights = to_lora(adapted)
    assert weights.trained_rank == 4 and weights.rank == 8


def test_a_dora_is_refused():
    adapted = get_peft_model(tiny_model(), LoraConfig(r=4, target_modules=targets(), use_dora=True))
    with pytest.raises(AstraError, match="merged"):
        to_lora(adapted)


def test_the_config_says_plain_lora_in_words_every_peft_knows(tmp_path):
    save_lora(trained(), tmp_path, "org/base", revision="abc")
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    assert values["r"] == values["lora_alpha"] == 8
    assert values["init_lora_weights"] is True and values["lora_dropout"] == 0.0
    assert values["base_model_name_or_path"] == "org/base" and values["revision"] == "abc"
    assert "corda_config" not in values and "eva_config" not in values


def test_it_loads_without_any_code_of_this_project(tmp_path):
    adapted, ids = trained(), tokens()
    tiny_model().save_pretrained(tmp_path / "base")
    save_lora(adapted, tmp_path / "lora", "base")
    script = (
        "import sys, torch, transformers, peft\n"
        "base = transformers.AutoModelForCausalLM.from_pretrained('base')\n"
        "model = peft.PeftModel.from_pretrained(base, 'lora').eval()\n"
        f"torch.save(model(torch.tensor({ids.tolist()})).logits, 'logits.pt')\n"
        "assert 'astra' not in sys.modules and 'utils' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-I", "-c", script], cwd=tmp_path, check=True)
    found = torch.load(tmp_path / "logits.pt", weights_only=True)
    assert relative_difference(found, adapted(ids).logits) < 1e-5
