"""A module's weights where it computes, also if accelerate's hooks keep them in main memory or on disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


class Weights:
    """Weights that a `device_map` offloads are fetched once for any number of calls; others are where they are."""

    def __init__(self, *modules: nn.Module) -> None:
        self._modules = modules
        self._fetched: list[tuple[nn.Module, Any]] = []

    def fetch(self) -> None:
        """Put the weights on the device they compute on."""
        for part in (part for module in self._modules for part in module.modules()):
            for hook in offloading(part):
                hook.pre_forward(part)
                hook.offload = False  # a call of the module then leaves them where they are
                self._fetched.append((part, hook))

    def release(self) -> None:
        """Take them away again."""
        while self._fetched:
            part, hook = self._fetched.pop()
            hook.offload = True
            hook.post_forward(part, None)


@contextmanager
def loaded(module: nn.Module) -> Iterator[None]:
    """The weights of one module in place for the length of the block."""
    weights = Weights(module)
    try:
        weights.fetch()
        yield
    finally:
        weights.release()


def offloading(module: nn.Module) -> list[Any]:
    """The hooks that keep a module's own weights away from it."""
    hook = getattr(module, "_hf_hook", None)
    return [part for part in getattr(hook, "hooks", [hook]) if getattr(part, "offload", False)]
