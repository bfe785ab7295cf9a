"""What calibration needs of `torch.distributed`; every function is the identity for a single process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from torch import Tensor

from astra.errors import AstraError


def rank() -> int:
    """This process's number; 0 if it is alone."""
    return dist.get_rank() if _joined() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _joined() else 1


def of_process() -> str:
    """ " of process 1", for messages; empty if there is only one."""
    return f" of process {rank()}" if _joined() else ""


def gather(value: Any) -> list[Any]:
    """The picklable values of all processes, by rank, on every process."""
    if not _joined():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def gather_to_first(value: Any) -> list[Any]:
    """The picklable values of all processes, by rank, on the first process; an empty list on the others."""
    if not _joined():
        return [value]
    values: list[Any] | None = [None] * world_size() if rank() == 0 else None
    dist.gather_object(value, values)
    return values or []


def share(costs: Mapping[str, float]) -> list[str]:
    """This process's share of some work, the most costly first; the shares of all processes cost about the same."""
    load = [0.0] * world_size()
    mine = []
    for name in sorted(costs, key=lambda name: -costs[name]):
        least = load.index(min(load))
        load[least] += costs[name]
        if least == rank():
            mine.append(name)
    return mine


def raise_together(error: AstraError | None) -> None:
    """Raise the first process's error on all of them, so that none waits for one that has gone."""
    if error is not None and not _joined():
        raise error
    for message in gather(None if error is None else str(error)):
        if message is not None:
            raise AstraError(message) from error


def reduce_sum(tensor: Tensor) -> Tensor:
    """Sum over all processes, in place."""
    if _joined():
        dist.all_reduce(tensor)
    return tensor


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
