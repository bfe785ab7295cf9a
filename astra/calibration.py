"""Calibration from end to end: block by block, second moments and decompositions, for every rank and subspace."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from astra import parallel
from astra.blocks import Block, Survey, make_blocks, survey
from astra.decompose import Found, Request, decompose
from astra.errors import AstraError, out_of_memory
from astra.forward import Batch, Forward, TokenRows, evaluation
from astra.moments import Moment, Sums
from astra.store import SUBSPACES, Calibration
from astra.targets import base_model, find_targets, layer_shape, layer_weight
from astra.weights import loaded

if TYPE_CHECKING:
    from peft import LoraConfig

log = logging.getLogger("astra")


@torch.inference_mode(False)  # the result is for training
@torch.no_grad()
def calibrate(
    model: Any,
    batches: Iterable[Batch],
    peft_config: LoraConfig | Sequence[str] | str,
    rank: int | None = None,
    subspaces: Sequence[str] = ("tail",),
    *,
    spectrum: str = "full",
    seed: int = 42,
    settings: dict[str, Any] | None = None,
    folder: Path | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Spectra and eigenvectors of the output activations of every target layer.

    One decoder layer after another is run over all batches, decomposed and forgotten; see `astra.blocks`. Weights may
    be anywhere that accelerate's `device_map` puts them. Under `torch.distributed` each process passes its own share
    of the batches and decomposes its share of the layers; the vectors are then with process 0 alone.

    Args:
        model: any PyTorch model called as `model(**batch)`, in eval mode meanwhile; of a `PeftModel` the base model is
            calibrated, its adapters disabled.
        batches: dicts of tensors (`input_ids`, `attention_mask`, ...); the mask (b, t) says which tokens count.
        peft_config: PEFT's `LoraConfig`, which names the targets; or `target_modules` alone: name endings, a regular
            expression, or "all-linear". See `astra.targets.find_targets`.
        rank: the largest rank that can be asked of the result; by default the largest of the `LoraConfig`.
        subspaces: any of "tail", "nullspace", "principal", "middle", "random".
        spectrum: "full", or "ends" to compute only the ends of large spectra.
        seed: of `random` and of the basis of null spaces.
        settings: kept with the result, to tell what it was made of.
        folder: keeps each finished layer, to continue from after being killed; of the same `settings`, which must be
            given. Whoever has saved the result deletes it.
        on_batch: called after each batch of each layer, with how many are done and how many there are.

    Returns:
        A `Calibration` on the CPU; `.save(folder)` keeps it.

    Raises:
        AstraError: an unknown subspace, targets that match nothing or cannot be adapted, no tokens, NaN or Inf (naming
            layer and batch), padding that cannot be told apart, memory that does not suffice.
    """
    if rank is None:
        ranks = getattr(peft_config, "rank_pattern", {}).values()
        rank = max([getattr(peft_config, "r", 0), *ranks])
    if rank < 1:
        raise AstraError(f"rank {rank} is not a positive number")
    if spectrum not in ("full", "ends"):
        raise AstraError(f"spectrum {spectrum!r} is not one of full, ends")
    if unknown := [subspace for subspace in subspaces if subspace not in SUBSPACES]:
        raise AstraError(f"subspace {unknown[0]!r} is not one of {', '.join(SUBSPACES)}")
    if folder is not None and settings is None:
        raise AstraError("folder needs settings, which tell whose progress it holds")
    request = Request(rank, tuple(dict.fromkeys(subspaces)), spectrum, seed)
    targets, base = find_targets(model, peft_config), base_model(model)
    mine = list(batches)
    with evaluation(model), nullcontext() if base is model else model.disable_adapter():
        rows, seen, blocks = _prepare(base, targets, mine)
        kept = _Kept(folder, request, (settings, list(targets), parallel.gather(_digest(mine))))
        own, found = kept.finished(blocks)
        start = parallel.gather(own)[0]
        if found:
            log.info("calibration: continues after layer %d of %d", start, len(blocks))
        done, distinct = count(1), _distinct_tokens(mine)
        for number, block in enumerate(_in_place(blocks if start < len(blocks) else [])):
            new = number >= start and bool(block.targets)
            sums = Sums(block.targets, seen.leader, block.stop) if new else None
            with _together(block.name):
                for k in range(len(mine)):
                    with sums.batch(k, rows[k]) if sums else nullcontext():
                        block.run(k)
                    if on_batch is not None:
                        on_batch(next(done), len(blocks) * len(mine))
            if sums:
                by_token = {name: distinct for name in block.targets if name in seen.by_token}
                layers = _decompose(block, sums, sums.reduce(), by_token, request)
                kept.write(block, layers)
                found += layers
    return _assemble(found, list(targets), request, dict(settings or {}))


def _prepare(
    base: nn.Module, targets: dict[str, nn.Module], batches: list[Batch]
) -> tuple[list[TokenRows], Survey, list[Block]]:
    """The tokens of each batch, what the first sample tells (of the first process that has one), and the blocks."""
    forward = Forward(base, list(targets))
    with _together("the first sample"):
        rows = [TokenRows(batch) for batch in batches]
        own = survey(base, forward, targets, batches) if batches else None
    seen = next((other for other in parallel.gather(own) if other is not None), None)
    if seen is None:
        raise AstraError("no calibration tokens: the calibration set is empty")
    with _together("the embeddings"):
        blocks = make_blocks(base, forward, targets, batches, seen)
    return rows, seen, blocks


def _decompose(
    block: Block, sums: Sums, moments: Mapping[str, Moment], distinct: Mapping[str, int], request: Request
) -> list[Found]:
    """Decompose a block's layers, each on one core or device, shared out over processes; all of them on process 0."""
    shapes = {name: layer_shape(module) for name, module in block.targets.items() if sums.key(name) in moments}
    costs = {name: m * n * n + min(m, n) ** 3 for name, (m, n) in shapes.items()}
    own = parallel.share(costs)

    def one(name: str) -> Found:
        with loaded(module := block.targets[name]):
            return decompose(moments[sums.key(name)], *layer_weight(module), request, name, distinct.get(name))

    found: list[Found] = []
    with _together(f"the decomposition of {block.name}"):
        found = _map(one, {name: moments[sums.key(name)].matrix.device for name in own})
    gathered = {layer[0].name: layer for part in parallel.gather_to_first(found) for layer in part}
    return [gathered[name] for name in shapes if name in gathered]


def _map(one: Callable[[str], Found], devices: Mapping[str, torch.device]) -> list[Found]:
    """Decompose layers, one per core of a CPU: such small problems gain little from threads of their own."""
    threads = torch.get_num_threads()
    pools = {device: ThreadPoolExecutor(threads if device.type == "cpu" else 1) for device in set(devices.values())}
    torch.set_num_threads(1)
    try:
        futures = [pools[device].submit(one, name) for name, device in devices.items()]
        return [future.result() for future in futures]
    finally:
        for pool in pools.values():
            pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _in_place(blocks: Sequence[Block]) -> Iterable[Block]:
    """The blocks, with their weights where they compute, the next block's on their way."""
    try:
        with ThreadPoolExecutor(1) as fetcher:
            fetched = [fetcher.submit(block.weights.fetch) for block in blocks[:1]]
            for number, block in enumerate(blocks):
                fetched.pop().result()
                fetched = [fetcher.submit(after.weights.fetch) for after in blocks[number + 1 : number + 2]]
                yield block
                block.weights.release()
    finally:
        for block in blocks:
            block.weights.release()


@contextmanager
def _together(where: str) -> Any:
    """Raise the first error of any process on all of them; memory that does not suffice is one line."""
    error = None
    try:
        yield
    except AstraError as caught:
        error = caught
    except (MemoryError, RuntimeError) as caught:
        if not out_of_memory(caught):
            raise
        error = AstraError(
            f"out of memory in {where}{parallel.of_process()}: use smaller batches (calibration.batch_size),"
            " or spread the model over devices and main memory (model.device_map: auto)"
        )
    parallel.raise_together(error)


def _assemble(found: list[Found], order: list[str], request: Request, settings: dict[str, Any]) -> Calibration:
    """One `Calibration` of all layers; without vectors on all processes but the first, which alone has `found`."""
    layers = {info.name: info for info in parallel.gather([info for info, _ in found])[0]}
    left_out = tuple(name for name in order if name not in layers)
    if not layers:
        raise AstraError("none of the target layers is called in a forward pass over the calibration set")
    if left_out:
        log.warning(
            "%d target layers are never called and left out: %s%s",
            len(left_out), ", ".join(left_out[:3]), ", ..." if len(left_out) > 3 else "",
        )  # fmt: skip
    own = _in_memory(found, request, settings)
    return replace(own, layers=layers, tables=own.tables if found else {}, left_out=left_out)


def _in_memory(found: list[Found], request: Request, settings: dict[str, Any]) -> Calibration:
    layers = {info.name: info for info, _ in found}
    names = ("spectra", *request.subspaces)
    tables = {table: {info.name: tensors[table] for info, tensors in found} for table in names}
    return Calibration(layers, request.rank, request.subspaces, settings, tables)


def _distinct_tokens(batches: Sequence[Batch]) -> int:
    """Number of different tokens in all processes' batches; 0 if they hold none."""
    ids = [
        batch["input_ids"][batch["attention_mask"] != 0] if "attention_mask" in batch else batch["input_ids"]
        for batch in batches
        if "input_ids" in batch
    ]
    own = torch.cat([x.flatten().cpu() for x in ids]).unique().tolist() if ids else []
    return len(set().union(*parallel.gather(own)))


def _digest(batches: Sequence[Batch]) -> str:
    """Stands for the tokens, masks and shapes of some batches."""
    digest = hashlib.sha256()
    for batch in batches:
        for key in sorted(batch):
            if isinstance(batch[key], Tensor):
                digest.update(f"{key}{tuple(batch[key].shape)}{batch[key].dtype}".encode())
                digest.update(batch[key].detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class _Kept:
    """The layers of finished blocks, each block a store in the first process's folder; None keeps nothing.

    They depend on what `of` says: those of something else are not used.
    """

    def __init__(self, folder: Path | None, request: Request, of: Any) -> None:
        self._folder = folder if parallel.rank() == 0 else None
        self._request, self._settings = request, {"of": hashlib.sha256(repr((request, of)).encode()).hexdigest()}

    def finished(self, blocks: Sequence[Block]) -> tuple[int, list[Found]]:
        """How many blocks from the first on need not be summed and decomposed again, and their layers."""
        found: list[Found] = []
        for number, block in enumerate(blocks):
            layers = self._read(block) if block.targets else []
            if layers is None:
                return number, found
            found += layers
        return len(blocks), found

    def write(self, block: Block, found: list[Found]) -> None:
        """Keep a block's layers; a full disk is a warning, since the calibration can do without."""
        if self._folder is None:
            return
        try:
            _in_memory(found, self._request, self._settings).save(self._folder / block.name)
        except AstraError as error:
            log.warning("no progress kept, a killed run would repeat more: %s", error)

    def _read(self, block: Block) -> list[Found] | None:
        """A block's layers, if they are there and whole."""
        if self._folder is None:
            return None
        try:
            kept = Calibration.load(self._folder / block.name)
        except AstraError:
            return None
        if kept.settings != self._settings:
            return None
        tables = ("spectra", *kept.subspaces)
        return [(info, {table: kept.tensors(table)[name] for table in tables}) for name, info in kept.layers.items()]
