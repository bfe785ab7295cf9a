"""Compare this project's train step with a plain Trainer and PEFT LoRA step, alternating, on real records.

    python benchmarks/training.py --data-dir ../data

Both take the same examples in a turn, and as many a step, through the same adapter. Plain: random micro-batches
padded to the longest of them, logits and loss at every position. Ours: micro-batches of similar length, logits only
where a label is. The last line is one JSON object: `speedup_examples` (examples a second, ours over plain, the median
over rounds), `peak_memory_ratio` (ours over plain, in a step of two micro-batches, each in a process of its own),
`startup_overhead` (what making an astra adapter takes longer than a lora one, as a share of 100 of our steps;
calibration apart) and `untouched_base_step_ratio`: a step of the adapter that leaves the base alone over one of the
form that takes s B0 A0 out of it, on 8 x 128 tokens, the median of alternating pairs, the worse of ranks 8 and 128.
Padding is saved within a step: the more examples a step has, the more alike are those of a micro-batch, and the larger
the micro-batches, the more padding there was to save.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments  # noqa: E402
from transformers.trainer_callback import PrinterCallback  # noqa: E402

from astra.adapter import as_matrix, attach, lora_layers  # noqa: E402
from astra.store import Calibration, LayerInfo  # noqa: E402
from benchmarks.provenance import provenance  # noqa: E402
from dataset.sources import load_training  # noqa: E402
from dataset.tokens import collate, encode_records  # noqa: E402
from training.trainer import RunTrainer  # noqa: E402
from utils.config import DataConfig, ModelConfig  # noqa: E402
from utils.models import load_tokenizer, resolve_model  # noqa: E402
from utils.runs import peak_memory  # noqa: E402

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK = 16
DTYPE = torch.bfloat16 if torch.cuda.is_available() else torch.float32


class Examples(list[dict[str, Any]]):
    """Tokenised records in a fixed order."""

    @property
    def lengths(self) -> list[int]:
        return [len(row["input_ids"]) for row in self]


class Clock(TrainerCallback):
    """Seconds from the first step's start to the last step's end."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self.started


def arguments(folder: str, flags: argparse.Namespace) -> TrainingArguments:
    """The same arguments for both."""
    return TrainingArguments(
        output_dir=folder, per_device_train_batch_size=flags.micro_batch,
        gradient_accumulation_steps=flags.batch // flags.micro_batch, max_steps=flags.steps, learning_rate=1e-4,
        save_strategy="no", report_to="none", disable_tqdm=True, remove_unused_columns=False,
        train_sampling_strategy="sequential", use_cpu=not torch.cuda.is_available(),
        bf16=torch.cuda.is_available(), dataloader_pin_memory=torch.cuda.is_available(),
    )  # fmt: skip


def run_steps(kind: str, model: Any, rows: list[dict[str, Any]], flags: argparse.Namespace) -> float:
    """Train some steps one way or the other and return the seconds they took."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        common: dict[str, Any] = {"model": model, "args": arguments(folder, flags), "callbacks": [clock]}
        trainer: Trainer
        if kind == "ours":
            trainer = RunTrainer(settings={}, pad_id=flags.pad_id, train_dataset=Examples(rows), **common)
        else:
            shuffled = Examples(random.Random(0).sample(rows, len(rows)))
            trainer = Trainer(train_dataset=shuffled, data_collator=partial(collate, pad_id=flags.pad_id), **common)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.seconds


def load_rows(flags: argparse.Namespace) -> list[dict[str, Any]]:
    """Real GSM8K training records, a fresh share of them for every round."""
    limit = flags.rounds * flags.steps * flags.batch
    data = DataConfig.model_validate({"train": "gsm8k", "dir": flags.data_dir, "limit": limit})
    encoded = encode_records(load_training(data), flags.tokenizer, "alpaca", 512)
    return [{key: value.tolist() for key, value in feature.items()} for feature in encoded.features]


def base_model(flags: argparse.Namespace) -> Any:
    """The base model, its first layers only if asked."""
    model = AutoModelForCausalLM.from_pretrained(flags.model, dtype=DTYPE)
    if flags.layers:
        model.model.layers = model.model.layers[: flags.layers]
        model.config.num_hidden_layers = flags.layers
    placed: Any = model
    return placed.to("cuda" if torch.cuda.is_available() else "cpu")


def lora(model: Any) -> Any:
    return get_peft_model(model, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS, task_type="CAUSAL_LM"))


def startup_seconds(flags: argparse.Namespace) -> tuple[float, float]:
    """Seconds to make an astra adapter from a store on disk, and a lora adapter, the least of three each."""
    model = base_model(flags)
    with tempfile.TemporaryDirectory() as folder:
        random_store(model, RANK).save(folder)
        astra, plain = [], []
        for _ in range(3):
            model, started = base_model(flags), time.perf_counter()
            attach(model, Calibration.load(folder), LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS))
            astra.append(time.perf_counter() - started)
            model, started = base_model(flags), time.perf_counter()
            lora(model)
            plain.append(time.perf_counter() - started)
    return min(astra), min(plain)


def random_store(model: Any, rank: int) -> Calibration:
    """A calibration of random orthonormal vectors: making an adapter of it costs what a real one's does."""
    layers, table, spectra = {}, {}, {}
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] in TARGETS:
            m, n = module.weight.shape
            layers[name] = LayerInfo(name, (m, n), False, "input", name, 1, min(m, n), min(m, n), 1.0, 1.0)
            table[name] = torch.linalg.qr(torch.randn(m, rank))[0]
            spectra[name] = torch.zeros(m, dtype=torch.float64)
    return Calibration(layers, rank, ("tail",), {}, {"tail": table, "spectra": spectra})


def residual_form(model: Any, rank: int, store: Calibration) -> Any:
    """The adapter that trains A and B themselves, with what they start from taken out of the base weight."""
    adapted = get_peft_model(model, LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS))
    for name, layer in lora_layers(adapted):
        weight, q = as_matrix(layer.get_base_layer()), store.vectors(name, "tail", rank)
        a, b = layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data
        b.copy_(q)
        a.copy_(b.T @ weight.float())
        weight.sub_((b @ a).to(weight))
    return adapted


def untouched_base_step_ratio(flags: argparse.Namespace, rank: int) -> list[float]:
    """Seconds of our step over the residual form's, of pairs whose order alternates."""
    model = base_model(flags)
    store, device = random_store(model, rank), next(model.parameters()).device
    ours = attach(model, store, LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS))
    models = {"ours": ours, "residual": residual_form(base_model(flags), rank, store)}
    steps = {}
    for kind, adapted in models.items():
        trained = [parameter for parameter in adapted.train().parameters() if parameter.requires_grad]
        steps[kind] = (adapted, torch.optim.AdamW(trained, lr=1e-4))
    ratios = []
    for turn in range(flags.pairs + 2):
        ids = torch.randint(len(flags.tokenizer), (8, 128), generator=torch.Generator().manual_seed(turn)).to(device)
        seconds = {}
        for kind in ("ours", "residual") if turn % 2 else ("residual", "ours"):
            adapted, optimizer = steps[kind]
            started = time.perf_counter()
            adapted(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[kind] = time.perf_counter() - started
        if turn >= 2:  # the first ones warm up
            ratios.append(seconds["ours"] / seconds["residual"])
    return ratios


def peak_of(kind: str) -> int:
    """Peak memory of a process that only loads the model and trains one way."""
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", kind]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(json.loads(output.splitlines()[-1])["peak_memory_bytes"])


def worker(flags: argparse.Namespace) -> dict[str, Any]:
    flags.steps, flags.batch = 1, 2 * flags.micro_batch
    rows = load_rows(flags)[: flags.batch]
    run_steps(flags.worker, lora(base_model(flags)), rows, flags)
    return {"peak_memory_bytes": peak_memory()}


def compare(flags: argparse.Namespace) -> dict[str, Any]:
    """Alternate the two over fresh records and put the figures together."""
    # First of all: on Linux a process starts with the peak of its parent, so this one must not have grown yet.
    memory = {kind: peak_of(kind) for kind in ("plain", "ours")}
    rows, model = load_rows(flags), lora(base_model(flags))
    share, ratios = flags.steps * flags.batch, []
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    for turn in range(flags.rounds):
        part = rows[turn * share : (turn + 1) * share]
        for kind in ("plain", "ours") if turn % 2 else ("ours", "plain"):
            seconds[kind].append(run_steps(kind, model, part, flags))
        ratios.append(seconds["plain"][-1] / seconds["ours"][-1])
        print(
            f"round {turn + 1}: plain {seconds['plain'][-1]:.1f} s, ours {seconds['ours'][-1]:.1f} s", file=sys.stderr
        )
    del model
    step = statistics.median(seconds["ours"]) / flags.steps
    astra, plain = startup_seconds(flags)
    pairs = {rank: untouched_base_step_ratio(flags, rank) for rank in (8, 128)}
    medians = {rank: statistics.median(found) for rank, found in pairs.items()}
    return {
        **provenance(f"{flags.name}, {str(DTYPE).removeprefix('torch.')}", "GSM8K train"),
        "speedup_examples": round(statistics.median(ratios), 3),
        "speedup_spread": [round(min(ratios), 3), round(max(ratios), 3)],
        "peak_memory_ratio": round(memory["ours"] / memory["plain"], 3),
        "peak_memory_bytes": memory,
        "startup_overhead": round((astra - plain) / (100 * step), 5),
        "startup_seconds": {"astra": round(astra, 3), "lora": round(plain, 3)},
        "untouched_base_step_ratio": round(max(medians.values()), 3),
        "untouched_base_step_ratios": {
            str(rank): {"median": round(medians[rank], 3), "spread": [round(min(found), 3), round(max(found), 3)]}
            for rank, found in pairs.items()
        },
        "seconds_a_step": {kind: round(statistics.median(found) / flags.steps, 3) for kind, found in seconds.items()},
        "settings": {"batch": flags.batch, "micro_batch": flags.micro_batch, "steps": flags.steps,
                     "rounds": flags.rounds, "layers": flags.layers or "all", "rank": RANK, "pairs": flags.pairs},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="model folder, hub id, or smollm2")
    parser.add_argument("--data-dir", help="local mirror of GSM8K; default: the hub")
    parser.add_argument("--batch", type=int, default=128, help="examples in a step")
    parser.add_argument("--micro-batch", type=int, default=8, help="examples in a forward pass")
    parser.add_argument("--steps", type=int, default=1, help="steps in a turn")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each")
    parser.add_argument("--pairs", type=int, default=20, help="pairs of steps at each rank")
    parser.add_argument("--layers", type=int, default=0, help="keep the first N layers of the model (0: all)")
    parser.add_argument("--worker", choices=["ours", "plain"], help=argparse.SUPPRESS)
    flags = parser.parse_args()
    flags.name, source = flags.model.rsplit("/", 1)[-1], ModelConfig.model_validate({"name": flags.model})
    flags.model, flags.tokenizer = str(resolve_model(source)), load_tokenizer(source)
    flags.pad_id = flags.tokenizer.pad_token_id
    print(json.dumps(worker(flags) if flags.worker else compare(flags)))


if __name__ == "__main__":
    main()
