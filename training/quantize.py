"""Quantise the frozen weights after the adapter has taken its part out of them (QLoRA, arXiv 2305.14314)."""

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from astra.adapter import lora_layers
from utils.errors import UserError


def quantize_base(model: nn.Module, device: Any) -> dict[str, float]:
    """Replace every linear layer's frozen weight by its NF4 form, in place; the output embedding stays as it is.

    The model is on the CPU and moves to `device` layer by layer, so that it is never there as a whole in full. The
    residual is formed in full precision and quantised afterwards: what an adapter has taken out of a weight is not
    rounded with it.

    Returns:
        `nf4_error_residual` and `nf4_error_plain`: relative Frobenius errors, over all adapted layers, of the model at
        step 0 against the original weights, and of plain NF4 of those weights.

    Raises:
        UserError: bitsandbytes is missing, or a layer to adapt is not an `nn.Linear`, such as GPT-2's.
    """
    try:
        from bitsandbytes.nn import Linear4bit
    except ImportError as error:
        raise UserError("model.quantization: nf4 needs bitsandbytes (pip install bitsandbytes)") from error
    for name, adapted in lora_layers(model):  # type: ignore[arg-type]
        if type(adapted.get_base_layer()) is not nn.Linear:
            kind = type(adapted.get_base_layer()).__name__
            raise UserError(f"model.quantization: nf4 is for nn.Linear layers; {name} is a {kind}")
    errors = torch.zeros(3, dtype=torch.float64)
    for parent, name in _linears(model):
        layer = getattr(parent, name).to(device)
        replaced = _nf4(layer, Linear4bit)
        if isinstance(parent, LoraLayer):
            errors += _errors(parent.to(device), layer, replaced, Linear4bit)
        setattr(parent, name, replaced)
    model.to(device)
    ours, plain, total = errors.sqrt().tolist()
    return {"nf4_error_residual": ours / total, "nf4_error_plain": plain / total}


def dequantized(layer: Any) -> Tensor:
    """Return the weight that a quantised layer stands for, float32 (m x n)."""
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()


def _linears(model: Any) -> list[tuple[nn.Module, str]]:
    """Where the frozen linear layers are: each one's parent and its name there."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    trained = {
        id(module) for module in model.modules() if any(p.requires_grad for p in module.parameters(recurse=False))
    }
    return [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and child is not head and id(child) not in trained
    ]


def _nf4(layer: nn.Linear, kind: type) -> nn.Module:
    from bitsandbytes.nn import Params4bit

    replaced = kind(
        layer.in_features, layer.out_features, bias=layer.bias is not None, compute_dtype=layer.weight.dtype,
        quant_type="nf4",
    )  # fmt: skip
    # On CPUs with AVX512-BF16 bitsandbytes repacks the weights of a model that is evaluated: not every shape can be
    # repacked, no gradient passes through what is, and its scales are rounded to bfloat16.
    replaced.support_avx512bf16_for_cpu = False
    weight = Params4bit(layer.weight.data.clone().cpu(), requires_grad=False, quant_type="nf4", module=replaced)
    replaced.weight, replaced.bias = weight, layer.bias
    return replaced.to(layer.weight.device)


def _errors(parent: Any, layer: nn.Linear, replaced: nn.Module, kind: type) -> Tensor:
    """Squared norms: of the error at step 0, of plain NF4's error, and of the original weight."""
    a, b = (side["default"].weight.data.float() for side in (parent.lora_A, parent.lora_B))
    residual = layer.weight.data.float()
    original = residual + parent.scaling["default"] * (b @ a)
    whole = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    whole.weight = nn.Parameter(original.to(layer.weight.dtype), requires_grad=False)
    plain = dequantized(_nf4(whole, kind))
    return torch.stack([
        (dequantized(replaced) - residual).double().square().sum(),
        (plain - original).double().square().sum(),
        original.double().square().sum(),
    ]).cpu()  # fmt: skip
