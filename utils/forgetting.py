"""Forgetting: how much worse a model gets at text that has nothing to do with its training."""

import os
import pydoc_data.topics
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

WINDOW, WINDOWS, BATCH = 128, 16, 4


@torch.no_grad()
def text_loss(model: Any, tokenizer: Any, texts: Sequence[str]) -> float:
    """Return the mean loss per token, in nats, over 16 windows of 128 tokens spread evenly over the texts.

    Args:
        model: a causal language model, in whatever wrapping it trains; under ZeRO-3 every process must call this.
        tokenizer: its tokenizer.
        texts: joined into one stream of tokens.
    """
    ids = torch.tensor(tokenizer("\n\n".join(texts), add_special_tokens=False, verbose=False)["input_ids"])
    count = min(WINDOWS, len(ids) // WINDOW)
    starts = torch.linspace(0, len(ids) - WINDOW, count).long()
    windows = torch.stack([ids[start : start + WINDOW] for start in starts])
    was_training, total = model.training, 0.0
    model.eval()
    for batch in windows.split(BATCH):
        batch = batch.to(next(model.parameters()).device)
        logits = model(input_ids=batch, attention_mask=torch.ones_like(batch), use_cache=False).logits[:, :-1]
        total += F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten(), reduction="sum").item()
    model.train(was_training)
    return total / (count * (WINDOW - 1))


def general_text() -> tuple[str, list[str]]:
    """Return a name and text to measure forgetting on: WikiText-2's test set, or without the hub Python's manual."""
    return _wikitext() or (
        "python-manual",
        [pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics)],
    )


def _wikitext() -> tuple[str, list[str]] | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    file = "wikitext-2-raw-v1/test-00000-of-00001.parquet"
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0") or not _hub_reachable()
    try:
        path = hf_hub_download("Salesforce/wikitext", file, repo_type="dataset", local_files_only=offline)
    except (OSError, HfHubHTTPError):
        return None
    from datasets import Dataset

    return "wikitext-2", Dataset.from_parquet(path)["text"]


def _hub_reachable() -> bool:
    """Ask once, briefly: the hub's own client retries for minutes."""
    from huggingface_hub.constants import ENDPOINT

    try:
        with urllib.request.urlopen(urllib.request.Request(ENDPOINT, method="HEAD"), timeout=3):
            return True
    except urllib.error.HTTPError as error:  # it answers
        return error.code < 500
    except OSError:
        return False
