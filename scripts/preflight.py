"""Check every stage of an experiment before the first one starts, and lay out its runs.

Nothing heavy is loaded: the model's config, the data's first records, the engine's package, the sandbox, the disk.
"""

import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path

from dataset.sources import check_training
from eval.tasks import check_tasks
from utils.cli import main, parse
from utils.config import Config, expand_sweep
from utils.errors import UserError
from utils.files import read_json
from utils.models import check_model, model_bytes
from utils.runs import check_writable, run_folder, write_config
from utils.settings import check_combination
from utils.stores import stores

USAGE = """
Check every stage of an experiment, write the config of each of its runs to <output_dir>/plan, and print their paths.

  python -m scripts.preflight --config configs/metamath.yaml --sweep.method.rank=[8,16]
"""
SPARE_DISK = 2 << 30


def preflight(config: Config, runs: Sequence[Config]) -> None:
    """Raise a `UserError` for the first thing that would stop one of the stages of an experiment's runs."""
    check_writable(config)
    check_model(config.model)
    for data in {run.data.model_dump_json(): run.data for run in runs}.values():
        check_training(data, config.model.task_type)
    stores(config)  # knows which ranks a calibration can serve
    for run in runs:
        check_combination(run)
    check_tasks(config)
    check_engine(config)
    check_deepspeed(config)
    check_room(config)


def check_engine(config: Config) -> None:
    """Raise a `UserError` when the evaluation engine or a report integration is not installed."""
    engine = set() if config.model.task_type == "SEQ_CLS" else {config.eval.engine}
    needed = {*engine, *config.train.report_to} & {"vllm", "tensorboard", "wandb"}
    for package in sorted(needed):
        if importlib.util.find_spec(package) is None:
            key = "eval.engine" if package == "vllm" else "train.report_to"
            hint = "; use --eval.engine=transformers" if package == "vllm" else ""
            raise UserError(f"{key}: {package} is not installed{hint}")


def check_deepspeed(config: Config) -> None:
    """Raise a `UserError` when the DeepSpeed file is missing or is not JSON."""
    if config.train.deepspeed is not None:
        try:
            read_json(config.train.deepspeed)
        except UserError as error:
            raise UserError(f"train.deepspeed: {error}") from error


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
    preflight(config, runs)
    for run in runs:
        print(write_config(run, Path(run.output_dir) / "plan" / run_folder(run).name))


if __name__ == "__main__":
    main(command)
