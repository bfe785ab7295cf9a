"""What can be scored: the base model, a run folder, or any PEFT adapter."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from eval.adapters import Adapter, check_base, read_adapter
from utils.config import Config, ModelConfig
from utils.errors import UserError
from utils.log import log
from utils.models import model_fingerprint, resolve_model


@dataclass(frozen=True)
class Target:
    """One model to score.

    Attributes:
        name: What the log and the records call it.
        model: Folder of the weights the engine loads.
        adapter: The LoRA adapter on them, or None.
        folder: Where its `<task>.json` files go.
    """

    name: str
    model: Path
    adapter: Adapter | None
    folder: Path

    def fingerprints(self) -> dict[str, str | None]:
        """Return what tells this model from another."""
        return {
            "model": model_fingerprint(self.model),
            "adapter": self.adapter.fingerprint if self.adapter else None,
        }


def base_target(config: Config) -> Target:
    """Return the untouched base model; its results are shared by all runs of `output_dir`."""
    return Target("base", resolve_model(config.model), None, Path(config.output_dir) / "base" / "eval")


def run_target(config: Config, run: Path) -> Target:
    """Return the model a run has trained: its `lora/` on the base model, or its `merged/`.

    Raises:
        UserError: the run has neither (yet), or its adapter belongs to another base model.
    """
    if (run / "lora").is_dir():
        return _with_adapter(config.model, run / "lora", run.name, run / "eval")
    if (run / "merged").is_dir():
        return Target(run.name, run / "merged", None, run / "eval")
    raise UserError(f"{run}: holds neither lora/ nor merged/; train it first")


def adapter_target(config: Config, path: Path) -> Target:
    """Return any PEFT LoRA adapter on the base model; results go to `<output_dir>/adapters/<name>-<fingerprint>/eval`.

    Raises:
        UserError: the folder holds no LoRA adapter, or one of another base model.
    """
    target = _with_adapter(config.model, path, path.resolve().name, path)
    assert target.adapter is not None
    name = f"{target.name}-{target.adapter.fingerprint[:8]}"
    return replace(target, name=name, folder=Path(config.output_dir) / "adapters" / name / "eval")


def _with_adapter(model: ModelConfig, path: Path, name: str, folder: Path) -> Target:
    adapter = read_adapter(path)
    base = resolve_model(model)
    check_base(adapter, model, base)
    return Target(name, base, adapter, folder)


@contextmanager
def servable(target: Target, engine: str, dtype: str) -> Iterator[Target]:
    """Yield the target as the engine can serve it: an adapter that vLLM can't serve is merged into the base model.

    The merged weights stay in a temporary folder as long as the block lasts.
    """
    if engine != "vllm" or target.adapter is None or target.adapter.unservable is None:
        yield target
        return
    log.info("%s: vLLM can't serve this adapter (%s); merging it", target.name, target.adapter.unservable)
    with tempfile.TemporaryDirectory() as folder:
        _merge(target.model, target.adapter, Path(folder), dtype)
        yield replace(target, model=Path(folder), adapter=None)


def _merge(model: Path, adapter: Adapter, folder: Path, dtype: str) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
    PeftModel.from_pretrained(base, adapter.path).merge_and_unload().save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
