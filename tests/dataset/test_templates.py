"""Prompts: the published alpaca text, the tokenizer's own chat template, and no doubled special tokens."""

from copy import deepcopy

import pytest
from transformers import AutoTokenizer

from dataset.templates import format_example, format_prompt
from utils.errors import UserError


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    return AutoTokenizer.from_pretrained(smollm2)


RECORD = {"instruction": "Add 2 and {3}.", "output": "5"}


def test_alpaca_is_the_published_text_and_leaves_braces_alone(tokenizer):
    prompt = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nAdd 2 and {3}.\n\n### Response:"
    )
    assert format_prompt(RECORD, "alpaca") == prompt
    assert format_prompt(RECORD, "alpaca", response_prefix=" Let's") == prompt + " Let's"
    assert format_example(RECORD, "alpaca", tokenizer) == (prompt, "5\n<|im_end|>")


def test_chat_uses_the_tokenizers_template_and_ends_the_turn_once(tokenizer):
    prompt, target = format_example(RECORD, "chat", tokenizer)
    assert prompt == format_prompt(RECORD, "chat", tokenizer)
    assert prompt.endswith("<|im_start|>user\nAdd 2 and {3}.<|im_end|>\n<|im_start|>assistant\n")
    assert target == "5<|im_end|>"


def test_a_template_that_strips_the_response_ends_the_turn_too(tokenizer):
    strict = deepcopy(tokenizer)
    strict.chat_template = tokenizer.chat_template.replace("message['content']", "message['content'] | trim")
    assert strict.chat_template != tokenizer.chat_template
    prompt, target = format_example({**RECORD, "output": "5\n"}, "chat", strict)
    assert prompt == format_prompt(RECORD, "chat", strict) and target == "5<|im_end|>"


def test_a_conversation_keeps_its_turns(tokenizer):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
    ]
    record = {"instruction": "Bye", "output": "See you", "messages": turns}
    prompt, target = format_example(record, "chat", tokenizer)
    assert prompt == format_prompt(record, "chat", tokenizer)
    assert [prompt.index(turn["content"]) for turn in turns] == sorted(prompt.index(t["content"]) for t in turns)
    assert target == "See you<|im_end|>"


def test_chat_needs_a_template(tokenizer):
    bare = deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(UserError, match="no chat template; allowed: alpaca"):
        format_prompt(RECORD, "chat", bare)


def test_a_beginning_token_that_the_tokenizer_adds_is_not_in_the_text(tokenizer):
    from tokenizers.processors import TemplateProcessing

    adding = deepcopy(tokenizer)
    adding.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", adding.bos_token_id)]
    )
    ids = adding(format_prompt(RECORD, "chat", adding)).input_ids
    assert ids == tokenizer(format_prompt(RECORD, "chat", tokenizer)).input_ids
