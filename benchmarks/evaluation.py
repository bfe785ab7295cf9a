"""Generated tokens a second of the vLLM engine against the transformers engine, and what grading costs.

    python benchmarks/evaluation.py --json

64 GSM8K test problems a round, others each time (vLLM remembers prompts), greedy, up to 160 new tokens each, SmolLM2,
both engines in one process and in turn. The transformers engine has its best batch size, found beforehand on shorter
texts. Without --data-dir's mirror GSM8K comes
from the hub. The last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

from dataset.sources import load_evaluation  # noqa: E402
from dataset.templates import format_prompt  # noqa: E402
from eval.engines import Engine, Sampling, open_engine  # noqa: E402
from eval.tasks import STOP, get_task  # noqa: E402
from utils.config import EvalConfig, ModelConfig  # noqa: E402
from utils.models import resolve_model, usable_dtype  # noqa: E402
from utils.runs import commit  # noqa: E402

CONTEXT = 512


def config(engine: str, batch_size: int = 16) -> EvalConfig:
    """Return the evaluation settings of an engine."""
    return EvalConfig.model_validate({"engine": engine, "batch_size": batch_size})


def measure(engine: Engine, prompts: dict[int, str], tokens: int) -> tuple[float, float, dict[int, str]]:
    """Return generated tokens, seconds and texts of one pass over the prompts."""
    started = time.perf_counter()
    outputs = dict(engine.generate(prompts, Sampling(tokens, STOP)))
    seconds = time.perf_counter() - started
    made = sum(output.tokens for (output,) in outputs.values())
    return made, seconds, {number: output.text for number, (output,) in outputs.items()}


def batch_size_rates(
    model: Path, dtype: str, prompts: dict[int, str], sizes: list[int], tokens: int
) -> dict[int, float]:
    """Return the transformers engine's tokens a second at each batch size."""
    rates = {}
    for size in sizes:
        with open_engine(model, config("transformers", size), dtype, [], CONTEXT) as engine:
            made, seconds, _ = measure(engine, prompts, tokens)
            rates[size] = made / seconds
            print(f"transformers, batch size {size}: {rates[size]:.1f} tokens/s", flush=True)
    return rates


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Measure both engines in turn and return the figures."""
    model = resolve_model(ModelConfig.model_validate({"name": given.model}))
    dtype = given.dtype or usable_dtype("bfloat16")
    problems = load_evaluation("gsm8k", given.data_dir)[: given.prompts * given.rounds]
    texts_of = [format_prompt(problem["instruction"], "alpaca") for problem in problems]
    rounds = [dict(enumerate(texts_of[k :: given.rounds])) for k in range(given.rounds)]
    sizes = batch_size_rates(model, dtype, rounds[0], given.batch_sizes, given.trial_tokens)
    best = max(sizes, key=lambda size: sizes[size])
    rates: dict[str, list[float]] = {"transformers": [], "vllm": []}
    texts: dict[str, dict[int, str]] = {}
    equal = []
    with (
        open_engine(model, config("transformers", best), dtype, [], CONTEXT) as slow,
        open_engine(model, config("vllm"), dtype, [], CONTEXT) as fast,
    ):
        for prompts in rounds:
            for name, engine in (("transformers", slow), ("vllm", fast)):
                made, seconds, texts[name] = measure(engine, prompts, given.new_tokens)
                rates[name].append(made / seconds)
                print(f"{name}: {made} tokens in {seconds:.1f} s, {rates[name][-1]:.1f} a second", flush=True)
            equal += [texts["vllm"][k] == texts["transformers"][k] for k in prompts]
        version = fast.describe()["version"]
    started = time.perf_counter()
    last = problems[given.rounds - 1 :: given.rounds]
    get_task("gsm8k").judge(last, [[texts["vllm"][k]] for k in prompts], config("vllm"))
    grading = time.perf_counter() - started
    ratios = [fast / slow for fast, slow in zip(rates["vllm"], rates["transformers"], strict=True)]
    return {
        "speedup_tokens": statistics.median(ratios),
        "speedup_tokens_range": [min(ratios), max(ratios)],
        "grading_share": grading / (grading + seconds),
        "vllm_tokens_per_second": rates["vllm"],
        "transformers_tokens_per_second": rates["transformers"],
        "transformers_batch_sizes": sizes,
        "equal_texts": sum(equal) / len(equal),
        "dtype": dtype,
        "prompts": len(prompts),
        "new_tokens": given.new_tokens,
        "vllm": version,
        "machine": f"{len(os.sched_getaffinity(0))}-core {torch.backends.cpu.get_cpu_capability()} CPU"
        if not torch.cuda.is_available()
        else torch.cuda.get_device_name(),
        "load_average": os.getloadavg()[0],
        "commit": commit(),
        "command": " ".join(["python benchmarks/evaluation.py", *(word.rsplit("/", 1)[-1] for word in sys.argv[1:])]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="accepted for uniformity; the last line always is JSON")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: as python -m eval picks")
    parser.add_argument("--data-dir", help="local mirror with gsm8k/test.jsonl")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=160)
    parser.add_argument("--trial-tokens", type=int, default=32, help="new tokens while batch sizes are tried")
    parser.add_argument("--batch-sizes", type=lambda text: list(map(int, text.split(","))), default=[8, 16, 32, 64])
    parser.add_argument("--rounds", type=int, default=3)
    print(json.dumps(run(parser.parse_args())))


if __name__ == "__main__":
    main()
