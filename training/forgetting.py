"""Forgetting: how much worse a model gets at text that has nothing to do with its training."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional as F
from transformers import TrainerCallback

from dataset.general_text import load_general_text, measured_in_training
from utils.config import Config
from utils.distributed import barrier, is_main
from utils.files import fingerprint, read_record, write_record
from utils.log import log
from utils.models import model_fingerprint, resolve_model

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


def base_losses(
    config: Config, model: Any, text: str, measure: Callable[[Any], list[float]], untrained: bool = False
) -> list[float] | None:
    """What the base model loses on each part of a text, measured once for all runs of an experiment.

    Every process must call it.

    Args:
        model: the model that trains; the base is what it is without its adapter.
        text: a fingerprint of the text and of how it is cut.
        measure: returns the losses of a model.
        untrained: the model has made no step, so that it is the base even where all of it trains.

    Returns:
        Losses, or None where the model has no adapter to switch off and has been trained.
    """
    dtype = str(next(model.parameters()).dtype)
    key = [text, model_fingerprint(resolve_model(config.model)), dtype, config.model.quantization]
    path = Path(config.output_dir) / "base" / f"losses-{fingerprint(key)}.json"
    known = path.exists()
    barrier()  # nobody writes it before all have looked
    if known:
        return list(read_record(path, "delete it, and the base model is measured anew")["losses"])
    adapted = isinstance(model, PeftModel)
    if not (adapted or untrained):
        return None
    with model.disable_adapter() if adapted else nullcontext():
        losses = measure(model)
    if is_main():
        write_record(path, {"losses": losses})
    return losses


class Forgetting(TrainerCallback):
    """Measures the loss on general text: the base model's before the first step, the trained one's after the last."""

    def __init__(self, config: Config, tokenizer: Any) -> None:
        self.config = config
        self.before: Tensor | None = None
        self.enabled = measured_in_training(config)
        if self.enabled:
            text = load_general_text(config.data.general_text)
            self.text = {"text": text.name, "fingerprint": text.fingerprint}
            self.windows = torch.tensor(text.windows(tokenizer))

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if not self.enabled:
            return
        found = base_losses(
            self.config, model, fingerprint(self.windows.tolist()),
            lambda base: window_losses(base, self.windows).tolist(), untrained=state.global_step == 0,
        )  # fmt: skip
        if found is None:
            log.info("forgetting is not known: the run began without measuring %s", self.text["text"])
        else:
            self.before = torch.tensor(found, dtype=torch.float64)

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
