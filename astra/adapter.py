"""Put low-rank factors into PEFT's LoRA layers, with the residual of the base weight formed in memory.

A layer y = W x becomes y = W_res x + s B A x with W_res = W - s B0 A0 (paper, section 3). What an adapter started from
is kept as `model.initial_lora`, because the trained change of the layer is s (B A - B0 A0).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import gather_params_ctx
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from astra.errors import AstraError
from astra.store import Calibration

Factors = tuple[Tensor, Tensor]
PREFIX = "base_model.model."
LINEAR = (nn.Linear, Conv1D)
SPLITS = ("orthonormal", "balanced")


def attach(
    model: nn.Module,
    calibration: Calibration,
    peft_config: LoraConfig,
    subspace: str = "tail",
    split: str = "orthonormal",
    seed: int = 42,
) -> PeftModel:
    """Return `model` with Astra adapters, which leave what it computes unchanged.

    For each target layer with weight W (m x n): B0 = Q, A0 = Q^T W / s with Q (m x r) from the calibration, or the
    same product with balanced norms; W becomes W - s B0 A0, formed in float32 and rounded to the dtype of W. The
    model is changed in place; weights that another module shares are given a copy of their own first.

    Args:
        model: a transformers model; `nn.Linear` and `Conv1D` layers can be targets.
        calibration: holds `subspace` at the ranks `peft_config` asks for.
        peft_config: rank, alpha, targets, `rank_pattern`; its `init_lora_weights` is not read.
        subspace: which eigenvectors, one of `calibration.subspaces`.
        split: "orthonormal" (B0 = Q) or "balanced" (|A0| = |B0| along each singular direction).
        seed: of whatever else PEFT draws at random, such as a new classification head.

    Returns:
        A `PeftModel` with float32 `lora_A`, `lora_B` and `initial_lora`: layer name -> (A0 (r x n), B0 (m x r)), CPU.

    Raises:
        AstraError: unknown split, a target that was not calibrated, or a rank that the layer does not have.
    """
    if split not in SPLITS:
        raise AstraError(f"split {split!r} is not one of {', '.join(SPLITS)}")

    def factors(name: str, weight: Tensor, rank: int, scaling: float) -> Factors:
        q = calibration.vectors(name, subspace, rank).to(weight.device)
        a = q.T @ weight / scaling
        return balance(name, a, q, weight) if split == "balanced" else (a, q)

    return attach_factors(model, peft_config, factors, seed)


def attach_factors(
    model: nn.Module,
    peft_config: LoraConfig,
    factors: Callable[[str, Tensor, int, float], Factors],
    seed: int = 42,
) -> PeftModel:
    """Return `model` with LoRA layers that start at `factors(name, weight, rank, scaling)`, and residual weights.

    `factors` receives the layer's dotted name in the base model, its weight as float32 (m x n), the rank and the
    scaling s, and returns A0 (r x n) and B0 (m x r).

    Raises:
        AstraError: a target layer is not linear, or has fewer rows or columns than the rank.
    """
    peft_model = plain_lora(model, peft_config, seed)
    initial = {}
    for name, layer in lora_layers(peft_model):
        base = layer.get_base_layer()
        rank, scaling = layer.r["default"], layer.scaling["default"]
        _check_rank(name, layer, rank)
        with torch.no_grad(), gather_params_ctx([base.weight], modifier_rank=0):
            weight = as_matrix(base)
            initial[name] = factors(name, weight.float(), rank, scaling)
            set_factors(layer, *initial[name])
            weight.copy_(residual(weight, *initial[name], scaling))
    return with_initial(peft_model, initial)


def plain_lora(model: nn.Module, peft_config: LoraConfig, seed: int = 42) -> PeftModel:
    """Return `model` with PEFT's LoRA layers at PEFT's own start, after untying the targets' weights.

    An initialisation that edits base weights in place must not change the weights of a module that shares them.
    """
    untie_targets(model, peft_config)
    torch.manual_seed(seed)
    return get_peft_model(model, peft_config)


def lora_layers(peft_model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the dotted name in the base model and the PEFT layer of every adapted module, in the model's order.

    Raises:
        AstraError: an adapted module is not linear, such as an embedding.
    """
    for name, module in peft_model.named_modules():
        if isinstance(module, LoraLayer) and "default" in module.r:
            if not isinstance(module.get_base_layer(), LINEAR) and not hasattr(module.get_base_layer(), "quant_state"):
                kind = type(module.get_base_layer()).__name__
                raise AstraError(f"layer {name.removeprefix(PREFIX)}: a {kind} cannot be adapted, only linear layers")
            yield name.removeprefix(PREFIX), module


def as_matrix(base: Any) -> Tensor:
    """A view of a linear layer's weight as (outputs x inputs); `Conv1D` stores the transpose."""
    weight = base.weight.data
    return weight.T if isinstance(base, Conv1D) else weight


def residual(weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """W - s B A in float32, for a weight (m x n) of any dtype on any device."""
    a, b = (factor.to(weight.device, torch.float32) for factor in (a, b))
    return torch.addmm(weight.float(), b, a, alpha=-scaling)


def set_factors(layer: Any, a: Tensor, b: Tensor) -> None:
    """Copy A (r x n) and B (m x r) into a PEFT layer."""
    layer.lora_A["default"].weight.data.copy_(a)
    layer.lora_B["default"].weight.data.copy_(b)


def with_initial(peft_model: PeftModel, initial: Mapping[str, Factors]) -> PeftModel:
    """Keep what the adapters started from on the CPU, as `peft_model.initial_lora`."""
    kept: Any = {name: (_kept(a), _kept(b)) for name, (a, b) in initial.items()}
    peft_model.initial_lora = kept
    return peft_model


def _kept(factor: Tensor) -> Tensor:
    return factor.detach().cpu().clone(memory_format=torch.contiguous_format)


def balance(name: str, a: Tensor, b: Tensor, weight: Tensor) -> Factors:
    """The product B A, for orthonormal columns of B, split as (B U sqrt(S), sqrt(S) V^T) by the SVD A = U S V^T.

    Raises:
        AstraError: the product is zero, so that both factors would be, and no gradient could move them.
    """
    u, s, vh = torch.linalg.svd(a, full_matrices=False)
    if s[0] <= torch.finfo(torch.float32).eps * torch.linalg.matrix_norm(weight):
        raise AstraError(
            f"layer {name}: split 'balanced' needs Q^T W != 0; use split 'orthonormal' (nullspace: A0 = 0)"
        )
    root = s.sqrt()
    return root[:, None] * vh, b @ (u * root)


def untie_targets(model: Any, peft_config: LoraConfig) -> None:
    """Give target layers that share their weight, such as an LM head with the embedding, their own copy."""
    owners: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    names = peft_config.target_modules
    for name, module in model.named_modules():
        named = not isinstance(names, str) and names and (name in names or name.rsplit(".", 1)[-1] in names)
        weight = getattr(module, "weight", None)
        if weight is not None and named and isinstance(module, LINEAR) and owners.get(id(weight), 0) > 1:
            if hasattr(weight, "ds_id"):
                raise AstraError(
                    f"layer {name} shares its weight, which ZeRO-3 cannot undo; leave it out or use ZeRO-2"
                )
            module.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
            model.config.tie_word_embeddings = False


def _check_rank(name: str, layer: Any, rank: int) -> None:
    smallest = min(layer.in_features, layer.out_features)
    if rank > smallest:
        raise AstraError(f"layer {name}: rank {rank} is above {smallest}, the smaller side of its weight")
