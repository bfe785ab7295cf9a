"""General text: what forgetting is measured on, as windows of tokens. Training and evaluation take the same ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dataset.catalog import Source
from utils.config import Config
from utils.errors import UserError
from utils.files import fingerprint

WIKITEXT, MANUAL = "wikitext-2", "python-manual"
WINDOW, WINDOWS = 128, 256  # tokens of a window, and how many there are
_WIKITEXT = Source(
    WIKITEXT, "Salesforce/wikitext", lambda row: {"text": row["text"]}, 4_358, "text", "test",
    folder="wikitext-2-raw-v1",
)  # fmt: skip


@dataclass(frozen=True)
class GeneralText:
    """A text and its name: `wikitext-2`, `python-manual` (which differs between versions of Python), or a path."""

    name: str
    text: str

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that stand for the text."""
        return fingerprint(self.text)

    def windows(self, tokenizer: Any) -> list[Sequence[int]]:
        """Return the tokens of 256 windows of 128, spread evenly over the text without overlap."""
        ids = tokenizer(self.text, add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) < WINDOW * WINDOWS:
            raise _too_short(self.name, f"{len(ids):,} tokens")
        starts = [(len(ids) - WINDOW) * number // (WINDOWS - 1) for number in range(WINDOWS)]
        return [ids[start : start + WINDOW] for start in starts]


def measured_in_training(config: Config) -> bool:
    """Whether training measures the loss on general text; a classifier has no head for it."""
    return config.train.forgetting and config.model.task_type == "CAUSAL_LM"


def load_general_text(name: str) -> GeneralText:
    """Return the text of `data.general_text`."""
    if name == WIKITEXT:
        return GeneralText(name, "\n\n".join(record["text"] for record in _WIKITEXT.records(None)))
    if name == MANUAL:
        from pydoc_data.topics import topics

        return GeneralText(name, "\n\n".join(topics[topic] for topic in sorted(topics)))
    if not name.endswith(".txt"):
        raise UserError(f"data.general_text: no text {name!r}; allowed: {WIKITEXT}, {MANUAL}, the path of a .txt file")
    try:
        return GeneralText(name, Path(name).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"data.general_text: {name}: can't be read ({reason})") from error


def check_general_text(name: str) -> None:
    """Raise a `UserError` early unless the text can be read and may be long enough."""
    if name == WIKITEXT:
        _WIKITEXT.check(None)
    elif len((text := load_general_text(name).text).encode()) < WINDOW * WINDOWS:  # a token has a byte or more
        raise _too_short(name, f"{len(text):,} characters")


def _too_short(name: str, length: str) -> UserError:
    needed = f"{WINDOWS} windows of {WINDOW} tokens need {WINDOW * WINDOWS:,} tokens"
    return UserError(f"data.general_text: {name} has {length}; {needed}")
