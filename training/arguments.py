"""The Trainer's arguments: batch sizes, precision, and the processes that train together."""

import os
import socket
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from training.check import deepspeed_file, validated
from utils.config import Config
from utils.distributed import world_size
from utils.errors import UserError
from utils.log import log
from utils.models import usable_dtype

# Settings that the Trainer has under the same name.
SAME_NAME = {"learning_rate", "weight_decay", "max_grad_norm", "seed", "logging_steps", "gradient_checkpointing"}


def training_arguments(config: Config, folder: Path) -> TrainingArguments:
    """Return the Trainer's arguments; joins the processes, if there are several, and DeepSpeed's, if asked for."""
    train, cpu = config.train, on_cpu()
    if train.liger_kernel and cpu:
        raise UserError("train.liger_kernel: its kernels need a GPU; set it to false")
    micro, steps = accumulation(train.global_batch_size, train.micro_batch_size)
    deepspeed = deepspeed_settings(config)
    if deepspeed is not None:
        _start_deepspeed(cpu)
    dtype = usable_dtype(config.model.dtype)
    validates = validated(config)
    args = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=steps,
        num_train_epochs=train.epochs,
        max_steps=train.max_steps or -1,
        lr_scheduler_type=train.scheduler,
        warmup_steps=train.warmup_ratio,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if validates else "no",
        eval_steps=1,  # as save_steps, whatever logging_steps is; `make_trainer` knows how many steps there are
        save_steps=1,
        load_best_model_at_end=validates,  # that of the smallest loss
        bf16=dtype == "bfloat16" and deepspeed is None,  # DeepSpeed's own settings ask for it
        fp16=dtype == "float16",
        use_cpu=cpu,
        ddp_backend="gloo" if cpu and world_size() > 1 and deepspeed is None else None,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,  # the factors an adapter starts from are the same everywhere
        deepspeed=deepspeed,
        gradient_checkpointing_kwargs={"use_reentrant": False} if train.gradient_checkpointing else None,
        torch_compile=train.compile,
        use_liger_kernel=train.liger_kernel,
        report_to=train.report_to or "none",
        run_name=folder.name,
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=not cpu,
        **train.model_dump(include=SAME_NAME),
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
    settings = deepspeed_file(config)
    if settings is None:
        return None
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


def accumulation(global_batch: int, micro_batch: int) -> tuple[int, int]:
    """Return micro-batch size and accumulation steps that make up the global batch over all processes."""
    processes = world_size()
    if global_batch % processes:
        raise UserError(f"train.global_batch_size: {global_batch} can't be shared evenly by {processes} processes")
    share = global_batch // processes
    micro = next(size for size in range(min(micro_batch, share), 0, -1) if share % size == 0)
    return micro, share // micro


def on_cpu() -> bool:
    """Return whether training runs on the CPU; refuse to, where CUDA_VISIBLE_DEVICES asks for a GPU."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if torch.cuda.is_available():
        return False
    if wanted not in ("", "-1"):
        raise UserError(f"CUDA_VISIBLE_DEVICES={wanted} asks for a GPU, and torch finds none; unset it to use the CPU")
    return True
