"""Calibration from end to end: second moments, decompositions, one `Calibration` for every rank and subspace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn

from astra import parallel
from astra.decompose import LayerSpectrum, decompose
from astra.errors import AstraError
from astra.forward import Batch
from astra.moments import Moments, collect
from astra.progress import Checkpoint
from astra.store import Calibration, LayerInfo
from astra.targets import check_loaded, layer_shape, layer_weight

Decomposed = tuple[LayerInfo, LayerSpectrum]


@torch.inference_mode(False)  # the result is for training
def calibrate(
    model: nn.Module,
    batches: Iterable[Batch],
    target_modules: Sequence[str] | str,
    rank: int,
    subspaces: Sequence[str] = ("tail",),
    *,
    spectrum: str = "full",
    seed: int = 42,
    keep_moments: bool = False,
    settings: dict[str, Any] | None = None,
    checkpoint: Path | None = None,
    on_batch: Callable[[int, int], None] | None = None,
    on_layer: Callable[[str], None] | None = None,
) -> Calibration:
    """Spectra and eigenvectors of the output activations of every target layer.

    Under `torch.distributed` each process passes its own share of the batches, decomposes its share of the layers, and
    gets the whole result.

    Args:
        model: any PyTorch model called as `model(**batch)`.
        batches: dicts of tensors (`input_ids`, `attention_mask`, ...), the same on every iteration.
        target_modules: as in PEFT: name endings, a regular expression, or "all-linear".
        rank: the largest rank that can be asked of the result.
        subspaces: any of "tail", "nullspace", "principal", "middle", "random".
        spectrum: "full", or "ends" to compute only the ends of large spectra.
        seed: of `random` and of the basis of null spaces.
        keep_moments: keep the second moments too, for `extend`.
        settings: kept with the result, to tell what it was made of.
        checkpoint: a file of this process to save progress in and to continue from, if it is of the same `settings`
            (which then must be given) and targets. Whoever has saved the result deletes it.
        on_batch: called after each batch with its number and tokens.
        on_layer: called after each of this process's decompositions with the layer's name.

    Returns:
        A `Calibration` on the CPU; `.save(folder)` keeps it.

    Raises:
        AstraError: see `collect` and `decompose`.
    """
    if rank < 1:
        raise AstraError(f"rank {rank} is not a positive number")
    if checkpoint is not None and settings is None:
        raise AstraError("checkpoint needs settings, which tell whose progress it holds")
    progress = Checkpoint(checkpoint, repr((settings, target_modules))) if checkpoint is not None else None
    moments = collect(model, batches, target_modules, checkpoint=progress, on_batch=on_batch)
    result = from_moments(
        model, moments, rank, subspaces, spectrum=spectrum, seed=seed, keep_moments=keep_moments, on_layer=on_layer
    )
    result.settings = dict(settings or {})
    return result


def from_moments(
    model: nn.Module,
    moments: Moments,
    rank: int,
    subspaces: Sequence[str],
    *,
    spectrum: str = "full",
    seed: int = 42,
    keep_moments: bool = False,
    on_layer: Callable[[str], None] | None = None,
) -> Calibration:
    """Decompose the second moments of a model's layers; see `calibrate`. Moments that are not kept are freed."""
    modules = dict(model.named_modules())
    targets = {name: modules[name] for name in moments.groups}
    kept = {name: matrix.cpu() for name, matrix in moments.matrices.items()} if keep_moments else {}
    left = Counter(moments.groups.values())
    own = list(moments.groups)[parallel.rank() :: parallel.world_size()]
    for name in set(moments.groups) - set(own):
        _done_with(moments, left, name)

    def one(name: str) -> Decomposed:
        found = decompose_layer(name, targets[name], moments, rank, subspaces, spectrum=spectrum, seed=seed)
        _done_with(moments, left, name)
        return found

    mine: list[Decomposed] = []
    error = None
    try:
        for found in _map(one, own, next(layer_weight(module)[0].device for module in targets.values())):
            mine.append(found)
            if on_layer is not None:
                on_layer(found[0].name)
    except AstraError as caught:
        error = caught
    parallel.raise_together(error)
    return assemble(mine, list(moments.groups), rank, subspaces, {"moments": kept} if kept else {})


def _done_with(moments: Moments, left: Counter[str], name: str) -> None:
    """Free a layer's moment after its last use."""
    key = moments.groups[name]
    left[key] -= 1
    if not left[key]:
        del moments.matrices[key]


def _map(one: Callable[[str], Decomposed], names: list[str], device: torch.device) -> Iterator[Decomposed]:
    """Decompose layers, on a CPU one a core: such small problems gain little from threads of their own."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield from map(one, names)
        return
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield from pool.map(one, names)
    finally:
        torch.set_num_threads(threads)


@torch.inference_mode(False)
def extend(
    calibration: Calibration,
    model: nn.Module,
    rank: int,
    subspaces: Sequence[str],
    *,
    spectrum: str = "full",
    seed: int = 42,
    on_layer: Callable[[str], None] | None = None,
) -> Calibration:
    """The same calibration with more vectors, from its kept second moments: no forward pass.

    Raises:
        AstraError: it was made without `keep_moments`.
    """
    infos = calibration.layers
    moments = Moments(
        dict(calibration.moments()),
        {info.group: info.tokens for info in infos.values()},
        {info.group: info.moment for info in infos.values()},
        {name: info.group for name, info in infos.items()},
    )
    wider = from_moments(
        model, moments, rank, subspaces, spectrum=spectrum, seed=seed, keep_moments=True, on_layer=on_layer
    )
    wider.settings = dict(calibration.settings)
    return wider


def decompose_layer(
    name: str,
    module: nn.Module,
    moments: Moments,
    rank: int,
    subspaces: Sequence[str],
    *,
    spectrum: str = "full",
    seed: int = 42,
) -> Decomposed:
    """Decompose one layer with the moment that it uses."""
    key = moments.groups[name]
    weight, bias = layer_weight(module)
    check_loaded(name, module)
    kind, tokens = moments.kinds[key], moments.tokens[key]
    moment = moments.matrices[key].to(weight.device)  # moments that were kept come from the CPU
    result = decompose(moment, kind, tokens, weight, bias, rank, subspaces, spectrum=spectrum, seed=seed, name=name)
    info = LayerInfo(
        name=name,
        shape=layer_shape(module),
        bias=bias is not None,
        moment=kind,
        group=key,
        tokens=tokens,
        rank_bound=result.rank_bound,
        numerical_rank=result.numerical_rank,
        effective_rank=result.effective_rank,
        trace=result.trace,
    )
    return info, result


def assemble(
    mine: list[Decomposed],
    order: list[str],
    rank: int,
    subspaces: Sequence[str],
    tables: dict[str, dict[str, Any]],
) -> Calibration:
    """One `Calibration` of the layers that all processes decomposed, in the given order."""
    found = {info.name: (info, result) for part in parallel.gather(mine) for info, result in part}
    tables["spectra"] = {name: found[name][1].eigenvalues for name in order}
    for subspace in subspaces:
        tables[subspace] = {name: found[name][1].vectors[subspace] for name in order}
    layers = {name: found[name][0] for name in order}
    return Calibration(layers, rank, tuple(dict.fromkeys(subspaces)), {}, tables)
