"""How far training moves the weights: the size of its first step, and of the change it ends with.

Adam's first step moves every trained entry by the rate, so that the first change of a layer W (m x n) with factors
A0 (r x n), B0 (m x r) and scaling s is

    |dW_1| = rate * s sqrt(m |A0|^2 + n |B0|^2),

without the first term where B is frozen; sqrt(m n) per unit rate where W itself trains. Equal rates are not equal
steps. `train.relative_step` asks for |dW_1| / |W|.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import TrainerCallback

from astra.adapter import as_matrix, lora_layers
from astra.convert import starting_factors
from astra.errors import AstraError
from astra.factors import Factor
from astra.sharing import hooked
from astra.targets import find_targets
from dataset.tokens import calibration_batches
from training.data import Examples
from training.forgetting import base_losses
from training.methods import Request
from training.model import sharded
from utils.config import Config
from utils.errors import UserError
from utils.files import write_record
from utils.log import log
from utils.models import resolve_model


@torch.no_grad()
def unit_step(model: nn.Module, config: Config) -> float:
    """|dW_1| / |W| over the adapted layers, per unit of the learning rate, from the model before its first step."""
    step = norm = 0.0
    if not isinstance(model, PeftModel):
        for module in _measured(model, config).values():
            step += module.weight.numel()  # type: ignore[operator, union-attr]
            norm += float(module.weight.double().square().sum())  # type: ignore[union-attr, operator]
        return (step / norm) ** 0.5
    for _, layer in lora_layers(model):
        a, b = (factor.double() for factor in starting_factors(layer))
        m, n, scaling = len(b), a.shape[1], layer.scaling["default"]
        down, up = (any(p.requires_grad for p in side.parameters()) for side in (layer.lora_A, layer.lora_B))
        step += scaling**2 * float(up * m * a.square().sum() + down * n * b.square().sum())
        step += m * bool(layer.use_dora.get("default"))  # a DoRA's magnitudes move each row by the rate
        norm += float(as_matrix(layer.get_base_layer()).double().square().sum())
    return (step / norm) ** 0.5


@torch.no_grad()
def relative_update(model: nn.Module, config: Config) -> float | None:
    """|dW| / |W| over the adapted layers; None where the weights before training are not at hand."""
    change = norm = 0.0
    for _, change_, weight in weight_changes(model, config):
        if change_ is None:
            return None
        change += float(change_.double().square().sum())
        norm += float(weight.double().square().sum())
    return (change / norm) ** 0.5


@torch.no_grad()
def inside_span(model: nn.Module) -> float | None:
    """The share of |dW|^2 inside span(B0), of adapters that start from a product B0 A0; None for all others."""
    inside = total = 0.0
    for _, layer in lora_layers(model) if isinstance(model, PeftModel) else ():
        if not isinstance(layer.lora_B["default"], Factor):
            return None
        q = torch.linalg.qr(layer.lora_B["default"].start.double()).Q
        change = _lora_change(layer).double()
        inside += float((q.T @ change).square().sum())
        total += float(change.square().sum())
    return inside / total if total else None


@torch.no_grad()
def layer_output_changes(model: nn.Module, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Layer -> float64 (2,): sum |dW x|^2 and sum |W x|^2 over the batches' tokens; empty without an adapter."""
    if not isinstance(model, PeftModel):
        return {}
    sums: dict[str, Tensor] = {}
    mask = torch.zeros(0)

    def add(name: str, layer: Any, base: Any, x: Tensor, y: Tensor) -> None:
        rows = (mask if mask.shape == y.shape[:-1] else torch.ones(y.shape[:-1])).to(y.device, torch.bool)
        own = (y if base.bias is None else y - base.bias)[rows]
        with torch.autocast(y.device.type, enabled=False):  # a difference of two half-precision outputs is too coarse
            changes = _branch(layer, x[rows].float()).double().square().sum(), own.double().square().sum()
        sums[name] = sums.get(name, torch.zeros(2, dtype=torch.float64)) + torch.stack(changes).cpu()

    handles = []
    for name, layer in lora_layers(model):
        base = layer.get_base_layer()
        hook = lambda base, x, y, name=name, layer=layer: add(name, layer, base, x[0], y)  # noqa: E731
        handles.append(base.register_forward_hook(hook))
    head: Any = model.get_output_embeddings()
    if head is not None and not isinstance(head, LoraLayer):  # nobody reads the logits, and all would take gigabytes
        handles.append(head.register_forward_pre_hook(lambda _, args: (args[0][:, :1], *args[1:])))
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    with hooked(handles):
        for batch in batches:
            mask = batch["attention_mask"]
            model(**{key: batch[key].to(device) for key in ("input_ids", "attention_mask")}, use_cache=False)
    model.train(training)
    return sums


def output_change(model: nn.Module, batches: Iterable[dict[str, Tensor]]) -> dict[str, float | None]:
    """sum |dW x|^2 / sum |W x|^2 over the tokens of some batches; None without an adapter.

    `output_change` is that over all adapted layers at once, which the layers with the largest outputs rule;
    `median_output_change` is the median of single layers.
    """
    sums = layer_output_changes(model, batches)
    if not sums:
        return {"output_change": None, "median_output_change": None}
    changed, whole = torch.stack([*sums.values()]).T
    return {
        "output_change": float(changed.sum() / whole.sum()),
        "median_output_change": float((changed / whole).median()),
    }


def first_rate(config: Config, model: nn.Module) -> dict[str, float]:
    """The learning rate and the relative step it stands for: `learning_rate`, `relative_step`."""
    if sharded(model):
        if config.train.relative_step is not None:
            raise UserError(
                "train.relative_step: ZeRO-3 splits the weights it is measured on; set train.learning_rate"
            )
        return {"learning_rate": config.train.learning_rate}
    unit = unit_step(model, config)
    rate = config.train.relative_step / unit if config.train.relative_step is not None else config.train.learning_rate
    return {"learning_rate": rate, "relative_step": rate * unit}


def held_out(config: Config, trainer: Any, examples: Examples, folder: Path) -> dict[str, float | None]:
    """Write the loss of every held-out record, and what was solved of them, to `losses.json`; return the means.

    `base_loss` is that of the base model, where it is known. Every process must call it.
    """
    parts = {"validation": examples.validation, "reporting": examples.reporting}
    losses = {
        split: trainer.record_losses(part) for split, part in parts.items() if part is not None and trainer.causal
    }
    if not losses:
        return {}
    solved = trainer.solved()
    if trainer.args.should_save:
        write_record(folder / "losses.json", {**losses, "solved": solved} if solved else losses)
    mean = {split: sum(values) / len(values) for split, values in losses.items()}
    shown = examples.reporting or examples.validation
    assert shown is not None
    base = base_losses(config, trainer.model, shown.fingerprint, lambda _: trainer.record_losses(shown))
    means = {"reporting_loss": mean.get("reporting"), "base_loss": sum(base) / len(base) if base else None}
    every = [right for found in solved.values() for right in found]
    return means | ({"validation_accuracy": sum(every) / len(every)} if every else {})


def update_figures(config: Config, trainer: Any, examples: Examples, tokenizer: Any) -> dict[str, float | None]:
    """How far training has moved the model: see the functions of this module; nothing under ZeRO-3."""
    model = trainer.model
    if sharded(model):
        return {}
    batches: Iterable[dict[str, Tensor]] = ()
    if config.model.task_type == "CAUSAL_LM" and isinstance(model, PeftModel):
        try:
            batches = calibration_batches(examples.records, tokenizer, config.data.template, config.calibration)
        except UserError as error:  # training needs no calibration to be worth exporting
            log.warning("the change of the outputs is not measured: %s", error)
    return {
        **trainer.callback(FirstStep).figures,
        "relative_norm": relative_update(model, config),
        "inside_span": inside_span(model),
        **output_change(model, batches),
    }


class FirstStep(TrainerCallback):
    """Measures |dW| / |W| right after the first step whose rate is not zero.

    Warm-up begins at zero: the first step that moves is then the second, Adam has averaged two gradients by then, and
    the step is shorter than predicted (measured on SmolLM2: 0.77 of it).
    """

    def __init__(self, config: Config, measured: dict[str, float]) -> None:
        self.config, self.measured = config, measured
        self.rate = 0.0
        self.figures: dict[str, float | None] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        self.rate = float(optimizer.param_groups[0]["lr"])

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        first = state.global_step == 1 or (state.global_step == 2 and self.config.train.warmup_ratio > 0)
        if first and self.rate and not self.figures and "relative_step" in self.measured:
            predicted = self.measured["relative_step"] * self.rate / self.measured["learning_rate"]
            self.figures = {"first_step_predicted": predicted, "first_step": relative_update(model, self.config)}


def weight_changes(model: nn.Module, config: Config) -> Iterator[tuple[str, Tensor | None, Tensor]]:
    """Name, dW (m x n) and W of every adapted layer; dW is None where W before training is not on this disk."""
    if isinstance(model, PeftModel):
        for name, layer in lora_layers(model):
            yield name, _lora_change(layer), as_matrix(layer.get_base_layer())
        return
    files = {}
    for path in sorted(resolve_model(config.model).glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            files.update(dict.fromkeys(file.keys(), path))
    for name, module in _measured(model, config).items():
        weight: Any = module.weight
        key = f"{name}.weight"
        if key not in files or hasattr(weight, "ds_id"):
            yield name, None, weight
            continue
        with safe_open(files[key], "pt") as file:
            before = file.get_tensor(key).to(weight)
        yield name, weight - before, before


def _measured(model: nn.Module, config: Config) -> dict[str, nn.Module]:
    """The layers of a fully trained model that count: those an adapter would have, or all if it names none of them."""
    try:
        return find_targets(model, Request(config.method).peft_config())
    except AstraError:
        return find_targets(model, "all-linear")


def _branch(layer: Any, x: Tensor) -> Tensor:
    """dW x for rows x (T x n), float32."""
    if layer.use_dora.get("default"):
        return F.linear(x, _lora_change(layer))
    a, b = (side["default"].weight.float() for side in (layer.lora_A, layer.lora_B))
    return layer.scaling["default"] * F.linear(F.linear(x, a), b)


def _lora_change(layer: Any) -> Tensor:
    """dW (m x n) of a LoRA layer, a DoRA's rescaling included."""
    a, b = (side["default"].weight.detach().float() for side in (layer.lora_A, layer.lora_B))
    change = layer.scaling["default"] * (b @ a)
    if not layer.use_dora.get("default"):
        return change
    weight = as_matrix(layer.get_base_layer()).float()
    moved = weight + change
    magnitude = layer.lora_magnitude_vector["default"].weight.detach().float()
    return moved * (magnitude / torch.linalg.vector_norm(moved, dim=1))[:, None] - weight
