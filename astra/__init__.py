"""Astra: low-rank adapters initialised from eigenvectors of a layer's output activations (arXiv 2602.19111).

calibration = calibrate(model, batches, target_modules, rank)
peft_model = attach(model, calibration, LoraConfig(...))
...                                                         # train it with anything
save_lora(peft_model, folder, base_model_name)              # a plain LoRA on the untouched base model
"""

from astra.adapter import attach
from astra.allocation import allocate
from astra.calibration import calibrate, extend
from astra.convert import save_lora, to_lora
from astra.errors import AstraError
from astra.store import SUBSPACES, Calibration, LayerInfo
from astra.stream import calibrate_streamed

__all__ = [
    "SUBSPACES",
    "AstraError",
    "Calibration",
    "LayerInfo",
    "allocate",
    "attach",
    "calibrate",
    "calibrate_streamed",
    "extend",
    "save_lora",
    "to_lora",
]
