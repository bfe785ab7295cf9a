"""LoRA factors that train only their difference from where they start.

With A = A0 + dA and B = B0 + dB the change of a layer is

    s (B A - B0 A0) = s [dB, B0] [A0 + dA; dA],

a plain LoRA of rank 2r of which dA and dB train. `DownFactor` and `UpFactor` stand in for the `nn.Linear` modules of
rank r that PEFT keeps in `lora_A` and `lora_B`. Their `weight`, by which they are merged, saved and loaded, is the
factor of rank 2r.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from astra.errors import AstraError

PREFIX = "base_model.model."
SAME_START = 1e-4  # relative; float32 sums on different devices differ by about 1e-6


class _Product(torch.autograd.Function):
    """x times the factor of rank 2r, in one product each way; the difference gets its gradient, of rank r.

    Left to autograd, these are products of rank r with copies between them, or gradients of rank 2r.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, start: Tensor, delta: Tensor, kind: type[Factor]) -> Tensor:
        ctx.save_for_backward(x, start, delta)
        ctx.kind = kind
        return F.linear(x, kind.join(start, delta).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, start, delta = ctx.saved_tensors
        back = found = None
        if ctx.needs_input_grad[0]:
            back = grad @ ctx.kind.join(start, delta).to(grad.dtype)
        if ctx.needs_input_grad[2]:
            found = ctx.kind.gradient(x.flatten(0, -2), grad.flatten(0, -2)).to(delta.dtype)
        return back, None, found, None


class Factor(nn.Module):
    """Float32: the trained difference `delta`, from zero, and the fixed `start`, A0 (r x n) or B0 (m x r)."""

    dim: int  # in which the weight of rank 2r has 2r entries
    join: Callable[[Tensor, Tensor], Tensor]  # start and difference -> the factor of rank 2r
    split: Callable[[Tensor], tuple[Tensor, Tensor]]  # and back
    gradient: Callable[[Tensor, Tensor], Tensor]  # inputs, gradients of T rows -> that of the difference

    def __init__(self, trained: nn.Parameter, start: Tensor) -> None:
        super().__init__()
        trained.data = torch.zeros_like(start, dtype=torch.float32, memory_format=torch.contiguous_format)
        self.delta = trained
        self.start: Tensor
        self.register_buffer("start", start.detach().float().clone(memory_format=torch.contiguous_format))

    @property
    def weight(self) -> Tensor:
        """The factor of rank 2r; while ZeRO-3 has split the parameter, an empty tensor, as any weight is then."""
        return self.join(self.start, self.delta) if self.delta.shape == self.start.shape else self.delta

    def forward(self, x: Tensor) -> Tensor:
        """x times the transposed `weight`, in autocast's data type where it is on."""
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        return _Product.apply(x, self.start, self.delta, type(self))  # type: ignore[no-any-return, no-untyped-call]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if self.delta.shape != self.start.shape:  # DeepSpeed keeps the parts of a split parameter itself
            super()._save_to_state_dict(destination, prefix, keep_vars)
        else:
            destination[prefix + "weight"] = self.weight if keep_vars else self.weight.detach()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if prefix + "weight" in state_dict:
            self._load(state_dict[prefix + "weight"], prefix)
        else:
            super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.no_grad()
    def _load(self, weight: Tensor, prefix: str) -> None:
        layer, expected = prefix.rpartition(".lora_")[0].removeprefix(PREFIX), list(self.start.shape)
        expected[self.dim] *= 2
        if list(weight.shape) != expected:
            raise AstraError(
                f"layer {layer}: a saved factor is {' x '.join(map(str, weight.shape))}, not "
                f"{' x '.join(map(str, expected))}; it was trained at another rank, or by a version before this form"
            )
        start, delta = (part.to(self.start) for part in self.split(weight))
        tolerance = max(SAME_START, torch.finfo(weight.dtype).eps) * (self.start.norm() + delta.norm())
        if (start - self.start).norm() > tolerance:
            raise AstraError(f"layer {layer}: the saved adapter started from other factors than this model's")
        self.delta.copy_(delta)
        self.start.copy_(start)


class DownFactor(Factor):
    """x -> [(A0 + dA) x, dA x], for `lora_A`."""

    dim = 0

    @staticmethod
    def join(start: Tensor, delta: Tensor) -> Tensor:
        return torch.cat([start + delta, delta])

    @staticmethod
    def split(weight: Tensor) -> tuple[Tensor, Tensor]:
        top, delta = weight.chunk(2)
        return top - delta, delta

    @staticmethod
    def gradient(x: Tensor, grad: Tensor) -> Tensor:
        g, h = grad.chunk(2, -1)
        return (g + h).T @ x


class UpFactor(Factor):
    """[g, h] -> dB g + B0 h, for `lora_B`."""

    dim = 1

    @staticmethod
    def join(start: Tensor, delta: Tensor) -> Tensor:
        return torch.cat([delta, start], 1)

    @staticmethod
    def split(weight: Tensor) -> tuple[Tensor, Tensor]:
        delta, start = weight.chunk(2, 1)
        return start, delta

    @staticmethod
    def gradient(x: Tensor, grad: Tensor) -> Tensor:
        return grad.T @ x.chunk(2, -1)[0]


def saved_form(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put the factors of rank 2r in the place of starts and differences, in parameters and buffers by name.

    That is how DeepSpeed gathers what ZeRO-3 has split; a module's own `state_dict` has this form already.
    """
    state = dict(state)
    for key in [key for key in state if key.endswith(".delta")]:
        name = key.removesuffix("delta")
        kind = DownFactor if ".lora_A." in name else UpFactor
        state[f"{name}weight"] = kind.join(state.pop(f"{name}start"), state.pop(key))
    return state
