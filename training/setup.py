"""From a configuration to what the Trainer takes: arguments, examples, and the model with its adapter."""

import os
import random
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainingArguments
from transformers.integrations.deepspeed import deepspeed_config, is_deepspeed_zero3_enabled

from astra.adapter import Factors, lora_layers
from astra.allocation import allocate
from astra.store import Calibration
from dataset.glue import num_labels
from dataset.sources import load_splits
from dataset.templates import Record
from dataset.tokens import collate, encode_records
from training.checkpoints import INITIAL, load_initial, save_initial
from training.data import TokenDataset, tokenize
from training.methods import METHODS, Batch, Request, build, restore
from training.quantize import quantize_base
from training.trainer import accumulation, on_cpu
from utils.config import Config
from utils.distributed import world_size
from utils.errors import UserError
from utils.files import read_json
from utils.log import log
from utils.models import load_model, usable_dtype

PROBE_TOKENS = 64


@dataclass
class Examples:
    """Training examples with the records they come from, and validation examples if some are held out."""

    train: TokenDataset
    validation: TokenDataset | None
    records: Sequence[Record]

    def probe(self) -> Tensor:
        """The beginning of the first example, int64 (1, <= 64), on which two models are compared."""
        return torch.tensor(self.train[0]["input_ids"][:PROBE_TOKENS])[None]


def training_arguments(config: Config, folder: Path) -> TrainingArguments:
    """Return the Trainer's arguments; joins the processes, if there are several, and DeepSpeed's, if asked for."""
    train, cpu = config.train, on_cpu()
    micro, steps = accumulation(train.global_batch_size, train.micro_batch_size)
    deepspeed = deepspeed_settings(config)
    if deepspeed is not None:
        _start_deepspeed(cpu)
    dtype = usable_dtype(config.model.dtype)
    validated = config.data.validation > 0 or config.model.task_type == "SEQ_CLS"
    args = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=steps,
        learning_rate=train.learning_rate,
        num_train_epochs=train.epochs,
        max_steps=train.max_steps or -1,
        lr_scheduler_type=train.scheduler,
        warmup_steps=train.warmup_ratio,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        seed=train.seed,
        logging_steps=train.logging_steps,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if validated else "no",
        save_strategy="steps",
        load_best_model_at_end=validated,
        metric_for_best_model="eval_loss" if validated else None,
        greater_is_better=False if validated else None,
        bf16=dtype == "bfloat16" and deepspeed is None,  # DeepSpeed's own settings ask for it
        fp16=dtype == "float16",
        use_cpu=cpu,
        ddp_backend="gloo" if cpu and world_size() > 1 and deepspeed is None else None,
        ddp_find_unused_parameters=False,
        deepspeed=deepspeed,
        gradient_checkpointing=train.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if train.gradient_checkpointing else None,
        torch_compile=train.compile,
        use_liger_kernel=not cpu and _installed("liger_kernel"),
        report_to=train.report_to or "none",
        run_name=folder.name,
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=not cpu,
        average_tokens_across_devices=True,
    )
    if args.n_gpu > 1:  # the Trainer would wrap the model in nn.DataParallel, which this loss can't go through
        log.info("using one of %d GPUs; start with torchrun for all", args.n_gpu)
        args._n_gpu = 1
    return args


def deepspeed_settings(config: Config) -> dict[str, Any] | None:
    """Return the run's DeepSpeed settings, or None where DeepSpeed has nothing to do.

    In bfloat16 the forward pass runs in autocast, as it does without DeepSpeed. DeepSpeed's own mode would cast what
    trains to bfloat16 as well, an adapter's float32 factors among it. Gradients are then reduced in float32.
    """
    if config.train.deepspeed is None:
        return None
    settings: dict[str, Any] = read_json(config.train.deepspeed)
    if world_size() == 1 and not any(key.startswith("offload") for key in settings.get("zero_optimization", {})):
        log.info("train.deepspeed: one process has nothing to share with others: trained without DeepSpeed")
        return None
    settings["bf16"] = {"enabled": False}
    if usable_dtype(config.model.dtype) == "bfloat16":
        # By default the gradients of linear layers, an adapter's among them, would be reduced in bfloat16.
        settings["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    return settings


def _start_deepspeed(cpu: bool) -> None:
    """Prepare the processes for DeepSpeed where the Trainer does not: on the CPU, and without a launcher."""
    if world_size() == 1:
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = str(probe.getsockname()[1])
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        for key, value in alone.items():
            os.environ.setdefault(key, value)
    if cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        import deepspeed

        # Its shared-memory all-reduce would be compiled first, for minutes; gloo does the same.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed("gloo")


def _installed(package: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(package) is not None


def load_examples(config: Config, tokenizer: Any, args: TrainingArguments) -> Examples:
    """Read, tokenise and split the training data; one process does the work and the others read the result.

    Raises:
        UserError: no example has an answer, or there are fewer examples than processes.
    """
    records, held = load_splits(config.data)
    cache = Path(config.output_dir) / "tokens"
    with args.main_process_first(desc="tokenizing"):
        train = tokenize(records, tokenizer, config.data, cache)
        validation = tokenize(held, tokenizer, config.data, cache) if held else None
    for what, count in train.counts.items():
        if count:
            log.info(
                "%d of %d examples %s at data.max_length=%d tokens", count, len(records), what, config.data.max_length
            )
    if len(train) < args.world_size:
        raise UserError(f"data.train: {len(train)} examples are fewer than the {args.world_size} processes")
    return Examples(train, validation, records)


def build_request(config: Config, store: Path | None, tokenizer: Any, examples: Examples, device: Any) -> Request:
    """Return what `training.methods.build` is asked for."""
    method = config.method
    calibration = Calibration.load(store) if store is not None else None
    targets = method.target_modules

    device = "cpu" if config.model.quantization is not None else device  # where `build_model` has the model

    def samples(size: int) -> Iterator[Batch]:
        return calibration_samples(config, examples.records, tokenizer, size, device)

    return Request(
        rank=method.rank,
        alpha=method.scaled_alpha,
        target_modules=targets if isinstance(targets, str) else list(targets),
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
    if calibration is None:
        raise UserError(f"method.rank_allocation: effective_rank needs method.name=astra, not {method.name}")
    highest = {
        name: min(*info.shape, info.numerical_rank, calibration.max_rank) for name, info in calibration.layers.items()
    }
    budget = method.rank * len(highest)
    return allocate(calibration.effective_ranks(), budget, max(method.rank // 4, 1), highest)


def calibration_samples(
    config: Config, records: Sequence[Record], tokenizer: Any, size: int, device: Any
) -> Iterator[Batch]:
    """Yield batches of the examples that `calibrate.py` would choose, with their labels."""
    settings = config.calibration
    order = random.Random(settings.seed).sample(range(len(records)), len(records))
    chosen = (records[index] for index in order)
    features = encode_records(
        chosen, tokenizer, config.data.template, settings.max_length, limit=settings.samples
    ).features
    features.sort(key=lambda feature: -len(feature["input_ids"]))
    for start in range(0, len(features), size):
        batch = collate(features[start : start + size], tokenizer.pad_token_id)
        yield {key: value.to(device) for key, value in batch.items()}


def build_model(
    config: Config, request: Request, checkpoints: Path, resuming: bool, device: Any, probe: Tensor
) -> tuple[nn.Module, dict[str, float]]:
    """Load the base model and put the method's adapter on it; a resumed run gets the factors it started with.

    Returns:
        The model to train, and what was measured on the way: `step0_deviation`, the largest difference of its logits
        from the base model's as a share of their range, and with nf4 the errors of the quantised residual.
    """
    name, quantized = config.method.name, config.model.quantization is not None
    torch.manual_seed(config.method.seed)  # of a new classification head
    model = load_trained(config)
    sharded = any(hasattr(parameter, "ds_id") for parameter in model.parameters())
    if sharded and METHODS[name].needs == "samples":
        raise UserError(f"train.deepspeed: {name} runs the model before ZeRO-3 can; use configs/deepspeed/zero2.json")
    if sharded:
        log.info("ZeRO-3 runs the model only when it trains: how far it is from the base model at step 0 is not known")
    elif not quantized:  # which is made small on the CPU first
        model.to(device)
    measured: dict[str, float] = {}
    reference = None if sharded else logits(model, probe)
    if resuming and (checkpoints / INITIAL).is_file():
        model = restore(model, request, *load_initial(checkpoints / INITIAL))
    else:
        model = build(name, model, request)
    upcast_trainable(model)
    if quantized:
        measured.update(quantize_base(model, device))
    if reference is not None:
        measured["step0_deviation"] = deviation(reference, logits(model, probe))
    return model, measured


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


def upcast_trainable(model: nn.Module) -> None:
    """Make what trains float32: an optimizer's small steps are lost in bfloat16, and float16 can't be loss-scaled."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32 and not hasattr(parameter, "ds_id"):
            parameter.data = parameter.data.float()


def keep_initial(model: nn.Module, checkpoints: Path) -> None:
    """Write the factors a new run starts from, which its resumption will need."""
    initial: dict[str, Factors] = getattr(model, "initial_lora", {})
    if initial:
        scalings = {name: float(layer.scaling["default"]) for name, layer in lora_layers(model)}
        save_initial(checkpoints / INITIAL, initial, scalings)


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
