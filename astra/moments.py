"""Second moments of target layers' inputs or outputs over calibration batches.

C = (1/T) sum y y^T of a layer y = W x + b equals [W b] G [W b]^T with G the second moment of [x; 1], so layers that
read the same tensor (q/k/v, gate/up) share one G. Who does is known from the first sample, and every call is checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from astra import parallel
from astra.errors import AstraError
from astra.forward import StopForward, TokenRows
from astra.sharing import Seen, hooked, layer_input
from astra.sums import OuterSum
from astra.targets import layer_shape, layer_weight
from astra.weights import loaded

_OUTPUT_ROWS = 4096  # rows of an output recomputed at a time


@dataclass
class Moment:
    """A second moment over T tokens."""

    matrix: Tensor  # float64 (k, k): (1/T) sum of x~ x~^T (k = n, or n + 1 where a bias needs it) or y y^T (k = m)
    kind: str  # "input" or "output"
    tokens: int  # T
    group: str  # the layer that it was summed at


class Sums:
    """Sums of outer products of the targets of one block.

    Args:
        targets: layer name -> module.
        leader: layer -> the layer whose input tensor it reads too; one whose leader is in another block reads its own.
        stop: a forward pass ends after that layer's call of that number, counted from 1.
    """

    def __init__(
        self, targets: Mapping[str, nn.Module], leader: Mapping[str, str], stop: tuple[str, int] | None = None
    ) -> None:
        self.targets, self.stop = targets, stop
        self.leader = {name: leader[name] if leader.get(name) in targets else name for name in targets}
        self.kinds = _kinds(targets, self.leader)
        self.sums: dict[str, OuterSum] = {}
        self._seen, self._rows, self._number = Seen(), TokenRows({}), 0

    def key(self, name: str) -> str:
        """The layer that accumulates the moment that `name` uses."""
        return self.leader[name] if self.kinds[name] == "input" else name

    @contextmanager
    def batch(self, number: int, rows: TokenRows) -> Iterator[None]:
        """Sum what the targets see inside the block, which runs one batch."""
        self._seen, self._rows, self._number = Seen(), rows, number
        with hooked([handle for name in self.targets for handle in self._hooks(name)]):
            yield
        for name, leader in self.leader.items():
            if self._seen.calls.get(name, 0) != self._seen.calls.get(leader, 0):
                raise self._unshared(name)
        self._check_finite()

    def reduce(self) -> dict[str, Moment]:
        """The mean over the tokens of all processes by `key`, without layers that none of them called."""
        keys = list(dict.fromkeys(self.key(name) for name in self.targets))
        counts = parallel.gather({key: total.rows for key, total in self.sums.items()})
        moments = {}
        for key in keys:
            rows = [count[key] for count in counts if key in count]
            if not rows:
                continue
            if not sum(rows):
                raise AstraError("no calibration tokens: attention_mask leaves none in any batch")
            total = self._sum(key, layer_weight(self.targets[key])[0].device).release()
            moments[key] = Moment(parallel.reduce_sum(total).div_(sum(rows)), self.kinds[key], sum(rows), key)
            del self.sums[key]
        return moments

    def _hooks(self, name: str) -> list[Any]:
        """Hooks on one layer: its input before the call; its output after it where that is what is summed."""
        module, leader, by_input = self.targets[name], self.leader[name], self.kinds[name] == "input"

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = layer_input(args, kwargs)
            number = self._seen.add(name, x)
            if leader != name and not self._seen.same(leader, number, x):
                raise self._unshared(name)
            if by_input and leader == name:
                self._sum(name, x.device).add(self._rows.of(name, x))
            if by_input:
                self._stop_after(name)

        def after(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor) -> None:
            self._add_output(name, layer_input(args, kwargs), y)
            self._stop_after(name)

        handles = [module.register_forward_pre_hook(before, with_kwargs=True)]
        if not by_input:
            handles.append(module.register_forward_hook(after, with_kwargs=True))
        return handles

    def _stop_after(self, name: str) -> None:
        if (name, self._seen.calls[name]) == self.stop:
            raise StopForward

    def _add_output(self, name: str, x: Tensor, y: Tensor) -> None:
        total = self._sum(name, y.device)
        if y.dtype in (torch.float32, torch.float64):
            total.add(self._rows.of(name, y))
            return
        # The rounding of a half-precision output (2^-9) would drown the tail: compute it again, in float32.
        with loaded(self.targets[name]):
            weight, bias = layer_weight(self.targets[name])
            with torch.autocast(weight.device.type, enabled=False):
                for part in self._rows.of(name, x).split(_OUTPUT_ROWS):
                    total.add(_in_float32(part, weight, bias))

    def _sum(self, key: str, device: torch.device) -> OuterSum:
        """The accumulator of a layer, made when it is first needed."""
        if key not in self.sums:
            m, n = layer_shape(self.targets[key])
            if self.kinds[key] == "output":
                self.sums[key] = OuterSum(m, False, device)
            else:
                readers = [self.targets[name] for name, leader in self.leader.items() if leader == key]
                self.sums[key] = OuterSum(n, any(module.bias is not None for module in readers), device)
        return self.sums[key]

    def _check_finite(self) -> None:
        """Look at the sums' diagonals once per batch: one non-finite activation makes them so."""
        for name, total in self.sums.items():
            if not bool(total.trace().isfinite()):
                raise AstraError(f"layer {name}: NaN or Inf in its {self.kinds[name]}s in {self._where()}")

    def _unshared(self, name: str) -> AstraError:
        return AstraError(
            f"layer {name} reads the input of {self.leader[name]} in the first sample but not in {self._where()};"
            " calibrate one of the two without the other"
        )

    def _where(self) -> str:
        return f"calibration batch {self._number}{parallel.of_process()}"


def _in_float32(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b in float32: on a GPU from half-precision factors, whose products are exact there."""
    if x.is_cuda and x.dtype == weight.dtype and torch.__version__ >= "2.8":
        y = torch.mm(x, weight.T, out_dtype=torch.float32)
        return y if bias is None else y.add_(bias)
    return F.linear(x.float(), weight.float(), None if bias is None else bias.float())


def _kinds(targets: Mapping[str, nn.Module], leader: Mapping[str, str]) -> dict[str, str]:
    """Choose for each group between one input moment and one output moment per layer, by multiplications."""
    outputs: dict[str, int] = {}  # of the group of each leader
    for name, module in targets.items():
        outputs[leader[name]] = outputs.get(leader[name], 0) + layer_shape(module)[0] ** 2
    # The row of ones does not count: at a tie, a square layer with a bias, the input needs no product of its own.
    return {
        name: "input" if layer_shape(module)[1] ** 2 <= outputs[leader[name]] else "output"
        for name, module in targets.items()
    }
