"""Which target layers read the same tensor, and what they read: seen on one sample, asserted afterwards."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

_SAME = 1e-4  # share of the largest entry by which two passes may differ: rounding


@dataclass
class Seen:
    """Tensors that layers were called with in the current pass: the same if the same live, unmodified object."""

    calls: dict[str, int] = field(default_factory=dict)
    _tensors: dict[tuple[str, int], tuple[weakref.ref[Tensor], int]] = field(default_factory=dict)

    def add(self, name: str, x: Tensor) -> int:
        """Register that `name` is called with x; the number of that call, from 0."""
        number = self.calls.get(name, 0)
        self.calls[name] = number + 1
        self._tensors[name, number] = (weakref.ref(x), _version(x))
        return number

    def same(self, name: str, number: int, x: Tensor) -> bool:
        """Whether the `number`-th call of `name` read the tensor x as it is now."""
        reference, version = self._tensors.get((name, number), (lambda: None, -1))
        return reference() is x and version == _version(x)


@dataclass
class Trace:
    """One sample's way through the target layers."""

    # Called layer -> the first layer that reads the same tensor in every call (itself if there is none).
    leader: dict[str, str] = field(default_factory=dict)
    # Called layer -> one vector per call, a fixed random projection of each row of its input.
    prints: dict[str, list[Tensor]] = field(default_factory=dict)
    last: str = ""  # the layer that is called last

    def agrees(self, other: Trace) -> bool:
        """Whether the same layers were called as often, with the same inputs up to rounding."""
        return self.prints.keys() == other.prints.keys() and all(
            len(mine) == len(theirs) and all(map(_close, mine, theirs))
            for mine, theirs in ((self.prints[name], other.prints[name]) for name in self.prints)
        )


def trace(run: Callable[[], None], targets: Mapping[str, nn.Module]) -> Trace:
    """Watch the target layers while `run` takes a sample through the model."""
    found, seen, apart = Trace(), Seen(), set[str]()

    def look(name: str, x: Tensor) -> None:
        number = seen.add(name, x)
        if number == 0:
            leaders = [other for other in found.leader if found.leader[other] == other]
            found.leader[name] = next((other for other in leaders if seen.same(other, 0, x)), name)
        elif not seen.same(found.leader[name], number, x):
            apart.add(name)
        found.prints.setdefault(name, []).append(_print(x))
        found.last = name

    handles = [
        module.register_forward_pre_hook(lambda _, a, k, name=name: look(name, layer_input(a, k)), with_kwargs=True)
        for name, module in targets.items()
    ]
    with hooked(handles):
        run()
    for name, leader in found.leader.items():
        if name in apart or seen.calls[name] != seen.calls[leader]:
            found.leader[name] = name
    return found


@contextmanager
def hooked(handles: Iterable[Any]) -> Iterator[None]:
    """Remove a module's hooks at the end of the block."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def layer_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The activation a linear layer was called with."""
    return args[0] if args else next(iter(kwargs.values()))


def _print(x: Tensor) -> Tensor:
    vector = torch.randn(x.shape[-1], generator=torch.Generator().manual_seed(0))
    return (x.detach().reshape(-1, x.shape[-1]).float() @ vector.to(x.device)).cpu()


def _close(one: Tensor, other: Tensor) -> bool:
    atol = _SAME * float(one.nan_to_num(0, 0, 0).abs().max()) if len(one) else 0.0
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=atol, equal_nan=True)


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version  # what was made in inference mode cannot be changed outside of it
