"""A model whose decoder layers stay on disk until they are asked for, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.config import ModelConfig
from utils.errors import UserError
from utils.models import resolve_model, usable_dtype


def open_streamed(model: ModelConfig) -> tuple[Any, Callable[[str], dict[str, Any]]]:
    """Return the model with empty decoder layers and everything else loaded, and what reads a layer by its name.

    Raises:
        UserError: the folder's safetensors do not name their tensors as the model does.
    """
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = resolve_model(model)
    dtype = getattr(torch, usable_dtype(model.dtype))
    options = {} if model.attention is None else {"attn_implementation": model.attention}
    with init_empty_weights():
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=dtype, **options)
    files = _tensor_files(folder)
    prefix = next((f"{name}." for name, part in empty.named_modules() if isinstance(part, torch.nn.ModuleList)), None)
    if prefix is None or not any(key.startswith(prefix) for key in files):
        raise UserError(f"calibration.stream: {model.name} has no safetensors of decoder layers; set it to false")

    def read(start: str) -> dict[str, Any]:
        return _read(files, [key for key in files if key.startswith(f"{start}.")], f"{start}.", dtype)

    outside = _read(files, [key for key in files if not key.startswith(prefix)], "", dtype)
    empty.load_state_dict(outside, strict=False, assign=True)
    empty.tie_weights()
    return empty, read


def _tensor_files(folder: Path) -> dict[str, Path]:
    """Tensor name -> the file that holds it."""
    from safetensors import safe_open

    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found.update(dict.fromkeys(file.keys(), path))
    return found


def _read(files: dict[str, Path], keys: list[str], start: str, dtype: Any) -> dict[str, Any]:
    from safetensors import safe_open

    tensors = {}
    for path in {files[key] for key in keys}:
        with safe_open(path, "pt") as file:
            for key in keys:
                if files[key] == path:
                    tensors[key.removeprefix(start)] = file.get_tensor(key).to(dtype)
    return tensors
