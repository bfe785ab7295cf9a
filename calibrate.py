"""Measure the activations of a model on examples of its task, for the adapters that start from their eigenvectors.

python calibrate.py --config configs/demo.yaml
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.check import check
from training.stores import Need, check_settings, store_settings, stores
from utils.cli import main, parse
from utils.config import Config
from utils.distributed import device, is_main, process_group, rank, world_size
from utils.errors import UserError
from utils.files import read_json
from utils.log import Progress, log, log_to
from utils.runs import stage

if TYPE_CHECKING:
    from torch import Tensor, nn

    from astra import Calibration

USAGE = """
Compute the spectra and eigenvectors that the runs of a config start from: <output_dir>/calibration/<fingerprint>/.

  python calibrate.py --config configs/demo.yaml [--calibration.samples=64 ...] [--force]
  torchrun --nproc-per-node 4 -- calibrate.py --config configs/metamath.yaml

One calibration serves all ranks and subspaces of a sweep. An interrupted one continues; a complete one is kept.

  --force   calibrate again, whatever is there
"""
PROGRESS = ".progress"  # folder inside the store for what a killed run leaves
FIGURE = "spectrum.png"


def command() -> None:
    config, flags = parse(USAGE, {"force": False})
    if config.calibration.stream or config.model.device_map is not None:
        if not is_main():
            return  # one process has all devices, however many a launcher has started
        os.environ["WORLD_SIZE"] = "1"
    check(config)
    log_to(Path(config.output_dir) / "log.txt")
    found = stores(config)
    if not found:
        log.info("nothing to calibrate: method.name is %s", config.method.name)
    with process_group():
        for folder, (run, need) in found.items():
            calibrate_store(folder, run, need, flags["force"])


def calibrate_store(folder: Path, config: Config, need: Need, force: bool) -> None:
    """Make the store complete: nothing to do, more vectors from kept moments, or a calibration.

    Raises:
        UserError: the store was made from another model or other data.
        AstraError: see `astra.calibrate`.
    """
    from astra import Calibration

    batches = load_batches(config)
    settings = {**store_settings(config), **fingerprints(config, batches)}
    old = None
    if (folder / "manifest.json").is_file() and not force:
        manifest = read_json(folder / "manifest.json")
        check_settings(folder, manifest, settings)
        old = Calibration.load(folder)
        if need.met_by(manifest):
            log.info("%s is complete: nothing to do (--force calibrates again)", folder)
            if config.calibration.keep_moments and not old.has_moments:
                log.info("calibration.keep_moments: %s was made without them; --force calibrates again", folder)
            if is_main():
                tidy(folder, old, need.rank)
            return
        subspaces = tuple(dict.fromkeys((*old.subspaces, *need.subspaces)))
        need = Need(max(need.rank, old.max_rank), subspaces, need.trained)
    started = time.monotonic()
    if old is not None and old.has_moments:
        log.info("%s: more vectors from the second moments kept there", folder)
        result = extend_store(config, old, need)
    else:
        if old is not None:
            log.info("%s: calibrating again for %s; keep_moments would have saved this", folder, _missing(old, need))
        result = run_calibration(folder, config, need, settings, batches, force)
    if is_main():
        with stage(Path(config.output_dir), "calibrate"):
            finish(folder, result, need, time.monotonic() - started)
    if world_size() > 1:
        import torch

        torch.distributed.barrier()


def load_batches(config: Config) -> list[dict[str, Tensor]]:
    """The calibration set, tokenised, as batches of like length."""
    from dataset.sources import load_training
    from dataset.tokens import calibration_batches
    from utils.models import load_tokenizer

    wanted = config.calibration
    return calibration_batches(
        load_training(config.data),
        load_tokenizer(config.model),
        config.data.template,
        batch_size=wanted.batch_size,
        max_length=wanted.max_length,
        samples=wanted.samples,
        seed=wanted.seed,
    )


def fingerprints(config: Config, batches: list[dict[str, Tensor]]) -> dict[str, str]:
    """What the settings stand for: the model's weights, and the tokens themselves, however they are batched."""
    from utils.models import model_fingerprint, resolve_model

    digest = hashlib.sha256()
    for batch in batches:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            digest.update(ids[mask.bool()].numpy().tobytes() + b";")
    model = model_fingerprint(resolve_model(config.model))
    return {"model.fingerprint": model, "data.fingerprint": digest.hexdigest()[:16]}


def run_calibration(
    folder: Path, config: Config, need: Need, settings: dict[str, Any], batches: list[dict[str, Tensor]], force: bool
) -> Calibration:
    """Calibrate on this process's share of the batches, continuing what a killed run left."""
    from astra import calibrate
    from astra.targets import find_targets

    wanted = config.calibration
    mine = batches[rank() :: world_size()]
    progress = folder / PROGRESS / f"{rank()}-of-{world_size()}-by-{wanted.batch_size}.safetensors"
    if force:
        shutil.rmtree(folder / PROGRESS, ignore_errors=True)
    if wanted.stream:
        return run_streamed(folder, config, need, settings, batches)
    model = load(config)
    check_rank(model, config, need.trained)
    layers = len(find_targets(model, config.method.target_modules)) // world_size()
    with Bar("calibration", count_tokens(mine), "token") as bar, Bar("decomposition", [1] * layers, "layer") as second:
        return calibrate(
            model,
            mine,
            config.method.target_modules,
            need.rank,
            need.subspaces,
            spectrum=wanted.spectrum,
            seed=wanted.seed,
            keep_moments=wanted.keep_moments,
            settings=settings,
            checkpoint=progress,
            on_batch=bar.update,
            on_layer=second.count,
        )


def run_streamed(
    folder: Path, config: Config, need: Need, settings: dict[str, Any], batches: list[dict[str, Tensor]]
) -> Calibration:
    """Calibrate with one decoder layer on the device at a time, read from disk."""
    from astra.stream import calibrate_streamed
    from utils.streaming import open_streamed

    wanted = config.calibration
    model, source = open_streamed(config.model)
    check_rank(model, config, need.trained)
    steps = count_tokens(batches) * model.config.num_hidden_layers
    with Bar("calibration, layer by layer", steps, "token") as bar:
        return calibrate_streamed(
            model,
            batches,
            config.method.target_modules,
            need.rank,
            need.subspaces,
            device=device(),
            source=source,
            spectrum=wanted.spectrum,
            seed=wanted.seed,
            keep_moments=wanted.keep_moments,
            settings=settings,
            folder=folder / PROGRESS,
            on_batch=bar.update,
        )


class Bar:
    """A progress bar that appears with the first step, so that a resumed pass shows what is left to do.

    Args:
        desc: what is under way.
        sizes: units of every step.
        unit: what the sizes count.
    """

    def __init__(self, desc: str, sizes: list[int], unit: str) -> None:
        self._desc, self._sizes, self._unit = desc, sizes, unit
        self._counted = 0
        self._progress: Progress | None = None

    def update(self, number: int, size: int) -> None:
        """Count step `number`, from 0, as done."""
        if self._progress is None:
            if number:
                log.info("%s: continues after step %d of %d", self._desc, number, len(self._sizes))
            self._progress = Progress(self._desc, sum(self._sizes[number:]), self._unit)
        self._progress.update(size)

    def count(self, _: str) -> None:
        """Count the next step, of one unit, as done."""
        self.update(self._counted, 1)
        self._counted += 1

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None:
        if self._progress is not None:
            self._progress.__exit__(*error)


def count_tokens(batches: list[dict[str, Tensor]]) -> list[int]:
    """Tokens of each batch, padding not counted."""
    return [int(batch["attention_mask"].sum()) for batch in batches]


def check_rank(model: nn.Module, config: Config, rank: int) -> None:
    """Raise a `UserError` that names the first target layer too small for the rank."""
    from astra.targets import find_targets, layer_shape

    for name, module in find_targets(model, config.method.target_modules).items():
        m, n = layer_shape(module)
        if rank > min(m, n):
            raise UserError(f"method.rank: {rank} is larger than the layer {name} ({m} x {n}): at most {min(m, n)}")


def extend_store(config: Config, old: Calibration, need: Need) -> Calibration:
    """More vectors from the second moments that were kept."""
    from astra import extend

    wanted = config.calibration
    with Bar("decomposition", [1] * (len(old.layers) // world_size()), "layer") as bar:
        return extend(
            old,
            load(config),
            need.rank,
            need.subspaces,
            spectrum=wanted.spectrum,
            seed=wanted.seed,
            on_layer=bar.count,
        )


def load(config: Config) -> nn.Module:
    """The base model, on this process's device or spread over all of them."""
    from dataset.glue import num_labels
    from utils.models import load_model

    if config.model.device_map is not None:
        return load_model(config.model, num_labels(config), device_map=config.model.device_map)
    return load_model(config.model, num_labels(config)).to(device())


def finish(folder: Path, result: Calibration, need: Need, seconds: float) -> None:
    """Write the store and its figure, and drop the progress files."""
    result.save(folder)
    (folder / FIGURE).unlink(missing_ok=True)  # of what stood here before
    tidy(folder, result, need.rank)
    tokens = max(info.tokens for info in result.layers.values())
    log.info("%s: %d layers from %s tokens in %.1f s", folder, len(result.layers), f"{tokens:,}", seconds)


def tidy(folder: Path, result: Calibration, rank: int) -> None:
    """Draw the figure where a killed run left none, and drop the progress files."""
    from utils.plots import plot_spectra

    if not (folder / FIGURE).is_file():
        plot_spectra(result, folder / FIGURE, rank)
    shutil.rmtree(folder / PROGRESS, ignore_errors=True)


def _missing(old: Calibration, need: Need) -> str:
    new = [subspace for subspace in need.subspaces if subspace not in old.subspaces]
    return f"subspace {', '.join(new)}" if new else f"rank {need.rank}, more than the {old.max_rank} stored"


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # SciPy's LAPACK runs in our threads, one layer each
    main(command)
