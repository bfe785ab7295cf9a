"""Astra: low-rank adapters initialised from eigenvectors of a layer's output activations (arXiv 2602.19111)."""

from astra.allocation import allocate
from astra.calibration import calibrate, extend
from astra.errors import AstraError
from astra.store import SUBSPACES, Calibration, LayerInfo

__all__ = ["SUBSPACES", "AstraError", "Calibration", "LayerInfo", "allocate", "calibrate", "extend"]
