"""Calibration, measured against a plain implementation on the same tokens, in one process, alternating.

    python benchmarks/calibration.py --model FOLDER --data train.jsonl --tokens 16384 --json

`forward` is the model's own uninterrupted pass; all else that a calibration runs counts as accumulation, but for its
decompositions. `plain` hooks every output, sums in float32 and decomposes every sum in full; `published` is the
authors' procedure (LyoAI/Astra, `init_astra.py`): one record at a time, padded to 512 tokens, through the whole model
with its loss, each output divided by its maximum, checked, multiplied and added; `peft` is what PEFT offers instead,
`preprocess_corda` and `initialize_lora_eva_weights` on the same tokens. Prints one JSON object as its last line.
Without --data the tokens are random; without --model the weights are, of --shape.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM  # noqa: E402

from astra import calibrate, calibration  # noqa: E402
from astra.forward import Forward  # noqa: E402
from astra.sharing import hooked  # noqa: E402
from astra.store import Calibration  # noqa: E402
from astra.sums import OuterSum  # noqa: E402
from astra.targets import find_targets, layer_shape, layer_weight  # noqa: E402
from benchmarks.provenance import provenance  # noqa: E402

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SHAPES = {"7b": (4096, 11008, 32, 32, 32), "135m": (576, 1536, 30, 9, 3), "tiny": (64, 160, 2, 4, 2)}
PUBLISHED_RECORDS, PUBLISHED_LENGTH = 64, 512
Batch = dict[str, Tensor]


@dataclass
class Timing:
    """Seconds by stage, one entry a repetition."""

    forward: list[float] = field(default_factory=list)
    accumulate: list[float] = field(default_factory=list)
    decompose: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        return {stage: statistics.median(values) for stage, values in vars(self).items() if values}


def main() -> None:
    arguments = parse()
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    model, tokenizer = load(arguments, device)
    batches = token_batches(arguments, model, tokenizer)
    ours, plain, floor = Timing(), Timing(), []
    for _ in range(arguments.repeats):
        floor.append(timed(device, lambda: bare(model, batches)))
        time_ours(model, batches, arguments, device, ours, floor[-1])
        if arguments.plain:
            time_plain(model, batches, device, plain, floor[-1])
    name = Path(arguments.model).name if arguments.model else f"random weights, shape {arguments.shape}"
    data = f"{arguments.data.parent.name}/{arguments.data.name}" if arguments.data else "random tokens"
    result = {
        **provenance(f"{name}, {arguments.dtype}", data),
        **report(model, ours, plain, floor, arguments),
    }
    if arguments.published:
        result.update(against_published(model, tokenizer, arguments, device))
    if arguments.peft:
        result.update(against_peft(model, batches, arguments, device))
    if arguments.sweep:
        result.update(sweep(model, batches, arguments, device))
    if arguments.oracle:
        result.update(precision(model, batches, arguments))
    if not arguments.json:
        for key, value in result.items():
            print(f"{key:32} {value}", file=sys.stderr)
    print(json.dumps(result))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or hub id; default: random weights of --shape")
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--layers", type=int, help="only the first N decoder layers")
    parser.add_argument("--data", type=Path, help="JSON lines with question and answer")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--subspaces", default="tail", help="comma-separated")
    parser.add_argument("--spectrum", choices=["full", "ends"], default="full")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plain", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--published", action="store_true", help="also the authors' procedure, 64 records")
    parser.add_argument("--peft", action="store_true", help="also PEFT's CorDA and EVA on the same tokens")
    parser.add_argument("--sweep", action="store_true", help="also 5 ranks x 3 subspaces")
    parser.add_argument("--oracle", action="store_true", help="also tail energies against float64 (slow)")
    parser.add_argument("--json", action="store_true", help="nothing but the JSON line")
    arguments = parser.parse_args()
    if arguments.published and not (arguments.model and arguments.data):
        parser.error("--published needs the records of --data and the tokenizer of --model")
    return arguments


def load(arguments: argparse.Namespace, device: torch.device) -> tuple[Any, Any]:
    model: Any
    dtype = getattr(torch, arguments.dtype)
    if arguments.model:
        model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    else:
        hidden, inner, layers, heads, kv = SHAPES[arguments.shape]
        config = LlamaConfig(
            hidden_size=hidden, intermediate_size=inner, num_hidden_layers=arguments.layers or layers,
            num_attention_heads=heads, num_key_value_heads=kv, vocab_size=32000,
        )  # fmt: skip
        torch.set_default_dtype(dtype)
        with device:
            model = LlamaForCausalLM(config)
        torch.set_default_dtype(torch.float32)
        tokenizer = None
    if arguments.layers:
        model.model.layers = model.model.layers[: arguments.layers]
    return model.eval().to(device), tokenizer


def texts(path: Path) -> list[str]:
    lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return [f"{record['question']}\n{record['answer']}" for record in lines]


def token_batches(arguments: argparse.Namespace, model: Any, tokenizer: Any) -> list[Batch]:
    """Full sequences: records one after the other, cut at --length."""
    count = arguments.tokens
    if arguments.data and tokenizer is not None:
        ids: list[int] = []
        for text in texts(arguments.data):
            ids += [*tokenizer(text).input_ids, tokenizer.eos_token_id]
            if len(ids) >= count:
                break
        flat = torch.tensor(ids[:count])
    else:
        flat = torch.randint(0, model.config.vocab_size, (count,))
    rows = flat[: count // arguments.length * arguments.length].view(-1, arguments.length)
    return [{"input_ids": part} for part in rows.split(arguments.batch_size)]


def timed(device: torch.device, work: Callable[[], Any]) -> float:
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bare(model: nn.Module, batches: Iterable[Batch]) -> None:
    """The floor: the backbone alone."""
    forward = Forward(model, list(find_targets(model, TARGETS)))
    for batch in batches:
        forward(batch)


class Watched(OuterSum):
    """Knows how many bytes of sums are alive at most."""

    alive = peak = 0

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        size = self._sum.nbytes
        Watched.alive += size
        Watched.peak = max(Watched.peak, Watched.alive)
        weakref.finalize(self._sum, Watched.freed, size)

    @staticmethod
    def freed(size: int) -> None:
        Watched.alive -= size


@contextmanager
def timing_decompositions(device: torch.device) -> Iterator[list[float]]:
    """The seconds of each block's decompositions."""
    seconds: list[float] = []
    real = calibration._decompose

    def decompose(*arguments: Any) -> Any:
        found: list[Any] = []
        seconds.append(timed(device, lambda: found.extend(real(*arguments))))
        return found

    with mock.patch.object(calibration, "_decompose", decompose):
        yield seconds


def time_ours(
    model: nn.Module,
    batches: list[Batch],
    arguments: argparse.Namespace,
    device: torch.device,
    timing: Timing,
    floor: float,
) -> None:
    def work() -> None:
        subspaces = arguments.subspaces.split(",")
        with TemporaryDirectory() as folder:  # keeping finished layers is part of what a user waits for
            calibrate(
                model, batches, TARGETS, arguments.rank, subspaces, spectrum=arguments.spectrum, settings={},
                folder=Path(folder),
            )  # fmt: skip

    with mock.patch("astra.moments.OuterSum", Watched), timing_decompositions(device) as decompositions:
        whole = timed(device, work)
    timing.forward.append(floor)
    timing.decompose.append(sum(decompositions))
    timing.accumulate.append(whole - floor - sum(decompositions))


def time_plain(model: nn.Module, batches: list[Batch], device: torch.device, timing: Timing, floor: float) -> None:
    kept: dict[str, dict[str, Tensor]] = {}
    whole = timed(device, lambda: kept.update(sums=plain_sums(model, batches)))
    timing.forward.append(floor)
    timing.accumulate.append(whole - floor)
    timing.decompose.append(timed(device, lambda: [torch.linalg.eigh(total) for total in kept["sums"].values()]))


def at_targets(model: nn.Module, look: Callable[[str, Tensor, Tensor], None]) -> Any:
    """Call `look` with name, input and output of each target layer that is run in the block."""
    return hooked([
        module.register_forward_hook(lambda _, args, y, name=name: look(name, args[0], y))
        for name, module in find_targets(model, TARGETS).items()
    ])  # fmt: skip


def plain_sums(model: nn.Module, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """float32 sums of y y^T, one for each target layer, of every position of every batch."""
    sums: dict[str, Tensor] = {}

    def add(name: str, _: Tensor, y: Tensor) -> None:
        rows = y.detach().reshape(-1, y.shape[-1]).float()
        if name not in sums:
            sums[name] = torch.zeros(rows.shape[1], rows.shape[1], device=rows.device)
        sums[name].addmm_(rows.T, rows)

    with at_targets(model, add):
        bare(model, batches)
    return sums


def published_sums(model: nn.Module, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """What the authors' hooks sum: the first sample's outputs, padding included, over their maximum."""
    sums: dict[str, Tensor] = {}

    def add(name: str, _: Tensor, y: Tensor) -> None:
        rows = y.detach()[0].float()
        rows = rows / rows.max().abs()
        product = rows.T @ rows
        for tensor in (rows, product):
            if bool(tensor.isnan().any()) or bool(tensor.isinf().any()):
                raise ValueError(name)
        sums[name] = sums[name].add_(product) if name in sums else product

    with at_targets(model, add), torch.no_grad():
        for batch in batches:
            model(**batch, labels=batch["input_ids"])
    return sums


def report(
    model: nn.Module, ours: Timing, plain: Timing, floor: list[float], arguments: argparse.Namespace
) -> dict[str, Any]:
    apart = 4 * sum(layer_shape(module)[0] ** 2 for module in find_targets(model, TARGETS).values())
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if arguments.device.startswith("cuda") else "CPU",
        "threads": torch.get_num_threads(),
        "tokens": arguments.tokens,
        "forward_seconds": statistics.median(floor),
        "seconds": ours.summary(),
        "accumulate_over_forward": statistics.median(ratios(ours.accumulate, floor)),
        "decompose_seconds": statistics.median(ours.decompose),
        "sums_peak_bytes": Watched.peak,
        "sums_peak_ratio": Watched.peak / apart,  # to float32 sums of all outputs
    }
    if plain.accumulate:
        result["plain_seconds"] = plain.summary()
        both = [[a + d for a, d in zip(t.accumulate, t.decompose, strict=True)] for t in (plain, ours)]
        speedups = ratios(*both)
        result["speedup_accumulate_decompose"] = statistics.median(speedups)
        result["speedup_spread"] = [min(speedups), max(speedups)]
    if arguments.device.startswith("cuda"):
        result["peak_bytes"] = torch.cuda.max_memory_allocated()
    else:
        import resource

        result["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return result


def ratios(over: list[float], under: list[float]) -> list[float]:
    return [a / b for a, b in zip(over, under, strict=True)]


def against_published(
    model: nn.Module, tokenizer: Any, arguments: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """The whole calibration of 64 records: padded to 512 one by one and summed plainly, or our way."""
    rows = [torch.tensor(tokenizer(text).input_ids) for text in texts(arguments.data)[:PUBLISHED_RECORDS]]
    pad = tokenizer.eos_token_id

    def padded(part: list[Tensor], length: int) -> Batch:
        ids = torch.full((len(part), length), pad)
        mask = torch.zeros(len(part), length, dtype=torch.long)
        for row, target, seen in zip(part, ids, mask, strict=True):
            target[: len(row)], seen[: len(row)] = row[:length], 1
        return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}

    theirs = [padded([row], PUBLISHED_LENGTH) for row in rows]
    rows.sort(key=len, reverse=True)
    size = arguments.batch_size
    mine = [padded(rows[k : k + size], len(rows[k])) for k in range(0, len(rows), size)]

    def published() -> None:
        for total in published_sums(model, theirs).values():
            torch.linalg.eigh(total)

    seconds = [
        timed(device, published),
        timed(device, lambda: calibrate(model, mine, TARGETS, arguments.rank, ["tail"])),
    ]
    return {"published_seconds": seconds[0], "speedup_over_published_procedure": seconds[0] / seconds[1]}


def against_peft(
    model: nn.Module, batches: list[Batch], arguments: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """Seconds of PEFT's data-driven initialisations, and the bytes that CorDA holds at its peak."""
    from peft import EvaConfig, LoraConfig, get_peft_model, initialize_lora_eva_weights
    from peft.tuners.lora import corda
    from peft.tuners.lora.config import CordaConfig

    held: list[int] = []
    crop = corda.crop_corda_eigens

    def measured(model: nn.Module, config: LoraConfig) -> None:
        found: Any = corda.target_modules(model, config)
        modules = [module for _, module in found]
        tensors = [(m.covariance_matrix, m.eigens.S_WC, m.eigens.U_WC, m.eigens.V_WC) for m in modules]
        held.append(sum(tensor.nbytes for layer in tensors for tensor in layer))
        crop(model, config)

    rows = [{"input_ids": row[None]} for batch in batches for row in batch["input_ids"]]  # CorDA takes one at a time
    config = LoraConfig(
        r=arguments.rank,
        target_modules=TARGETS,
        init_lora_weights="corda",
        corda_config=CordaConfig(corda_method="ipm"),
    )
    hooked = copy.deepcopy(model)
    with mock.patch.object(corda, "crop_corda_eigens", measured):
        corda_seconds = timed(device, lambda: corda.preprocess_corda(hooked, config, lambda: bare(hooked, rows)))
    config = LoraConfig(r=arguments.rank, target_modules=TARGETS, init_lora_weights="eva", eva_config=EvaConfig())
    adapted = get_peft_model(copy.deepcopy(model), config)  # type: ignore[arg-type]
    masked = [{**batch, "attention_mask": torch.ones_like(batch["input_ids"])} for batch in batches]
    eva = timed(device, lambda: initialize_lora_eva_weights(adapted, masked, show_progress_bar=False))
    return {"peft_corda_seconds": corda_seconds, "peft_corda_peak_bytes": held[0], "peft_eva_seconds": eva}


def sweep(
    model: nn.Module, batches: list[Batch], arguments: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """5 ranks x 3 subspaces from one calibration, over that of the largest rank's tail alone."""
    ranks, subspaces = (1, 2, 4, 8, arguments.rank), ("tail", "principal", "nullspace")
    found: dict[str, Calibration] = {}

    def one() -> None:
        calibrate(model, batches, TARGETS, arguments.rank, ["tail"])

    def all_runs() -> None:
        found["all"] = calibrate(model, batches, TARGETS, arguments.rank, subspaces)
        for rank in ranks:
            for subspace in subspaces:
                for name in found["all"].layers:
                    found["all"].vectors(name, subspace, rank)

    overheads = [timed(device, all_runs) / timed(device, one) - 1 for _ in range(arguments.repeats)]
    return {"sweep_overhead": statistics.median(overheads)}


def precision(model: nn.Module, batches: list[Batch], arguments: argparse.Namespace) -> dict[str, Any]:
    """Energies trace(Q^T C Q) over the optimum, layer by layer, of ours and of the plain float32 sums.

    C comes from y = W x computed in float64 from the layers' own inputs: 8 m^2 bytes a layer.
    """
    rank = arguments.rank
    ours = calibrate(model, batches, TARGETS, rank, ["tail", "principal", "nullspace"])
    with mock.patch("astra.moments.OuterSum", Float32Blocks):
        blocks = calibrate(model, batches, TARGETS, rank, ["tail"])
    plain = plain_sums(model, batches)
    layers: list[dict[str, Any]] = []
    for name, c in oracle(model, batches).items():
        m, k = len(c), ours.layers[name].numerical_rank
        values = torch.linalg.eigvalsh(c)
        best, top = float(values[m - k : m - k + rank].sum()), float(values[-rank:].sum())
        rounded = torch.linalg.eigh(plain[name]).eigenvectors[:, m - k : m - k + rank]
        null = energy(c, ours.vectors(name, "nullspace", rank)) / float(c.trace()) if m - k >= rank else None
        layers.append(
            {
                "name": name,
                "shape": list(ours.layers[name].shape),
                "numerical_rank": k,
                "condition": float(values[-1] / values[m - k]),
                "tail_excess": energy(c, ours.vectors(name, "tail", rank)) / best - 1,
                "principal_loss": 1 - energy(c, ours.vectors(name, "principal", rank)) / top,
                "nullspace_share": null,
                "float32_blocks_numerical_rank": blocks.layers[name].numerical_rank,
                "float32_blocks_tail_excess": energy(c, blocks.vectors(name, "tail", rank)) / best - 1,
                "float32_outputs_tail_excess": energy(c, rounded) / best - 1,
            }
        )
    worst: dict[str, Any] = {f"worst_{key}": max(layer[key] for layer in layers if layer[key] is not None) for key in
             ("tail_excess", "principal_loss", "nullspace_share", "float32_outputs_tail_excess")}  # fmt: skip
    off = [layer["name"] for layer in layers if layer["float32_blocks_numerical_rank"] != layer["numerical_rank"]]
    worst["float32_blocks_furthest_tail"] = max((layer["float32_blocks_tail_excess"] for layer in layers), key=abs)
    worst["float32_blocks_other_rank"] = off
    return {"worst_tail_energy_excess": worst.pop("worst_tail_excess"), **worst, "layers": layers}


class Float32Blocks(OuterSum):
    """Products of 1,024 rows in float32, added up in float64: cheaper than what is used, and here to show why not."""

    def add(self, x: Tensor) -> None:
        for part in x.float().split(1024):
            self._sum.add_(part.T @ part)
        self.rows += len(x)


def energy(c: Tensor, q: Tensor) -> float:
    q = q.to(c)
    return float((q * (c @ q)).sum())


def oracle(model: nn.Module, batches: list[Batch]) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}
    tokens = sum(batch["input_ids"].numel() for batch in batches)

    def add(name: str, x: Tensor, _: Tensor) -> None:
        weight = layer_weight(model.get_submodule(name))[0].double()
        y = x.detach().reshape(-1, x.shape[-1]).double() @ weight.T
        sums[name] = sums.get(name, 0) + y.T @ y / tokens

    with at_targets(model, add):
        bare(model, batches)
    return sums


if __name__ == "__main__":
    main()
