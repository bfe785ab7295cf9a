"""An exported adapter can be merged, cut to a rank with its error, and is refused in one line where it can't."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, LlamaForCausalLM

import export
from astra import AstraError
from astra.adapter import attach
from astra.convert import save_lora
from tests.astra.tiny import calibration, disturb, relative_difference, targets, tiny_model, tokens
from training.methods import Request, build
from utils import models
from utils.config import MethodConfig
from utils.errors import UserError
from utils.models import QUANTIZATION, state_quantization
from utils.quantize import quantize_base, round_to_nf4


@pytest.fixture
def adapter(tmp_path, smollm2):
    """A trained adapter's folder beside its base model's, with a tokenizer in both."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    base, folder = tmp_path / "base", tmp_path / "lora"
    tiny_model().save_pretrained(base)
    model = tiny_model()
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets(), task_type="CAUSAL_LM")
    adapted = attach(model, calibration(model, targets()), config).eval()
    disturb(adapted)
    save_lora(adapted, folder, str(base))
    tokenizer.save_pretrained(base)
    tokenizer.save_pretrained(folder)
    return folder, adapted


def merged(folder, kind=AutoModelForCausalLM):
    """The model that an adapter's folder is merged into."""
    export.merge(folder, folder.parent / "merged", None, "float32")
    return kind.from_pretrained(folder.parent / "merged")


def test_a_merged_model_is_the_adapted_one_in_safetensors(adapter, tmp_path):
    folder, adapted = adapter
    assert relative_difference(merged(folder)(tokens()).logits, adapted(tokens()).logits) < 1e-5
    assert (tmp_path / "merged" / "tokenizer.json").is_file()


def test_compressing_to_the_full_rank_loses_nothing_and_to_less_states_the_error(adapter, tmp_path):
    folder, adapted = adapter
    whole = export.compress(folder, 8, tmp_path / "whole")
    cut = export.compress(folder, 2, tmp_path / "cut")
    assert whole["truncation_error"] == 0 and cut["rank"] == 2 and 0 < cut["truncation_error"] < 1
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path / "whole")
    assert relative_difference(loaded(tokens()).logits, adapted(tokens()).logits) < 1e-5
    before, after = (load_file(path / "adapter_model.safetensors") for path in (folder, tmp_path / "cut"))
    name = next(key for key in before if key.endswith("up_proj.lora_A.weight")).removesuffix("lora_A.weight")
    exact, found = (s[f"{name}lora_B.weight"] @ s[f"{name}lora_A.weight"] for s in (before, after))
    best = torch.linalg.svdvals(exact)[2:].norm() / exact.norm()
    assert float((found - exact).norm() / exact.norm()) == pytest.approx(float(best), rel=1e-3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--merge"], "--out"),
        (["--merge", "--rank", "2", "--out", "x"], "--rank: not allowed with argument --merge"),
        (["--out", "x"], "one of"),
        (["--rank", "0", "--out", "x"], "at least 1"),
        (["--rank", "two", "--out", "x"], "invalid int"),
        (["--shrink", "--merge", "--out", "x"], "unrecognized"),
        (["--merge", "--out", "."], "is a file, or not empty"),
    ],
)
def test_a_wrong_command_line_is_one_line(adapter, words, message):
    with pytest.raises(UserError, match=message):
        export.parse(["--adapter", str(adapter[0]), *words])


def test_a_folder_without_an_adapter_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no adapter_config"):
        export.parse(["--adapter", str(tmp_path), "--merge", "--out", "x"])


@pytest.mark.parametrize("labels", [1, 3])
def test_a_classifier_is_merged_with_the_head_it_was_trained_with(tmp_path, smollm2, labels):
    base, folder = tmp_path / "base", tmp_path / "lora"
    tiny_model("bert").bert.save_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels)
    method = MethodConfig(name="lora", rank=4, alpha=8, target_modules=targets("bert"))
    adapted = build(model, Request(method, "SEQ_CLS")).eval()
    disturb(adapted)
    save_lora(adapted, folder, str(base))
    AutoTokenizer.from_pretrained(smollm2).save_pretrained(folder)
    found = merged(folder, AutoModelForSequenceClassification)
    assert found.config.num_labels == labels
    assert relative_difference(found(tokens()).logits, adapted(tokens()).logits) < 1e-5


def test_another_base_is_not_looked_for_at_the_revision_of_the_adapters_own(adapter, tmp_path, monkeypatch):
    folder, adapted = adapter
    save_lora(adapted, folder, "nowhere/to-be-found", "a-revision")
    asked, load = [], models.load_model

    def noted(model, outputs):
        asked.append(model.revision)
        return load(model, outputs)

    monkeypatch.setattr(models, "load_model", noted)
    export.merge(folder, tmp_path / "merged", str(tmp_path / "base"), "float32")
    assert asked == [None]


@pytest.mark.parametrize("names", [["lm_head", "up_proj"], ".*(lm_head|up_proj)"])
def test_a_head_that_shares_its_weight_with_the_embedding_is_merged_alone(adapter, tmp_path, names):
    folder = adapter[0]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    store = calibration(model, ["lm_head", "up_proj"])
    adapted = attach(model, store, LoraConfig(r=4, target_modules=names)).eval()
    disturb(adapted)
    save_lora(adapted, folder, str(tmp_path / "base"))
    assert relative_difference(merged(folder)(tokens()).logits, adapted(tokens()).logits) < 1e-5


def test_an_adapter_of_an_nf4_base_is_merged_into_what_that_stands_for(adapter, tmp_path):
    pytest.importorskip("bitsandbytes")
    folder, _ = adapter
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    quantize_base(base, "cpu")
    expected = PeftModel.from_pretrained(base, folder).eval()(tokens()).logits
    state_quantization(folder, "nf4", "float32")
    assert relative_difference(merged(folder)(tokens()).logits, expected) < 1e-5
    export.compress(folder, 2, tmp_path / "cut")
    assert json.loads((tmp_path / "cut" / "adapter_config.json").read_text())[QUANTIZATION] == "nf4"


def test_nf4_rounds_the_weights_in_the_data_type_they_were_trained_in():
    pytest.importorskip("bitsandbytes")
    exact, rounded = tiny_model(), tiny_model().bfloat16()
    round_to_nf4(rounded, None)
    round_to_nf4(exact, "bfloat16")
    for name, weight in exact.named_parameters():
        if "proj" in name:
            assert relative_difference(weight.detach(), rounded.get_parameter(name).detach().float()) < 1e-2


def test_an_adapter_goes_only_onto_a_base_that_has_its_layers(adapter, tmp_path):
    folder, _ = adapter
    other = tiny_model().config
    other.num_hidden_layers = 1
    LlamaForCausalLM(other).save_pretrained(tmp_path / "shorter")
    with pytest.raises(UserError, match=r"layers\.1\..* does not fit this base model"):
        export.merge(folder, tmp_path / "merged", str(tmp_path / "shorter"), "float32")
    assert not (tmp_path / "merged").exists()


def test_an_adapter_without_a_tokenizer_is_merged_with_its_bases(adapter, tmp_path):
    folder, _ = adapter
    for path in folder.glob("tokenizer*"):
        path.unlink()
    export.merge(folder, tmp_path / "merged", None, "float32")
    assert (tmp_path / "merged" / "tokenizer.json").is_file()


def test_an_adapter_of_embeddings_is_not_compressed(tmp_path):
    config = LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"])
    get_peft_model(tiny_model(), config).save_pretrained(tmp_path / "lora")
    with pytest.raises(AstraError, match="embed_tokens.*only adapters of linear layers"):
        export.compress(tmp_path / "lora", 2, tmp_path / "cut")


def test_a_lora_of_any_scaling_is_compressed(tmp_path):
    pattern = {"^model.layers.0.self_attn.q_proj": 32}
    config = LoraConfig(r=4, lora_alpha=8, alpha_pattern=pattern, use_rslora=True, target_modules=targets())
    adapted = get_peft_model(tiny_model(), config).eval()
    disturb(adapted)
    adapted.save_pretrained(tmp_path / "lora")
    export.compress(tmp_path / "lora", 4, tmp_path / "cut")
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path / "cut")
    assert relative_difference(loaded(tokens()).logits, adapted(tokens()).logits) < 1e-5
