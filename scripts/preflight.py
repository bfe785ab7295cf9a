"""Check every stage of an experiment before the first one starts, and lay out its runs.

Nothing heavy is loaded: the model's config, the data's first records, the engine's package, the sandbox, the disk.
"""

import importlib.util
import shutil
from pathlib import Path

from eval.tasks import check_tasks
from training.check import check
from training.methods import METHODS
from utils.cli import main, parse
from utils.config import Config, expand_sweep
from utils.errors import UserError
from utils.models import model_bytes
from utils.runs import run_folder, write_config

USAGE = f"""
Check every stage of an experiment, write the config of each of its runs to <output_dir>/plan, and print their paths.

  python -m scripts.preflight --config configs/metamath.yaml --sweep.method.rank=[8,16]

method.name is one of {", ".join(METHODS)}.
"""
SPARE_DISK = 2 << 30


def preflight(config: Config) -> None:
    """Raise a `UserError` for the first thing that would stop one of the stages of an experiment's runs."""
    check(config)
    check_tasks(config)
    check_packages(config)
    check_room(config)


def check_packages(config: Config) -> None:
    """Raise a `UserError` when the evaluation engine or a report integration is not installed."""
    engine = set() if config.model.task_type == "SEQ_CLS" else {config.eval.engine}
    needed = {*engine, *config.train.report_to} & {"vllm", "tensorboard", "wandb"}
    for package in sorted(needed):
        if importlib.util.find_spec(package) is None:
            key = "eval.engine" if package == "vllm" else "train.report_to"
            hint = "; use --eval.engine=transformers" if package == "vllm" else ""
            raise UserError(f"{key}: {package} is not installed{hint}")


def check_room(config: Config) -> None:
    """Raise a `UserError` when the disk is nearly full or the model can't fit into memory."""
    free = shutil.disk_usage(config.output_dir).free
    if free < SPARE_DISK:
        raise UserError(f"output_dir: {config.output_dir} has {free / 2**30:.1f} GiB free, less than the 2 GiB needed")
    size, memory = model_bytes(config.model), _memory()
    if size and memory and size > memory:
        raise UserError(
            f"model.name: {config.model.name} takes {size / 2**30:.0f} GiB in {config.model.dtype} "
            f"and this machine has {memory / 2**30:.0f} GiB of memory"
        )


def _memory() -> int | None:
    """Return the bytes of this machine's main memory, where Linux tells."""
    try:
        line = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()[0]
    except OSError:
        return None
    return int(line.split()[1]) * 1024


def command() -> None:
    config, _ = parse(USAGE, {})
    runs = expand_sweep(config)
    names = [run.run for run in runs]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise UserError(f"sweep: two runs would share the folder {sorted(map(str, repeated))[0]}")
    preflight(config)
    for run in runs:
        print(write_config(run, Path(run.output_dir) / "plan" / run_folder(run).name))


if __name__ == "__main__":
    main(command)
