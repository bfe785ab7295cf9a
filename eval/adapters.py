"""A LoRA adapter on disk: is it one, what does it fit, and can vLLM serve it."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.config import ModelConfig
from utils.errors import UserError
from utils.files import read_json, sha256_file
from utils.models import model_fingerprint

# The ranks that vLLM's `max_lora_rank` accepts; a smaller adapter is padded to the next one.
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# Initialisations that leave a plain LoRA behind; every other named one changes the base model while loading.
PLAIN_INITIALISATIONS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")


@dataclass(frozen=True)
class Adapter:
    """A PEFT LoRA folder.

    Attributes:
        path: The folder with `adapter_config.json` and `adapter_model.safetensors`.
        rank: Its largest rank.
        base: The base model's name as the adapter states it.
        fingerprint: 16 hexadecimal digits of its weights and config.
        unservable: Why vLLM can't serve it beside the base model (it is merged instead), or None.
    """

    path: Path
    rank: int
    base: str
    fingerprint: str
    unservable: str | None = None


def read_adapter(path: str | Path) -> Adapter:
    """Read an adapter's config.

    Raises:
        UserError: the folder holds no PEFT LoRA adapter.
    """
    path = Path(path)
    weights = path / "adapter_model.safetensors"
    if not (path / "adapter_config.json").is_file() or not weights.is_file():
        raise UserError(f"{path}: not a PEFT adapter (needs adapter_config.json and adapter_model.safetensors)")
    config = read_json(path / "adapter_config.json")
    if config.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type {config.get('peft_type')} is not supported; only LORA is")
    rank = max([int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())])
    kept = {key: value for key, value in config.items() if key not in ("base_model_name_or_path", "peft_version")}
    digest = hashlib.sha256((json.dumps(kept, sort_keys=True) + sha256_file(weights)).encode()).hexdigest()[:16]
    base = config.get("base_model_name_or_path") or ""
    return Adapter(path, rank, base, digest, _why_unservable(config, rank))


def _why_unservable(config: dict[str, Any], rank: int) -> str | None:
    start = config.get("init_lora_weights")
    if config.get("use_dora"):
        return "DoRA"
    if isinstance(start, str) and start.lower() not in PLAIN_INITIALISATIONS:
        return f"init_lora_weights={start}"
    for key in ("modules_to_save", "lora_bias", "trainable_token_indices", "layer_replication"):
        if config.get(key):
            return key
    if config.get("bias", "none") != "none":
        return f"bias={config['bias']}"
    if rank > VLLM_RANKS[-1]:
        return f"rank {rank}, above vLLM's limit of {VLLM_RANKS[-1]}"
    return None


def padded_rank(rank: int) -> int:
    """Return the smallest `max_lora_rank` of vLLM that holds `rank`; adapters above its limit are merged instead."""
    return next(allowed for allowed in VLLM_RANKS if rank <= allowed)


def check_base(adapter: Adapter, model: ModelConfig, folder: Path) -> None:
    """Make sure that an adapter belongs to the model of the configuration.

    Where the adapter's base is a folder that is there, the weights decide; else the names agree, or their last parts
    do (a mirror of a hub model). And every LoRA layer has the shape of the layer it adapts.

    Raises:
        UserError: it was trained on another base; both are named.
    """
    if not _same_base(adapter.base, model, folder):
        raise UserError(
            f"{adapter.path}: the adapter's base is {adapter.base or 'not stated'}, not model.name {model.name}"
        )
    layer = _misfit(adapter.path, folder)
    if layer is not None:
        raise UserError(f"{adapter.path}: {layer} does not fit model.name {model.name}; its base is another model")


def _same_base(base: str, model: ModelConfig, folder: Path) -> bool:
    other = Path(base)
    if base and (other / "config.json").is_file():
        return model_fingerprint(other) == model_fingerprint(folder)
    return bool(base) and (base == model.name or other.name.lower() in (Path(model.name).name.lower(), folder.name))


def _misfit(path: Path, folder: Path) -> str | None:
    """Return the first LoRA layer whose shape differs from its base layer's, with both shapes, or None."""
    from safetensors import safe_open

    shapes: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            shapes |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    with safe_open(path / "adapter_model.safetensors", "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118
            layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            base = shapes.get(f"{layer}.weight")
            if not name.endswith(".lora_A.weight") or base is None or len(base) != 2:
                continue
            # GPT-2's Conv1D keeps its weight as (in, out).
            width = tensors.get_slice(name).get_shape()[1]
            if width not in base:
                return f"{layer} ({width} inputs, the model's weight is {base[0]} x {base[1]})"
    return None
