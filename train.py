"""Train an adapter, or the whole model, as a configuration says.

python train.py --config configs/demo.yaml
"""

import os

from utils.cli import main, parse
from utils.config import Config, expand_sweep
from utils.distributed import is_main
from utils.errors import UserError
from utils.files import read_json
from utils.log import log, log_to
from utils.runs import check_writable, run_folder, write_config
from utils.settings import check_combination, finished

USAGE = """
Train a model with the method of a config and write the adapter to <output_dir>/<run>/lora.

  python train.py --config configs/demo.yaml [--train.max_steps=20 ...] [--force]
  torchrun --nproc-per-node 4 -- train.py --config configs/metamath.yaml
  deepspeed --no_local_rank train.py --config configs/metamath.yaml --train.deepspeed=configs/deepspeed/zero2.json

A run that was interrupted goes on from its last complete checkpoint; a finished one is left as it is.

  --force   start over: first removes the run's checkpoints, result and scores. Give it once: with it, an
            interrupted run begins again instead of going on
"""


def command() -> None:
    config, flags = parse(USAGE, {"force": False})
    if config.sweep:
        raise UserError("sweep: train.py trains one run; scripts/<experiment>/run.sh goes through a sweep")
    (config,) = expand_sweep(config)
    folder = run_folder(config)
    if not flags["force"] and finished(config, folder):
        log.info("%s is finished: nothing to do (--force trains it again)", folder)
        return
    check_writable(config)
    if is_main():
        write_config(config, folder)  # from here on the report knows the run, and why it has no result
        log_to(folder / "log.txt")
    check(config)
    from training.run import train  # takes seconds to import

    train(config, flags["force"])


def check(config: Config) -> None:
    """Raise a `UserError` for what can be known before anything heavy is imported."""
    from dataset.sources import check_training
    from utils.models import check_model

    check_combination(config)
    if config.train.deepspeed is not None:
        read_json(config.train.deepspeed)
    check_model(config.model)
    check_training(config.data, config.model.task_type)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    main(command)
