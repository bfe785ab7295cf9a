"""What a finished run leaves to take away: a plain LoRA in `lora/`, or a whole model in `merged/`."""

from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers.integrations import unset_hf_deepspeed_config

from astra.convert import save_lora
from dataset.glue import num_labels
from training.checkpoints import trainable_state
from training.methods import METHODS
from utils.config import Config
from utils.files import MANIFEST, atomic_write, write_record
from utils.models import PACKAGES, load_model, resolve_model, state_quantization, usable_dtype


def is_plain(config: Config) -> bool:
    """Whether the run ends as a plain LoRA on the untouched base model, rather than merged."""
    return METHODS[config.method.name].plain


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
        For a plain LoRA its rank, the rank trained, the error if it was cut, and the bytes.
    """
    target, plain = exported_folder(config, folder), is_plain(config)
    state = {} if plain else trainable_state(model, keep=write)
    if not write:
        return save_lora(model, target, base_name(config), write=False) if plain else {}
    report: dict[str, Any] = {}
    with atomic_write(target) as temporary:
        if plain:
            report = save_lora(model, temporary, base_name(config), config.model.revision)
            state_quantization(temporary, config.model.quantization, usable_dtype(config.model.dtype))
        else:
            unset_hf_deepspeed_config()
            merge_state(config, model, state).save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        write_record(temporary / MANIFEST, {}, temporary.iterdir())
        (temporary / "README.md").write_text(card, encoding="utf-8")  # its owner may edit it: not in the manifest
    return report


def merge_state(config: Config, trained: Any, state: dict[str, Tensor]) -> Any:
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
