"""The model to train: the base model in its data type, and the method's adapter on it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.deepspeed import deepspeed_config, is_deepspeed_zero3_enabled

from astra.allocation import allocate
from astra.store import Calibration
from dataset.glue import num_labels
from dataset.tokens import calibration_batches
from training.checkpoints import INITIAL, load_initial
from training.data import Examples
from training.methods import METHODS, Request, build, restore
from training.quantize import quantize_base
from utils.config import Config
from utils.errors import UserError
from utils.log import log
from utils.models import load_model, usable_dtype


@contextmanager
def room_for_model(config: Config) -> Iterator[None]:
    """Say what to set where the GPU has no room for the model."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(
            f"model.name: the GPU has no room for {config.model.name}; set model.quantization=nf4 or, with several "
            "GPUs, train.deepspeed=configs/deepspeed/zero3.json"
        ) from error


def load_base(config: Config, device: Any) -> Any:
    """Load the base model to train onto the device; one that will be quantised stays on the CPU until it is small."""
    torch.manual_seed(config.method.seed)  # of a new classification head
    model = load_trained(config)
    if sharded(model):
        if METHODS[config.method.name].needs == "samples":
            raise UserError(
                f"train.deepspeed: {config.method.name} runs the model before ZeRO-3 can; "
                "use configs/deepspeed/zero2.json"
            )
        log.info("ZeRO-3 runs the model only when it trains: how far it is from the base model at step 0 is not known")
    elif config.model.quantization is None:
        model.to(device)
    return model


def sharded(model: nn.Module) -> bool:
    """Whether ZeRO-3 has split the model's weights over the processes."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def load_trained(config: Config) -> Any:
    """Load the base model to train: in float32 where all its weights train, as an optimizer's steps need.

    Under ZeRO-3 a classifier is loaded in float32 too: once split, its head can't be made float32 alone.
    """
    sharding = deepspeed_config() if is_deepspeed_zero3_enabled() else None
    if config.method.name == "full" or (sharding is not None and config.model.task_type == "SEQ_CLS"):
        config = config.model_copy(update={"model": config.model.model_copy(update={"dtype": "float32"})})
    if sharding is None:
        return load_model(config.model, num_labels(config))
    # ZeRO-3 makes every weight in its own data type; while it trains, that type would be what trains, too.
    sharding["bf16"]["enabled"] = usable_dtype(config.model.dtype) == "bfloat16"
    try:
        return load_model(config.model, num_labels(config))
    finally:
        sharding["bf16"]["enabled"] = False


def add_adapter(
    config: Config,
    model: Any,
    store: Path | None,
    tokenizer: Any,
    examples: Examples,
    device: Any,
    resumed: Path | None,
) -> tuple[Any, dict[str, float]]:
    """Put the method's adapter on the base model; a resumed run gets the factors it started with.

    Returns:
        The model to train, and with nf4 the errors of the quantised residual.
    """
    request = build_request(config, store, tokenizer, examples, device)
    initial = resumed.parent / INITIAL if resumed is not None else None
    if initial is not None and initial.is_file():
        model = restore(model, request, *load_initial(initial))
    else:
        model = build(config.method.name, model, request)
    upcast_trainable(model)
    return model, quantize_base(model, device) if config.model.quantization is not None else {}


def build_request(config: Config, store: Path | None, tokenizer: Any, examples: Examples, device: Any) -> Request:
    """Return what a method is asked to build."""
    method = config.method
    calibration = Calibration.load(store) if store is not None else None
    targets, wanted = method.target_modules, config.calibration
    device = "cpu" if config.model.quantization is not None else device  # where `load_base` leaves the model

    def samples(size: int) -> Iterator[dict[str, Tensor]]:
        """Yield batches of the examples that `calibrate.py` would choose, with their labels."""
        batches = calibration_batches(
            examples.records, tokenizer, config.data.template, batch_size=size, max_length=wanted.max_length,
            samples=wanted.samples, seed=wanted.seed, labels=True,
        )  # fmt: skip
        for batch in batches:
            yield {key: value.to(device) for key, value in batch.items()}

    return Request(
        rank=method.rank,
        alpha=method.scaled_alpha,
        target_modules=targets if isinstance(targets, str) else list(targets),
        exclude_modules=method.exclude_modules,
        dropout=method.dropout,
        subspace=method.subspace,
        split=method.split,
        seed=method.seed,
        task_type=config.model.task_type,
        rank_pattern=rank_pattern(config, calibration),
        calibration=calibration,
        samples=samples if METHODS[method.name].needs == "samples" else None,
    )


def rank_pattern(config: Config, calibration: Calibration | None) -> dict[str, int]:
    """Ranks by layer: the same total as a uniform rank, shared by effective rank; empty if all are the same."""
    method = config.method
    if method.rank_allocation == "uniform":
        return {}
    assert calibration is not None  # see `training.check`
    highest = {
        name: min(*info.shape, info.numerical_rank, calibration.max_rank) for name, info in calibration.layers.items()
    }
    budget = method.rank * len(highest)
    return allocate(calibration.effective_ranks(), budget, max(method.rank // 4, 1), highest)


def upcast_trainable(model: nn.Module) -> None:
    """Make what trains float32: an optimizer's small steps are lost in bfloat16, and float16 can't be loss-scaled."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32 and not hasattr(parameter, "ds_id"):
            parameter.data = parameter.data.float()


@torch.no_grad()
def logits(model: Any, ids: Tensor) -> Tensor:
    """Return a model's logits for some tokens, float32 on the CPU."""
    was_training = model.training
    model.eval()
    parameter = next(model.parameters())
    ids = ids.to(parameter.device)
    # As in training: what trains is float32, the weights before it may not be.
    with torch.autocast(ids.device.type, parameter.dtype, enabled=parameter.dtype != torch.float32):
        found = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float().cpu()
    model.train(was_training)
    return found


def deviation(reference: Tensor, found: Tensor) -> float:
    """Return the largest difference of two sets of logits as a share of the reference's range, or of its one score."""
    scale = reference.max() - reference.min() if reference.numel() > 1 else reference.abs()
    return float((found - reference).abs().max() / scale)
