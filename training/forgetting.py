"""Forgetting: how much worse a model gets at text that has nothing to do with its training."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dataset.general_text import load_general_text, measured_in_training
from utils.config import Config
from utils.files import read_json, write_json
from utils.log import log

BATCH = 8  # windows in a forward pass


@torch.no_grad()
def window_losses(model: Any, windows: Tensor) -> Tensor:
    """Return the mean loss per token of each window, float64 (windows,), in nats.

    Args:
        model: a causal language model, in whatever wrapping it trains; under ZeRO-3 every process must call this.
        windows: token ids, int64 (windows, tokens).
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    losses = []
    for batch in windows.to(device).split(BATCH):
        logits = model(input_ids=batch, attention_mask=torch.ones_like(batch), use_cache=False).logits[:, :-1]
        tokens = F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten(), reduction="none")
        losses.append(tokens.view(len(batch), -1).double().mean(1).cpu())
    model.train(was_training)
    return torch.cat(losses)


class Forgetting(TrainerCallback):
    """Measures the loss on general text before the first step, once per run, and after the last.

    The losses before training are kept in `path`, one per window, so that a resumed run has them to compare with.
    """

    def __init__(self, config: Config, tokenizer: Any, path: Path) -> None:
        self.path = path
        self.before: Tensor | None = None
        self.enabled = measured_in_training(config)
        if self.enabled:
            text = load_general_text(config.data.general_text)
            self.text = {"text": text.name, "fingerprint": text.fingerprint}
            self.windows = torch.tensor(text.windows(tokenizer))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        if not self.enabled:
            return
        if state.global_step == 0:
            self.before = losses = window_losses(model, self.windows)
            if args.should_save:
                write_json(self.path, {**self.text, "losses": losses.tolist()})
            return
        stored: dict[str, Any] = read_json(self.path) if self.path.is_file() else {}
        if {key: stored.get(key) for key in self.text} == self.text:
            self.before = torch.tensor(stored["losses"], dtype=torch.float64)
        else:
            log.info(
                "forgetting is not known: the run began with %s, and goes on with %s",
                stored.get("text", "no text"), self.text["text"],
            )  # fmt: skip

    def compare(self, model: Any) -> dict[str, Any] | None:
        """Return the losses before and after training, and their difference; every process must call it.

        The standard error of the rise is that of the mean of the windows' differences: the windows are paired.
        """
        if self.before is None:
            return None
        after = window_losses(model, self.windows)
        rise = after - self.before
        return {
            **self.text,
            "windows": len(rise),
            "before": self.before.mean().item(),
            "after": after.mean().item(),
            "rise": rise.mean().item(),
            "standard_error": (rise.std() / len(rise) ** 0.5).item(),
        }
