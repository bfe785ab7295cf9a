"""The vLLM engine: all prompts at once, continuous batching, prefix caching, adapters through `LoRARequest`.

On a GPU vLLM's own defaults are used. On a CPU its defaults are made for servers, and on a small machine they waste
most of it; `_cpu_settings` says what is changed and why.
"""

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from astra.ranks import served_rank
from eval.candidates import Adapter
from eval.engines import Engine, Output, Pair, Prompt, Score, engine_version
from utils.config import EvalConfig
from utils.errors import UserError

CPU_SEQUENCES = 64
LORAS = 4  # adapters in one batch: more take memory of their own and end no sooner


class VllmEngine(Engine):
    """See `eval.engines.Engine`. A `UserError` says that vLLM is not installed, refuses the model, or can't start."""

    def __init__(self, model: Path, config: EvalConfig, dtype: str, adapters: Sequence[Adapter], context: int) -> None:
        # vLLM sets up its logging when it is imported, hence the late import.
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        try:
            from vllm import LLM
            from vllm.platforms import current_platform
        except ImportError as error:
            text = f"eval.engine: vllm can't be imported ({error}); install it or set transformers"
            raise UserError(text) from error
        cores, self._on_cpu = os.sched_getaffinity(0), current_platform.is_cpu()
        settings: dict[str, Any] = {
            "gpu_memory_utilization": config.gpu_memory_utilization,
            "tensor_parallel_size": config.tensor_parallel_size or 1,
        }
        if self._on_cpu:
            settings = _cpu_settings(model, dtype, context, bool(adapters))
        else:  # its default is a fork, which fails where anything has asked CUDA for its devices before
            os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        if adapters:
            rank = served_rank(max(adapter.rank for adapter in adapters))
            settings |= {"enable_lora": True, "max_lora_rank": rank, "max_loras": min(len(adapters), LORAS)}
        try:
            self._llm = LLM(
                str(model),
                dtype=dtype,  # type: ignore[arg-type]
                seed=config.seed,
                max_model_len=context,
                enable_prefix_caching=True,
                disable_log_stats=True,
                use_tqdm_on_load=False,
                **settings,
            )
        except (ValueError, RuntimeError) as error:
            why = " ".join(str(error).split())[:300]
            if "ngine core init" in why:  # the engine's process has printed its own error by now
                raise UserError(
                    f"eval.engine: vllm can't start ({why}); its error is above. Out of memory: lower "
                    "eval.gpu_memory_utilization; several GPUs: set eval.tensor_parallel_size"
                ) from error
            if isinstance(error, (ValueError, NotImplementedError)):
                raise UserError(f"eval.engine: vllm can't serve {model} ({why})") from error
            raise
        # Binding its threads to cores also binds this one; graders started from here need all cores.
        os.sched_setaffinity(0, cores)
        self.tokenizer = self._llm.get_tokenizer()
        self._context, self._dtype, self._settings = context, dtype, settings
        self._ids: dict[str, int] = {}

    def generate(self, prompts: Mapping[int, Prompt]) -> Iterator[tuple[int, list[Output]]]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        requests = {}
        for number, prompt in prompts.items():
            ids, sampling = self.tokenizer(prompt.text)["input_ids"], prompt.sampling
            room = self._context - len(ids)
            if room < 1:
                yield number, [Output("", 0, "too_long")] * sampling.n
                continue
            params = SamplingParams(
                n=sampling.n,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=min(sampling.max_new_tokens, room),
                stop=list(sampling.stop),
                seed=sampling.seed_of(prompt.text) if sampling.temperature else None,
                # The n texts of a prompt come together, when the last is done; otherwise each comes by itself.
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            requests[number] = (prompt.adapter, ids, params)
        for number, finished in self._finish(requests):
            outputs = sorted(finished.outputs, key=lambda out: out.index)
            yield number, [Output(out.text, len(out.token_ids), out.finish_reason or "stop") for out in outputs]

    def score(self, pairs: Mapping[int, Pair]) -> Iterator[tuple[int, Score]]:
        from vllm import SamplingParams

        # prompt_logprobs=0: the log-probability and rank of each prompt token itself. One token must be generated.
        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        groups: dict[Adapter | None, dict[int, Any]] = {}
        for number, pair in pairs.items():
            ids = [*pair.prefix, *pair.continuation][-(self._context - 1) :]
            # On a CPU the log-probabilities of prompts need batches of one adapter.
            group = groups.setdefault(pair.adapter if self._on_cpu else None, {})
            group[number] = (pair.adapter, ids, params)
        for group in groups.values():
            for number, finished in self._finish(group):
                tokens = min(len(pairs[number].continuation), len(finished.prompt_token_ids) - 1)
                ids = finished.prompt_token_ids[-tokens:]
                entries = [entry[token] for entry, token in zip(finished.prompt_logprobs[-tokens:], ids, strict=True)]
                pair, kept = pairs[number], len(finished.prompt_token_ids)
                cut = len(pair.prefix) + len(pair.continuation) - kept
                yield number, Score(sum(e.logprob for e in entries), tokens, all(e.rank == 1 for e in entries), cut)

    def _finish(self, requests: Mapping[int, tuple[Adapter | None, list[int], Any]]) -> Iterator[Any]:
        """Hand all requests to vLLM, those of one adapter and with one prefix side by side; yield each as it ends."""
        engine = self._llm.llm_engine
        loras = {adapter: self._lora_request(adapter) for adapter, _, _ in requests.values()}
        order = {adapter: place for place, adapter in enumerate(loras)}
        for number in sorted(requests, key=lambda number: (order[requests[number][0]], requests[number][1])):
            adapter, ids, params = requests[number]
            engine.add_request(str(number), {"prompt_token_ids": ids}, params, lora_request=loras[adapter])
        pending = {str(number) for number in requests}
        try:
            while engine.has_unfinished_requests():
                for finished in engine.step():
                    if finished.finished:
                        pending.discard(finished.request_id)
                        yield int(finished.request_id), finished
        finally:
            if pending:
                engine.abort_request(list(pending))

    def _lora_request(self, adapter: Adapter | None) -> Any:
        if adapter is None:
            return None
        from vllm.lora.request import LoRARequest

        number = self._ids.setdefault(adapter.fingerprint, len(self._ids) + 1)
        return LoRARequest(adapter.fingerprint, number, str(adapter.path))

    def describe(self) -> dict[str, Any]:
        return {
            "name": "vllm",
            "version": engine_version("vllm"),
            "dtype": self._dtype,
            "context": self._context,
            **{key: self._settings[key] for key in ("tensor_parallel_size", "max_lora_rank") if key in self._settings},
        }

    def __exit__(self, *_: object) -> None:
        from vllm.distributed import cleanup_dist_env_and_memory

        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        gc.collect()
        cleanup_dist_env_and_memory()


def _cpu_settings(model: Path, dtype: str, context: int, lora: bool) -> dict[str, Any]:
    """What a small CPU machine needs, leaving alone what the user has set in the environment."""
    if lora:
        from eval.engines import cpu_lora

        cpu_lora.install()
    # By default one core is kept for a KV-transfer thread that nothing here uses.
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", cores)
    # In this process: two others would each import vLLM again, and would outlive this one when it is killed.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    settings: dict[str, Any] = {
        "distributed_executor_backend": "uni",
        "max_num_seqs": CPU_SEQUENCES,
        # Compiling takes two minutes, more than most evaluations on a CPU.
        "enforce_eager": True,
    }
    if "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
        settings["kv_cache_memory_bytes"] = _cache_bytes(model, dtype, context)
    return settings


def _cache_bytes(model: Path, dtype: str, context: int) -> int:
    """Return room for the keys and values of a full batch, at most a third of the free memory."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model).get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token = 2 * config.num_hidden_layers * heads * width * (4 if dtype == "float32" else 2)
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(min((CPU_SEQUENCES + 1) * (context + 128) * token, free // 3), (context + 128) * token)
