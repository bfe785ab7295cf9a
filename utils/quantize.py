"""Hold a model's frozen weights in NF4 (QLoRA, arXiv 2305.14314)."""

from typing import Any

import torch
from torch import nn

from utils.errors import UserError


def quantize_base(model: nn.Module, device: Any) -> None:
    """Replace every linear layer's frozen weight by its NF4 form, in place; the output embedding stays as it is.

    The model, with or without an adapter, is on the CPU and moves to `device` layer by layer, so that it is never
    there as a whole in full.
    """
    try:
        from bitsandbytes.nn import Linear4bit
    except ImportError as error:
        raise UserError("model.quantization: nf4 needs bitsandbytes (pip install bitsandbytes)") from error
    for name, module in model.named_modules():
        base = getattr(module, "base_layer", None)
        if base is not None and type(base) is not nn.Linear:
            layer = name.removeprefix("base_model.model.")
            raise UserError(f"model.quantization: nf4 is for nn.Linear layers; {layer} is a {type(base).__name__}")
    for parent, name in _linears(model):
        setattr(parent, name, _nf4(getattr(parent, name).to(device), Linear4bit))
    model.to(device)


@torch.no_grad()
def round_to_nf4(model: nn.Module, dtype: str | None) -> None:
    """Give every weight that `quantize_base` would replace the values that its NF4 form stands for, in place.

    `dtype` is the data type that the weights had when they were quantised; None: that of the model.
    """
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    for parent, name in _linears(model):
        layer = getattr(parent, name)
        if dtype is not None:
            layer.weight.copy_(layer.weight.to(getattr(torch, dtype)))
        weight: Any = _nf4(layer, Linear4bit).weight
        layer.weight.copy_(dequantize_4bit(weight.data, weight.quant_state))


def _linears(model: Any) -> list[tuple[nn.Module, str]]:
    """Where the frozen linear layers are: each one's parent and its name there."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    adapters = {
        id(linear)
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in ("lora_A", "lora_B", "modules_to_save")
        for linear in module.modules()
    }
    return [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and child is not head and id(child) not in adapters
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
