"""What can be scored: the base model, a run folder, or any PEFT LoRA adapter, and whether vLLM can serve it."""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astra.manifest import sha256_file
from astra.ranks import MAX_RANK
from utils.config import Config, ModelConfig
from utils.errors import UserError
from utils.files import check_folder, fingerprint, read_json
from utils.log import log
from utils.models import (
    QUANTIZATION,
    check_safetensors,
    merge_adapter,
    model_fingerprint,
    resolve_model,
    tokenizer_fingerprint,
    tokenizer_in,
)

# Initialisations that leave a plain LoRA behind; every other named one changes the base model while loading.
PLAIN_INITIALISATIONS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")


@dataclass(frozen=True)
class Adapter:
    """A PEFT LoRA folder."""

    path: Path
    rank: int  # the largest of its layers
    base: str  # the base model's name as the adapter states it
    fingerprint: str  # 16 hexadecimal digits of its weights and config
    unservable: str | None = None  # why it can't be served beside the base model


def read_adapter(path: str | Path) -> Adapter:
    """Read an adapter's config; a `UserError` says that the folder holds no PEFT LoRA adapter, or a damaged one."""
    path = Path(path)
    weights = path / "adapter_model.safetensors"
    if not (path / "adapter_config.json").is_file() or not weights.is_file():
        raise UserError(f"{path}: not a PEFT adapter (needs adapter_config.json and adapter_model.safetensors)")
    check_folder(path)
    check_safetensors(weights)
    config = read_json(path / "adapter_config.json")
    if config.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type {config.get('peft_type')} is not supported; only LORA is")
    rank = max([int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())])
    kept = {key: value for key, value in config.items() if key not in ("base_model_name_or_path", "peft_version")}
    digest = hashlib.sha256((json.dumps(kept, sort_keys=True) + sha256_file(weights)).encode()).hexdigest()[:16]
    base = config.get("base_model_name_or_path") or ""
    return Adapter(path, rank, base, digest, _why_unservable(config, rank))


def _why_unservable(config: dict[str, Any], rank: int) -> str | None:
    start, bias, quantization = (config.get(key) for key in ("init_lora_weights", "bias", QUANTIZATION))
    others = ("modules_to_save", "lora_bias", "layer_replication", "trainable_token_indices")
    reasons = {
        f"its base is quantised to {quantization}": quantization,
        "DoRA": config.get("use_dora"),
        f"init_lora_weights={start}": isinstance(start, str) and start.lower() not in PLAIN_INITIALISATIONS,
        f"bias={bias}": bias not in (None, "none"),
        f"rank {rank}, above vLLM's limit of {MAX_RANK}": rank > MAX_RANK,
        **{key: config.get(key) for key in others},
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def check_base(adapter: Adapter, model: ModelConfig, folder: Path) -> None:
    """Raise a `UserError` that names both where an adapter was trained on another model than the configuration's.

    Where the adapter's base is a folder that is there, the weights decide; else the names agree, or their last parts
    do (a mirror of a hub model). And every LoRA layer has the shape of the layer it adapts.
    """
    base = Path(adapter.base)
    if adapter.base and (base / "config.json").is_file():
        same = model_fingerprint(base) == model_fingerprint(folder)
    else:
        names = (Path(model.name).name.lower(), folder.name)
        same = bool(adapter.base) and (adapter.base == model.name or base.name.lower() in names)
    if not same:
        stated = adapter.base or "not stated"
        raise UserError(f"{adapter.path}: the adapter's base is {stated}, not model.name {model.name}")
    if layer := _misfit(adapter.path, folder):
        raise UserError(f"{adapter.path}: {layer} does not fit model.name {model.name}; its base is another model")


def _misfit(path: Path, folder: Path) -> str | None:
    """The first LoRA layer whose width differs from its base layer's, with both, or None.

    vLLM copies a narrower adapter into its buffers without a word.
    """
    from safetensors import safe_open

    shapes: dict[str, list[int]] = {}
    for file in [*sorted(folder.glob("*.safetensors")), path / "adapter_model.safetensors"]:
        with safe_open(file, "pt") as tensors:
            shapes |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    for name, shape in shapes.items():
        layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        base = shapes.get(f"{layer}.weight")
        if name.endswith(".lora_A.weight") and base and len(base) == 2 and shape[1] not in base:  # GPT-2: (in, out)
            return f"{layer} ({shape[1]} inputs, the model's weight is {base[0]} x {base[1]})"
    return None


@dataclass(frozen=True)
class Target:
    """One model to score."""

    name: str
    model: Path  # folder of the weights the engine loads
    adapter: Adapter | None
    folder: Path  # where its `<task>.json` files go

    @property
    def merged(self) -> Adapter | None:
        """The adapter, if an engine gets the base model with it merged in, in place of both.

        One that was trained on a quantised model is merged into the values that the quantised weights stand for: on
        the unquantised ones it is another model. PEFT changes the base model in place for some others, and so the
        models that share it.
        """
        return self.adapter if self.adapter and self.adapter.unservable else None

    @property
    def served(self) -> Adapter | None:
        """The adapter that requests to an engine name."""
        return None if self.merged else self.adapter

    def fingerprints(self) -> dict[str, str | None]:
        """What tells this model from another."""
        adapter = self.adapter.fingerprint if self.adapter else None
        ends = self.model / "generation_config.json"  # it names the tokens that end a text
        files = [tokenizer_fingerprint(self.model), sha256_file(ends) if ends.is_file() else None]
        return {"model": model_fingerprint(self.model), "adapter": adapter, "tokenizer": fingerprint(files)}


def base_target(config: Config) -> Target:
    """The untouched base model; its results are shared by all runs of `output_dir`."""
    return Target("base", resolve_model(config.model), None, Path(config.output_dir) / "base" / "eval")


def run_target(config: Config, run: Path) -> Target:
    """The model a run has trained: its `lora/` on the base model, or its `merged/`."""
    if (run / "lora").is_dir():
        return Target(run.name, *_base_and_adapter(config, run / "lora"), run / "eval")
    if (run / "merged").is_dir():
        check_folder(run / "merged")
        return Target(run.name, run / "merged", None, run / "eval")
    raise UserError(f"{run}: holds neither lora/ nor merged/; train it first, or give --base or --adapter")


def adapter_target(config: Config, path: Path) -> Target:
    """Any PEFT LoRA adapter on the base model; results go to `<output_dir>/adapters/<name>-<fingerprint>/eval`."""
    base, adapter = _base_and_adapter(config, path)
    name = f"{path.resolve().name}-{adapter.fingerprint[:8]}"
    return Target(name, base, adapter, Path(config.output_dir) / "adapters" / name / "eval")


def _base_and_adapter(config: Config, path: Path) -> tuple[Path, Adapter]:
    adapter, base = read_adapter(path), resolve_model(config.model)
    check_base(adapter, config.model, base)
    return base, adapter


@contextmanager
def weights(model: Path, merged: Adapter | None, dtype: str) -> Iterator[Path]:
    """Yield the folder of weights that an engine loads: the model's, or a temporary one with an adapter merged in."""
    if merged is None:
        yield model
        return
    import torch
    from transformers import AutoModelForCausalLM

    log.info("%s: the engine can't serve this adapter (%s); merging it", merged.path, merged.unservable)
    with tempfile.TemporaryDirectory() as folder:
        base = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
        merge_adapter(base, merged.path).save_pretrained(folder)
        tokenizer_in(model).save_pretrained(folder)
        del base  # the engine is about to load it again
        yield Path(folder)
