"""Start a PEFT LoRA from a calibration, without editing the base model.

A layer y = W x becomes y = W x + s (B A - B0 A0) x (`astra.factors`). At step 0 that is the base model exactly, in any
data type and on quantised weights; without the adapter it always is.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Container, Iterator
from types import MethodType
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight, gather_params_ctx
from peft.utils.other import get_pattern_key
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from astra.errors import AstraError
from astra.factors import PREFIX, DownFactor, UpFactor, saved_form
from astra.forward import exact_products
from astra.store import Calibration
from astra.targets import check_layer, layer_shape, match_targets
from astra.weights import loaded

Factors = tuple[Tensor, Tensor]
SPLITS = ("orthonormal", "balanced", "rotated")
# What a saved adapter carries of a `LoraConfig`; anything else would change the model and not travel with it.
CARRIED = frozenset((
    "peft_type", "task_type", "base_model_name_or_path", "revision", "auto_mapping", "peft_version", "inference_mode",
    "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out",
    "init_lora_weights", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "modules_to_save",
))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Target:
    """A layer to adapt: its dotted name, the module that holds W, its rank and its scaling."""

    name: str
    module: Any
    rank: int
    scaling: float


def attach(
    model: nn.Module,
    calibration: Calibration,
    peft_config: LoraConfig,
    adapter_name: str = "default",
    subspace: str = "tail",
    split: str = "orthonormal",
) -> PeftModel:
    """Return `model` with an Astra adapter, which leaves what it computes unchanged.

    For each target layer with weight W (m x n): B0 = Q, A0 = Q^T W / s with Q (m x r) from the calibration, or the
    same product with balanced norms. What trains is the difference to them, float32. Nothing is changed if anything
    is wrong, and no random number is drawn.

    Args:
        model: a transformers model; `nn.Linear`, `Conv1D` and bitsandbytes' nf4 layers can be targets.
        calibration: holds `subspace` at the ranks `peft_config` asks for.
        peft_config: rank, alpha, targets, `rank_pattern`; it is copied.
        adapter_name: PEFT's name of the adapter.
        subspace: which eigenvectors, one of `calibration.subspaces`.
        split: "orthonormal" (B0 = Q), "balanced" (|A0| = |B0| along each singular direction) or "rotated" (B0 = Q R
            with a fixed random rotation R: the same product and span, in another basis).

    Returns:
        A `PeftModel`, saved and merged as any other; its config states the rank 2r that is saved.

    Raises:
        AstraError: a setting that a saved adapter does not carry, a target that was not calibrated or that is neither
            floating point nor nf4, or a rank that the layer does not have.
    """
    factors = calibrated(calibration, subspace, split)
    return attach_factors(model, peft_config, factors, adapter_name, calibration.left_out)


def attach_factors(
    model: nn.Module,
    peft_config: LoraConfig,
    factors: Callable[[Target, Tensor], Factors],
    adapter_name: str = "default",
    left_out: Container[str] = (),
) -> PeftModel:
    """Return `model` with a LoRA that starts at the A0 (r x n) and B0 (m x r) that `factors` makes of every target.

    `factors` is given W as float32 (m x n), one layer at a time, before anything is changed. Targets in `left_out` are
    not adapted. Otherwise as `attach`.
    """
    check_config(peft_config)
    config: Any = copy.deepcopy(peft_config)
    targets = []
    for name, module in match_targets(model, config).items():
        if name not in left_out:
            rank = config.rank_pattern.get(get_pattern_key(list(config.rank_pattern), name), config.r)
            targets.append(Target(name, module, rank, scaling_of(config, name, rank)))
    check_names(model, {target.name for target in targets})
    starts = make_starts(targets, factors)
    # By their whole names: an ending may also stand for a router, experts in one parameter, or a vision tower.
    config.target_modules = {target.name for target in targets}
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    with torch.random.fork_rng(devices=[]):  # PEFT draws on the CPU what is replaced here
        peft_model = get_peft_model(model, config, adapter_name)
    set_starts(peft_model, starts, adapter_name)
    return peft_model


def initialize_lora_weights(
    peft_model: PeftModel,
    calibration: Calibration,
    adapter_name: str = "default",
    subspace: str = "tail",
    split: str = "orthonormal",
) -> None:
    """Start an untrained LoRA of an existing `PeftModel` from a calibration, in place.

    The trained parameters stay the same objects, so that an optimizer made before keeps working. Otherwise as
    `attach`.

    Raises:
        AstraError: as `attach`; or the adapter does not exist, starts from a calibration already, or is merged.
    """
    if adapter_name not in peft_model.peft_config:
        raise AstraError(f"adapter {adapter_name!r} is not one of {', '.join(peft_model.peft_config)}")
    check_config(peft_model.peft_config[adapter_name])
    targets = []
    for name, layer in lora_layers(peft_model, adapter_name):
        if not isinstance(layer.lora_A[adapter_name], nn.Linear) or layer.merged:
            raise AstraError(f"layer {name}: its adapter {adapter_name!r} has a start already, or is merged")
        targets.append(Target(name, layer.get_base_layer(), layer.r[adapter_name], layer.scaling[adapter_name]))
    set_starts(peft_model, make_starts(targets, calibrated(calibration, subspace, split)), adapter_name)


def scaling_of(config: LoraConfig, name: str, rank: int) -> float:
    """What PEFT multiplies the product of a layer's factors by."""
    pattern = config.alpha_pattern or {}
    alpha = pattern.get(get_pattern_key(list(pattern), name), config.lora_alpha)
    return alpha / (rank**0.5 if config.use_rslora else rank)


def check_config(config: Any) -> None:
    """Raise an `AstraError` that names the first setting of a PEFT config that could not be kept."""
    if not isinstance(config, LoraConfig):
        raise AstraError(f"{type(config).__name__}: only a LoraConfig can be started from a calibration")
    if not isinstance(config.init_lora_weights, bool):
        raise AstraError(
            f"LoraConfig.init_lora_weights: {config.init_lora_weights!r} is another start; leave it True or False"
        )
    default = LoraConfig()
    for field in dataclasses.fields(LoraConfig):
        value = getattr(config, field.name)
        if field.name not in CARRIED and value != getattr(default, field.name):
            raise AstraError(
                f"LoraConfig.{field.name}: {value!r} is not supported: a saved adapter would not carry it"
            )


def check_names(model: nn.Module, names: set[str]) -> None:
    """Raise an `AstraError` that names a layer which PEFT can't adapt: it takes its name for one of fused experts."""
    config = LoraConfig(target_modules=names)  # type: ignore[arg-type]
    try:
        convert_peft_config_for_transformers(config, model, None)
        taken = names - set(config.target_modules or ())
    except ValueError:  # it finds some of the names that it wants to fuse
        taken = {name for name in names if name.rpartition(".")[2] in ("gate_proj", "up_proj", "down_proj")}
    if taken:
        raise AstraError(
            f"layer {min(taken)}: on a {type(model).__name__} PEFT takes its name for that of fused experts; leave it "
            "out (exclude_modules)"
        )


def lora_layers(peft_model: nn.Module, adapter_name: str = "default") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name in the base model and the PEFT layer of every adapted module, in the model's order."""
    for name, module in peft_model.named_modules():
        if isinstance(module, LoraLayer) and adapter_name in module.r:
            if adapter_name not in module.lora_A:
                kind = type(module.get_base_layer()).__name__
                raise AstraError(f"layer {name.removeprefix(PREFIX)}: a {kind} cannot be adapted, only linear layers")
            yield name.removeprefix(PREFIX), module


def make_starts(targets: list[Target], factors: Callable[[Target, Tensor], Factors]) -> dict[str, Factors]:
    """A0 and B0 of every target, by name; all targets are checked before the first is computed."""
    for target in targets:
        check_layer(target.name, target.module, adapt=True)
        smaller = min(layer_shape(target.module))
        if target.rank > smaller:
            raise AstraError(
                f"layer {target.name}: rank {target.rank} is above {smaller}, the smaller side of its weight"
            )
    starts = {}
    for target in targets:
        weights = gather_params_ctx([target.module.weight], modifier_rank=None)
        with torch.no_grad(), exact_products(), loaded(target.module), weights:
            weight = as_matrix(target.module).float()
            a, b = factors(target, weight)
            starts[target.name] = a.to(weight.device), b.to(weight.device)  # those of a checkpoint are on the CPU
    return starts


def set_starts(peft_model: PeftModel, starts: dict[str, Factors], adapter_name: str = "default") -> None:
    """Let an untrained LoRA train the difference to its A0 and B0, and state the rank 2r by which it is saved."""
    layers = dict(lora_layers(peft_model, adapter_name))
    if layers.keys() != starts.keys():
        raise AstraError(
            f"layer {min(layers.keys() ^ starts.keys())}: PEFT adapts other layers than are given a start"
        )
    config: Any = copy.copy(peft_model.peft_config[adapter_name])
    growth = 2**0.5 if config.use_rslora else 2
    for name, (a, b) in starts.items():
        layer = layers[name]
        layer.lora_A[adapter_name] = DownFactor(layer.lora_A[adapter_name].weight, a)
        layer.lora_B[adapter_name] = UpFactor(layer.lora_B[adapter_name].weight, b)
        layer.r[adapter_name] *= 2
        layer.lora_alpha[adapter_name] *= growth  # so that the scaling is what it was
    config.r, config.lora_alpha = 2 * config.r, growth * config.lora_alpha
    config.rank_pattern = {key: 2 * rank for key, rank in config.rank_pattern.items()}
    config.alpha_pattern = {key: growth * alpha for key, alpha in config.alpha_pattern.items()}
    peft_model.peft_config[adapter_name] = config
    peft_model.save_pretrained = MethodType(_save_pretrained, peft_model)  # type: ignore[method-assign]


def _save_pretrained(self: PeftModel, save_directory: str, *args: Any, **options: Any) -> None:
    """`PeftModel.save_pretrained`, for what ZeRO-3 has split as well."""
    if options.get("state_dict") is not None:
        options["state_dict"] = saved_form(options["state_dict"])
    type(self).save_pretrained(self, save_directory, *args, **options)


def calibrated(calibration: Calibration, subspace: str, split: str) -> Callable[[Target, Tensor], Factors]:
    """What makes A0 and B0 of a target from the calibration's vectors."""
    if split not in SPLITS:
        raise AstraError(f"split {split!r} is not one of {', '.join(SPLITS)}")

    def factors(target: Target, weight: Tensor) -> Factors:
        q = calibration.vectors(target.name, subspace, target.rank).to(weight.device)
        product = q.T @ weight
        # What a unit vector times W may be by float32's rounding alone is zero.
        rounding = torch.finfo(torch.float32).eps * torch.linalg.matrix_norm(weight)
        product[torch.linalg.vector_norm(product, dim=1) <= rounding] = 0
        a = product / target.scaling
        if split == "rotated":
            turn = rotation(target.rank).to(q)
            return turn.T @ a, q @ turn
        return balance(target.name, a, q) if split == "balanced" else (a, q)

    return factors


def rotation(rank: int) -> Tensor:
    """A fixed orthogonal matrix (rank x rank), float64, of the uniform distribution."""
    q, r = torch.linalg.qr(torch.randn(rank, rank, generator=torch.Generator().manual_seed(rank), dtype=torch.float64))
    return q * r.diagonal().sign()


def balance(name: str, a: Tensor, b: Tensor) -> Factors:
    """The product B A, for orthonormal columns of B, split as (B U sqrt(S), sqrt(S) V^T) by the SVD A = U S V^T."""
    u, s, vh = torch.linalg.svd(a, full_matrices=False)
    if s[0] == 0:  # both factors would be zero, and no gradient could move them
        raise AstraError(
            f"layer {name}: split 'balanced' needs Q^T W != 0; use split 'orthonormal' (nullspace: A0 = 0)"
        )
    root = s.sqrt()
    return root[:, None] * vh, b @ (u * root)


def as_matrix(base: Any) -> Tensor:
    """A linear layer's weight as (outputs x inputs): `Conv1D` stores the transpose, nf4 is dequantised."""
    weight = dequantize_module_weight(base).detach()
    return weight.T if isinstance(base, Conv1D) else weight
