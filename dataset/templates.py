"""Prompt templates: how an instruction becomes the text a model sees.

Calibration, training and evaluation all take their prompts from here, so a model is asked at test time exactly what it
was asked in training.

- `alpaca`: the text that MetaMath, PiSSA and the published Astra code train on. The target follows the prompt without
  a space and ends with a line break and the end-of-sequence token, as in PiSSA's `train.py`.
- `chat`: the tokenizer's own chat template.

All texts are meant for `tokenizer(text)` with its default special tokens: a beginning-of-sequence token that the
tokenizer adds by itself is not in the text.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from dataset.records import Record
from utils.errors import UserError

TemplateName = Literal["alpaca", "chat"]

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)


def format_prompt(
    record: Record,
    template: TemplateName,
    tokenizer: Any = None,
    response_prefix: str = "",
    chat: Mapping[str, Any] | None = None,
) -> str:
    """The prompt of a record: its `instruction`, or the turns of its `messages`, which need `chat`.

    The template `chat` needs a tokenizer that has one. `response_prefix` is put where the response begins (published
    evaluations use " Let's think step by step."); `chat` holds variables of the chat template, as `enable_thinking`.
    """
    if template == "alpaca":
        return ALPACA.format(instruction=record["instruction"]) + response_prefix
    return _render(_turns(record), tokenizer, add_generation_prompt=True, **(chat or {})) + response_prefix


def format_example(record: Record, template: TemplateName, tokenizer: Any) -> tuple[str, str]:
    """The prompt of a training record and the target that follows it, end of sequence included."""
    response, end = record["output"], tokenizer.eos_token or ""
    prompt = format_prompt(record, template, tokenizer)
    if template == "alpaca":
        return prompt, f"{response}\n{end}"
    rendered = _render(
        [*_turns(record), {"role": "assistant", "content": response}], tokenizer, add_generation_prompt=False
    )
    # The end of turn that the template puts after the response. Templates that open the response with markers of their
    # own (thinking, say) don't continue the prompt they render.
    target = rendered[len(prompt) :].rstrip() if rendered.startswith(prompt) else ""
    said, spoken = target.lstrip(), response.strip()  # many templates strip what is said
    return prompt, target if said.startswith(spoken) and said != spoken else response + end


def _turns(record: Record) -> list[dict[str, str]]:
    """All turns before the response."""
    return record.get("messages") or [{"role": "user", "content": record["instruction"]}]


def _render(turns: Sequence[Mapping[str, str]], tokenizer: Any, add_generation_prompt: bool, **chat: Any) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise UserError("data.template: this model's tokenizer has no chat template; allowed: alpaca")
    text = tokenizer.apply_chat_template(
        list(turns), tokenize=False, add_generation_prompt=add_generation_prompt, **chat
    )
    bos = tokenizer.bos_token
    adds_bos = bos is not None and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
    return text.removeprefix(bos) if adds_bos else text
