"""A faster LoRA product for vLLM on CPUs.

vLLM 0.32 has no LoRA kernel for CPUs: its PyTorch fallback (`vllm.lora.ops.torch_ops`) gathers a copy of both adapter
matrices for *every token* and multiplies with `einsum`; for SmolLM2 at rank 16 that is most of the time of a step. It
also reads the last adapter's weights for tokens of the bare model when both are in one batch, and can't return the
log-probabilities of a prompt's tokens. Here each run of tokens that share an adapter is one matrix product, and tokens
without an adapter are left alone.

`install` replaces two methods of one class, only in the versions it was tested with; elsewhere vLLM's own code runs.
"""

from typing import Any

import torch

from eval.engines import engine_version

TESTED = ("0.32.",)


def install() -> None:
    """Put the faster product in place in this process."""
    if engine_version("vllm").startswith(TESTED):
        from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

        PunicaWrapperCPU.add_lora_linear = add_lora_linear  # type: ignore[method-assign]
        PunicaWrapperCPU.add_lora_logits = add_lora_logits  # type: ignore[method-assign]


def add_lora_linear(
    self: Any, y: torch.Tensor, x: torch.Tensor, lora_a_stacked: tuple[torch.Tensor, ...],
    lora_b_stacked: tuple[torch.Tensor, ...], scale: float, output_slices: tuple[int, ...], **_: Any,
) -> None:  # fmt: skip
    """Add `scale * x A^T B^T` to `y` (..., sum of output_slices) in place, with each token's own adapter.

    `self` is a `PunicaWrapperCPU`: its prefill metadata says which tokens share an adapter (-1: none). A layer has a
    slice per matrix fused in it (q, k, v), each with its A (slots, 1, rank, in) and B (slots, 1, slice, rank).
    """
    if self.no_lora:
        return
    _, lengths, slots, *_ = self.prefill_metadata
    columns, inputs = y.view(-1, y.shape[-1]).split(output_slices, dim=1), x.view(-1, x.shape[-1])
    ends = lengths.cumsum(0).tolist()
    for start, end, slot in zip([0, *ends[:-1]], ends, slots.tolist(), strict=True):
        for column, a, b in zip(columns, lora_a_stacked, lora_b_stacked, strict=True):
            if slot >= 0:
                _add(column[start:end], inputs[start:end], a[slot, 0], b[slot, 0], scale)


def add_lora_logits(
    self: Any, y: torch.Tensor, x: torch.Tensor, lora_a_stacked: torch.Tensor, lora_b_stacked: torch.Tensor,
    scale: float, **_: Any,
) -> None:  # fmt: skip
    """Add an adapter's part of the logits (rows, vocabulary) to `y` in place, for sampled tokens or those of a prompt.

    `sampler_indices` holds the adapter of each request in the batch; prompts are scored in batches of one adapter.
    """
    slots = self.sampler_indices.tolist()
    slots = slots if len(slots) == len(x) else slots[:1] * len(x)
    for slot in set(slots) - {-1}:
        rows = torch.tensor([other == slot for other in slots])
        part = y[rows]
        _add(part, x[rows], lora_a_stacked[slot, 0], lora_b_stacked[slot, 0], scale)
        y[rows] = part


def _add(y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float) -> None:
    """The inner product is kept in float32 in between, as in vLLM's own code."""
    inner = (x @ a.to(x.dtype).T).float() * scale
    y += inner.to(y.dtype) @ b.to(y.dtype).T
