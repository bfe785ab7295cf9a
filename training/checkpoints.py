"""Checkpoints that are complete or do not count, and are resumed only by the run that wrote them.

The Trainer's own checkpoints are not atomic and contain pickles. Here each gets a manifest, written last, with the
hash of every file and the settings of its run; a folder without one, or that differs from it, is never read. Where an
older checkpoint is whole, the run goes on from that and says which file was damaged: the result is the same.
"""

import shutil
from pathlib import Path
from typing import Any

from peft.utils.integrations import gather_params_ctx
from safetensors.torch import load_file, save_file
from torch import Tensor

from astra.adapter import Factors, lora_layers
from astra.convert import starting_factors
from utils.distributed import barrier, is_main
from utils.errors import UserError
from utils.files import MANIFEST, atomic_write, read_json, read_record, write_record
from utils.log import log
from utils.settings import FORMAT, require_same

INITIAL = "initial_lora.safetensors"
WEIGHTS = "trainable.safetensors"


def checkpoint_to_resume(folder: Path, settings: dict[str, Any], deepspeed: bool) -> Path | None:
    """Return the checkpoint that a run goes on from, or None; every process must call it.

    Removes what the run can't go on from: incomplete checkpoints, and those after that one.
    """
    last = last_complete(folder, settings)
    barrier()  # nothing is removed until every process has looked
    if last is not None:
        require_same_deepspeed(last, deepspeed)
        for path in newest_first(folder) if is_main() else ():
            if not (path / MANIFEST).is_file() or _step(path) > _step(last):
                shutil.rmtree(path)
    return last


def start_checkpoints(folder: Path, model: Any, keeps_start: bool) -> None:
    """Remove what a discarded attempt left, and keep the factors that the new run starts from if it needs them.

    A run that goes on starts from the same ones, not similar ones.
    """
    shutil.rmtree(folder, ignore_errors=True)
    if keeps_start:
        tensors = {}
        for name, layer in lora_layers(model):
            tensors[f"{name}.A"], tensors[f"{name}.B"] = starting_factors(layer)
        with atomic_write(folder / INITIAL) as temporary:
            save_file(tensors, temporary)
        write_record(folder / MANIFEST, {}, [folder / INITIAL])


def write_manifest(folder: Path, settings: dict[str, Any], step: int, seconds: float) -> None:
    """Declare a checkpoint complete; `seconds` is what training has taken up to it."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST]
    write_record(folder / MANIFEST, {"format": FORMAT, "step": step, "seconds": seconds, "settings": settings}, files)


def last_complete(folder: Path, settings: dict[str, Any]) -> Path | None:
    """Return the latest complete checkpoint below `folder`, or None; refuse one written with other settings."""
    fault = None
    for path in newest_first(folder):
        if not (path / MANIFEST).exists():
            log.info("%s is incomplete: it is not used", path)
            continue
        try:
            manifest = read_record(path / MANIFEST)
        except UserError as error:
            log.warning("%s; an older checkpoint is used if there is one", error)
            fault = fault or error
            continue
        require_same(manifest, settings, str(path))
        return path
    if fault is not None:
        raise fault
    return None


def seconds_before(checkpoint: Path | None) -> float:
    """Return what training had taken up to a checkpoint, in seconds; 0 of none, and of one that does not say."""
    return 0.0 if checkpoint is None else float(read_json(checkpoint / MANIFEST).get("seconds", 0))


def newest_first(folder: Path) -> list[Path]:
    """Return the folders of checkpoints, complete or not."""
    return sorted(folder.glob("checkpoint-*"), key=_step, reverse=True)


def rotate(folder: Path, best: Path | None) -> None:
    """Keep two checkpoints: the newest, and the best or else the one before it.

    Call it when the newest is complete: until then a run can go on only from the older ones.
    """
    found = newest_first(folder)
    kept = found[:2] if best is None or best.name == found[0].name else [found[0], folder / best.name]
    for path in found:
        if path not in kept:
            shutil.rmtree(path)


def load_initial(path: Path) -> dict[str, Factors]:
    """Return the factors that `start_checkpoints` kept: layer name -> (A0, B0)."""
    read_record(path.with_name(MANIFEST))
    tensors = load_file(path)
    names = [key.removesuffix(".A") for key in tensors if key.endswith(".A")]
    return {name: (tensors[f"{name}.A"], tensors[f"{name}.B"]) for name in names}


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def trainable_state(model: Any, keep: bool = True) -> dict[str, Tensor]:
    """Return a copy on the CPU of every trainable parameter, by name.

    Under ZeRO-3 every process must call it, and those without `keep` get nothing: their copies would be waste.
    """
    state = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            with gather_params_ctx([parameter], modifier_rank=None):
                if keep:
                    state[name] = parameter.detach().cpu().clone()
    return state


def require_same_deepspeed(checkpoint: Path, deepspeed: bool) -> None:
    """Refuse a checkpoint that was written with DeepSpeed where the run goes on without, or vice versa."""
    written_with = not (checkpoint / WEIGHTS).is_file()
    if written_with != deepspeed:
        raise UserError(
            f"train.deepspeed: {checkpoint} was written {'with' if written_with else 'without'} DeepSpeed; go on with "
            "as many processes as before, or start over (--force)"
        )


def load_trainable(model: Any, checkpoint: Path) -> None:
    """Copy the parameters of a checkpoint into a model that has them."""
    state = load_file(checkpoint / WEIGHTS)
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if state.keys() != parameters.keys():
        raise UserError(f"{checkpoint}: holds other parameters than this run trains")
    for name, tensor in state.items():
        parameters[name].data.copy_(tensor)
