"""How far finished runs moved each kind of layer: |dW| / |W|, and the change of its outputs on calibration tokens.

    python benchmarks/by_layer.py outputs/which-tail/arm=lora,relative_step=0.0018,seed=3 [RUN ...]

Of what the adapter in RUN/lora adds, by sums over the layers of a kind and over all of them; `median` is that of
single layers, `spread` the standard deviation of their log10. Prints one JSON object as its last line.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch  # noqa: E402
from peft import PeftModel  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.provenance import provenance  # noqa: E402
from dataset.sources import load_training  # noqa: E402
from dataset.tokens import calibration_batches  # noqa: E402
from training.measures import layer_output_changes, weight_changes  # noqa: E402
from utils.cli import main  # noqa: E402
from utils.config import load_config  # noqa: E402
from utils.errors import UserError  # noqa: E402
from utils.models import load_model, load_tokenizer  # noqa: E402


def of_run(folder: Path) -> dict[str, Any]:
    """Both changes of one run."""
    print(folder.name, file=sys.stderr)
    config = load_config(folder / "config.yaml")
    records, tokenizer = load_training(config.data), load_tokenizer(config.model)
    batches = calibration_batches(records, tokenizer, config.data.template, config.calibration)
    model = PeftModel.from_pretrained(load_model(config.model), str(folder / "lora"))
    squares = {}
    for name, change, weight in weight_changes(model, config):
        assert change is not None
        squares[name] = torch.stack([x.detach().double().square().sum() for x in (change, weight)])
    outputs = layer_output_changes(model, batches)
    return {"relative_norm": by_kind(squares, 0.5), "output_change": by_kind(outputs, 1)}


def by_kind(sums: Mapping[str, Tensor], power: float) -> dict[str, float]:
    """(change / whole) ** power, summed over the layers of each kind and over all of them."""
    totals: dict[str, Tensor] = {}
    for name, pair in sums.items():
        for key in (name.rsplit(".", 1)[-1], "all"):
            totals[key] = totals.get(key, torch.zeros(2, dtype=torch.float64)) + pair
    found = {key: float(f"{(change / whole) ** power:.4g}") for key, (change, whole) in totals.items()}
    single = torch.stack([change / whole for change, whole in sums.values()]) ** power
    return {**found, "median": float(f"{single.median():.4g}"), "spread": float(f"{single.log10().std():.4g}")}


def command() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    folders = parser.parse_args().runs
    for folder in folders:
        if not (folder / "lora").is_dir():
            raise UserError(f"{folder}: holds no adapter, in lora/, that could be measured")
    with torch.no_grad():
        runs = {folder.name: of_run(folder) for folder in folders}
    config = load_config(folders[0] / "config.yaml")
    about = provenance(f"{config.model.name}, {config.model.dtype}", config.data.train)
    print(json.dumps({**about, "runs": runs}))


if __name__ == "__main__":
    main(command)
