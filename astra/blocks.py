"""The blocks that a model is calibrated in: one decoder layer after another, or the whole model at once.

Layer by layer, the hidden states of the calibration set are kept, and a layer is called with what the model's own
forward pass calls it with: that pass is run once per batch with layers that return their input. Whether the targets
then read what they read in an uninterrupted pass is tried on the first sample. Where they do not (one block
called several times), or are not all in one list of layers, the whole model is one block.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from astra.errors import AstraError, out_of_memory
from astra.forward import Batch, Forward, StopForward, first_sample
from astra.sharing import Trace, hooked, trace
from astra.weights import Weights, loaded

log = logging.getLogger("astra")
_EQUAL = 1e-5  # share of the largest entry by which inputs of one token differ at most: rounding


@dataclass
class Block:
    """What is run, summed and decomposed together."""

    name: str  # dotted name of the layer
    targets: dict[str, nn.Module]  # the target layers in it
    run: Callable[[int], None]  # takes the batch of a number through it: in any order, but the blocks in theirs
    weights: Weights = field(default_factory=Weights)  # to fetch once; of a whole model each call fetches its own
    stop: tuple[str, int] | None = None  # the target, and the number of its call, after which nothing needs to run


@dataclass
class Survey:
    """What the first sample tells of a model."""

    leader: dict[str, str]  # called target -> the target whose input tensor it reads too (itself if there is none)
    stop: tuple[str, int]  # the target that is called last, and how often it is
    by_token: set[str]  # targets whose input depends on nothing but the token's id
    layers: str | None = None  # dotted name of the list of decoder layers; None if the model is one block
    forms: list[int | None] = field(default_factory=list)  # length of the tuple that each layer returns, if one


def survey(model: nn.Module, forward: Forward, targets: Mapping[str, nn.Module], batches: Sequence[Batch]) -> Survey:
    """Run the first sample both ways, of every kind of batch, and compare what each target reads."""
    kinds: dict[frozenset[str], Batch] = {}
    for batch in batches:
        kinds.setdefault(frozenset(batch), batch)
    found: Survey | None = None
    for sample in map(first_sample, kinds.values()):
        forms: dict[str, int | None] = {}
        with hooked(_form_hooks(model, forms)):
            whole = trace(lambda: forward(sample), targets)  # noqa: B023, called here
        if found is None:
            stop = whole.last, len(whole.prints.get(whole.last, ()))
            found = Survey(whole.leader, stop, _by_token(sample, whole))
        try:
            found.layers = name = _list_of_layers(model, whole)
            numbers = [int(target.removeprefix(f"{name}.").split(".")[0]) for target in _inside(targets, name)]
            found.forms = [forms.get(f"{name}.{k}") for k in range(1 + max(numbers))]
            if not whole.agrees(_Layers(forward, model, name, found.forms).trace(targets, sample)):
                raise AstraError("they pass on more than hidden states")
        except Exception as reason:  # whatever a model makes of layers that do nothing
            if out_of_memory(reason):
                raise
            log.info("the whole model is calibrated at once; its layers can't be run one by one (%s)", reason)
            found.layers = None
            return found
    assert found is not None
    return found


def make_blocks(
    model: nn.Module, forward: Forward, targets: Mapping[str, nn.Module], batches: Sequence[Batch], survey: Survey
) -> list[Block]:
    """The blocks, in the order in which they have to be run."""
    if survey.layers is None:
        blocks = [Block("model", dict(targets), lambda number: forward(batches[number]))]
    else:
        layers, inside = _Layers(forward, model, survey.layers, survey.forms), _inside(targets, survey.layers)
        with hooked(_refusing_hooks({name: targets[name] for name in targets if name not in inside})):
            blocks = layers.blocks(targets, batches)
    if all(name in survey.leader for name in blocks[-1].targets):  # else one may yet be called after the last
        blocks[-1].stop = survey.stop
    return blocks


@dataclass
class _State:
    """One batch on its way: its hidden states, and per layer the other arguments, None once they are used."""

    hidden: Tensor
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]] | None]


class _Layers:
    """Decoder layers, each called with what the model's own forward pass calls it with."""

    def __init__(self, forward: Forward, model: nn.Module, name: str, forms: list[int | None]) -> None:
        layers: Any = model.get_submodule(name)
        self.forward, self.name, self.layers, self.forms = forward, name, list(layers)[: len(forms)], forms

    def blocks(self, targets: Mapping[str, nn.Module], batches: Sequence[Batch]) -> list[Block]:
        """A block per layer, for batches that are before the first."""
        states = _States(map(self.capture, batches), len(batches))
        return [
            Block(f"{self.name}.{k}", _inside(targets, f"{self.name}.{k}"), states.step(k, layer), Weights(layer))
            for k, layer in enumerate(self.layers)
        ]

    def capture(self, batch: Batch) -> _State:
        """The hidden states before the first layer and the other arguments of every layer."""
        hidden: list[Tensor] = []
        arguments: list[Any] = []

        def passed(k: int, *args: Any, **kwargs: Any) -> Any:
            x, *rest = args or [kwargs.pop("hidden_states")]
            if k != len(arguments) or (hidden and x is not hidden[0]):
                raise AstraError("they are not called one after another, each with the result of the last")
            hidden[:] = [x]
            arguments.append((tuple(rest), kwargs))
            if k + 1 == len(self.layers):
                raise StopForward
            length = self.forms[k]
            return x if length is None else (x, *[None] * (length - 1))

        with _replaced(self.layers, passed):
            self.forward(batch)
        if len(arguments) != len(self.layers):
            raise AstraError("not all of them are called")
        return _State(hidden[0], arguments)

    def trace(self, targets: Mapping[str, nn.Module], sample: Batch) -> Trace:
        """What the targets of each layer read when the layers are called one by one."""
        found = Trace()
        for block, layer in zip(self.blocks(targets, [sample]), self.layers, strict=True):
            with loaded(layer):
                found.prints.update(trace(lambda: block.run(0), block.targets).prints)  # noqa: B023, called here
        return found


class _States:
    """The batches between two layers, on their device if all of them fit, else in main memory."""

    def __init__(self, states: Iterable[_State], count: int) -> None:
        self._states, self._ahead = list[_State](), dict[int, tuple[Tensor, Any]]()
        self._device, self._away = torch.device("cpu"), False
        for state in states:
            if not self._states:
                self._device, self._away = state.hidden.device, not _fit(state, count)
            if self._away:
                state = _State(*_moved((state.hidden, state.arguments), torch.device("cpu"), {}))
            self._states.append(state)

    def step(self, k: int, layer: nn.Module) -> Callable[[int], None]:
        """What takes a batch through layer k."""

        def run(number: int) -> None:
            hidden, (args, kwargs) = self._ahead.pop(number, None) or self._fetch(number, k)
            if self._away and number + 1 < len(self._states):
                self._ahead[number + 1] = self._fetch(number + 1, k)
            try:
                output = layer(hidden, *args, **kwargs)
            except StopForward:
                return
            output = output[0] if isinstance(output, tuple) else output
            self._states[number].hidden = _moved(output, torch.device("cpu"), {}) if self._away else output

        return run

    def _fetch(self, number: int, k: int) -> tuple[Tensor, Any]:
        state = self._states[number]
        arguments, state.arguments[k] = state.arguments[k], None
        found = state.hidden, arguments
        return _moved(found, self._device, {}) if self._away else found


def _fit(state: _State, count: int) -> bool:
    """Whether so many states like this take at most half of what is free on their device."""
    device = state.hidden.device
    if device.type != "cuda":
        return True
    tensors: dict[int, Tensor] = {}
    _moved((state.hidden, state.arguments), device, tensors)
    return count * sum(tensor.nbytes for tensor in tensors.values()) <= torch.cuda.mem_get_info(device)[0] / 2


def _moved(value: Any, device: torch.device, memo: dict[int, Tensor]) -> Any:
    """Tensors in nested tuples, lists and dicts on another device, each once; pinned in main memory."""
    if isinstance(value, Tensor):
        if id(value) not in memo:
            moved = value.to(device, non_blocking=device.type == "cuda")
            memo[id(value)] = moved.pin_memory() if device.type == "cpu" and value.is_cuda else moved
        return memo[id(value)]
    if type(value) in (tuple, list):
        return type(value)(_moved(item, device, memo) for item in value)
    if type(value) is dict:
        return {key: _moved(item, device, memo) for key, item in value.items()}
    return value


@contextmanager
def _replaced(layers: Sequence[nn.Module], run: Callable[..., Any]) -> Iterator[None]:
    """Let layer k do run(k, ...)."""
    before = [layer.__dict__.get("forward") for layer in layers]  # of its own if hooks of accelerate are there
    try:
        for k, layer in enumerate(layers):
            layer.__dict__["forward"] = lambda *args, k=k, **kwargs: run(k, *args, **kwargs)
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            layer.__dict__["forward"] = forward
            if forward is None:
                del layer.__dict__["forward"]


def _form_hooks(model: nn.Module, forms: dict[str, int | None]) -> list[Any]:
    """Note in `forms` what each member of a list of modules returns."""

    def note(name: str, output: Any) -> None:
        forms[name] = len(output) if isinstance(output, tuple) else None

    return [
        layer.register_forward_hook(lambda _m, _a, output, name=f"{name}.{k}": note(name, output))
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        for k, layer in enumerate(module)
    ]


def _refusing_hooks(targets: Mapping[str, nn.Module]) -> list[Any]:
    """Targets that the first sample does not reach must not be called outside the layers."""

    def refuse(name: str) -> None:
        raise AstraError(f"layer {name} is called in some batches only; leave it out of the targets")

    return [module.register_forward_pre_hook(lambda *_, name=name: refuse(name)) for name, module in targets.items()]


def _list_of_layers(model: nn.Module, seen: Trace) -> str:
    """The dotted name of the list of modules that holds every target that is called."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and all(target.startswith(f"{name}.") for target in seen.leader):
            return name
    raise AstraError("the targets are not all in one list of layers")


def _inside(targets: Mapping[str, nn.Module], module: str) -> dict[str, nn.Module]:
    """The targets that are in a module, or are it."""
    return {name: target for name, target in targets.items() if f"{name}.".startswith(f"{module}.")}


def _by_token(sample: Batch, seen: Trace) -> set[str]:
    """Targets that read the same wherever the sample has the same token."""
    ids = sample.get("input_ids")
    if ids is None:
        return set()
    _, inverse = ids.flatten().cpu().unique(return_inverse=True)
    positions = torch.arange(len(inverse))
    first = torch.full_like(positions, len(inverse)).scatter_reduce_(0, inverse, positions, "amin")[
        : inverse.max() + 1
    ]
    if len(first) in (1, len(inverse)):  # nothing to compare, or no other token before it to tell by
        return set()
    return {
        name
        for name, (x, *more) in seen.prints.items()
        if not more and len(x) == len(inverse) and (x - x[first[inverse]]).abs().max() <= _EQUAL * x.abs().max()
    }
