"""One of our engines as a model of lm-eval (EleutherAI), so that its tasks run without a second engine."""

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM

from eval.engines import Engine, Sampling, Score
from eval.likelihood import Pair, Scorer


class EngineLM(TemplateLM):
    """Likelihoods through `scorer`, texts through the engine.

    Args:
        engine: An open engine.
        scorer: From (prefix ids, continuation ids) to scores; default: the engine's bare base model.
    """

    def __init__(self, engine: Engine, scorer: Scorer | None = None) -> None:
        super().__init__()
        self.engine = engine
        self.tokenizer = engine.tokenizer
        self.scorer = scorer or self._score

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        if add_special_tokens is None:
            bos = self.tokenizer.bos_token
            add_special_tokens = not (bos and string.startswith(bos))
        return self.tokenizer(string, add_special_tokens=add_special_tokens)["input_ids"]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=True)  # our own bar is enough

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        scores = self.scorer([(prefix, continuation) for _, prefix, continuation in requests])
        return [(score.logprob, score.greedy) for score in scores]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Score whole texts in windows of the context that overlap by one token, as lm-eval does."""
        width = self.engine.context - 2
        pairs, owners = [], []
        for place, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for start in range(0, len(ids), width):
                before = ids[start - 1 : start] or [self.prefix_token_id]
                pairs.append((before, ids[start : start + width]))
                owners.append(place)
        totals = [0.0] * len(requests)
        for owner, score in zip(owners, self.scorer(pairs), strict=True):
            totals[owner] += score.logprob
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Generate up to the task's stop strings; requests with the same settings go to the engine at once."""
        texts = [""] * len(requests)
        groups: dict[Sampling, dict[int, str]] = {}
        for place, request in enumerate(requests):
            prompt, settings = request.args
            stop = settings.get("until") or []
            sampling = Sampling(
                settings.get("max_gen_toks", 256),
                tuple([stop] if isinstance(stop, str) else stop),
                temperature=settings.get("temperature", 0.0) if settings.get("do_sample") else 0.0,
            )
            groups.setdefault(sampling, {})[place] = prompt
        for sampling, prompts in groups.items():
            for place, outputs in self.engine.generate(prompts, sampling):
                texts[place] = outputs[0].text
        return texts

    def _score(self, pairs: Sequence[Pair]) -> list[Score]:
        found = dict(self.engine.score(dict(enumerate(pairs))))
        return [found[number] for number in range(len(pairs))]
