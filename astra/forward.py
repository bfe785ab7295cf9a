"""Run a model over calibration batches, no further than needed, and tell its tokens from padding."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from astra.errors import AstraError

Batch = Mapping[str, Any]


class StopForward(Exception):
    """Raised in a hook to end a forward pass when all is seen."""


class Run(Protocol):
    """Whatever takes a batch through the targets."""

    def __call__(self, batch: Batch) -> None:
        """Run the batch until its end or `StopForward`."""


class Forward:
    """Calls the part of `model` that holds the targets, without gradients, caches, labels or language-model head."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        prefix = getattr(model, "base_model_prefix", "")
        inside = bool(prefix) and hasattr(model, prefix) and all(name.startswith(f"{prefix}.") for name in names)
        self.module: nn.Module = getattr(model, prefix) if inside else model
        self._accepts = inspect.signature(self.module.forward).parameters
        self._device = next((p.device for p in model.parameters() if p.device.type != "meta"), torch.device("cpu"))
        # RoBERTa counts positions from the tokens themselves, past its padding index.
        self._own_positions = any(hasattr(m, "create_position_ids_from_input_ids") for m in model.modules())

    def __call__(self, batch: Batch) -> None:
        """Run the batch until its end or `StopForward`."""
        with torch.no_grad():
            try:
                self.module(**self.inputs(batch))
            except StopForward:
                return

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """What the module is called with: `batch` on its device, with positions where left padding shifts them."""
        inputs = {key: self._move(value) for key, value in batch.items() if key != "labels"}
        if "use_cache" in self._accepts:
            inputs["use_cache"] = False
        mask = inputs.get("attention_mask")
        takes = "position_ids" in self._accepts and "position_ids" not in inputs and not self._own_positions
        if takes and isinstance(mask, Tensor) and mask.dim() == 2 and bool((mask[:, 0] == 0).any()):
            inputs["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)
        return inputs

    def _move(self, value: Any) -> Any:
        return value.to(self._device) if isinstance(value, Tensor) else value


class TokenRows:
    """Which rows of an activation are tokens, by the batch's `attention_mask` (b, t); all of them without one.

    Raises:
        AstraError: the mask is not two-dimensional.
    """

    def __init__(self, batch: Batch) -> None:
        mask = batch.get("attention_mask")
        if mask is not None and mask.dim() != 2:
            raise AstraError(f"attention_mask must be (batch, length), not {tuple(mask.shape)}")
        ids = batch.get("input_ids", batch.get("inputs_embeds"))
        self._grid = tuple(mask.shape) if mask is not None else None if ids is None else tuple(ids.shape[:2])
        full = mask is None or bool((mask != 0).all())
        self._index = None if full or mask is None else mask.flatten().nonzero().flatten()
        self.count = int(len(self._index)) if self._index is not None else _size(self._grid)

    def of(self, name: str, x: Tensor) -> Tensor:
        """The tokens' rows (k, n) of an activation (b, t, n) or (b * t, n); all rows of a pooled one (b, n).

        Raises:
            AstraError: the batch has padding and the activation's rows are not its tokens (routed experts, pooling).
        """
        rows = x.detach().reshape(-1, x.shape[-1])
        if self._index is None or (self._grid is not None and tuple(x.shape[:-1]) == self._grid[:1]):
            return rows
        if len(rows) != _size(self._grid):
            raise AstraError(f"layer {name}: padding cannot be told apart in its input; use batches without padding")
        if self._index.device != rows.device:
            self._index = self._index.to(rows.device)
        return rows.index_select(0, self._index)


def first_sample(batch: Batch) -> Batch:
    """The first row of every tensor of a batch."""
    size = next((len(value) for value in batch.values() if isinstance(value, Tensor) and value.dim()), 0)
    return {
        key: value[:1] if isinstance(value, Tensor) and value.dim() and len(value) == size else value
        for key, value in batch.items()
    }


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Eval mode (dropout would change the activations) and full float32 products inside the block; then as before."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with _full_precision():
            yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _full_precision() -> Iterator[None]:
    """No TF32 or bfloat16 inside float32 products: their rounding would drown the tail of the outputs."""
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # torch < 2.9
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
        return
    cuda, cpu = torch.backends.cuda, torch.backends.mkldnn
    backends: list[Any] = [cuda.matmul, cpu.matmul]  # type: ignore[attr-defined]
    previous = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, previous, strict=True):
            backend.fp32_precision = precision


def _size(grid: tuple[int, ...] | None) -> int:
    return 0 if grid is None else grid[0] * grid[1]
