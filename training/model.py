"""The model to train: the base model in its data type, and the method's adapter on it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.integrations.deepspeed import deepspeed_config, is_deepspeed_zero3_enabled

from astra.allocation import allocate
from astra.factors import Factor
from astra.store import Calibration
from dataset.glue import num_labels
from dataset.tokens import calibration_batches
from training.checkpoints import INITIAL, load_initial
from training.data import Examples
from training.methods import METHODS, Request, build, freeze_b, restore
from training.stores import ALLOCATION_HEADROOM
from utils.config import Config
from utils.distributed import world_size
from utils.errors import UserError
from utils.models import load_model, usable_dtype
from utils.quantize import quantize_base


def load_base(config: Config, device: Any) -> Any:
    """Load the base model to train: in float32 where all its weights train, as an optimizer's steps need.

    It comes onto the device; one that will be quantised stays on the CPU until it is small. Under ZeRO-3 a classifier
    is loaded in float32 too: once split, its head can't be made float32 alone.
    """
    torch.manual_seed(config.method.seed)  # of a new classification head
    sharding = deepspeed_config() if is_deepspeed_zero3_enabled() else None
    if config.method.name == "full" or (sharding is not None and config.model.task_type == "SEQ_CLS"):
        config = config.model_copy(update={"model": config.model.model_copy(update={"dtype": "float32"})})
    if sharding is None:
        return load_model(config.model, num_labels(config), "cpu" if config.model.quantization is not None else device)
    if METHODS[config.method.name].needs == "samples":
        raise UserError(
            f"train.deepspeed: {config.method.name} runs the model before ZeRO-3 can; use configs/deepspeed/zero2.json"
        )
    # ZeRO-3 makes every weight in its own data type; while it trains, that type would be what trains, too.
    sharding["bf16"]["enabled"] = usable_dtype(config.model.dtype) == "bfloat16"
    try:
        return load_model(config.model, num_labels(config))
    finally:
        sharding["bf16"]["enabled"] = False


def sharded(model: nn.Module) -> bool:
    """Whether ZeRO-3 has split the model's weights over the processes."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def add_adapter(
    config: Config,
    model: Any,
    calibration: Calibration | None,
    tokenizer: Any,
    examples: Examples,
    device: Any,
    resumed: Path | None,
    autocast: bool,
) -> Any:
    """Return the base model with the method's adapter on it; a resumed run gets the factors it started with."""
    request = build_request(config, calibration, tokenizer, examples, device)
    if resumed is not None and METHODS[config.method.name].keeps_start:
        model = restore(model, request, load_initial(resumed.parent / INITIAL))
    else:
        model = build(model, request)
    if config.method.freeze_b:
        freeze_b(model)
    upcast_trainable(model)
    if config.model.quantization is not None:
        quantize_base(model, device)
    for factor in model.modules() if world_size() > 1 else ():
        if isinstance(factor, Factor):  # DDP shares out parameters alone, and gradients differ in their last digits
            torch.distributed.broadcast(factor.start, 0)
    for layer in model.modules() if autocast else ():
        if isinstance(layer, LoraLayer):  # what autocast casts back would be cast to float32 and kept for nothing
            layer.cast_input_dtype_enabled = False
    return model


def build_request(
    config: Config, calibration: Calibration | None, tokenizer: Any, examples: Examples, device: Any
) -> Request:
    """Return what a method is asked to build."""
    device = "cpu" if config.model.quantization is not None else device  # where `load_base` leaves the model

    def samples(size: int) -> Iterator[dict[str, Tensor]]:
        """Yield batches of the examples that `calibrate.py` would choose, with their labels."""
        for batch in calibration_batches(
            examples.records, tokenizer, config.data.template, config.calibration, size, labels=True
        ):
            yield {key: value.to(device) for key, value in batch.items()}

    ranks = rank_pattern(config, calibration)
    return Request(config.method, config.model.task_type, ranks, calibration, samples)


def rank_pattern(config: Config, calibration: Calibration | None) -> dict[str, int]:
    """Ranks by layer: the same total as a uniform rank, shared by effective rank; empty if all are the same."""
    method = config.method
    if method.rank_allocation == "uniform":
        return {}
    assert calibration is not None  # see `training.check`
    most = ALLOCATION_HEADROOM * method.rank  # whatever larger ranks other runs have stored
    highest = {name: min(*info.shape, info.numerical_rank, most) for name, info in calibration.layers.items()}
    budget = method.rank * len(highest)
    return allocate(calibration.effective_ranks(), budget, max(method.rank // 4, 1), highest)


def upcast_trainable(model: nn.Module) -> None:
    """Make what trains float32: an optimizer's small steps are lost in bfloat16, and float16 can't be loss-scaled."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32 and not hasattr(parameter, "ds_id"):
            parameter.data = parameter.data.float()
