"""LAPACK routines of SciPy's own build, called without Python's lock, so that threads decompose side by side.

The wrappers in `scipy.linalg.lapack` hold that lock. Their names, arguments and column order are LAPACK's.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from scipy import LowLevelCallable
from scipy.linalg import cython_lapack

from astra.errors import AstraError


def call(routine: str, *arguments: bytes | int | np.ndarray) -> None:
    """Call a routine that ends with INFO, here left out; arrays are changed in place.

    Raises:
        AstraError: INFO is not 0.
    """
    info = ctypes.c_int(0)
    _address(routine)(*[_pointer(argument) for argument in arguments], ctypes.byref(info))
    if info.value:
        raise AstraError(f"LAPACK could not decompose a second moment ({routine}: info {info.value})")


def workspace(routine: str, *arguments: bytes | int | np.ndarray) -> np.ndarray:
    """The array WORK that a routine wants for these arguments (without WORK and LWORK)."""
    size = np.zeros(1)
    call(routine, *arguments, size, -1)
    return np.empty(int(size[0]))


def _address(routine: str) -> Any:
    capsule = LowLevelCallable.from_cython(cython_lapack, routine).function
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype, api.PyCapsule_GetName.argtypes = ctypes.c_char_p, [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    return ctypes.CFUNCTYPE(None)(api.PyCapsule_GetPointer(capsule, api.PyCapsule_GetName(capsule)))


def _pointer(argument: bytes | int | np.ndarray) -> Any:
    if isinstance(argument, np.ndarray):
        return ctypes.c_void_p(argument.ctypes.data)
    return ctypes.c_char_p(argument) if isinstance(argument, bytes) else ctypes.byref(ctypes.c_int(argument))
