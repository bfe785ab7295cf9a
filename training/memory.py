"""What calibration and training need in memory, from the model's shape alone, before its weights are here.

The model is built on PyTorch's meta device, where tensors have shapes and no data, and makes a forward pass there;
what autograd keeps of it is counted, storage by storage. So it is no formula of one architecture, and knows of
checkpointing.
"""

from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from dataset.sources import ARITHMETIC, load_training
from dataset.tokens import encode_records
from training.arguments import accumulation
from training.methods import METHODS, Request
from utils.config import Config
from utils.models import config_folder, is_here, load_tokenizer, usable_dtype

RECORDS = 1000  # read at most to see how long examples are
# On a CPU freed blocks leave holes between kept ones, which the C library does not fill again: three quarters of what
# is kept, on SmolLM2. With `MALLOC_MMAP_THRESHOLD_` set there are none, and the sum below is right without them.
HOLES = 0.75
LOSS_BYTES = 12  # per logit: its log-softmax and two gradients, float32


def needed_bytes(config: Config) -> dict[str, int]:
    """The most bytes that one process holds, by stage; on its GPU where there is one.

    They are `calibrate`, `train`, and of the latter `activations`, which no DeepSpeed shares out. On a CPU what the
    libraries take counts too, as in a process's resident size. Of a language model only.
    """
    own = 0 if torch.cuda.is_available() else psutil.Process().memory_info().rss
    width = getattr(torch, usable_dtype(config.model.dtype)).itemsize
    model = shape_of_model(config)
    weights = sum(parameter.numel() for parameter in model.parameters()) * width
    trained_on = weights_in_training(config, model)
    micro, _ = accumulation(config.train.global_batch_size, config.train.micro_batch_size)
    lengths, targets = lengths_of_examples(config)
    tokens = config.calibration.samples * min(lengths[0], config.calibration.max_length)
    found = {"calibrate": own + weights + tokens * model.config.get_text_config().hidden_size * width}
    states = add_shape_of_adapter(config, model)
    kept = kept_bytes(config, model, micro, lengths[0])
    kept += 0 if torch.cuda.is_available() else int(HOLES * kept)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    loss = sum(targets[:micro]) * vocabulary * (LOSS_BYTES + (2 if width == 2 else 0))
    return found | {"train": own + trained_on + states + kept + loss, "activations": kept + loss}


def room() -> int:
    """The bytes that a process can have: of the smallest GPU, or of main memory."""
    if torch.cuda.is_available():
        return min(torch.cuda.get_device_properties(k).total_memory for k in range(torch.cuda.device_count()))
    return psutil.virtual_memory().total


def shape_of_model(config: Config) -> Any:
    """The base model without data, in the data type it trains in, from its config alone."""
    made = AutoConfig.from_pretrained(config_folder(config.model))
    dtype = "float32" if config.method.name == "full" else usable_dtype(config.model.dtype)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            made, dtype=getattr(torch, dtype), attn_implementation=config.model.attention
        )


def weights_in_training(config: Config, model: Any) -> int:
    """Bytes of the base weights; in nf4 those of linear layers take half a byte each, and 3% for their scales."""
    packed = 0
    if config.model.quantization is not None:
        head = model.get_output_embeddings()
        packed = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) and m is not head)
    whole = sum(parameter.numel() for parameter in model.parameters()) - packed
    return whole * model.dtype.itemsize + int(0.515 * packed)


def add_shape_of_adapter(config: Config, model: nn.Module) -> int:
    """Let what trains train; return its bytes with gradients, AdamW's states and, of a product, the fixed start."""
    wanted, method = config.method, METHODS[config.method.name]
    if wanted.name == "full":
        return sum(parameter.numel() for parameter in model.parameters()) * 12  # the weights themselves are counted
    model.requires_grad_(False)
    get_peft_model(model, Request(wanted).peft_config(use_dora=wanted.name == "dora"), low_cpu_mem_usage=True)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return trained * (20 if method.moves else 16)


class FusedAttention(torch.autograd.Function):
    """Keeps what the fused kernels keep; on the meta device PyTorch takes one that keeps all probabilities."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out)
        return out


def kept_bytes(config: Config, model: Any, examples: int, tokens: int) -> int:
    """Bytes that autograd keeps of a forward pass over a batch (examples, tokens), the output embedding apart."""
    if config.train.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    fixed = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in fixed:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    ids = torch.zeros(examples, tokens, dtype=torch.int64, device=model.device)
    mask = torch.ones(examples, 1, tokens, tokens, dtype=torch.bool, device=model.device)  # as of a padded batch
    fused = mock.patch.object(F, "scaled_dot_product_attention", lambda q, k, v, **_: FusedAttention.apply(q, k, v))
    with fused, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hidden = model.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False)
    assert hidden[0].requires_grad  # as long as it lives, so do the storages that are counted
    return sum(kept.values())


def lengths_of_examples(config: Config) -> tuple[list[int], list[int]]:
    """Tokens and targets of the examples of a global batch, the longest first; the limit where data is not here."""
    data, batch = config.data, config.train.global_batch_size
    here = data.train == ARITHMETIC or data.dir is not None or Path(data.train).exists()
    if not (here and is_here(config.model)):
        return [data.max_length] * batch, [data.max_length] * batch
    first = {"limit": min(data.limit or RECORDS, RECORDS), "validation": 0.0, "reporting": 0.0, "decontaminate": False}
    records = load_training(data.model_copy(update=first))
    tokenizer = load_tokenizer(config.model)
    features = encode_records(records, tokenizer, data.template, data.max_length, truncate=data.truncate).features
    found = [(len(feature["input_ids"]), int((feature["labels"] >= 0).sum())) for feature in features]
    lengths, targets = zip(*sorted([max(found), *found[:batch]], reverse=True), strict=True)
    return list(lengths), list(targets)
