"""Turn a trained adapter into an ordinary LoRA on the untouched base model.

The change of a layer, dW = s (B A - B0 A0), has rank at most 2r. Its factors come from thin QRs of [B, B0] and
[A; A0]^T and an SVD of the small core between them: the two large products cancel in float64 here, not in the data
type of whoever loads the adapter.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.utils import get_peft_model_state_dict
from peft.utils.integrations import gather_params_ctx
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from torch import Tensor

from astra.adapter import PREFIX, Factors, lora_layers
from astra.errors import AstraError

MAX_RANK = 512  # the largest rank vLLM serves
# Keys that PEFT 0.14 and every later version reads; the rest is left to each version's defaults.
CONFIG_KEYS = (
    "peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "r", "lora_alpha",
    "lora_dropout", "target_modules", "modules_to_save", "bias", "fan_in_fan_out", "init_lora_weights",
    "use_rslora", "use_dora", "rank_pattern", "alpha_pattern",
)  # fmt: skip


@dataclass
class LoraWeights:
    """A plain LoRA: layer name -> (A (rank x n), B (m x rank)), float32 on the CPU, scaling 1 (alpha = rank).

    Attributes:
        layers: factors, all of one rank; layers of a lower rank are filled up with zeros.
        rank: the smallest that holds every layer's numerical rank, but no more than asked for.
        truncation_error: the largest |dW - B A| / |dW| over layers (Frobenius norms), 0 if nothing was cut off.
    """

    layers: dict[str, Factors]
    rank: int
    truncation_error: float


def to_lora(peft_model: PeftModel, max_rank: int = MAX_RANK) -> LoraWeights:
    """The plain LoRA of a trained PEFT model; under ZeRO-3 every process must call it.

    Raises:
        AstraError: the adapter is a DoRA, which has no plain form, or the model has no adapter.
    """
    initial: dict[str, Factors] = getattr(peft_model, "initial_lora", {})
    found = {}
    for name, layer in lora_layers(peft_model):
        if layer.use_dora.get("default"):
            raise AstraError(f"layer {name}: a DoRA has no plain LoRA form; export it merged")
        found[name] = decompose_change(*current_factors(layer), layer.scaling["default"], initial.get(name))
    if not found:
        raise AstraError("the model has no LoRA layers to convert")
    return assemble(found, max_rank)


def current_factors(layer: Any) -> Factors:
    """A (r x n) and B (m x r) of a PEFT layer as they are now, on the CPU, gathered if ZeRO-3 has split them."""
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    with gather_params_ctx([a, b], modifier_rank=None):
        return a.detach().cpu().float().clone(), b.detach().cpu().float().clone()


def assemble(found: dict[str, tuple[Tensor, Tensor, Tensor]], max_rank: int) -> LoraWeights:
    """Cut the SVDs (U, S, V^T) of all layers at one rank, with the singular values shared between the two factors."""
    rank = min(max(max(_numerical_rank(s) for _, s, _ in found.values()), 1), max_rank)
    layers, worst = {}, 0.0
    for name, (u, s, vh) in found.items():
        kept = min(rank, _numerical_rank(s))
        a, b = torch.zeros(rank, vh.shape[1]), torch.zeros(u.shape[0], rank)
        root = s[:kept].sqrt()
        a[:kept], b[:, :kept] = root[:, None] * vh[:kept], u[:, :kept] * root
        layers[name] = (a, b)
        if kept < _numerical_rank(s):
            worst = max(worst, float(torch.linalg.vector_norm(s[kept:]) / torch.linalg.vector_norm(s)))
    return LoraWeights(layers, rank, worst)


def decompose_change(
    a: Tensor, b: Tensor, scaling: float, initial: Factors | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """U, S, V^T, float32, of s (B A - B0 A0) in its own at most 2r dimensions; computed in float64."""
    left, right, signs = b.double(), a.double().T, torch.ones(a.shape[0], dtype=torch.float64)
    if initial is not None:
        a0, b0 = initial
        left, right = torch.cat([left, b0.double()], 1), torch.cat([right, a0.double().T], 1)
        signs = torch.cat([signs, -torch.ones(a0.shape[0], dtype=torch.float64)])
    q1, r1 = torch.linalg.qr(left)
    q2, r2 = torch.linalg.qr(right)
    u, s, vh = torch.linalg.svd(scaling * (r1 * signs) @ r2.T)
    noise = 64 * torch.finfo(torch.float64).eps * abs(scaling) * r1.norm() * r2.norm()
    s[s <= noise] = 0  # what is left of two products that cancel
    return (q1 @ u).float(), s.float(), (vh @ q2.T).float()


def _numerical_rank(singular_values: Tensor) -> int:
    """How many stand above float32's rounding of the largest: what the trained factors can have meant."""
    return int((singular_values > torch.finfo(torch.float32).eps * singular_values[0]).sum())


def save_lora(
    peft_model: Any,
    folder: str | Path,
    base_model_name: str,
    revision: str | None = None,
    max_rank: int = MAX_RANK,
    write: bool = True,
) -> dict[str, Any]:
    """Write the plain LoRA, `adapter_config.json` and `adapter_model.safetensors`, which is all that PEFT needs.

    Args:
        peft_model: the trained model, as `to_lora` takes it.
        folder: an empty folder, or one to be made.
        base_model_name: hub id or folder of the untouched base, stated in the config.
        revision: its branch, tag or commit.
        max_rank: cut the rank here.
        write: False in all but one of several processes.

    Returns:
        `rank`, `truncation_error` and `bytes`.
    """
    weights = to_lora(peft_model, max_rank)
    extra = _other_weights(peft_model)
    if not write:
        return {}
    config = plain_config(peft_model.peft_config["default"], weights, base_model_name, revision)
    size = write_lora(folder, lora_state(weights) | extra, config)
    return {"rank": weights.rank, "truncation_error": weights.truncation_error, "bytes": size}


def compress_lora(adapter: str | Path, source: LoraConfig, max_rank: int, folder: str | Path) -> dict[str, Any]:
    """Write a LoRA of at most `max_rank` that is the nearest to a saved adapter in every layer.

    Args:
        adapter: the folder of a plain LoRA or an rsLoRA.
        source: its config.
        max_rank: cut the rank here.
        folder: where to write.

    Returns:
        As `save_lora`.

    Raises:
        AstraError: the adapter is a DoRA.
    """
    if source.use_dora:
        raise AstraError("a DoRA cannot be compressed: its magnitudes are no part of the product B A")
    state = load_file(Path(adapter) / "adapter_model.safetensors")
    names = [key.removesuffix(".lora_A.weight") for key in state if key.endswith(".lora_A.weight")]
    found = {}
    for name in names:
        a, b = state.pop(f"{name}.lora_A.weight"), state.pop(f"{name}.lora_B.weight")
        found[name.removeprefix(PREFIX)] = decompose_change(a, b, _scaling(source, name, a.shape[0]))
    weights = assemble(found, max_rank)
    config = plain_config(source, weights, str(source.base_model_name_or_path), source.revision)
    size = write_lora(folder, lora_state(weights) | state, config)
    return {"rank": weights.rank, "truncation_error": weights.truncation_error, "bytes": size}


def lora_state(weights: LoraWeights) -> dict[str, Tensor]:
    """The tensors of a LoRA under the names PEFT saves them by."""
    state = {f"{PREFIX}{name}.lora_A.weight": a for name, (a, _) in weights.layers.items()}
    return state | {f"{PREFIX}{name}.lora_B.weight": b for name, (_, b) in weights.layers.items()}


def _scaling(config: LoraConfig, name: str, rank: int) -> float:
    pattern = config.alpha_pattern or {}
    alpha = pattern.get(get_pattern_key(list(pattern), name), config.lora_alpha)
    return alpha / (rank**0.5 if config.use_rslora else rank)


def plain_config(source: LoraConfig, weights: LoraWeights, base_model_name: str, revision: str | None) -> LoraConfig:
    """The `LoraConfig` of converted weights: alpha = rank, no dropout, PEFT's plain initialisation."""
    return LoraConfig(
        task_type=source.task_type,
        base_model_name_or_path=base_model_name,
        revision=revision,
        inference_mode=True,
        r=weights.rank,
        lora_alpha=weights.rank,
        target_modules=source.target_modules,
        modules_to_save=source.modules_to_save,
        fan_in_fan_out=source.fan_in_fan_out,
        init_lora_weights=True,
    )


def write_lora(folder: str | Path, tensors: dict[str, Tensor], config: LoraConfig) -> int:
    """Write an adapter folder that any PEFT from 0.14 reads; returns the bytes of its weights."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    values = {key: value for key, value in config.to_dict().items() if key in CONFIG_KEYS}
    values["target_modules"] = _as_list(values["target_modules"])
    path = folder / "adapter_model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    text = json.dumps(values, indent=2, sort_keys=True, default=str)
    (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
    return path.stat().st_size


def _as_list(names: Any) -> Any:
    return sorted(names) if isinstance(names, set | frozenset | list | tuple) else names


def _other_weights(peft_model: Any) -> dict[str, Tensor]:
    """What PEFT saves besides the factors: modules trained in full, such as a classification head."""
    if not peft_model.peft_config["default"].modules_to_save:
        return {}
    parameters = [p for n, p in peft_model.named_parameters() if "modules_to_save" in n]
    with gather_params_ctx(parameters, modifier_rank=None):
        state = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
        return {key: value.detach().cpu().clone() for key, value in state.items() if "lora_" not in key}
