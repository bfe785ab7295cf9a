"""Forgetting: the loss per token on general text that has nothing to do with the training task.

Data: `data.general_text`, 256 windows of 128 tokens spread evenly over it, the same as in training.
"""

from typing import Any

from dataset.general_text import WINDOW, WINDOWS, check_general_text, load_general_text
from eval.engines import Pair
from eval.tasks import Ask, DirectTask
from utils.config import Config


def run(ask: Ask, tokenizer: Any, config: Config) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Score every token of the windows but the first; see `eval.tasks.DirectTask.run`."""
    text = load_general_text(config.data.general_text)
    windows = text.windows(tokenizer)
    scores: list[Any] = ask([Pair(tuple(window[:1]), tuple(window[1:])) for window in windows])
    tokens = sum(score.tokens for score in scores)
    figures = {
        "loss": -sum(score.logprob for score in scores) / tokens,
        "n": len(windows),
        "tokens": tokens,
        "text": text.name,
        "fingerprint": text.fingerprint,
    }
    samples = [
        {"problem": number, "prompt": tokenizer.decode(window), "loss": -score.logprob / score.tokens}
        for number, (window, score) in enumerate(zip(windows, scores, strict=True))
    ]
    return figures, samples


def settings(config: Config) -> dict[str, Any]:
    """What identifies the text and how it is cut."""
    return {"data": load_general_text(config.data.general_text).fingerprint, "windows": WINDOWS, "window": WINDOW}


TASK = DirectTask(
    "forgetting", run, WINDOW + 2, settings, check=lambda config: check_general_text(config.data.general_text)
)
