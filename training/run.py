"""One training run from its configuration to its exported adapter."""

import gc
import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from training import announce
from training.callbacks import MetricsFile, StepProgress, StopOnSignal
from training.checkpoints import clear, discard_unusable, last_complete
from training.data import Collator
from training.export import base_name, export, exported_folder, is_plain, measure_export
from training.methods import METHODS
from training.setup import (
    Examples,
    build_model,
    build_request,
    keep_initial,
    load_examples,
    logits,
    training_arguments,
)
from training.trainer import RunTrainer, check_engine, peak_memory
from utils.config import Config
from utils.distributed import is_main
from utils.errors import UserError
from utils.files import read_json, read_lines, write_json
from utils.log import log
from utils.models import load_tokenizer
from utils.plots import plot_loss
from utils.runs import run_folder, stage, start_run
from utils.settings import DATA, run_settings, without_calibration
from utils.stores import require_store

STOPPED = 143  # what a shell reports for a process ended by SIGTERM: the run is not finished


def train(config: Config, force: bool = False) -> None:
    """Train one run, or go on with it.

    Raises:
        UserError: whatever the user can put right, in one line.
        SystemExit: 143 after SIGTERM, with a checkpoint written.
    """
    started = time.monotonic()
    folder = run_folder(config)
    settings = run_settings(config)
    if METHODS[config.method.name].needs == "nothing":
        settings = without_calibration(settings)
    store = require_store(config) if needs_store(config) else None
    args = training_arguments(config, folder)
    checkpoints = folder / "checkpoints"
    if is_main():
        start_run(config)
        if force:
            start_over(folder)
    _wait(args)
    tokenizer = load_tokenizer(config.model)
    announce.warn_of_pitfalls(config, tokenizer)
    examples = load_examples(config, tokenizer, args)
    settings[DATA] = examples.train.fingerprint
    checkpoint = last_complete(checkpoints, settings)
    _wait(args)
    if checkpoint is not None:
        check_engine(checkpoint, args.deepspeed is not None)
        if is_main():
            discard_unusable(checkpoints, checkpoint)
    request = build_request(config, store, tokenizer, examples, args.device)
    try:
        model, measured = build_model(
            config, request, checkpoints, checkpoint is not None, args.device, examples.probe()
        )
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(
            f"model.name: the GPU has no room for {config.model.name}; set model.quantization=nf4 or, with several "
            "GPUs, train.deepspeed=configs/deepspeed/zero3.json"
        ) from error
    if checkpoint is None and is_main():
        clear(checkpoints)
        keep_initial(model, checkpoints)
    del request
    trainer = make_trainer(config, folder, args, model, tokenizer, examples, settings)
    announce.announce(config, model, examples, measured, _steps(config, args, examples))
    if checkpoint is not None:
        log.info("going on from %s", checkpoint)
        restore_patience(trainer, checkpoint)
    measured["setup_seconds"] = time.monotonic() - started
    with stage(folder, "train"):
        figures, reference = _fit_and_export(config, folder, trainer, tokenizer, examples, measured, checkpoint)
        # What is measured next loads a second model: the first, with its optimizer, makes room.
        del trainer, model
        gc.collect()
        if is_main():
            _finish(config, folder, figures, reference, examples.probe(), args)
        _wait(args)


def start_over(folder: Path) -> None:
    """Remove what an earlier attempt left: none of it, its scores included, is of the adapter to come."""
    (folder / "metrics.json").unlink(missing_ok=True)  # first: without it the run counts as unfinished
    for name in ("lora", "merged", "eval", "checkpoints"):
        shutil.rmtree(folder / name, ignore_errors=True)


def needs_store(config: Config) -> bool:
    """Whether the run reads a calibration store."""
    return METHODS[config.method.name].needs == "calibration"


def make_trainer(
    config: Config,
    folder: Path,
    args: TrainingArguments,
    model: nn.Module,
    tokenizer: Any,
    examples: Examples,
    settings: dict[str, Any],
) -> RunTrainer:
    """Return the trainer of a run, with what it reports and when it stops."""
    args.save_steps = args.eval_steps = config.train.save_steps or max(
        math.ceil(_steps(config, args, examples) / 10), 1
    )
    trainer = RunTrainer(
        settings=settings,
        causal=config.model.task_type == "CAUSAL_LM",
        model=model,
        args=args,
        train_dataset=examples.train,
        eval_dataset=examples.validation,
        data_collator=Collator(tokenizer.pad_token_id or 0, config.train.packing),
        callbacks=[
            MetricsFile(folder / "metrics.jsonl"),
            StepProgress(),
            StopOnSignal(),
            announce.Forgetting(config, tokenizer, folder / "checkpoints" / "before.json"),
        ],
    )
    trainer.remove_callback(PrinterCallback)
    if config.train.early_stopping is not None:
        trainer.add_callback(EarlyStoppingCallback(config.train.early_stopping))
    return trainer


def restore_patience(trainer: RunTrainer, checkpoint: Path) -> None:
    """Let early stopping count on from a checkpoint; the Trainer would restore the other callbacks' states too."""
    kept = read_json(checkpoint / "trainer_state.json")["stateful_callbacks"]
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, EarlyStoppingCallback) and "EarlyStoppingCallback" in kept:
            count = kept["EarlyStoppingCallback"]["attributes"]["early_stopping_patience_counter"]
            callback.early_stopping_patience_counter = count


def _fit_and_export(
    config: Config,
    folder: Path,
    trainer: RunTrainer,
    tokenizer: Any,
    examples: Examples,
    measured: dict[str, float],
    checkpoint: Path | None,
) -> tuple[dict[str, Any], Tensor]:
    """Train and write the result; return the run's figures, and the trained model's logits for the probe."""
    started = time.monotonic()
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(
            f"train.micro_batch_size: the GPU has no room for {trainer.args.per_device_train_batch_size} examples of "
            f"{config.data.max_length} tokens; set fewer, or train.gradient_checkpointing=true, and the run goes on"
        ) from error
    callbacks = {type(callback): callback for callback in trainer.callback_handler.callbacks}
    if callbacks[StopOnSignal].stopped:
        log.info("stopped before its end; the same command goes on from here")
        raise SystemExit(STOPPED)
    figures = {**_figures(config, folder, trainer, time.monotonic() - started), **measured}
    figures["forgetting"] = callbacks[announce.Forgetting].compare(trainer.model)
    reference = logits(trainer.model, examples.probe())
    card = announce.model_card(config, base_name(config), _card_figures(config, figures))
    figures["export"] = export(config, trainer.model, tokenizer, folder, card, write=is_main())
    return figures, reference


def _finish(
    config: Config, folder: Path, figures: dict[str, Any], reference: Tensor, probe: Tensor, args: TrainingArguments
) -> None:
    """Write the plot and the figures; whatever becomes of the last measurement, they are there."""
    plot_loss(folder)
    write_json(folder / "metrics.json", figures)
    figures["export"].update(_measure(config, folder, reference, probe, args))
    write_json(folder / "metrics.json", figures)
    loss = "" if figures["final_loss"] is None else f" loss {figures['final_loss']:.4f};"
    log.info("%s:%s result in %s", folder.name, loss, exported_folder(config, folder))


def _measure(
    config: Config, folder: Path, reference: Tensor, probe: Tensor, args: TrainingArguments
) -> dict[str, float]:
    """Measure the export on the GPU where the model is known to fit there whole and unquantised, else on the CPU."""
    if torch.cuda.is_available() and args.deepspeed is None and config.model.quantization is None:
        torch.cuda.empty_cache()
        try:
            return measure_export(config, folder, reference, probe, args.device)
        except torch.cuda.OutOfMemoryError:
            log.info("the GPU has no room to load the result: its difference is measured on the CPU")
    return measure_export(config, folder, reference, probe, "cpu")


def _figures(config: Config, folder: Path, trainer: RunTrainer, seconds: float) -> dict[str, Any]:
    """Return the run's figures; the final loss is the mean of the last tenth of the steps."""
    lines = read_lines(folder / "metrics.jsonl") if is_main() else []
    losses = [line["loss"] for line in lines if "loss" in line]
    last = losses[-max(len(losses) // 10, 1) :]
    trainable, total = announce.count_parameters(trainer.model)
    return {
        "method": config.method.name,
        "steps": trainer.state.global_step,
        "final_loss": sum(last) / len(last) if last else None,
        **validation_figures(lines),
        "trainable_parameters": trainable,
        "parameters": total,
        "train_seconds": seconds,
        "peak_memory_bytes": peak_memory(),
        "settings": trainer.settings,
    }


def validation_figures(lines: list[dict[str, Any]]) -> dict[str, float | None]:
    """Return the validation figures of the checkpoint that is exported, the one of the smallest loss."""
    best = min((line for line in lines if "eval_loss" in line), key=lambda line: line["eval_loss"], default={})
    return {"validation_loss": best.get("eval_loss"), "validation_accuracy": best.get("eval_accuracy")}


def _card_figures(config: Config, figures: dict[str, Any]) -> dict[str, Any]:
    keys = ("steps", "final_loss", "validation_loss", "trainable_parameters")
    forgetting = figures["forgetting"] or {}
    return {"plain": is_plain(config), **{key: figures[key] for key in keys}, "forgetting": forgetting.get("rise")}


def _steps(config: Config, args: TrainingArguments, examples: Examples) -> int:
    per_epoch = math.ceil(len(examples.train) / config.train.global_batch_size)
    return config.train.max_steps or math.ceil(config.train.epochs * per_epoch)


def _wait(args: TrainingArguments) -> None:
    if args.world_size > 1:
        torch.distributed.barrier()
