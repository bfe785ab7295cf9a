"""Second moments of target layers' inputs or outputs over calibration batches.

C = (1/T) sum y y^T of a layer y = W x + b equals [W b] G [W b]^T with G the second moment of [x; 1], so layers that
read the same tensor (q/k/v, gate/up) share one G. `astra.sharing` finds out who does; every call is checked against
that, and when a layer turns out to share only in some batches the pass starts again with a sum of its own for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from astra import parallel
from astra.errors import AstraError
from astra.forward import Batch, Forward, Run, StopForward, TokenRows, evaluation
from astra.progress import Checkpoint
from astra.sharing import Plan, Seen, layer_input, make_plan
from astra.sums import OuterSum
from astra.targets import check_loaded, find_targets, layer_shape, layer_weight

_OUTPUT_ROWS = 4096  # rows of an output recomputed at a time


@dataclass
class Moments:
    """Second moments over T tokens, by the layer that accumulated them.

    Attributes:
        matrices: key -> float64 (k, k): (1/T) sum of x~ x~^T (k = n, or n + 1 where a bias needs it) or y y^T (k = m).
        tokens: key -> T.
        kinds: key -> "input" or "output".
        groups: layer -> the key of its moment, in the model's order.
    """

    matrices: dict[str, Tensor]
    tokens: dict[str, int]
    kinds: dict[str, str]
    groups: dict[str, str]


class _PatternBroken(Exception):
    """A layer stopped reading the tensor it shared so far."""


def collect(
    model: nn.Module,
    batches: Iterable[Batch],
    target_modules: Sequence[str] | str,
    *,
    checkpoint: Checkpoint | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> Moments:
    """Second moments of every target layer over the tokens of `batches`.

    Under `torch.distributed` each process passes its own batches and all get the sums over all of them.

    Args:
        model: any PyTorch model called as `model(**batch)`; in eval mode meanwhile.
        batches: dicts of tensors, the same on every iteration; `attention_mask` (b, t) says which tokens count. A
            one-time iterator is put into a list, since the pass may have to start again.
        target_modules: see `astra.targets.find_targets`.
        checkpoint: where to save progress, and to continue from if there is any.
        on_batch: called after each batch with its number and its count of tokens.

    Raises:
        AstraError: targets that match nothing, are offloaded or are never called, no tokens, NaN or Inf in activations
            (naming layer and batch), or padding that cannot be told apart.
    """
    targets = find_targets(model, target_modules)
    for name, module in targets.items():
        check_loaded(name, module)
    if not hasattr(batches, "__len__") and iter(batches) is batches:
        batches = list(batches)
    separate: set[str] = set()
    with evaluation(model):
        while True:
            run = Pass(targets, Forward(model, list(targets)), batches, separate, checkpoint)
            run.attempt(on_batch)
            if run.agreed():
                return run.result()
            separate = run.separate
            if checkpoint is not None:
                checkpoint.clear()


class Pass:
    """One pass over batches, in which the layers of `separate` sum for themselves.

    With `stop`, each forward pass ends at the last target.
    """

    def __init__(
        self,
        targets: dict[str, nn.Module],
        forward: Run,
        batches: Iterable[Batch],
        separate: set[str],
        checkpoint: Checkpoint | None = None,
        stop: bool = True,
    ) -> None:
        self.targets, self.forward, self.batches = targets, forward, batches
        self.separate, self.checkpoint = set(separate), checkpoint
        self.sums: dict[str, OuterSum] = {}
        self.stop = stop
        self.error: AstraError | None = None
        self.broken = False
        self.plan = self._plan()

    def _plan(self) -> Plan:
        """The first process's plan: a process may have no batches, and all must share in the same way."""
        if self.checkpoint is not None:
            self.separate |= set(self.checkpoint.info().get("separate", ()))
        self.separate = set().union(*parallel.gather(self.separate))
        plan, error = None, None
        try:
            first = next(iter(self.batches), None)
            if first is not None:
                plan = make_plan(self.forward, self.targets, first, set(self.separate))
        except AstraError as caught:
            error = caught
        parallel.raise_together(error)
        plans = [plan for plan in parallel.gather(plan) if plan is not None]
        if not plans:
            raise AstraError("no calibration tokens: the calibration set is empty")
        return plans[0] if self.stop else replace(plans[0], last=None)

    def attempt(self, on_batch: Callable[[int, int], None] | None = None) -> None:
        """Sum over all batches, up to the first error or broken pattern."""
        try:
            done = self._resume()
            for number, batch in enumerate(self.batches):
                if number < done:
                    continue
                tokens = self._add(number, batch)
                if self.checkpoint is not None:
                    self.checkpoint.maybe_save(number + 1, self._state)
                if on_batch is not None:
                    on_batch(number, tokens)
        except _PatternBroken as broken:
            self.separate.add(str(broken))
            self.broken = True
        except AstraError as error:
            self.error = error

    def agreed(self) -> bool:
        """Whether every process came through; else all of them know the layers to separate.

        Raises:
            AstraError: the first error of any process, on all of them.
        """
        parallel.raise_together(self.error)
        outcomes = parallel.gather((self.broken, self.separate))
        self.separate = set().union(*(separate for _, separate in outcomes))
        return not any(broken for broken, _ in outcomes)

    def result(self) -> Moments:
        """Means over the tokens of all processes."""
        groups = {name: self.plan.key(name) for name in self.targets}
        moments = Moments({}, {}, {key: self.plan.kinds[key] for key in groups.values()}, groups)
        for key in moments.kinds:
            called = any(parallel.gather(key in self.sums))
            total = self._sum(key, self._device(key))
            tokens = sum(parallel.gather(total.rows))
            if not called:
                raise AstraError(f"target layer {key} is never called in a forward pass over the calibration set")
            if tokens == 0:
                raise AstraError("no calibration tokens: attention_mask leaves none in any batch")
            moments.tokens[key] = tokens
            moments.matrices[key] = parallel.reduce_sum(total.release()).div_(tokens)
            del self.sums[key]
        return moments

    def _add(self, number: int, batch: Batch) -> int:
        rows, seen = TokenRows(batch), Seen()
        handles = [handle for name in self.targets for handle in self._hooks(name, rows, seen)]
        try:
            self.forward(batch)
        finally:
            for handle in handles:
                handle.remove()
        for name, leader in self.plan.leader.items():
            if leader != name and seen.calls.get(name, 0) != seen.calls.get(leader, 0):
                raise _PatternBroken(name)
        self._check_finite(number)
        return rows.count

    def _hooks(self, name: str, rows: TokenRows, seen: Seen) -> list[Any]:
        """Hooks on one layer: its input before the call; its output after it where that is what is summed."""
        plan, module = self.plan, self.targets[name]
        leader = plan.leader[name]
        by_input = plan.kinds[name] == "input"

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = layer_input(args, kwargs)
            number = seen.count(name)
            if leader != name:
                if not seen.same(leader, number, x):
                    raise _PatternBroken(name)
            else:
                seen.remember(name, number, x)
                if by_input:
                    self._sum(name, x.device).add(rows.of(name, x))
            if by_input and name == plan.last and seen.calls[name] == plan.calls:
                raise StopForward

        def after(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor) -> None:
            self._add_output(name, rows, layer_input(args, kwargs), y)
            if name == plan.last and seen.calls[name] == plan.calls:
                raise StopForward

        handles = [module.register_forward_pre_hook(before, with_kwargs=True)]
        if not by_input:
            handles.append(module.register_forward_hook(after, with_kwargs=True))
        return handles

    def _add_output(self, name: str, rows: TokenRows, x: Tensor, y: Tensor) -> None:
        total = self._sum(name, y.device)
        if y.dtype in (torch.float32, torch.float64):
            total.add(rows.of(name, y))
            return
        # The rounding of a half-precision output (2^-9) would drown the tail: compute it again, in float32.
        weight, bias = layer_weight(self.targets[name])
        weight, bias = weight.float(), None if bias is None else bias.float()
        with torch.autocast(weight.device.type, enabled=False):
            for part in rows.of(name, x).split(_OUTPUT_ROWS):
                total.add(F.linear(part.float(), weight, bias))

    def _device(self, name: str) -> torch.device:
        return layer_weight(self.targets[name])[0].device

    def _sum(self, name: str, device: torch.device) -> OuterSum:
        """The accumulator of a layer, made when it is first needed."""
        if name not in self.sums:
            m, n = layer_shape(self.targets[name])
            if self.plan.kinds[name] == "input":
                self.sums[name] = OuterSum(n, self.plan.augmented[name], device)
            else:
                self.sums[name] = OuterSum(m, False, device)
        return self.sums[name]

    def _check_finite(self, number: int) -> None:
        """Look at the sums' diagonals once a batch: one non-finite activation makes them so."""
        traces = {name: total.trace() for name, total in self.sums.items()}
        by_device: dict[torch.device, list[Tensor]] = {}
        for trace in traces.values():
            by_device.setdefault(trace.device, []).append(trace)
        if all(bool(torch.stack(group).isfinite().all()) for group in by_device.values()):
            return
        name = next(name for name, trace in traces.items() if not bool(trace.isfinite()))
        where = f"calibration batch {number}" + parallel.of_process()
        raise AstraError(f"layer {name}: NaN or Inf in its {self.plan.kinds[name]}s in {where}")

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        matrices = {name: total.partial() for name, total in self.sums.items()}
        rows = {name: total.rows for name, total in self.sums.items()}
        return matrices, {"rows": rows, "separate": sorted(self.separate)}

    def _resume(self) -> int:
        saved = self.checkpoint.load() if self.checkpoint is not None else None
        if saved is None:
            return 0
        done, matrices, info = saved
        if set(info["separate"]) != self.separate:
            return 0
        for name, matrix in matrices.items():
            self._sum(name, self._device(name)).load(matrix, info["rows"][name])
        return done
