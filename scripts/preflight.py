"""Check every stage of an experiment before the first one starts, and lay out its runs.

Nothing heavy is loaded: the model's config, the data's first records, the engine's package, the sandbox, the disk.
"""

import importlib.util
import shutil
from pathlib import Path

import psutil

from eval.tasks import check_scored_in_training, check_tasks
from training.check import check
from training.methods import METHODS
from utils.cli import main, parse
from utils.comparison import choices, ended, most_runs, planned
from utils.config import Config, expand_sweep, ladder_key
from utils.errors import UserError, first_line
from utils.files import fingerprint, read_record
from utils.ladder import value
from utils.log import log
from utils.models import linear_shapes, model_bytes
from utils.runs import run_folder, write_config

USAGE = f"""
Check every stage of an experiment, write the config of each of its runs to <output_dir>/plan, and print the folder
and their paths.

  python -m scripts.preflight --config configs/metamath.yaml --sweep.method.rank=[8,16]
  python -m scripts.preflight --config configs/compare.yaml --next     only the runs that a ladder asks for next
  python -m scripts.preflight --config configs/metamath.yaml --costs   also what the stages need in memory and on disk

method.name is one of {", ".join(METHODS)}.
"""
SPARE_DISK = 2 << 30
MARGIN = 1.25  # an estimate may be that much too high


def preflight(config: Config) -> None:
    """Raise a `UserError` for the first thing that would stop one of the stages of an experiment's runs."""
    check(config)
    check_tasks(config)
    check_scored_in_training(config)
    wanted = config.eval.engine == "vllm" and config.model.task_type == "CAUSAL_LM"
    if wanted and importlib.util.find_spec("vllm") is None:
        raise UserError("eval.engine: vllm is not installed; use --eval.engine=transformers")
    check_room(config)


def check_room(config: Config) -> None:
    """Raise a `UserError` when the disk is nearly full or the model can't fit into memory."""
    free = shutil.disk_usage(config.output_dir).free
    needed = max(SPARE_DISK, *map(run_bytes, expand_sweep(config)))
    if free < needed:
        room = f"{gib(free)} free, less than the {gib(needed)} that a run needs"
        raise UserError(f"output_dir: {config.output_dir} has {room}; name another place, or a smaller method.rank")
    size, memory = model_bytes(config.model), psutil.virtual_memory().total
    if size and size > memory:
        taken = f"{gib(size)} in {config.model.dtype}"
        raise UserError(f"model.name: {config.model.name} takes {taken} and this machine has {gib(memory)} of memory")


def state_costs(config: Config) -> None:
    """Say what each stage takes in memory, and a run on disk; refuse what can't fit. No weights are needed.

    It is that of the run that trains the most. DeepSpeed's shares are not known here: with it only activations are
    refused.
    """
    if config.model.task_type != "CAUSAL_LM":
        return
    from training.memory import needed_bytes, room

    largest = max(expand_sweep(config), key=trained_bytes)
    try:
        needed, here = needed_bytes(largest), room()
    except Exception as error:  # it is an estimate, of any architecture: shapes may depend on the data, as experts' do
        log.warning("memory: can't be told for %s (%s)", largest.model.name, first_line(error))
        return
    stages = ", ".join(f"{stage} {gib(size)}" for stage, size in needed.items())
    shared = "; DeepSpeed shares out what are no activations" if largest.train.deepspeed else ""
    log.info("memory of one process, about: %s, of %s%s", stages, gib(here), shared)
    log.info("disk: about %s per run", gib(max(map(run_bytes, expand_sweep(config)))))
    remedies = {
        "calibrate": "model.device_map=auto",
        "train": "train.gradient_checkpointing=true, a smaller train.micro_batch_size, model.quantization=nf4 or "
        "train.deepspeed=configs/deepspeed/zero3.json",
        "activations": "train.gradient_checkpointing=true, or a smaller train.micro_batch_size",
    }
    spread = {"calibrate": largest.model.device_map, "train": largest.train.deepspeed, "activations": None}
    for stage, size in needed.items():
        if size > MARGIN * here and not spread[stage]:
            taken = f"about {gib(size)} in one process, and there are {gib(here)}"
            raise UserError(f"model.name: {stage}: {taken}; set {remedies[stage]}")


def run_bytes(config: Config) -> int:
    """Return what a run takes on disk, as far as the model's config tells; 0 where it doesn't."""
    merged = not METHODS[config.method.name].plain and config.method.name != "full"
    return trained_bytes(config) + (model_bytes(config.model) or 0 if merged else 0)


def trained_bytes(config: Config) -> int:
    """Return what a run takes on disk for the parameters that it trains.

    It keeps two checkpoints of parameters and two AdamW states, and the adapter, all float32: 28 bytes per parameter.
    A method that starts from a product keeps its start, too, and an adapter of rank 2r: 36.
    """
    names, shapes = config.method.target_modules, linear_shapes(config.model)
    size = 36 if METHODS[config.method.name].moves else 28
    if config.method.name == "full":
        return size * sum(m * n * count for m, n, count in shapes.values())
    if isinstance(names, str):
        names = [name for name in shapes if name != "embeddings"] if names == "all-linear" else []
    adapted = [shapes[name] for name in names if name in shapes]
    return size * sum(config.method.rank * (m + n) * count for m, n, count in adapted)


def gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def command() -> None:
    config, flags = parse(USAGE, {"next": False, "costs": False, "force": False})
    if flags["force"] and ladder_key(config):
        raise UserError(f"--force: a comparison goes on from the runs that ended; remove those in {config.output_dir}")
    if not flags["next"]:
        names = [run.run for run in expand_sweep(config)]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise UserError(f"sweep: two runs would share the folder {repeated[0]}")
        preflight(config)
        if flags["costs"]:
            state_costs(config)
        announce(config)
        print(config.output_dir)
    elif ladder_key(config) is None:
        return
    for run in planned(config):
        # Named by what it holds: a dry run with other overrides leaves the plan of a sweep at work alone.
        name = f"{run_folder(run).name}-{fingerprint(run.model_dump())}"
        print(write_config(run, Path(run.output_dir) / "plan" / name))


def announce(config: Config) -> None:
    """Say what a comparison has done, and what it can cost at most."""
    if ladder_key(config) is None:
        return
    for arm, choice in choices(config).items():
        tried = ", ".join(f"{value(rung):g}" for rung in choice.tried) or "nothing yet"
        log.info("%s: tried %s%s", arm, tried, f"; best {value(choice.best):g}" if choice.best is not None else "")
    done = sum(len(seeds) for runs in ended(config).values() for seeds in runs.values())
    seconds = [read_record(path)["seconds"] for path in Path(config.output_dir).glob("*/stages/train.json")]
    cost = f", {sum(seconds) / len(seconds):.0f} s of training each so far" if seconds else ""
    log.info("comparison: %d runs ended; at most %d in all%s", done, most_runs(config), cost)


if __name__ == "__main__":
    main(command)
