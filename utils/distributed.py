"""The few things that a process of several has to know."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


def rank() -> int:
    """Return this process's rank; 0 outside torchrun."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return the number of processes; 1 outside torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Return whether this process is the one that writes and speaks."""
    return rank() == 0


def barrier() -> None:
    """Wait for the other processes, if there are any."""
    if world_size() > 1:
        import torch

        torch.distributed.barrier()


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that torchrun started, for the length of the block; does nothing for a single process."""
    if world_size() == 1:
        yield
        return
    import torch

    torch.distributed.init_process_group("cuda:nccl,cpu:gloo" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def device() -> str:
    """Return this process's device: its own GPU where there is one, else the CPU."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
