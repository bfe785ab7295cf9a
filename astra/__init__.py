"""Astra: low-rank adapters initialised from eigenvectors of a layer's output activations (arXiv 2602.19111).

calibration = calibrate(model, batches, target_modules, rank)
peft_model = attach(model, calibration, LoraConfig(...))
...                                                         # train it with anything
save_lora(peft_model, folder, base_model_name)              # a plain LoRA on the untouched base model
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from astra.adapter import attach, initialize_lora_weights
    from astra.allocation import allocate
    from astra.calibration import calibrate
    from astra.convert import save_lora, to_lora
    from astra.errors import AstraError
    from astra.store import SUBSPACES, Calibration, LayerInfo

__all__ = [
    "SUBSPACES",
    "AstraError",
    "Calibration",
    "LayerInfo",
    "allocate",
    "attach",
    "calibrate",
    "initialize_lora_weights",
    "save_lora",
    "to_lora",
]

# Imported when first asked for: peft takes seconds, and reading a store does not need it.
_MODULES = {
    "adapter": ("attach", "initialize_lora_weights"),
    "allocation": ("allocate",),
    "calibration": ("calibrate",),
    "convert": ("save_lora", "to_lora"),
    "errors": ("AstraError",),
    "store": ("SUBSPACES", "Calibration", "LayerInfo"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"astra.{module}"), name)
    raise AttributeError(f"module 'astra' has no attribute {name!r}")
