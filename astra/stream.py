"""Calibration with one decoder layer on the device at a time, for models that do not fit on it.

The hidden states of the whole calibration set stay in main memory between layers. For each batch the model's own
forward pass is run with all decoder layers but one doing nothing, so that masks and positions are what it makes them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from astra.calibration import Decomposed, assemble, decompose_layer
from astra.decompose import LayerSpectrum
from astra.errors import AstraError
from astra.forward import Batch, Forward, StopForward, evaluation
from astra.moments import Pass
from astra.progress import write_progress
from astra.store import Calibration, LayerInfo
from astra.targets import find_targets

Source = Callable[[str], Mapping[str, Tensor]]
HIDDEN = "hidden.safetensors"


@torch.inference_mode(False)
def calibrate_streamed(
    model: nn.Module,
    batches: Sequence[Batch],
    target_modules: Sequence[str] | str,
    rank: int,
    subspaces: Sequence[str] = ("tail",),
    *,
    device: torch.device | str,
    source: Source | None = None,
    spectrum: str = "full",
    seed: int = 42,
    keep_moments: bool = False,
    settings: dict[str, Any] | None = None,
    folder: Path | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> Calibration:
    """What `astra.calibrate` computes, with one decoder layer of the model on `device` at a time.

    Args:
        model: a transformers model on the CPU; its decoder layers may be on the meta device if there is a `source`.
        source: given a decoder layer's dotted name, its state dict (names without that prefix), read from disk.
        folder: where to keep each finished layer and the hidden states, and to continue from, if they are of the same
            `settings` (which then must be given), arguments and shapes of batches.
        on_batch: called after each batch of each layer, with its number in the whole pass and its tokens.

    Raises:
        AstraError: see `astra.calibrate`; or the targets are not all inside one list of decoder layers.
    """
    if folder is not None and settings is None:
        raise AstraError("folder needs settings, which tell whose progress it holds")
    targets = find_targets(model, target_modules)
    prefix, layers = _decoder_layers(model, targets)
    # Hidden states are kept by batch: those of another batching have other shapes and belong to other tokens.
    shapes = [
        {key: tuple(value.shape) for key, value in batch.items() if isinstance(value, Tensor)} for batch in batches
    ]
    kept = _Kept(folder, repr((settings, list(targets), shapes, rank, list(subspaces), spectrum, seed, keep_moments)))
    start, hidden = kept.resume(len(batches))
    done = [found for number in range(start) for found in kept.read(number)]
    with evaluation(model):
        for number in range(start, len(layers)):
            name = f"{prefix}.{number}"
            own = {key: module for key, module in targets.items() if key.startswith(f"{name}.")}
            with _on_device(layers[number], name, device, source):
                one = _OneLayer(Forward(model, list(targets)), layers, number, device)
                work = [{**batch, "number": k, **hidden[k]} for k, batch in enumerate(batches)]
                done_with = _offset(on_batch, number * len(batches))
                found = _sum_and_decompose(one, own, work, rank, subspaces, spectrum, seed, keep_moments, done_with)
            hidden = [{"hidden_states": one.outputs[k]} for k in range(len(batches))]
            done += found
            kept.write(number, found, hidden)
            if len(done) == len(targets):
                break
    pairs: list[Decomposed] = [(info, result) for info, result, _ in done]
    result = assemble(pairs, list(targets), rank, subspaces, {})
    if keep_moments:
        result.tables["moments"] = {key: matrix for *_, matrices in done for key, matrix in matrices.items()}
    result.settings = dict(settings or {})
    return result


Found = tuple[LayerInfo, LayerSpectrum, dict[str, Tensor]]


def _sum_and_decompose(
    one: _OneLayer,
    targets: dict[str, nn.Module],
    batches: list[dict[str, Any]],
    rank: int,
    subspaces: Sequence[str],
    spectrum: str,
    seed: int,
    keep_moments: bool,
    on_batch: Callable[[int, int], None] | None,
) -> list[Found]:
    """Run one decoder layer over all batches and decompose its targets."""
    if not targets:
        for batch in batches:
            one(batch)
        return []
    separate: set[str] = set()
    while True:
        run = Pass(targets, one, batches, separate, stop=False)
        run.attempt(on_batch)
        if run.agreed():
            break
        separate = run.separate
    moments = run.result()
    found: list[Found] = []
    for name, module in targets.items():
        info, result = decompose_layer(name, module, moments, rank, subspaces, spectrum=spectrum, seed=seed)
        own = {name: moments.matrices[name].cpu()} if keep_moments and name in moments.matrices else {}
        found.append((info, result, own))
    return found


def _offset(on_batch: Callable[[int, int], None] | None, first: int) -> Callable[[int, int], None] | None:
    return None if on_batch is None else lambda number, tokens: on_batch(first + number, tokens)


class _OneLayer:
    """Runs a batch through one decoder layer, from the hidden states the batch brings, and keeps what comes out."""

    def __init__(self, forward: Forward, layers: nn.ModuleList, number: int, device: torch.device | str) -> None:
        self.forward, self.layers, self.number, self.device = forward, layers, number, device
        self.outputs: dict[int, Tensor] = {}

    def __call__(self, batch: Batch) -> None:
        inputs = dict(batch)
        hidden, index = inputs.pop("hidden_states", None), inputs.pop("number")
        layer = self.layers[self.number]
        real = layer.forward

        def run(*args: Any, **kwargs: Any) -> Any:
            if hidden is not None and args:
                args = (hidden, *args[1:])
            elif hidden is not None:
                kwargs["hidden_states"] = hidden
            output = real(*_move(args, self.device), **_move(kwargs, self.device))
            self.outputs[index] = (output[0] if isinstance(output, tuple) else output).to("cpu")
            raise StopForward

        with _replaced(self.layers, self.number, run):
            self.forward(inputs)


@contextmanager
def _replaced(layers: nn.ModuleList, number: int, run: Callable[..., Any]) -> Iterator[None]:
    """Let layer `number` do `run` and the layers before it pass on what they get."""

    def passed(*args: Any, **kwargs: Any) -> Any:
        return args[0] if args else kwargs["hidden_states"]

    changed = list(layers)[: number + 1]
    try:
        for k, layer in enumerate(changed):
            layer.__dict__["forward"] = run if k == number else passed
        yield
    finally:
        for layer in changed:
            del layer.__dict__["forward"]


def _move(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(_move(item, device) for item in value)
    if isinstance(value, dict):
        return {key: _move(item, device) for key, item in value.items()}
    return value


@contextmanager
def _on_device(layer: nn.Module, name: str, device: torch.device | str, source: Source | None) -> Iterator[None]:
    """The layer's weights on the device, from main memory or from disk, and away again."""
    if source is None:
        layer.to(device)
        try:
            yield
        finally:
            layer.to("cpu")
        return
    wanted = set(layer.state_dict())  # old checkpoints hold more: rotary frequencies
    state = {key: tensor.to(device) for key, tensor in source(name).items() if key in wanted}
    missing = wanted - set(state)
    if missing:
        raise AstraError(f"{name}.{min(missing)} is not in the model's files")
    layer.load_state_dict(state, assign=True)
    for buffer_name, buffer in layer.named_buffers():
        owner, _, last = buffer_name.rpartition(".")
        layer.get_submodule(owner)._buffers[last] = buffer.to(device)
    try:
        yield
    finally:
        layer.to("meta")


def _decoder_layers(model: nn.Module, targets: Mapping[str, nn.Module]) -> tuple[str, nn.ModuleList]:
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and all(target.startswith(f"{name}.") for target in targets):
            return name, module
    raise AstraError("the streamed mode needs all target modules inside one list of decoder layers")


class _Kept:
    """Finished layers, and the hidden states that the next one starts from, in a folder (or nowhere)."""

    def __init__(self, folder: Path | None, of: str) -> None:
        self.folder, self.key = folder, hashlib.sha256(of.encode()).hexdigest()

    def resume(self, batches: int) -> tuple[int, list[dict[str, Tensor]]]:
        """The first layer still to do and the hidden states before it; none before the very first."""
        nothing: tuple[int, list[dict[str, Tensor]]] = (0, [{} for _ in range(batches)])
        if self.folder is None:
            return nothing
        try:
            start = int(self._metadata(HIDDEN)["next"])
            for number in range(start):  # each has its key: another run may have been killed before its hidden states
                self._metadata(_layer_file(number))
            with safe_open(self.folder / HIDDEN, "pt") as file:
                return start, [{"hidden_states": file.get_tensor(str(k))} for k in range(batches)]
        except (OSError, SafetensorError, KeyError):
            return nothing

    def _metadata(self, name: str) -> dict[str, str]:
        """Of a file with this key; a KeyError if it has another."""
        assert self.folder is not None
        with safe_open(self.folder / name, "pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
        if metadata["key"] != self.key:
            raise KeyError(name)
        return metadata

    def write(self, number: int, found: list[Found], hidden: list[dict[str, Tensor]]) -> None:
        """Keep a layer's results, then the hidden states: whoever is killed in between repeats the layer."""
        if self.folder is None:
            return
        tensors, infos = {}, []
        for info, result, moments in found:
            tensors[f"{info.name}/eigenvalues"] = result.eigenvalues
            tensors.update({f"{info.name}/vectors/{subspace}": q for subspace, q in result.vectors.items()})
            tensors.update({f"{info.name}/moment/{key}": matrix for key, matrix in moments.items()})
            infos.append(asdict(info))
        write_progress(self.folder / _layer_file(number), tensors, {"key": self.key, "layers": json.dumps(infos)})
        states = {str(k): state["hidden_states"] for k, state in enumerate(hidden)}
        write_progress(self.folder / HIDDEN, states, {"key": self.key, "next": str(number + 1)})

    def read(self, number: int) -> list[Found]:
        """A finished layer's results."""
        assert self.folder is not None
        found: list[Found] = []
        with safe_open(self.folder / _layer_file(number), "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, no dict
            infos = json.loads((file.metadata() or {})["layers"])
        for values in infos:
            info = LayerInfo(**{**values, "shape": tuple(values["shape"])})
            vectors, moments = (
                {key.removeprefix(start): tensors[key] for key in tensors if key.startswith(start)}
                for start in (f"{info.name}/vectors/", f"{info.name}/moment/")
            )
            result = LayerSpectrum(
                tensors[f"{info.name}/eigenvalues"], vectors, info.numerical_rank, info.rank_bound,
                info.effective_rank, info.trace,
            )  # fmt: skip
            found.append((info, result, moments))
        return found


def _layer_file(number: int) -> str:
    return f"layer-{number}.safetensors"
