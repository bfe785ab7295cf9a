"""What a run says when it starts, and the figures and the model card it leaves."""

from pathlib import Path
from typing import Any

import yaml

from training.data import Examples
from training.export import base_name, is_plain
from training.forgetting import Forgetting
from training.methods import METHODS, usual_rates
from utils.config import Config
from utils.distributed import is_main
from utils.files import read_lines
from utils.log import log
from utils.runs import peak_memory
from utils.settings import FORMAT


def announce(config: Config, model: Any, examples: Examples, step: dict[str, float]) -> None:
    """State what is about to be trained, on what, for how long."""
    method = config.method
    trainable, total = count_parameters(model)
    chosen = METHODS[method.name].needs == "calibration"
    subspace = f", subspace {method.subspace}, split {method.split}" if chosen else ""
    log.info(
        f"method {method.name}{subspace}, rank {method.rank}, alpha {method.scaled_alpha:g}: "
        f"{trainable:,} of {total:,} parameters train ({100 * trainable / total:.2f}%)"
    )
    if "relative_step" in step:
        log.info(
            f"learning rate {step['learning_rate']:.3g}: the first full step moves the adapted weights by "
            f"{step['relative_step']:.1e} of their norm"
        )
    steps, batch, count = examples.steps(config), config.train.global_batch_size, len(examples.train)
    tokens = sum(examples.train.lengths)
    log.info(
        f"{count:,} examples, {tokens:,} tokens; {steps:,} steps of {batch} examples: "
        f"about {round(tokens * steps * batch / count):,} tokens to come"
    )


def warn_of_pitfalls(config: Config, tokenizer: Any) -> None:
    """Warn about common mistakes."""
    method, rate = config.method, config.train.learning_rate
    low, high = usual_rates(method.name, method.subspace)
    if config.train.relative_step is None and not low / 3 <= rate <= high * 3:
        log.warning(f"train.learning_rate: {rate:g} is far from what {method.name} usually takes, {low:g} to {high:g}")
    if method.scaled_alpha != method.rank and method.name != "full":
        log.info(
            f"method.alpha: {method.scaled_alpha:g} with rank {method.rank} scales the adapter by "
            f"{method.scaled_alpha / method.rank:g}"
        )
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        log.info("the pad token is the end token: padding is masked by position, so the end token is still learnt")


def count_parameters(model: Any) -> tuple[int, int]:
    """Return how many parameters train, and how many there are.

    ZeRO-3 keeps the true count in `ds_numel`; of nf4 two share a byte.
    """
    packed = {p: 2 * p.element_size() for p in model.parameters() if type(p).__name__ == "Params4bit"}
    counts = [(getattr(p, "ds_numel", p.numel() * packed.get(p, 1)), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trains in counts if trains), sum(n for n, _ in counts)


def run_figures(config: Config, folder: Path, trainer: Any, seconds: float, setup_seconds: float) -> dict[str, Any]:
    """Return the run's figures, the final loss from the last tenth of the steps; every process must call it."""
    lines = read_lines(folder / "metrics.jsonl") if is_main() else []
    losses = [line["loss"] for line in lines if "loss" in line]
    last = losses[-max(len(losses) // 10, 1) :]
    trainable, total = count_parameters(trainer.model)
    return {
        "format": FORMAT,
        "method": config.method.name,
        "steps": trainer.state.global_step,
        "final_loss": sum(last) / len(last) if last else None,
        **validation_figures(lines),
        "trainable_parameters": trainable,
        "parameters": total,
        "train_seconds": seconds,
        "peak_memory_bytes": peak_memory(),
        "settings": trainer.settings,
        "setup_seconds": setup_seconds,
        "forgetting": trainer.callback(Forgetting).compare(trainer.model),
    }


def validation_figures(lines: list[dict[str, Any]]) -> dict[str, float | None]:
    """Return the validation figures of the checkpoint that is exported, the one of the smallest loss."""
    best = min((line for line in lines if "eval_loss" in line), key=lambda line: line["eval_loss"], default={})
    return {"validation_loss": best.get("eval_loss"), "validation_accuracy": best.get("eval_accuracy")}


def model_card(config: Config, figures: dict[str, Any]) -> str:
    """Return the README of an exported adapter or model."""
    method, base, plain = config.method, base_name(config), is_plain(config)
    head = {
        "base_model": base,
        "library_name": "peft" if plain else "transformers",
        "tags": ["astra", method.name],
    }
    settings = {"data": config.data.model_dump(), "method": method.model_dump(), "train": config.train.model_dump()}
    use = (
        _USE_LORA
        if plain
        else f"This folder is a whole model: load it with `{_AUTO_CLASS[config.model.task_type]}.from_pretrained`."
    )
    shown = {key: figures[key] for key in ("steps", "final_loss", "validation_loss", "trainable_parameters")}
    if forgetting := figures["forgetting"]:
        shown["forgetting"] = (
            f"{forgetting['rise']:+.4f} ± {forgetting['standard_error']:.4f} nats per token on {forgetting['text']}"
        )
    results = "\n".join(f"| {key} | {value} |" for key, value in shown.items() if value is not None)
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n# {method.name} on {base}\n\n"
        f"Trained from {base}, revision {config.model.revision or 'default'}, in {config.model.dtype}.\n"
        f"{_USE_NF4 if config.model.quantization else ''}{use}\n\n"
        f"| | |\n|---|---|\n{results}\n\n## Settings\n\n```yaml\n{yaml.safe_dump(settings, sort_keys=False)}```\n"
    )


_AUTO_CLASS = {"CAUSAL_LM": "AutoModelForCausalLM", "SEQ_CLS": "AutoModelForSequenceClassification"}
_USE_NF4 = (
    "Its base is that model in nf4 with nested scales (`BitsAndBytesConfig(load_in_4bit=True, "
    'bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)`); on the unquantised weights it is another model.\n'
)
_USE_LORA = (
    "A plain LoRA for the untouched base model, whatever method trained it:\n\n"
    '```python\nfrom peft import PeftModel\n\nmodel = PeftModel.from_pretrained(base_model, "this/folder")\n```'
)
