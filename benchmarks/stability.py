"""How much the eigenvectors of a calibration depend on its records, their number, text, padding and data type.

    python benchmarks/stability.py --config configs/which-tail.yaml

Compares calibrations with one on 128 records, layer by layer. `overlap` is the mean squared cosine of the principal
angles between the spans of both: 1 if they are the same, `chance` if they have nothing to do with each other. `energy`
is the variance of 64 held-out records' outputs inside a span, over that inside the held-out records' own span of the
same subspace: what the tail wants small and the principal subspace large. Prints one JSON object as its last line.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn.functional import pad  # noqa: E402

from astra import calibrate  # noqa: E402
from astra.sharing import hooked  # noqa: E402
from benchmarks.provenance import provenance  # noqa: E402
from dataset.general_text import load_general_text  # noqa: E402
from dataset.sources import load_training  # noqa: E402
from dataset.tokens import calibration_batches  # noqa: E402
from utils.cli import main, parse  # noqa: E402
from utils.config import Config  # noqa: E402
from utils.models import load_model, load_tokenizer  # noqa: E402

RECORDS, HELD_OUT = 128, 64
PADDED = 512  # tokens, to which the published code pads every record
REFERENCE, OWN, CHANCE = f"{RECORDS} records", "held-out records", "random"
SUBSPACES = ("tail", "principal")
Batches = list[dict[str, Tensor]]
Spans = dict[str, Tensor]  # layer -> float32 (m, r), orthonormal columns


def calibration_sets(config: Config) -> dict[str, Batches]:
    """The batches of each calibration; three of them have no record in common, the others vary the first."""
    tokenizer, records = load_tokenizer(config.model), load_training(config.data)

    def chosen(part: int, samples: int) -> Batches:
        wanted = config.calibration.model_copy(update={"samples": samples})
        return calibration_batches(records[part::3], tokenizer, config.data.template, wanted)

    found = {f"{samples} records": chosen(0, samples) for samples in (RECORDS, 32, 8)}
    found["other records"] = chosen(1, RECORDS)
    rows = [ids[mask.bool()] for batch in found[REFERENCE] for ids, mask in zip(*batch.values(), strict=True)]
    padded = torch.stack([pad(ids, (0, PADDED - len(ids)), value=tokenizer.pad_token_id) for ids in rows])
    found["padding counted"] = [{"input_ids": ids, "attention_mask": whole(ids)} for ids in padded.split(8)]
    manual = torch.tensor(np.array(load_general_text("python-manual").windows(tokenizer)[::2]))
    found["Python's manual"] = [{"input_ids": ids, "attention_mask": whole(ids)} for ids in manual.split(8)]
    return {**found, OWN: chosen(2, HELD_OUT)}


def whole(ids: Tensor) -> Tensor:
    return torch.ones_like(ids)


def spans_of(config: Config, name: str, batches: Batches, dtype: torch.dtype = torch.float32) -> dict[str, Spans]:
    """The spans of one calibration by subspace, those of random directions among them."""
    print(f"calibrating on {name}", file=sys.stderr)
    model = load_model(config.model).to(dtype)  # a CPU without fast bfloat16 loads float32 in its place
    rank, targets = config.method.rank, config.method.target_modules
    made = calibrate(model, batches, targets, rank, [*SUBSPACES, CHANCE])
    return {kind: {layer: made.vectors(layer, kind, rank) for layer in made.layers} for kind in made.subspaces}


def energies(model: nn.Module, batches: Batches, spans: Sequence[Spans]) -> dict[str, Tensor]:
    """Layer -> float64 (spans,), the sum over tokens of |Q^T y|^2 for the span Q of each."""
    found: dict[str, Tensor] = {}
    mask: Tensor

    def add(name: str, y: Tensor) -> None:
        rows = y[mask].double()
        inside = torch.stack([(rows @ span[name].double()).square().sum() for span in spans])
        found[name] = found.get(name, torch.zeros(len(spans), dtype=torch.float64)) + inside

    handles = [
        module.register_forward_hook(lambda _m, _a, y, name=name: add(name, y))
        for name, module in model.named_modules()
        if name in spans[0]
    ]
    with hooked(handles), torch.no_grad():
        for batch in batches:
            mask = batch["attention_mask"].bool()
            model(**batch)
    return found


def overlap(a: Tensor, b: Tensor) -> float:
    return float((a.T.double() @ b.double()).square().sum()) / a.shape[1]


def spread(values: Mapping[str, float]) -> dict[str, Any]:
    """Median over layers, the tenth and ninetieth percentile, and the median of each kind of layer."""
    low, median, high = (float(f"{x:.4g}") for x in np.quantile(list(values.values()), [0.1, 0.5, 0.9]))
    kinds: dict[str, list[float]] = {}
    for layer, x in values.items():
        kinds.setdefault(layer.rsplit(".", 1)[-1], []).append(x)
    by_kind = {kind: float(f"{np.median(found):.4g}") for kind, found in kinds.items()}
    return {"median": median, "from": low, "to": high, "by_kind": by_kind}


def command() -> None:
    config, _ = parse(__doc__, {})
    sets = calibration_sets(config)
    made = {name: spans_of(config, name, batches) for name, batches in sets.items()}
    made["bfloat16"] = spans_of(config, "the same in bfloat16", sets[REFERENCE], torch.bfloat16)
    chance = {kind: made[OWN][CHANCE] for kind in SUBSPACES}
    compared = {name: spans for name, spans in made.items() if name != OWN} | {CHANCE: chance}
    held_out = load_model(config.model)
    result: dict[str, Any] = {
        **provenance(f"{config.model.name}, float32", f"{config.data.train}, {config.data.max_length} tokens"),
        "rank": config.method.rank,
        "layers": len(chance["tail"]),
        "tokens": {name: sum(int(batch["attention_mask"].sum()) for batch in found) for name, found in sets.items()},
    }
    for kind in SUBSPACES:
        found = energies(held_out, sets[OWN], [made[OWN][kind], *(spans[kind] for spans in compared.values())])
        result[kind] = {}
        for k, (name, spans) in enumerate(compared.items(), 1):
            entry = {"energy": spread({layer: float(x[k] / x[0]) for layer, x in found.items()})}
            if name != REFERENCE:
                pairs = {layer: overlap(made[REFERENCE][kind][layer], span) for layer, span in spans[kind].items()}
                entry["overlap"] = spread(pairs)
            result[kind][name] = entry
    print(json.dumps(result))


if __name__ == "__main__":
    main(command)
