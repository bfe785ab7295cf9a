"""What a finished run leaves to take away: a plain LoRA in `lora/`, or a whole model in `merged/`."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import TrainingArguments
from transformers.integrations import unset_hf_deepspeed_config

from astra.adapter import as_matrix, lora_layers
from astra.convert import current_factors, save_lora
from dataset.glue import num_labels
from training.checkpoints import trainable_state
from training.methods import METHODS
from training.model import deviation, logits
from training.quantize import dequantized
from utils.config import Config
from utils.files import atomic_write
from utils.log import log
from utils.models import PACKAGES, load_model, resolve_model


def is_plain(config: Config) -> bool:
    """Whether the run ends as a plain LoRA on the untouched base model, rather than merged."""
    return METHODS[config.method.name].plain and config.model.quantization is None


def exported_folder(config: Config, folder: Path) -> Path:
    """Return where the run's result is, or will be."""
    return folder / ("lora" if is_plain(config) else "merged")


def base_name(config: Config) -> str:
    """Return what an adapter's config calls its base model: the hub id, or the folder of a packaged model."""
    name = config.model.name
    return str(resolve_model(config.model)) if name in PACKAGES or Path(name).is_dir() else name


def export(config: Config, model: Any, tokenizer: Any, folder: Path, card: str, write: bool) -> dict[str, Any]:
    """Write the result of a trained model; under ZeRO-3 every process must call it, and one has `write`.

    Returns:
        The rank, the error of cutting it and the bytes, for a plain LoRA.
    """
    target = exported_folder(config, folder)
    if is_plain(config):
        return _export_lora(config, model, tokenizer, target, card, write)
    state = {} if config.model.quantization else trainable_state(model, keep=write)
    if not write:
        return {}
    unset_hf_deepspeed_config()
    merged: Any = merge_quantized(config, model) if config.model.quantization else merge_state(config, model, state)
    with atomic_write(target) as temporary:
        merged.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / "README.md").write_text(card, encoding="utf-8")
    return {}


def _export_lora(config: Config, model: Any, tokenizer: Any, target: Path, card: str, write: bool) -> dict[str, Any]:
    if not write:
        return save_lora(model, target, base_name(config), config.model.revision, write=False)
    with atomic_write(target) as temporary:
        report = save_lora(model, temporary, base_name(config), config.model.revision)
        tokenizer.save_pretrained(temporary)
        (temporary / "README.md").write_text(card, encoding="utf-8")
    return report


def merge_state(config: Config, trained: Any, state: dict[str, Tensor]) -> nn.Module:
    """Return a fresh base model with trained parameters in it: all of them (full), or a DoRA's, merged."""
    base = load_model(config.model, num_labels(config))
    if not isinstance(trained, PeftModel):
        base.load_state_dict(state, strict=False)  # a tied weight is one parameter and two names
        return base
    rebuilt = get_peft_model(base, trained.peft_config["default"])
    parameters = dict(rebuilt.named_parameters())
    for name, tensor in state.items():
        parameters[name].data.copy_(tensor)
    return rebuilt.merge_and_unload()


@torch.no_grad()
def merge_quantized(config: Config, trained: Any) -> nn.Module:
    """Return a fresh base model whose weights are what the quantised, adapted layers stand for."""
    base = load_model(config.model, num_labels(config))
    modules = dict(base.named_modules())
    adapters = dict(lora_layers(trained))
    for name, layer in trained.base_model.model.named_modules():
        if not hasattr(layer, "quant_state"):
            continue
        plain = name.removesuffix(".base_layer")
        weight = dequantized(layer).cpu()
        if plain in adapters:
            a, b = current_factors(adapters[plain])
            weight = weight + adapters[plain].scaling["default"] * (b @ a)
        as_matrix(modules[plain]).copy_(weight)
    return base


def measure_export(
    config: Config, folder: Path, reference: Tensor, probe: Tensor, args: TrainingArguments
) -> dict[str, float]:
    """Load the result as a user would and compare it with the trained model on a few tokens.

    On the GPU where the model is known to fit there whole and unquantised, else on the CPU.

    Returns:
        `difference_from_trained`, the largest difference of logits as a share of their range: for a plain LoRA the
        rounding of the residual weights in the base model's data type.
    """
    if torch.cuda.is_available() and args.deepspeed is None and config.model.quantization is None:
        torch.cuda.empty_cache()
        try:
            return difference(config, folder, reference, probe, args.device)
        except torch.cuda.OutOfMemoryError:
            log.info("the GPU has no room to load the result: its difference is measured on the CPU")
    return difference(config, folder, reference, probe, "cpu")


def difference(config: Config, folder: Path, reference: Tensor, probe: Tensor, device: Any) -> dict[str, float]:
    """Return what `measure_export` does, measured on one device."""
    unset_hf_deepspeed_config()
    target = exported_folder(config, folder)
    if is_plain(config):
        model = PeftModel.from_pretrained(load_model(config.model, num_labels(config)), target)
    else:
        model = load_model(config.model.model_copy(update={"name": str(target), "quantization": None}))
    return {"difference_from_trained": deviation(reference, logits(model.to(device), probe))}
