"""Forgetting: the loss per token on general text that has nothing to do with the training task.

Data: WikiText-2's test set (`Salesforce/wikitext` on the hub), or Python's own manual where the hub is out of reach;
windows of 128 tokens, spread evenly over the text. `utils.forgetting` takes a quarter as many in training.
"""

from typing import Any

import utils.forgetting
from eval.engines import Engine
from eval.likelihood import LikelihoodTask, Scorer
from utils.config import Config
from utils.forgetting import WINDOW, general_text

WINDOWS = 4 * utils.forgetting.WINDOWS


def windows(ids: list[int]) -> list[list[int]]:
    """Return up to 64 windows of 128 tokens, spread evenly."""
    count = min(WINDOWS, len(ids) // WINDOW)
    steps = max(count - 1, 1)
    starts = [(len(ids) - WINDOW) * k // steps for k in range(count)]
    return [ids[start : start + WINDOW] for start in starts]


def run(
    problems: list[dict[str, Any]], engine: Engine, scorer: Scorer, task: LikelihoodTask, config: Config
) -> tuple[dict[str, Any], list[Any]]:
    """Score every token of the windows but the first; see `eval.likelihood.LikelihoodTask.run`."""
    texts = [problem["instruction"] for problem in problems]
    ids = engine.tokenizer("\n\n".join(texts), add_special_tokens=False)["input_ids"]
    pieces = windows(ids)
    scores = scorer([(piece[:1], piece[1:]) for piece in pieces])
    tokens = sum(score.tokens for score in scores)
    figures = {
        "loss": -sum(score.logprob for score in scores) / max(tokens, 1),
        "n": len(pieces),
        "tokens": tokens,
        "text": problems[0]["type"] if problems else None,
    }
    samples = [
        {"problem": number, "prompt": engine.tokenizer.decode(piece), "loss": -score.logprob / score.tokens}
        for number, (piece, score) in enumerate(zip(pieces, scores, strict=True))
    ]
    return figures, samples


def load() -> list[dict[str, Any]]:
    """Return the general text as records."""
    name, texts = general_text()
    return [{"instruction": text, "type": name} for text in texts]


TASK = LikelihoodTask("forgetting", source="forgetting", run=run, context=WINDOW + 2)
