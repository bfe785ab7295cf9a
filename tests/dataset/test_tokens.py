"""Tokenisation: targets are labelled and complete, limits are kept, and batching changes nothing."""

import pytest
import torch
from transformers import AutoTokenizer

from dataset.arithmetic import generate
from dataset.templates import format_example
from dataset.tokens import calibration_batches, collate, encode_records
from utils.config import CalibrationConfig
from utils.errors import UserError


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    return AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture(scope="module")
def records():
    return generate("train", 60, 0)


@pytest.mark.parametrize("template", ["alpaca", "chat"])
def test_labels_are_exactly_the_target_and_the_prompt_is_what_evaluation_asks(tokenizer, records, template):
    encoded = encode_records(records, tokenizer, template, 512)
    assert (len(encoded.features), encoded.dropped, encoded.truncated) == (len(records), 0, 0)
    for record, feature in zip(records, encoded.features, strict=True):
        prompt, target = format_example(record, template, tokenizer)
        learned = feature["labels"] != -100
        assert tokenizer.decode(feature["labels"][learned]) == target
        assert feature["input_ids"][~learned].tolist() == tokenizer(prompt).input_ids
        assert feature["input_ids"][-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("max_length", [20, 52, 60, 75, 100, 140])
def test_prompts_are_never_cut_and_no_example_lacks_a_target(tokenizer, records, max_length):
    prompts = [len(tokenizer(format_example(r, "alpaca", tokenizer)[0]).input_ids) for r in records]
    if min(prompts) >= max_length:
        with pytest.raises(UserError, match=rf"data\.max_length: no example .* shorter than {max_length} tokens"):
            encode_records(records, tokenizer, "alpaca", max_length)
        return
    encoded = encode_records(records, tokenizer, "alpaca", max_length)
    assert encoded.dropped == sum(length >= max_length for length in prompts)
    kept = [length for length in prompts if length < max_length]
    for feature, length in zip(encoded.features, kept, strict=True):
        assert len(feature["input_ids"]) <= max_length
        assert (feature["labels"] == -100).sum() == length < len(feature["labels"])
    cut = [feature for feature in encoded.features if feature["input_ids"][-1] != tokenizer.eos_token_id]
    assert len(cut) == encoded.truncated
    if encoded.truncated < len(encoded.features):
        whole = encode_records(records, tokenizer, "alpaca", max_length, truncate=False)
        assert (whole.dropped, whole.truncated) == (encoded.dropped + encoded.truncated, 0)


def test_a_token_across_the_boundary_is_learned(tokenizer):
    """A target that merges with the prompt's last character must not lose its first token."""
    record = {"instruction": "Continue.", "output": "::: yes"}
    (feature,) = encode_records([record], tokenizer, "alpaca", 512).features
    prompt, target = format_example(record, "alpaca", tokenizer)
    assert tokenizer.decode(feature["input_ids"]) == prompt + target
    assert tokenizer.decode(feature["labels"][feature["labels"] != -100]).endswith(target)


@pytest.mark.parametrize("kind", [list, lambda row: torch.tensor(row, dtype=torch.int32)])
def test_collate_pads_and_masks(kind):
    features = [
        {"input_ids": kind([5, 6, 7]), "labels": kind([-100, 6, 7])},
        {"input_ids": kind([8]), "labels": kind([8])},
    ]
    batch = collate(features, pad_id=9)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]
    assert {value.dtype for value in batch.values()} == {torch.int64}


@pytest.mark.parametrize(("label", "dtype"), [(1, torch.int64), (2.5, torch.float32)])
def test_collate_stacks_classes_and_scores(label, dtype):
    labels = collate([{"input_ids": [5], "labels": label}, {"input_ids": [5, 6], "labels": label}], 9)["labels"]
    assert (labels.tolist(), labels.dtype) == ([label, label], dtype)


def samples(batches):
    rows = [row for b in batches for row in zip(b["input_ids"], b["attention_mask"], strict=True)]
    return [ids[mask.bool()].tolist() for ids, mask in rows]


def test_calibration_chooses_by_seed_alone_and_reads_the_training_text(tokenizer, records):
    def draw(batch_size, seed, **extra):
        wanted = CalibrationConfig(samples=24, max_length=256, seed=seed)
        return calibration_batches(records, tokenizer, "alpaca", wanted, batch_size, **extra)

    one = samples(draw(1, 7))
    labelled = draw(5, 7, labels=True)
    assert samples(labelled) == one and {"labels"} == set(labelled[0]) - set(draw(5, 7)[0])
    assert one == samples(draw(5, 7)) == samples(draw(24, 7)) != samples(draw(5, 8))
    trained = [f["input_ids"].tolist() for f in encode_records(records, tokenizer, "alpaca", 256).features]
    assert len(one) == 24
    assert all(sample in trained for sample in one)
    assert len({tuple(sample) for sample in one}) == 24
    assert [len(sample) for sample in one] == sorted(map(len, one), reverse=True)


def test_calibration_takes_what_there_is_and_refuses_nothing(tokenizer, records):
    wanted = CalibrationConfig(samples=9, max_length=256, batch_size=2)
    batches = calibration_batches(records[:3], tokenizer, "alpaca", wanted)
    assert [batch["input_ids"].shape[0] for batch in batches] == [2, 1]
    with pytest.raises(UserError, match="training set is empty"):
        calibration_batches([], tokenizer, "alpaca", wanted)
