"""Forgetting: the loss per token on general text that has nothing to do with the training task.

Data: WikiText-2's test set (`Salesforce/wikitext` on the hub), or Python's own manual where the hub is out of reach;
windows of 128 tokens, spread evenly over the text. `utils.forgetting` takes a quarter as many in training.
"""

from typing import Any

import utils.forgetting
from eval.engines import Pair
from eval.tasks import Ask, DirectTask
from utils.config import Config
from utils.files import fingerprint
from utils.forgetting import WINDOW, general_text

WINDOWS = 4 * utils.forgetting.WINDOWS


def windows(ids: list[int]) -> list[list[int]]:
    """Return up to 64 windows of 128 tokens, spread evenly."""
    count = min(WINDOWS, len(ids) // WINDOW)
    steps = max(count - 1, 1)
    starts = [(len(ids) - WINDOW) * k // steps for k in range(count)]
    return [ids[start : start + WINDOW] for start in starts]


def run(ask: Ask, tokenizer: Any, config: Config) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Score every token of the windows but the first; see `eval.tasks.DirectTask.run`."""
    name, texts = general_text()
    pieces = windows(tokenizer("\n\n".join(texts), add_special_tokens=False)["input_ids"])
    scores: list[Any] = ask([Pair(tuple(piece[:1]), tuple(piece[1:])) for piece in pieces])
    tokens = sum(score.tokens for score in scores)
    figures = {
        "loss": -sum(score.logprob for score in scores) / max(tokens, 1),
        "n": len(pieces),
        "tokens": tokens,
        "text": name,
    }
    samples = [
        {"problem": number, "prompt": tokenizer.decode(piece), "loss": -score.logprob / score.tokens}
        for number, (piece, score) in enumerate(zip(pieces, scores, strict=True))
    ]
    return figures, samples


def settings(config: Config) -> dict[str, Any]:
    """Return what identifies the text and how it is cut."""
    return {"data": fingerprint(general_text()), "windows": WINDOWS, "window": WINDOW}


TASK = DirectTask("forgetting", run, context=WINDOW + 2, settings=settings)
