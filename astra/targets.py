"""Which modules of a model are target layers, and their weights as W (m x n), whatever the class stores."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from astra.errors import AstraError


def find_targets(model: nn.Module, target_modules: Sequence[str] | str) -> dict[str, nn.Module]:
    """Target layers by dotted name, in the model's order, matched as PEFT matches `target_modules`.

    Args:
        target_modules: names or name endings ("q_proj"), one regular expression, or "all-linear" (every linear layer
            but the output head).

    Raises:
        AstraError: a name that matches nothing, a module that is not a linear layer, a quantised weight, or experts
            kept as one 3-D parameter.
    """
    modules = dict(model.named_modules())
    if target_modules == "all-linear":
        heads = _heads(model)
        found = {name: module for name, module in modules.items() if is_linear(module) and id(module) not in heads}
    elif isinstance(target_modules, str):
        pattern = re.compile(target_modules)
        found = {name: module for name, module in modules.items() if pattern.fullmatch(name)}
    else:
        found = _by_ending(model, modules, target_modules)
    if not found:
        raise AstraError(f"target_modules {target_modules!r} matches no layer of {type(model).__name__}")
    for name, module in found.items():
        _check_layer(name, module)
    return found


def is_linear(module: nn.Module) -> bool:
    """Whether this is `nn.Linear` or GPT-2's `Conv1D`."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def layer_shape(module: nn.Module) -> tuple[int, int]:
    """(m, n): outputs and inputs."""
    m, n = layer_weight(module)[0].shape
    return m, n


def layer_weight(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """W (m, n) and b (m,) or None, without a copy."""
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor) and (bias is None or isinstance(bias, Tensor))
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    return (weight.T if type(module).__name__ == "Conv1D" else weight), bias


def check_loaded(name: str, module: nn.Module) -> None:
    """Raise an `AstraError` that names the layer if its weight is not in memory."""
    if layer_weight(module)[0].is_meta:
        raise AstraError(
            f"layer {name}: its weight is offloaded; use the streamed mode, or a device_map that loads it"
        )


def _by_ending(model: nn.Module, modules: dict[str, nn.Module], endings: Sequence[str]) -> dict[str, nn.Module]:
    def matches(name: str, ending: str) -> bool:
        return name == ending or name.endswith(f".{ending}")

    for ending in endings:
        for name, parameter in model.named_parameters():
            if parameter.dim() == 3 and matches(name, ending):
                raise AstraError(f"{name} holds all experts in one 3-D parameter, which is not supported as a target")
        if not any(matches(name, ending) for name in modules):
            linear = sorted({name.rsplit(".", 1)[-1] for name, module in modules.items() if is_linear(module)})
            raise AstraError(
                f"target module {ending!r} is not in {type(model).__name__}; linear layers: {', '.join(linear)}"
            )
    return {name: module for name, module in modules.items() if any(matches(name, ending) for ending in endings)}


def _heads(model: nn.Module) -> set[int]:
    """Output embeddings and classification heads, which "all-linear" leaves out as PEFT does."""
    get = getattr(model, "get_output_embeddings", None)
    head = get() if get is not None else None
    names = ("score", "classifier")
    return {id(head), *(id(getattr(model, name)) for name in names if hasattr(model, name))}


def _check_layer(name: str, module: nn.Module) -> None:
    if not is_linear(module):
        raise AstraError(f"target module {name} is {type(module).__name__}; only Linear and Conv1D can be targets")
    weight = layer_weight(module)[0]
    if not torch.is_floating_point(weight) or weight.dim() != 2:
        raise AstraError(f"target module {name} is quantised; calibrate the model in its original precision")
