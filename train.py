"""Train an adapter, or the whole model, as a configuration says.

python train.py --config configs/demo.yaml
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eval.tasks import check_scored_in_training
from training.check import check, finished, run_settings
from training.methods import METHODS
from training.stores import check_settings, fingerprints, require_store, store_folder
from utils.cli import main, parse
from utils.config import Config, expand_sweep
from utils.distributed import barrier, is_main
from utils.errors import UserError, memory_for
from utils.files import write_record
from utils.log import log, log_to
from utils.runs import check_writable, held, run_folder, stage, start_over, start_run, write_config
from utils.settings import DATA, FORMAT

USAGE = f"""
Train a model with the method of a config and write the adapter to <output_dir>/<run>/lora.

  python train.py --config configs/demo.yaml [--train.max_steps=20 ...] [--force]
  torchrun --nproc-per-node 4 -- train.py --config configs/metamath.yaml
  deepspeed --no_local_rank train.py --config configs/metamath.yaml --train.deepspeed=configs/deepspeed/zero2.json

A run that was interrupted goes on from its last complete checkpoint; a finished one is left as it is.

  --force   start over: first removes the run's checkpoints, result and scores. Give it once: with it, an
            interrupted run begins again instead of going on

method.name is one of {", ".join(METHODS)}.
"""


def command() -> None:
    config, flags = parse(USAGE, {"force": False})
    if config.sweep:
        raise UserError("sweep: train.py trains one run; scripts/<experiment>/run.sh goes through a sweep")
    (config,) = expand_sweep(config)
    folder = run_folder(config)
    if not flags["force"] and finished(config, folder):
        how = "is finished" if (folder / "metrics.json").exists() else "has diverged"
        log.info("%s %s: nothing to do (--force trains it again)", folder, how)
        return
    check_writable(config)
    with held(folder):
        if is_main():
            if not (folder / "metrics.json").exists():  # from here on the report knows the run, and why it fails
                write_config(config, folder)
            log_to(folder / "log.txt")
        check(config)
        check_scored_in_training(config)
        train(config, flags["force"])


@contextmanager
def noted_divergence(config: Config, folder: Path, settings: dict[str, Any]) -> Iterator[None]:
    """Keep that a run diverged, and with which settings; to a comparison that is a result, and no error."""
    from training.trainer import Diverged

    (folder / "diverged.json").unlink(missing_ok=True)
    try:
        yield
    except Diverged as error:
        if is_main():
            record = {"format": FORMAT, "reason": str(error), "settings": settings}
            write_record(folder / "diverged.json", record)
        if config.arm is None:
            raise
        log.warning("%s: diverged: %s", folder.name, error)
        raise SystemExit(0) from None


def train(config: Config, force: bool = False) -> None:
    """Train one run, or go on with it, and export what it has learned."""
    from training.announce import announce, model_card, run_figures, warn_of_pitfalls  # these take seconds to import
    from training.arguments import training_arguments
    from training.checkpoints import checkpoint_to_resume, seconds_before, start_checkpoints
    from training.data import load_examples
    from training.export import export, exported_folder
    from training.measures import FirstStep, first_rate, held_out, update_figures
    from training.model import add_adapter, load_base
    from training.trainer import fit, make_trainer
    from utils.models import load_tokenizer
    from utils.plots import plot_loss

    started = time.monotonic()
    folder, settings = run_folder(config), run_settings(config)
    calibration = require_store(config) if METHODS[config.method.name].needs == "calibration" else None
    args = training_arguments(config, folder)  # here several processes find each other
    if is_main():
        if force:
            start_over(folder)
        start_run(config)
    barrier()

    # Data: the examples as tokens. A checkpoint counts only if it was made from the same ones, in the same way.
    tokenizer = load_tokenizer(config.model)
    warn_of_pitfalls(config, tokenizer)
    examples = load_examples(config, tokenizer, args)
    if calibration is not None:
        check_settings(store_folder(config), calibration.settings, fingerprints(config, examples.records))
    settings[DATA] = examples.train.fingerprint
    checkpoint = checkpoint_to_resume(folder / "checkpoints", settings, args.deepspeed is not None)

    # Model and adapter: at first they compute what the base model computes.
    with memory_for(
        f"model.name: there is no room for {config.model.name}; set model.quantization=nf4 or, with several GPUs, "
        "train.deepspeed=configs/deepspeed/zero3.json"
    ):
        model = load_base(config, args.device)
        model = add_adapter(config, model, calibration, tokenizer, examples, args.device, checkpoint, args.bf16)
    if checkpoint is None and is_main():
        start_checkpoints(folder / "checkpoints", model, METHODS[config.method.name].keeps_start)

    # Fit, at the rate that was set or that the relative step asks for.
    step = first_rate(config, model)
    args.learning_rate = step["learning_rate"]
    scorer = None
    if config.train.eval_tasks:
        from eval.in_training import Scorer

        scorer = Scorer(config, tokenizer)
    trainer = make_trainer(config, folder, args, model, tokenizer, examples, settings, scorer)
    trainer.add_callback(FirstStep(config, step))
    announce(config, model, examples, step)
    setup_seconds = time.monotonic() - started
    with stage(folder, "train", seconds_before(checkpoint)):
        with noted_divergence(config, folder, settings):
            seconds = fit(trainer, config, checkpoint)
        figures = run_figures(config, folder, trainer, seconds, setup_seconds) | step
        figures |= held_out(config, trainer, examples, folder)
        figures["update"] = update_figures(config, trainer, examples, tokenizer)

        # Export: the adapter in PEFT's ordinary form, or the merged model.
        card = model_card(config, figures)
        figures["export"] = export(config, trainer.model, tokenizer, folder, card, write=is_main())
        if is_main():
            plot_loss(folder)
            beside = (folder / name for name in ("config.yaml", "metrics.jsonl", "losses.json"))
            write_record(folder / "metrics.json", figures, filter(Path.is_file, beside))
            loss = "" if figures["final_loss"] is None else f" loss {figures['final_loss']:.4f};"
            log.info("%s:%s result in %s", folder.name, loss, exported_folder(config, folder))
        barrier()


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    main(command)
