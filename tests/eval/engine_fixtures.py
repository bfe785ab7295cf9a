"""Models, adapters with random weights that change their texts, and configs for the evaluation's tests."""

import shutil
from pathlib import Path

import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PROMPTS = {
    0: "The capital of France is",
    1: "One, two, three, four,",
    2: "Below is an instruction that describes a task.\n\n### Instruction:\nWhat is 3 + 4?\n\n### Response:",
    3: "Below is an instruction that describes a task.\n\n### Instruction:\nName a colour.\n\n### Response:",
    7: "def add(a, b):\n    return",
}


def tiny_llama(folder: Path, seed: int = 0, tokenizer: Path | None = None) -> Path:
    """Save a random two-layer Llama, with the tokenizer of another model's folder."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=1,
        num_key_value_heads=1, max_position_embeddings=512, eos_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json") if tokenizer else ():
        shutil.copy(tokenizer / name, folder)
    return folder


def save_adapter(model: Path, folder: Path, rank: int, seed: int, **settings) -> Path:
    """Save a LoRA adapter whose two matrices are random, so that it is no identity."""
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    peft = get_peft_model(base, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS, **settings))
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.04)
    peft.peft_config["default"].base_model_name_or_path = str(model)
    peft.save_pretrained(folder)
    return folder


def write_config(folder: Path, model: Path, wanted: dict, **values) -> Path:
    """Write `folder/config.yaml`: how to evaluate runs of `model` in `folder/out`."""
    common = {"output_dir": str(folder / "out"), "model": {"name": str(model), "dtype": "float32"}}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**common, "eval": {"engine": "transformers", **wanted}, **values}))
    return path
