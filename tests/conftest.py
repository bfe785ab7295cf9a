"""Fixtures shared by all tests: the real model, the local data mirror, one thread a process."""

import json
import os
from pathlib import Path

import pytest

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M, a real Llama-architecture model in float32."""
    from utils.config import ModelConfig
    from utils.models import resolve_model

    return resolve_model(ModelConfig(name="smollm2"))


@pytest.fixture(scope="session")
def mirror() -> Path:
    """A local mirror of the upstream data sets (ASTRA_DATA, or ../shared/data); skips where there is none."""
    folder = Path(os.environ.get("ASTRA_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "gsm8k").is_dir():
        pytest.skip("no data mirror: set ASTRA_DATA")
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory, smollm2) -> Path:
    """A tiny random Llama with SmolLM2's real tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    torch.manual_seed(0)
    settings = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def records(tmp_path_factory) -> Path:
    """A few short records of different lengths."""
    path = tmp_path_factory.mktemp("data") / "own.jsonl"
    rows = [{"instruction": f"Add {k} and {k}.", "output": f"{k} + {k} = {2 * k}. " * (1 + k % 4)} for k in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def config(tmp_path, base, records):
    """Makes a config for a run of 6 steps in a fresh output folder; dotted keys change it."""
    from utils.config import validate

    def make(**changes):
        values = {
            "output_dir": str(tmp_path / "out"),
            "model": {"name": str(base), "dtype": "float32"},
            "data": {"train": str(records), "max_length": 128, "general_text": "python-manual"},
            "calibration": {"samples": 8, "batch_size": 4, "max_length": 128},
            "method": {"name": "lora", "rank": 4, "alpha": 8},
            "train": {
                "learning_rate": 1e-2, "global_batch_size": 4, "micro_batch_size": 2, "max_steps": 6, "save_steps": 2,
                "forgetting": False,  # takes as long as such a run
            },
        }  # fmt: skip
        for key, value in changes.items():
            section, _, name = key.partition("__")
            if name:
                values.setdefault(section, {})[name] = value
            else:
                values[section] = value
        values.setdefault("run", values["method"]["name"])
        return validate(values)

    return make
