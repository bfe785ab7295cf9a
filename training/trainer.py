"""The transformers Trainer with a cheaper loss, even batches, and checkpoints that are whole."""

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from dataset.tokens import IGNORED, collate
from training.callbacks import MetricsFile, PackingCheck, StepProgress, StopOnSignal
from training.checkpoints import WEIGHTS, load_trainable, rotate, seconds_before, trainable_state, write_manifest
from training.data import BucketSampler, Examples, Share, TokenDataset, pack
from training.forgetting import Forgetting
from utils.config import Config
from utils.errors import UserError, memory_for
from utils.files import read_json
from utils.log import log
from utils.runs import peak_memory

Found = TypeVar("Found")
STOPPED = 143  # what a shell reports for a process ended by SIGTERM: the run is not finished


# From the model to 1.0 for every problem that it solves and 0.0 for the others, per task; called by every process.
Scorer = Callable[[Any], dict[str, list[float]]]


class Diverged(UserError):
    """The loss or its gradient is not a number."""


class TargetLogits:
    """Makes a language model compute logits only at the positions asked for.

    A hook on the output embedding picks those hidden states, so that no logits exist where no label does; whatever the
    model does to its logits afterwards, such as Gemma's soft cap, happens to the rest.
    """

    def __init__(self, model: Any) -> None:
        self._positions: Tensor | None = None
        model.get_output_embeddings().register_forward_pre_hook(self._pick)

    def _pick(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        return None if self._positions is None else (args[0][self._positions], *args[1:])

    def __call__(self, model: nn.Module, inputs: dict[str, Tensor], positions: Tensor) -> Tensor:
        """Return logits (positions, vocabulary) for a mask (batch, tokens) of positions."""
        self._positions = positions
        try:
            return model(**inputs, use_cache=False).logits
        finally:
            self._positions = None


class RunTrainer(Trainer):
    """A Trainer for one run folder.

    Args:
        settings: flat settings of the run, written into every checkpoint.
        causal: a language model (else a classification head).
        scorer: from the model to what it solved, per task; asked at every validation.
        pad_id: token of the padding; the attention mask hides it.
        packing: train a language model on rows without padding.
        **kwargs: the Trainer's.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        causal: bool = True,
        scorer: Scorer | None = None,
        pad_id: int = 0,
        packing: bool = False,
        **kwargs: Any,
    ) -> None:
        self.padded = partial(collate, pad_id=pad_id)
        super().__init__(data_collator=pack if packing and causal else self.padded, **kwargs)
        self.settings, self.causal, self.scorer = settings, causal, scorer
        self.target_logits = TargetLogits(self.model) if causal else None
        # Tell the Trainer that `compute_loss` divides by the labels of the whole global batch.
        self.model_accepts_loss_kwargs, self._loss_shifts_labels = True, causal
        self._tokens = torch.zeros((), dtype=torch.int64, device=self.args.device)
        self.correct = torch.zeros_like(self._tokens)
        self._broken = torch.zeros((), device=self.args.device)  # losses of this step that are not a number
        self._clock: float | None = None  # when the tokens began that are not yet logged
        self.seconds_before, self._began = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """What training has taken so far, before the checkpoint that it goes on from too."""
        return self.seconds_before + time.monotonic() - self._began

    def _get_train_sampler(self, train_dataset: Any = None) -> BucketSampler:
        dataset: Any = train_dataset if train_dataset is not None else self.train_dataset
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        steps = math.ceil(len(dataset) / batch)
        return BucketSampler(dataset.lengths, batch, self.args.seed, lambda: self.state.global_step // steps)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """Give no batches to a run that goes on from its last checkpoint: the Trainer would take one step more."""
        self._clock = self._clock or time.monotonic()
        stopped = any(
            isinstance(found, EarlyStoppingCallback)
            and found.early_stopping_patience_counter >= found.early_stopping_patience
            for found in self.callback_handler.callbacks
        )
        if self.state.global_step >= self.state.max_steps or stopped:
            self.control.should_training_stop = True
            return [], None
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the cross entropy summed over this micro-batch's labels, over the labels of the global batch."""
        total, _ = self.summed_loss(model, inputs)
        mask = inputs.get("attention_mask")
        self._tokens += inputs["input_ids"].numel() if mask is None else mask.sum()
        # Gradients are averaged over processes; the labels were counted over all of them.
        loss = total * self.accelerator.num_processes / num_items_in_batch
        self._broken += ~torch.isfinite(loss.detach())
        return (loss, {}) if return_outputs else loss

    def summed_loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the summed cross entropy of a batch and the number of its labels."""
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        if self.target_logits is None:
            logits = model(**inputs).logits.float()
            real = labels != IGNORED
            logits, labels = logits[real], labels[real]
            if labels.is_floating_point():  # a score
                return F.mse_loss(logits.squeeze(-1), labels, reduction="sum"), real.sum()
            self.correct += (logits.argmax(-1) == labels).sum()
            return F.cross_entropy(logits, labels, reduction="sum"), real.sum()
        logits, targets, positions = self._at_targets(model, inputs, labels)
        return F.cross_entropy(logits, targets, reduction="sum"), positions.sum()

    def _at_targets(
        self, model: nn.Module, inputs: dict[str, Tensor], labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logits where there is a target, float32, those targets, and where they are (batch, tokens)."""
        assert self.target_logits is not None
        targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
        positions = targets != IGNORED
        return self.target_logits(model, inputs, positions).float(), targets[positions], positions

    @torch.no_grad()
    def require_apart(self) -> None:
        """Raise a `UserError` if packed examples see each other, as in models that do not heed `position_ids`."""
        dataset: Any = self.train_dataset
        features = [dataset[k] for k in range(min(2, len(dataset)))]
        batches = [self.data_collator(features), *(self.data_collator([feature]) for feature in features)]
        self.model_wrapped.eval()
        with self.accelerator.autocast():
            inputs = [self._prepare_inputs(batch) for batch in batches]
            logits = [self._at_targets(self.model_wrapped, batch, batch.pop("labels"))[0] for batch in inputs]
        self.model_wrapped.train()
        together, apart = logits[0], torch.cat(logits[1:])
        if (together - apart).abs().max() > 0.05 * (apart.max() - apart.min()):  # bfloat16 differs by half a percent
            kind = self.model.config.model_type  # type: ignore[union-attr]
            raise UserError(f"train.packing: a model of type {kind} lets packed examples see each other; set false")

    @torch.no_grad()
    def record_losses(self, examples: TokenDataset) -> list[float]:
        """Return each record's summed loss over the mean count of targets: their mean is the loss per target.

        Of a language model; every process must call it.
        """
        model = self.model_wrapped
        model.eval()
        share = Share(examples, self.args.process_index, self.args.world_size)
        sums = torch.zeros(2, len(share), dtype=torch.float64, device=self.args.device)
        done = 0
        for batch in DataLoader(share, self.args.per_device_eval_batch_size, collate_fn=self.padded):
            inputs = self._prepare_inputs(batch)
            labels = inputs.pop("labels")
            logits, targets, positions = self._at_targets(model, inputs, labels)
            losses = F.cross_entropy(logits, targets, reduction="none").double()
            rows = positions.nonzero()[:, 0] + done
            sums[0].index_add_(0, rows, losses)
            sums[1].index_add_(0, rows, torch.ones_like(losses))
            done += len(labels)
        model.train()
        # A process has every `world_size`th record; what it has twice, without labels, adds nothing.
        found = self.accelerator.gather(sums[None]).permute(1, 2, 0).reshape(2, -1)[:, : len(examples)]
        return (found[0] / found[1].mean()).tolist()

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Log and return the mean loss per label over the validation examples, and for classes the accuracy."""
        entered = time.monotonic()
        model = self.model_wrapped
        model.eval()
        sums = torch.zeros(3, dtype=torch.float64, device=self.args.device)
        self.correct.zero_()
        examples: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        share = Share(examples, self.args.process_index, self.args.world_size)
        for batch in DataLoader(share, self.args.per_device_eval_batch_size, collate_fn=self.data_collator):
            total, count = self.summed_loss(model, self._prepare_inputs(batch))
            sums[:2] += torch.stack([total.double(), count.double()])
        sums[2] = self.correct
        total, count, correct = self.accelerator.reduce(sums, "sum").tolist()
        model.train()
        metrics = {f"{metric_key_prefix}_loss": total / count}
        if not self.causal and not examples.labels.is_floating_point():
            metrics[f"{metric_key_prefix}_accuracy"] = correct / count
        if self.state.global_step < self.state.max_steps:  # what the run ends with is scored when it has ended
            metrics |= {
                f"{metric_key_prefix}_{task}": sum(found) / len(found) for task, found in self.solved().items()
            }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._apart(entered)
        return metrics

    def solved(self) -> dict[str, list[float]]:
        """Return what the model solves now; every process must call it."""
        if self.scorer is None:
            return {}
        with self.accelerator.autocast():
            return self.scorer(self.model)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add tokens per second, over all processes and padding apart, and peak memory to a training log."""
        if "loss" in logs:
            now = time.monotonic()
            tokens = int(self.accelerator.reduce(self._tokens.clone(), "sum"))
            logs["tokens_per_second"] = round(tokens / (now - (self._clock or self._began)), 1)
            logs["peak_memory_bytes"] = peak_memory()
            self._clock = now
            self._tokens.zero_()
        super().log(logs, start_time)

    def _apart(self, entered: float) -> None:
        """Leave what has taken since then out of the tokens per second."""
        if self._clock is not None:
            self._clock += time.monotonic() - entered

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        broken = bool(self.accelerator.reduce(self._broken.clone(), "sum"))
        self._broken.zero_()
        # A gradient that overflows in float16 is no reason to stop: the loss scaler skips that step.
        if broken or (norm is not None and not self.args.fp16 and not math.isfinite(float(norm))):
            raise Diverged(
                f"train: the loss or its gradient is not a number at step {self.state.global_step + 1}; "
                f"complete checkpoints in {self.args.output_dir} are kept; try a lower train.learning_rate"
            )
        return norm

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write what trains, as training state: nothing in a checkpoint can be mistaken for an adapter.

        Under DeepSpeed its own checkpoint holds that.
        """
        folder = Path(str(output_dir or self.args.output_dir))
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
        if not self.is_deepspeed_enabled and self.args.should_save:
            save_file(trainable_state(self.model), folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_trainable(model or self.model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            load_trainable(self.model, Path(str(self.state.best_model_checkpoint)))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        entered = time.monotonic()
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
            write_manifest(folder, self.settings, self.state.global_step, self.seconds)
            best = self.state.best_model_checkpoint
            rotate(folder.parent, Path(best) if best else None)
        self.accelerator.wait_for_everyone()
        self._apart(entered)

    def callback(self, kind: type[Found]) -> Found:
        """Return the trainer's callback of a kind."""
        return next(found for found in self.callback_handler.callbacks if isinstance(found, kind))


def make_trainer(
    config: Config,
    folder: Path,
    args: TrainingArguments,
    model: nn.Module,
    tokenizer: Any,
    examples: Examples,
    settings: dict[str, Any],
    scorer: Scorer | None,
) -> RunTrainer:
    """Return the trainer of a run, with what it reports and when it stops."""
    args.save_steps = args.eval_steps = config.train.save_steps or max(math.ceil(examples.steps(config) / 10), 1)
    trainer = RunTrainer(
        settings=settings,
        scorer=scorer,
        causal=config.model.task_type == "CAUSAL_LM",
        model=model,
        args=args,
        train_dataset=examples.train,
        eval_dataset=examples.validation,
        pad_id=tokenizer.pad_token_id or 0,
        packing=config.train.packing,
        callbacks=[
            MetricsFile(folder / "metrics.jsonl"),
            StepProgress(),
            StopOnSignal(),
            Forgetting(config, tokenizer),
        ],
    )
    trainer.remove_callback(PrinterCallback)
    if config.train.packing and trainer.causal:
        trainer.add_callback(PackingCheck(trainer.require_apart))
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


def fit(trainer: RunTrainer, config: Config, checkpoint: Path | None) -> float:
    """Train to the end, from a checkpoint or from the start, and return the seconds it took, earlier ones included."""
    if checkpoint is not None:
        log.info("going on from %s", checkpoint)
        restore_patience(trainer, checkpoint)
    trainer.seconds_before = seconds_before(checkpoint)
    with memory_for(
        f"train.micro_batch_size: there is no room for {trainer.args.per_device_train_batch_size} examples of "
        f"{config.data.max_length} tokens; set fewer, or train.gradient_checkpointing=true, and the run goes on"
    ):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.callback(StopOnSignal).stopped:
        log.info("stopped before its end; the same command goes on from here")
        raise SystemExit(STOPPED)
    return trainer.seconds
