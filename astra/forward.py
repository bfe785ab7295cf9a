"""Run a model over calibration batches, no further than needed, and tell its tokens from padding."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from astra.errors import AstraError

Batch = Mapping[str, Any]
_TEXT = {"input_ids", "attention_mask", "position_ids", "token_type_ids"}
_SAMPLE = 128


class StopForward(Exception):
    """Raised in a hook to end a forward pass when all is seen."""


class Forward:
    """Calls the part of `model` that holds the targets, without gradients, caches, labels or language-model head."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        prefix = getattr(model, "base_model_prefix", "")
        inside = bool(prefix) and hasattr(model, prefix) and all(name.startswith(f"{prefix}.") for name in names)
        self.module: nn.Module = getattr(model, prefix) if inside else model
        self._accepts = inspect.signature(self.module.forward).parameters
        self._device = next((p.device for p in model.parameters() if p.device.type != "meta"), torch.device("cpu"))
        self._decodes = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
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
        inputs = {
            key: value.to(self._device) if isinstance(value, Tensor) else value
            for key, value in batch.items()
            if key != "labels"
        }
        if self._decodes and not {"decoder_input_ids", "decoder_inputs_embeds"} & inputs.keys():
            raise AstraError("an encoder-decoder needs decoder_input_ids in every batch, and their mask if padded")
        if "use_cache" in self._accepts:
            inputs["use_cache"] = False
        mask = inputs.get("attention_mask")
        takes = "position_ids" in self._accepts and "position_ids" not in inputs and not self._own_positions
        if takes and isinstance(mask, Tensor) and mask.dim() == 2 and bool((mask[:, 0] == 0).any()):
            inputs["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)
        return inputs


class TokenRows:
    """Which rows of an activation are tokens, by the batch's masks; all of them in a batch without tokens or masks."""

    def __init__(self, batch: Batch) -> None:
        self._tokens: dict[tuple[int, ...], Tensor] = {}  # (batch, length) -> which of its rows are tokens
        for part in ("", "decoder_"):
            mask = batch.get(f"{part}attention_mask")
            ids = batch.get(f"{part}input_ids", batch.get(f"{part}inputs_embeds"))
            if mask is not None and mask.dim() != 2:
                raise AstraError(f"{part}attention_mask must be (batch, length), not {tuple(mask.shape)}")
            if mask is None and ids is None:
                continue
            mask = torch.ones(ids.shape[:2], device=ids.device) if mask is None else mask
            index = mask.flatten().nonzero().flatten()
            if not torch.equal(index, self._tokens.setdefault(tuple(mask.shape), index)):
                raise AstraError("encoder and decoder have other masks; pad inputs and outputs to different lengths")

    def of(self, name: str, x: Tensor) -> Tensor:
        """The tokens' rows (k, n) of an activation (b, t, n), (b, 1, t, n) or (b * t, n); all of a pooled one (b, n).

        Others are refused: relative positions, routed experts, images.
        """
        rows, shape = x.detach().reshape(-1, x.shape[-1]), tuple(x.shape[:-1])
        for (b, t), index in self._tokens.items():
            if shape in ((b, t), (b, 1, t), (b * t,)):
                return rows if len(index) == len(rows) else rows.index_select(0, index.to(rows.device))
        if not self._tokens or shape in {grid[:1] for grid in self._tokens}:
            return rows
        raise AstraError(
            f"layer {name}: the {shape} rows of its input are not the tokens of a batch of "
            f"{' and '.join(map(str, self._tokens))}; leave it out of the targets"
        )


def first_sample(batch: Batch) -> Batch:
    """The first row of every tensor but the labels; of text alone at most 128 tokens, on the side without padding."""
    size = next((len(value) for value in batch.values() if isinstance(value, Tensor) and value.dim()), 0)
    row = {
        key: value[:1] if isinstance(value, Tensor) and value.dim() and len(value) == size else value
        for key, value in batch.items()
        if key != "labels"
    }
    if not row.keys() <= _TEXT:
        return row
    mask = row.get("attention_mask")
    left = mask is not None and not bool(mask[0, 0])
    return {key: value[:, -_SAMPLE:] if left else value[:, :_SAMPLE] for key, value in row.items()}


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Eval mode (dropout would change the activations) and exact products inside the block; then as before."""
    training = [module for module in model.modules() if module.training]
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    model.eval()
    try:
        with exact_products():
            yield
    finally:
        for module in training:
            module.training = True
        for parameter in frozen:  # PEFT makes an adapter trainable that it switches on again
            parameter.requires_grad = False


@contextmanager
def exact_products() -> Iterator[None]:
    """Float32 products as such inside the block, then as before: TF32's rounding, or bfloat16's, drowns the tail."""
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # it was set by the finer switches alone
        before = None
    backends: list[Any] = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
    finer = [(backend, backend.fp32_precision) for backend in backends if hasattr(backend, "fp32_precision")]
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if before is not None:
            torch.set_float32_matmul_precision(before)
        for backend, precision in finer:
            backend.fp32_precision = precision
