"""Small random models of several families, and calibrations made up for them."""

import copy

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.pytorch_utils import Conv1D

from astra.store import Calibration, LayerInfo

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SMALL, tie_word_embeddings=True), PROJECTIONS),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SMALL), PROJECTIONS),
    "mistral": (MistralForCausalLM, MistralConfig(**SMALL, sliding_window=8), PROJECTIONS),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config(**SMALL), PROJECTIONS),
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64),
        ["c_attn", "c_proj", "c_fc"],
    ),
    "bert": (
        BertForSequenceClassification,
        BertConfig(
            vocab_size=97,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_labels=3,
        ),
        ["query", "key", "value"],
    ),
}


def tiny_model(family: str = "llama", seed: int = 0) -> nn.Module:
    """A model of the family in evaluation mode; the same seed gives the same weights."""
    kind, config, _ = FAMILIES[family]
    torch.manual_seed(seed)
    return kind(copy.deepcopy(config)).eval()  # trainers set its special tokens


def targets(family: str = "llama") -> list[str]:
    """The names of the family's usual target layers."""
    return list(FAMILIES[family][2])


def tokens(batch: int = 2, length: int = 12, seed: int = 1) -> Tensor:
    """Random tokens, int64 (batch, length)."""
    return torch.randint(3, 97, (batch, length), generator=torch.Generator().manual_seed(seed))


def calibration(model: nn.Module, names: list[str], max_rank: int = 8, seed: int = 3) -> Calibration:
    """Random orthonormal vectors for every target: what holds for them holds for eigenvectors."""
    generator, layers, table, spectra = torch.Generator().manual_seed(seed), {}, {}, {}
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] in names and isinstance(module, nn.Linear | Conv1D):
            shape = tuple(module.weight.T.shape if isinstance(module, Conv1D) else module.weight.shape)
            layers[name] = LayerInfo(
                name, shape, module.bias is not None, "input", name, 500, min(shape), min(shape), 9.0, 1.0
            )
            table[name] = torch.linalg.qr(torch.randn(shape[0], max_rank, generator=generator))[0]
            spectra[name] = torch.linspace(0, 1, shape[0], dtype=torch.float64)
    return Calibration(layers, max_rank, ("tail",), {}, {"tail": table, "spectra": spectra})


def disturb(model: nn.Module, size: float = 0.02) -> None:
    """Change everything trainable, as training would."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += size * noise.to(parameter.dtype)


def train(model: nn.Module, ids: Tensor, steps: int = 3) -> None:
    """Take real steps of AdamW; the model is in evaluation mode afterwards."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        (-model(ids).logits.float().log_softmax(-1)[..., 0].mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference as a share of the expected values' range."""
    return float((found - expected).abs().max() / (expected.max() - expected.min()))
