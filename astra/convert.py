"""Save an adapter as an ordinary LoRA on the untouched base model, and make one smaller.

What is trained is a LoRA of rank 2r already (`astra.factors`). Saved, its scaling is folded into B and its rank filled
up with zeros to one that vLLM serves. A lower rank is the best one there is: thin QRs of the factors and an SVD of the
small core between them, in float64.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.utils import get_peft_model_state_dict
from peft.utils.integrations import gather_params_ctx
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from astra.adapter import CARRIED, Factors, check_config, lora_layers, scaling_of
from astra.errors import AstraError
from astra.factors import PREFIX, DownFactor
from astra.ranks import MAX_RANK, served_rank

# Keys that PEFT 0.14 and every later version reads; the rest is left to each version's defaults.
CONFIG_KEYS = CARRIED - {"auto_mapping", "peft_version"} | {"bias", "use_dora"}


@dataclass
class LoraWeights:
    """A plain LoRA: layer name -> (A (rank x n), B (m x rank)), float32 on the CPU, scaling 1 (alpha = rank).

    Attributes:
        layers: factors, all of one rank; layers of a lower rank are filled up with zeros.
        rank: that rank.
        trained_rank: the largest rank r that was trained, half of what its change needs if it started from a product.
        truncation_error: the largest |dW - B A| / |dW| over layers (Frobenius norms), 0 if nothing was cut off.
    """

    layers: dict[str, Factors]
    rank: int
    trained_rank: int
    truncation_error: float


def to_lora(peft_model: PeftModel, max_rank: int = MAX_RANK, adapter_name: str = "default") -> LoraWeights:
    """The plain LoRA of a trained PEFT model; under ZeRO-3 every process must call it.

    Raises:
        AstraError: the adapter is a DoRA, which has no plain form, or the model has no such adapter.
    """
    found, trained = {}, 0
    for name, layer in lora_layers(peft_model, adapter_name):
        if layer.use_dora.get(adapter_name):
            raise AstraError(f"layer {name}: a DoRA has no plain LoRA form; export it merged")
        down, up = layer.lora_A[adapter_name], layer.lora_B[adapter_name]
        with gather_params_ctx([*down.parameters(), *up.parameters()], modifier_rank=None):
            a, b = (factor.weight.detach().float().cpu().clone() for factor in (down, up))
        found[name] = (a, b * layer.scaling[adapter_name])
        trained = max(trained, a.shape[0] // 2 if isinstance(down, DownFactor) else a.shape[0])
    if not found:
        raise AstraError(f"the model has no LoRA layers of an adapter {adapter_name!r}")
    return cut(found, min(served_rank(max(a.shape[0] for a, _ in found.values())), max_rank), trained)


def starting_factors(layer: Any, adapter_name: str = "default") -> Factors:
    """What the trained factors of a PEFT layer, r x n and m x r, started from, on the CPU."""
    a, b = layer.lora_A[adapter_name], layer.lora_B[adapter_name]
    if isinstance(a, DownFactor):
        return a.start.cpu(), b.start.cpu()
    return a.weight.detach().cpu(), b.weight.detach().cpu()


def cut(found: dict[str, Factors], rank: int, trained_rank: int) -> LoraWeights:
    """Give all layers one rank: lower ones are filled up with zeros, higher ones cut to the best there is."""
    layers, worst = {}, 0.0
    for name, (a, b) in found.items():
        if a.shape[0] > rank:
            a, b, error = truncate(a, b, rank)
            worst = max(worst, error)
        filling = rank - a.shape[0]
        layers[name] = (F.pad(a, (0, 0, 0, filling)), F.pad(b, (0, filling)))
    return LoraWeights(layers, rank, trained_rank, worst)


def truncate(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The nearest product of `rank` to B A, its singular values shared between the factors, and its relative error."""
    q1, r1 = torch.linalg.qr(b.double())
    q2, r2 = torch.linalg.qr(a.double().T)
    u, s, vh = torch.linalg.svd(r1 @ r2.T)
    root = s[:rank].sqrt()
    left, right = (q1 @ u[:, :rank] * root).float(), (root[:, None] * (vh[:rank] @ q2.T)).float()
    whole = torch.linalg.vector_norm(s)
    # What float32 can't tell from nothing is not an error: an untrained or a low-rank change is cut without one.
    lost = torch.linalg.vector_norm(s[rank:])
    return right, left, float(lost / whole) if lost > torch.finfo(torch.float32).eps * whole else 0.0


def save_lora(
    peft_model: Any,
    folder: str | Path,
    base_model_name: str,
    revision: str | None = None,
    max_rank: int = MAX_RANK,
    adapter_name: str = "default",
    write: bool = True,
) -> dict[str, Any]:
    """Write the plain LoRA, `adapter_config.json` and `adapter_model.safetensors`, which is all that PEFT needs.

    Args:
        peft_model: the trained model, as `to_lora` takes it.
        folder: an empty folder, or one to be made.
        base_model_name: hub id or folder of the untouched base, stated in the config.
        revision: its branch, tag or commit.
        max_rank: cut the rank here.
        adapter_name: PEFT's name of the adapter.
        write: False in all but one of several processes.

    Returns:
        `rank`, `trained_rank`, `truncation_error` and `bytes`.

    Raises:
        AstraError: as `to_lora`, or a setting of the adapter that the folder would not carry.
    """
    if adapter_name not in peft_model.peft_config:
        raise AstraError(f"the model has no adapter {adapter_name!r}; it has {', '.join(peft_model.peft_config)}")
    source = peft_model.peft_config[adapter_name]
    check_config(source)
    weights = to_lora(peft_model, max_rank, adapter_name)
    extra = _other_weights(peft_model, adapter_name)
    if not write:
        return {}
    config = copy.copy(source)
    config.base_model_name_or_path, config.revision = base_model_name, revision
    return _write(folder, weights, extra, config)


def compress_lora(adapter: str | Path, source: LoraConfig, max_rank: int, folder: str | Path) -> dict[str, Any]:
    """Write a LoRA of at most `max_rank` that is the nearest to a saved adapter in every layer; as `save_lora`.

    `adapter` is the folder of a plain LoRA or an rsLoRA, and `source` its config.
    """
    if source.use_dora:
        raise AstraError("a DoRA cannot be compressed: its magnitudes are no part of the product B A")
    check_config(source)
    state = load_file(Path(adapter) / "adapter_model.safetensors")
    names = [key.removesuffix(".lora_A.weight") for key in state if key.endswith(".lora_A.weight")]
    found = {}
    for name in [name for name in names if state[f"{name}.lora_A.weight"].dim() == 2]:
        a, b = state.pop(f"{name}.lora_A.weight").float(), state.pop(f"{name}.lora_B.weight").float()
        layer = name.removeprefix(PREFIX)
        found[layer] = (a, b * scaling_of(source, layer, a.shape[0]))
    if other := next((key for key in state if ".lora_" in key), None):
        raise AstraError(f"{other}: only adapters of linear layers can be compressed")
    if not found:
        raise AstraError(f"{adapter}: holds no LoRA of a linear layer")
    largest = max(a.shape[0] for a, _ in found.values())
    weights = cut(found, min(largest, max_rank), largest)
    return _write(folder, weights, state, source)


def _write(folder: str | Path, weights: LoraWeights, extra: dict[str, Tensor], source: LoraConfig) -> dict[str, Any]:
    """Write an adapter folder that any PEFT from 0.14 reads: alpha = rank, no dropout, PEFT's plain initialisation."""
    config = copy.copy(source)
    config.r = config.lora_alpha = weights.rank
    config.rank_pattern, config.alpha_pattern = {}, {}
    config.lora_dropout, config.use_rslora = 0.0, False
    config.init_lora_weights = config.inference_mode = True
    state = {f"{PREFIX}{name}.lora_A.weight": a for name, (a, _) in weights.layers.items()}
    state |= {f"{PREFIX}{name}.lora_B.weight": b for name, (_, b) in weights.layers.items()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "adapter_model.safetensors"
    contiguous = {name: tensor.contiguous() for name, tensor in (state | extra).items()}
    save_file(contiguous, path, metadata={"format": "pt"})
    values = {key: value for key, value in config.to_dict().items() if key in CONFIG_KEYS}
    text = json.dumps(values, indent=2, sort_keys=True, default=lambda x: sorted(x) if isinstance(x, set) else str(x))
    (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
    report = {key: value for key, value in vars(weights).items() if key != "layers"}
    return {**report, "bytes": path.stat().st_size}


def _other_weights(peft_model: Any, adapter_name: str) -> dict[str, Tensor]:
    """What PEFT saves besides the factors: modules trained in full, such as a classification head."""
    if not peft_model.peft_config[adapter_name].modules_to_save:
        return {}
    parameters = [p for n, p in peft_model.named_parameters() if "modules_to_save" in n]
    with gather_params_ctx(parameters, modifier_rank=None):
        state = get_peft_model_state_dict(peft_model, adapter_name=adapter_name, save_embedding_layers=False)
        return {key: value.detach().cpu().clone() for key, value in state.items() if "lora_" not in key}
