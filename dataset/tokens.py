"""Records to tensors: training examples, and the calibration batches made from the same text."""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from os.path import commonprefix
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dataset.records import Record
from dataset.templates import TemplateName, format_example
from utils.config import CalibrationConfig
from utils.errors import UserError
from utils.log import log

IGNORED = -100  # label of a token that no loss is taken on
_CHUNK = 1000  # records tokenised in one call: enough for the tokenizer's threads, little memory


@dataclass
class Encoded:
    """Tokenised records, and what the length limit did to the others.

    `features` are per record `input_ids` and `labels`, int32 tensors of one shape (tokens,); the prompt's labels are
    -100. For a classifier `labels` is the class, or a float32 score, of shape ().
    """

    features: list[dict[str, Tensor]] = field(default_factory=list)
    dropped: int = 0  # records whose prompt leaves no room for a target, or not enough for a whole one
    truncated: int = 0  # records whose target was cut (they then have no end-of-sequence token)


def encode_records(
    records: Iterable[Record],
    tokenizer: Any,
    template: TemplateName,
    max_length: int,
    limit: int | None = None,
    truncate: bool = True,
    setting: str = "data.max_length",
) -> Encoded:
    """Tokenise prompt + target of every record, or the text or two of a record with a `label`.

    Of at most `max_length` tokens the prompt is never cut: a record whose prompt alone reaches that is dropped, and a
    longer target is cut at the end, or, without `truncate`, its record dropped. So no example lacks a target. The text
    of a class is always cut. `limit` is the most features to return, `setting` what an error names.
    """
    encoded = Encoded()
    source = iter(records)
    while chunk := list(islice(source, limit or _CHUNK)):
        if "label" in chunk[0]:
            encoded.features += _encode_classes(chunk, tokenizer, max_length)
        else:
            _encode_targets(chunk, tokenizer, template, max_length, truncate, encoded)
        if limit is not None and len(encoded.features) >= limit:
            del encoded.features[limit:]
            break
    if not encoded.features:
        why = "no example has a prompt shorter than" if truncate else "every example has more than"
        raise UserError(f"{setting}: {why} {max_length} tokens; raise it")
    return encoded


def _encode_targets(
    records: Sequence[Record], tokenizer: Any, template: TemplateName, max_length: int, truncate: bool, into: Encoded
) -> None:
    pairs = [format_example(record, template, tokenizer) for record in records]
    prompts = tokenizer([prompt for prompt, _ in pairs], return_attention_mask=False)["input_ids"]
    # Prompt and target are tokenised together, as in the published code: alone, a target would get the word-start
    # marker that some tokenizers put at the beginning of every text.
    examples = tokenizer([prompt + target for prompt, target in pairs], return_attention_mask=False)["input_ids"]
    for prompt, ids in zip(prompts, examples, strict=True):
        start = len(commonprefix([prompt, ids]))  # a token that spans prompt and target counts as target
        if start >= max_length or (len(ids) > max_length and not truncate):
            into.dropped += 1
            continue
        into.truncated += len(ids) > max_length
        input_ids = torch.tensor(ids[:max_length], dtype=torch.int32)
        labels = input_ids.clone()
        labels[:start] = IGNORED
        into.features.append({"input_ids": input_ids, "labels": labels})


def _encode_classes(records: Sequence[Record], tokenizer: Any, max_length: int) -> Iterator[dict[str, Tensor]]:
    """One text or two per record, the longer one cut at its end."""
    texts = [record["text"] for record in records]
    pairs = [record["text_pair"] for record in records] if records[0]["text_pair"] is not None else None
    rows = tokenizer(texts, pairs, truncation=True, max_length=max_length, return_attention_mask=False)["input_ids"]
    for record, ids in zip(records, rows, strict=True):
        kind = torch.float32 if isinstance(record["label"], float) else torch.int32
        yield {"input_ids": torch.tensor(ids, dtype=torch.int32), "labels": torch.tensor(record["label"], dtype=kind)}


def collate(features: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, Tensor]:
    """Pad features, tensors or lists, on the right to the longest of them.

    Returns:
        `input_ids`, `attention_mask` and `labels`, int64 tensors of shape (batch, tokens); padding has mask 0 and
        label -100. Classes and scores are of shape (batch,), scores float32.
    """
    rows = [torch.as_tensor(feature["input_ids"]).long() for feature in features]
    labels = [torch.as_tensor(feature["labels"]) for feature in features]
    labels = [label if label.is_floating_point() else label.long() for label in labels]
    return {
        "input_ids": pad_sequence(rows, batch_first=True, padding_value=pad_id),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
        "labels": pad_sequence(labels, True, IGNORED) if labels[0].dim() else torch.stack(labels),
    }


def calibration_batches(
    records: Sequence[Record],
    tokenizer: Any,
    template: TemplateName,
    wanted: CalibrationConfig,
    batch_size: int | None = None,
    labels: bool = False,
) -> list[dict[str, Tensor]]:
    """Batches of `wanted.samples` training examples chosen by its seed, their text as training sees it.

    What is longer than `wanted.max_length` is cut, also where training leaves such records out (`data.truncate`).
    Every method that reads data at its start gets these. The choice depends on the records and the seed alone, never
    on `batch_size` (default: that of `wanted`). Examples of like length share a batch (little padding), the longest
    first (a lack of memory shows at once).

    Returns:
        Dicts of `input_ids`, `attention_mask` and, if asked for, `labels`; see `collate`.
    """
    if not records:
        raise UserError("calibration: the training set is empty; check data.train and data.limit")
    size, samples = batch_size or wanted.batch_size, wanted.samples
    order = random.Random(wanted.seed).sample(range(len(records)), len(records))
    chosen = (records[i] for i in order)
    key = "calibration.max_length"
    features = encode_records(chosen, tokenizer, template, wanted.max_length, samples, setting=key).features
    if len(features) < samples:
        log.warning("calibration: only %d of %d samples: the training set has no more", len(features), samples)
    features.sort(key=lambda feature: -len(feature["input_ids"]))  # stable: ties keep the order of choice
    batches = [collate(features[i : i + size], tokenizer.pad_token_id) for i in range(0, len(features), size)]
    return [{key: value for key, value in batch.items() if labels or key != "labels"} for batch in batches]
