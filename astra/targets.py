"""Which layers of a model are targets, matched by PEFT itself, and what is needed of them: their shape, W and b."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from astra.errors import AstraError
from astra.weights import offloading

if TYPE_CHECKING:
    from peft import LoraConfig

log = logging.getLogger("astra")
_PLAIN = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def find_targets(model: nn.Module, peft_config: LoraConfig | Sequence[str] | str) -> dict[str, nn.Module]:
    """Target layers by their dotted name in the base model, in its order, matched as PEFT matches them.

    Args:
        model: a model, or a `PeftModel` of one, whose base layers are then the targets.
        peft_config: its `target_modules`, `exclude_modules` and `layers_to_transform` count; or `target_modules`
            alone: names or name endings ("q_proj"), one regular expression, or "all-linear" (every linear layer but
            output heads, routers and gates of one output).

    Raises:
        AstraError: a name that matches nothing, a module that is not a plain linear layer, quantised weights, or
            experts kept as one 3-D parameter.
    """
    found = match_targets(model, peft_config)
    for name, module in found.items():
        check_layer(name, module)
    return found


def match_targets(model: nn.Module, peft_config: LoraConfig | Sequence[str] | str) -> dict[str, nn.Module]:
    """As `find_targets`, with layers of any kind."""
    from peft.tuners.tuners_utils import check_target_module_exists

    base = base_model(model)
    config: Any = _own_copy(base, peft_config)
    modules = dict(_modules(base))
    if config.target_modules == "all-linear":
        config.target_modules = _all_linear(base, config, modules)
    elif not isinstance(config.target_modules, str):
        for ending in config.target_modules:
            _check_ending(base, modules, ending)
    found = {name: module for name, module in modules.items() if name and check_target_module_exists(config, name)}
    if not found:
        raise AstraError(f"target_modules {config.target_modules!r} matches no layer of {type(base).__name__}")
    return found


def base_model(model: nn.Module) -> nn.Module:
    """The model that a `PeftModel` wraps, with its adapters in it; any other model itself."""
    get: Any = getattr(model, "get_base_model", None)
    return model if get is None else get()


def is_linear(module: nn.Module) -> bool:
    """Whether this is `nn.Linear` or GPT-2's `Conv1D`."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def layer_shape(module: nn.Module) -> tuple[int, int]:
    """(m, n): outputs and inputs."""
    if type(module).__name__ == "Conv1D":
        return module.nf, module.nx  # type: ignore[return-value]
    return module.out_features, module.in_features  # type: ignore[return-value]  # its weight may be split or packed


def layer_weight(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """W (m, n) and b (m,) or None, without a copy."""
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor) and (bias is None or isinstance(bias, Tensor))
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    return (weight.T if type(module).__name__ == "Conv1D" else weight), bias


def _own_copy(base: nn.Module, peft_config: LoraConfig | Sequence[str] | str) -> Any:
    """A `LoraConfig` to work on, with PEFT's default for the model's type where it names no targets."""
    from peft import LoraConfig
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS

    if not isinstance(peft_config, LoraConfig):
        return LoraConfig(target_modules=peft_config if isinstance(peft_config, str) else list(peft_config))
    config: Any = copy.deepcopy(peft_config)
    if config.target_parameters:
        raise AstraError("target_parameters cannot be adapted: only linear layers have output activations")
    if config.target_modules is None:
        kind = getattr(getattr(base, "config", None), "model_type", None)
        if kind not in DEFAULTS:
            raise AstraError(f"target_modules is not given, and PEFT has no default for {type(base).__name__}")
        config.target_modules = set(DEFAULTS[kind])
    return config


def _modules(base: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a base model; of adapted layers the base layer, under its own name."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    inside: tuple[str, ...] = ()
    for name, module in base.named_modules():
        if inside and name.startswith(inside):
            continue
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            inside = (*inside, f"{name}.")
        yield name, module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _all_linear(base: nn.Module, config: Any, modules: dict[str, nn.Module]) -> set[str]:
    """What PEFT means by "all-linear", without what an adapter does no good to."""
    from peft.tuners.tuners_utils import _maybe_include_all_linear_layers

    config.task_type = "SEQ_CLS"  # PEFT looks for a classification head to leave out only then
    _maybe_include_all_linear_layers(config, base)
    found: set[str] = config.target_modules
    gates = [name for name in modules if name in found and _is_gate(base, name, modules[name])]
    for what, names in (("routers and gates", gates), ("experts kept in one parameter", _fused_experts(base))):
        if names:
            log.info("all-linear leaves out %d %s: %s, ...", len(names), what, names[0])
    return found - set(gates)


def _is_gate(base: nn.Module, name: str, module: nn.Module) -> bool:
    """Whether a linear layer has one output, or one per expert next to it."""
    if type(module).__name__.endswith("Router") or layer_shape(module)[0] == 1:
        return True
    experts = getattr(base.get_submodule(name.rpartition(".")[0]), "experts", None)
    if not isinstance(experts, nn.Module):
        return False
    sizes = [len(experts)] if isinstance(experts, nn.ModuleList) else [len(p) for p in experts.parameters()]
    return layer_shape(module)[0] in sizes


def _check_ending(base: nn.Module, modules: dict[str, nn.Module], ending: str) -> None:
    if any(_matches(name, ending) for name in modules):
        return
    for name in _fused_experts(base):
        if _matches(name, ending):
            raise AstraError(f"{name} holds all experts in one 3-D parameter, which is not supported as a target")
    linear = sorted({name.rsplit(".", 1)[-1] for name, module in modules.items() if is_linear(module)})
    raise AstraError(f"target module {ending!r} is not in {type(base).__name__}; linear layers: {', '.join(linear)}")


def _fused_experts(base: nn.Module) -> list[str]:
    """Names of parameters with a matrix per expert: those of three dimensions that are no convolution's."""
    found = [name for name, parameter in base.named_parameters() if parameter.dim() == 3]
    return [name for name in found if not hasattr(base.get_submodule(name.rpartition(".")[0]), "kernel_size")]


def _matches(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")


def check_layer(name: str, module: nn.Module, adapt: bool = False) -> None:
    """Raise an `AstraError` that says why a layer cannot be calibrated.

    To `adapt` it, it may also be held in bitsandbytes' nf4, or split by ZeRO-3.
    """
    if not is_linear(module) or type(module).__name__.endswith("Router"):
        raise AstraError(f"layer {name}: a {type(module).__name__} cannot be adapted, only Linear and Conv1D")
    weight: Any = module.weight
    plain = weight.dtype in _PLAIN and type(weight.data) is Tensor and (adapt or weight.dim() == 2)
    if not plain or type(weight).__name__ == "Int8Params":
        if adapt and getattr(weight, "quant_type", None) == "nf4":
            return
        kind = f"{str(weight.dtype).removeprefix('torch.')} in a {type(module).__name__}"
        wanted = "plain floating point or bitsandbytes' nf4" if adapt else "plain floating point, unsharded"
        raise AstraError(f"layer {name}: its weight is {kind}; load the model in {wanted}")
    if weight.is_meta and not offloading(module):
        raise AstraError(f"layer {name}: it has no weights (it is on the meta device)")
