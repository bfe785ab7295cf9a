"""The transformers engine: batched, left-padded generation with the model's own KV cache."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig

from eval.candidates import Adapter
from eval.engines import Engine, Output, Pair, Prompt, Request, Sampling, Score
from utils.config import EvalConfig
from utils.models import tokenizer_in


class TransformersEngine(Engine):
    """See `eval.engines.Engine`. Sampled texts are reproducible for the same prompts in the same batches only."""

    def __init__(self, base: Any, tokenizer: Any, batch_size: int, context: int) -> None:
        self._base, self.tokenizer, self._batch_size, self._context = base.eval(), tokenizer, batch_size, context
        self._peft: Any = None
        self._device = base.device
        # Padding is masked, so that any token serves.
        self._pad = next(k for k in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if k is not None)
        # A model may come with a repetition penalty and more, which `generate` would apply and vLLM doesn't.
        self._given = base.generation_config
        base.generation_config = GenerationConfig(eos_token_id=self._given.eos_token_id, pad_token_id=self._pad)

    @classmethod
    def load(cls, model: Path, config: EvalConfig, dtype: str, context: int) -> "TransformersEngine":
        base: Any = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(base.to(device), tokenizer_in(model), config.batch_size, context)

    @torch.inference_mode()
    def generate(self, prompts: Mapping[int, Prompt]) -> Iterator[tuple[int, list[Output]]]:
        encoded = {number: self.tokenizer(prompt.text)["input_ids"] for number, prompt in prompts.items()}
        fitting = {number: ids for number, ids in encoded.items() if len(ids) < self._context}
        for number in encoded.keys() - fitting.keys():
            yield number, [Output("", 0, "too_long")] * prompts[number].sampling.n
        for model, batch in self._batches(prompts, fitting):
            first = prompts[batch[0]]
            outputs = self._generate(model, [encoded[number] for number in batch], first)
            yield from zip(batch, outputs, strict=True)

    def _generate(self, model: Any, batch: list[list[int]], first: Prompt) -> list[list[Output]]:
        ids, mask = self._pad_left(batch)
        sampling = first.sampling
        choice: dict[str, Any] = {"do_sample": False}
        if sampling.temperature:
            torch.manual_seed(sampling.seed_of(first.text))
            choice = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        made = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=min(sampling.max_new_tokens, self._context - ids.shape[1]),
            num_return_sequences=sampling.n,
            stop_strings=list(sampling.stop) or None,
            tokenizer=self.tokenizer,
            **choice,
        )
        outputs = [self._output(row.tolist(), sampling, model) for row in made[:, ids.shape[1] :]]
        return [outputs[k : k + sampling.n] for k in range(0, len(outputs), sampling.n)]

    def _output(self, ids: list[int], sampling: Sampling, model: Any) -> Output:
        """Cut one row of a batch at its end token or stop string; the rest is padding."""
        ends = model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        end = next((k for k, token in enumerate(ids) if token in ends), None)
        finish = "length" if end is None else "stop"
        ids = ids if end is None else ids[:end]
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        places = [place for stop in sampling.stop if (place := text.find(stop)) >= 0]
        if not places:
            return Output(text, len(ids) + (end is not None), finish)
        texts = (self.tokenizer.decode(ids[:k], skip_special_tokens=True) for k in range(1, len(ids) + 1))
        used = next(k for k, made in enumerate(texts, 1) if any(stop in made for stop in sampling.stop))
        return Output(text[: min(places)], used, "stop")

    @torch.inference_mode()
    def score(self, pairs: Mapping[int, Pair]) -> Iterator[tuple[int, Score]]:
        cut = {n: [*pair.prefix, *pair.continuation][-(self._context - 1) :] for n, pair in pairs.items()}
        for model, batch in self._batches(pairs, cut):
            ids, mask = self._pad_left([cut[number] for number in batch])
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
            for row, number in enumerate(batch):
                tokens = min(len(pairs[number].continuation), len(cut[number]) - 1)
                chosen = ids[row, -tokens:]
                logprobs = logits[row, -tokens - 1 : -1].float().log_softmax(-1)
                total = logprobs.gather(1, chosen[:, None]).double().sum().item()
                lost = len(pairs[number].prefix) + len(pairs[number].continuation) - len(cut[number])
                yield number, Score(total, tokens, bool((logprobs.argmax(-1) == chosen).all()), lost)

    def _batches(
        self, requests: Mapping[int, Request], ids: Mapping[int, list[int]]
    ) -> Iterator[tuple[Any, list[int]]]:
        """Yield batches of the requests in `ids`, with their model: of one adapter, one sampling, and like length."""
        groups: dict[tuple[Adapter | None, Sampling], list[int]] = {}
        for number in ids:
            request = requests[number]
            sampling = request.sampling if isinstance(request, Prompt) else Sampling(0)
            groups.setdefault((request.adapter, sampling), []).append(number)
        for (adapter, sampling), numbers in groups.items():
            model, size = self._with(adapter), max(self._batch_size // sampling.n, 1)
            numbers.sort(key=lambda number: len(ids[number]))  # little padding
            for start in range(0, len(numbers), size):
                yield model, numbers[start : start + size]

    def _pad_left(self, batch: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return int64 token ids and attention mask, both (batch, longest)."""
        width = max(map(len, batch))
        ids = torch.tensor([[self._pad] * (width - len(row)) + row for row in batch], device=self._device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch], device=self._device)
        return ids, mask

    def _with(self, adapter: Adapter | None) -> Any:
        """The base model with only `adapter` on it, loading the adapter when first asked for."""
        from peft import PeftModel

        if self._peft is None:
            if adapter is None:
                return self._base
            self._peft = PeftModel.from_pretrained(self._base, adapter.path, adapter_name=adapter.fingerprint).eval()
        if adapter is None:
            self._peft.base_model.disable_adapter_layers()
            return self._peft
        if adapter.fingerprint not in self._peft.peft_config:
            self._peft.load_adapter(adapter.path, adapter_name=adapter.fingerprint)
        self._peft.base_model.enable_adapter_layers()
        self._peft.set_adapter(adapter.fingerprint, inference_mode=True)
        return self._peft

    def describe(self) -> dict[str, Any]:
        return {
            "name": "transformers",
            "version": transformers.__version__,
            "dtype": str(self._base.dtype).removeprefix("torch."),
            "context": self._context,
            "batch_size": self._batch_size,
        }

    def __exit__(self, *_: object) -> None:
        self._base.generation_config = self._given
        self._base = self._peft = None
