"""Measure the activations of a model on examples of its task, for the adapters that start from their eigenvectors.

python calibrate.py --config configs/demo.yaml
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.check import check
from training.methods import Request
from training.stores import Need, check_settings, fingerprints, store_settings, stores
from utils.cli import main, parse
from utils.config import Config
from utils.distributed import barrier, device, is_main, process_group, rank, world_size
from utils.errors import UserError
from utils.files import MANIFEST, discard_temporary
from utils.log import Progress, log, log_to
from utils.runs import held, spent, stage

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import nn

    from astra import Calibration
    from dataset.records import Record

USAGE = """
Compute the spectra and eigenvectors that the runs of a config start from: <output_dir>/calibration/<fingerprint>/.

  python calibrate.py --config configs/demo.yaml [--calibration.samples=64 ...] [--force]
  torchrun --nproc-per-node 4 -- calibrate.py --config configs/metamath.yaml

One calibration serves all ranks and subspaces of a sweep. An interrupted one continues with the next layer; a
complete one is kept. To ask for a larger rank or more subspaces later is to calibrate again.

  --force   calibrate again, whatever is there
"""
PROGRESS = ".progress"  # folder inside the store for what a killed run leaves
FIGURE = "spectrum.png"


def command() -> None:
    config, flags = parse(USAGE, {"force": False})
    if config.model.device_map is not None:
        if not is_main():
            return  # one process has all devices, however many a launcher has started
        os.environ["WORLD_SIZE"] = "1"
    check(config)
    log_to(Path(config.output_dir) / "log.txt")
    found = stores(config)
    if not found:
        log.info("nothing to calibrate: method.name is %s", config.method.name)
    before = 0.0 if flags["force"] else spent(Path(config.output_dir), "calibrate")
    with process_group():
        for folder, (run, need) in found.items():
            with held(folder):
                if is_main():
                    discard_temporary(folder)
                calibrate_store(folder, run, need, flags["force"], before)


def calibrate_store(folder: Path, config: Config, need: Need, force: bool, before: float = 0.0) -> None:
    """Make the store complete: keep one that has what the runs need, else calibrate, on top of seconds `before`."""
    from astra import Calibration
    from dataset.sources import load_training

    records = load_training(config.data)
    settings = {**store_settings(config), **fingerprints(config, records)}
    if force:
        shutil.rmtree(folder / PROGRESS, ignore_errors=True)
    elif (folder / MANIFEST).exists():
        old = Calibration.load(folder)
        check_settings(folder, old.settings, settings)
        if need.met_by(old.max_rank, old.subspaces):
            log.info("%s is complete: nothing to do (--force calibrates again)", folder)
            finish(folder, old, need)
            return
        new = ", ".join(subspace for subspace in need.subspaces if subspace not in old.subspaces)
        more = f"subspace {new}" if new else f"rank {need.rank}, more than the {old.max_rank} stored"
        log.info("%s: calibrating again for %s", folder, more)
        subspaces = tuple(dict.fromkeys((*old.subspaces, *need.subspaces)))
        need = Need(max(need.rank, old.max_rank), subspaces, need.trained)
    with stage(Path(config.output_dir), "calibrate", before):
        result = run_calibration(folder, config, need, settings, records)
        if is_main():
            result.save(folder)
            (folder / FIGURE).unlink(missing_ok=True)  # of what stood here before
        finish(folder, result, need)
    barrier()


def run_calibration(
    folder: Path, config: Config, need: Need, settings: dict[str, Any], records: list[Record]
) -> Calibration:
    """Calibrate on this process's share of the batches, continuing what a killed run left."""
    from astra import calibrate
    from dataset.tokens import calibration_batches
    from utils.models import load_tokenizer

    method, wanted = config.method, config.calibration
    targets = Request(method).peft_config()
    tokenizer = load_tokenizer(config.model)
    batches = calibration_batches(records, tokenizer, config.data.template, config.calibration)
    model = load(config)
    check_rank(model, targets, need.trained)
    with Progress("calibration, layer by layer", unit="batches") as bar:

        def step(done: int, total: int) -> None:
            bar.total = total
            bar.update()

        return calibrate(
            model, batches[rank() :: world_size()], targets, need.rank, need.subspaces, spectrum=wanted.spectrum,
            seed=wanted.seed, settings=settings, folder=folder / PROGRESS, on_batch=step,
        )  # fmt: skip


def load(config: Config) -> nn.Module:
    """The base model, on this process's device, or spread over all devices, main memory and the disk."""
    from dataset.glue import num_labels
    from utils.models import load_model

    if config.model.device_map is None:
        return load_model(config.model, num_labels(config), device())
    from accelerate.utils import get_max_memory

    # Half of each GPU stays free for hidden states, sums and decompositions.
    memory = {place: size // 2 if isinstance(place, int) else size for place, size in get_max_memory().items()}
    spread = {"device_map": config.model.device_map, "max_memory": memory}
    return load_model(config.model, num_labels(config), offload_folder=Path(config.output_dir, ".offload"), **spread)


def check_rank(model: nn.Module, targets: LoraConfig, rank: int) -> None:
    """Raise a `UserError` that names the first target layer too small for the rank."""
    from astra.targets import find_targets, layer_shape

    for name, module in find_targets(model, targets).items():
        m, n = layer_shape(module)
        if rank > min(m, n):
            raise UserError(f"method.rank: {rank} is larger than the layer {name} ({m} x {n}): at most {min(m, n)}")


def finish(folder: Path, result: Calibration, need: Need) -> None:
    """Draw the figure where there is none, and drop what a killed run leaves."""
    from utils.plots import plot_spectra

    if is_main():
        if not (folder / FIGURE).is_file():
            plot_spectra(result, folder / FIGURE, need.rank)
        shutil.rmtree(folder / PROGRESS, ignore_errors=True)
        tokens = max(info.tokens for info in result.layers.values())
        log.info("%s: %d layers from %s tokens", folder, len(result.layers), f"{tokens:,}")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    main(command)
