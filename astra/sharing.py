"""Which target layers read the same tensor, found by watching one sample go through the model."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from astra.forward import Batch, Run, first_sample
from astra.targets import layer_shape


@dataclass
class Plan:
    """How second moments are shared.

    Attributes:
        leader: layer -> the layer whose input tensor it reads too, in every call (itself if there is none).
        kinds: layer -> "input" or "output", whichever its group can sum with fewer products.
        augmented: leader -> whether its input moment has a row of ones, for the biases of its group.
        last: the layer after whose `calls`-th call in a forward pass no target follows; None if that is not known.
    """

    leader: dict[str, str]
    kinds: dict[str, str]
    augmented: dict[str, bool]
    last: str | None
    calls: int

    def key(self, name: str) -> str:
        """The layer that accumulates the moment that `name` uses."""
        return self.leader[name] if self.kinds[name] == "input" else name


@dataclass
class Seen:
    """Tensors that target layers were called with in the current forward pass.

    A tensor is the same if it is the same live object, unmodified; a weak reference tells without keeping it.
    """

    calls: dict[str, int] = field(default_factory=dict)
    _tensors: dict[tuple[str, int], tuple[weakref.ref[Tensor], int]] = field(default_factory=dict)

    def count(self, name: str) -> int:
        """Register a call of `name`; its number in this pass, from 0."""
        number = self.calls.get(name, 0)
        self.calls[name] = number + 1
        return number

    def remember(self, name: str, number: int, x: Tensor) -> None:
        """Keep track of what the `number`-th call of `name` read."""
        self._tensors[name, number] = (weakref.ref(x), _version(x))

    def same(self, name: str, number: int, x: Tensor) -> bool:
        """Whether the `number`-th call of `name` read the tensor x as it is now."""
        reference, version = self._tensors.get((name, number), (lambda: None, -1))
        return reference() is x and version == _version(x)


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version  # what was made in inference mode cannot be changed outside of it


def layer_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The activation a linear layer was called with."""
    return args[0] if args else next(iter(kwargs.values()))


def make_plan(forward: Run, targets: dict[str, nn.Module], batch: Batch, separate: set[str]) -> Plan:
    """Run the first sample of `batch` and see who reads what; layers in `separate` are not to share."""
    seen, leader, order = Seen(), {name: name for name in targets}, []

    def look(name: str, x: Tensor) -> None:
        number = seen.count(name)
        order.append(name)
        if number == 0 and name not in separate:
            readers = (other for other in seen.calls if leader[other] == other and other not in separate)
            leader[name] = next((other for other in readers if seen.same(other, 0, x)), name)
        elif leader[name] != name and not seen.same(leader[name], number, x):
            separate.add(name)
        if leader[name] == name:
            seen.remember(name, number, x)

    handles = [
        module.register_forward_pre_hook(lambda _, a, k, name=name: look(name, layer_input(a, k)), with_kwargs=True)
        for name, module in targets.items()
    ]
    try:
        forward(first_sample(batch))
    finally:
        for handle in handles:
            handle.remove()
    for name in targets:
        if name in separate or seen.calls.get(name, 0) != seen.calls.get(leader[name], 0):
            leader[name] = name
    last = order[-1] if len(seen.calls) == len(targets) else None
    return _decide(targets, leader, last, seen.calls.get(last, 0) if last else 0)


def _decide(targets: dict[str, nn.Module], leader: dict[str, str], last: str | None, calls: int) -> Plan:
    """Choose for each group between one input moment and one output moment a layer, by multiplications."""
    groups: dict[str, list[str]] = {}
    for name in targets:
        groups.setdefault(leader[name], []).append(name)
    kinds, augmented = {}, {}
    for head, members in groups.items():
        augmented[head] = any(targets[name].bias is not None for name in members)
        width = layer_shape(targets[head])[1] + augmented[head]
        outputs = sum(layer_shape(targets[name])[0] ** 2 for name in members)
        kind = "input" if width**2 <= outputs or _near(width, augmented[head], outputs) else "output"
        kinds.update(dict.fromkeys(members, kind))
    return Plan(leader, kinds, augmented, last, calls)


def _near(width: int, augmented: bool, outputs: int) -> bool:
    """A square layer with a bias misses the tie by the row of ones; its input needs no product of its own."""
    return augmented and (width - 1) ** 2 <= outputs
