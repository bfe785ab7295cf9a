"""Turn an adapter into something else: merge it into its base model, or cut its rank.

python export.py --adapter outputs/demo/astra-tail-r8/lora --merge --out merged
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

from utils.cli import Parser, main
from utils.errors import UserError
from utils.files import MANIFEST, check_folder
from utils.log import log

USAGE = """
  python export.py --adapter RUN/lora --merge --out FOLDER        the base model with the adapter in it (safetensors)
  python export.py --adapter RUN/lora --rank 16 --out FOLDER      the best LoRA of rank 16, with its error

Either folder goes to the hub by `hf upload ORG/NAME FOLDER`, as RUN/lora does.
"""


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's flags: a folder and one thing to do with it."""
    parser = Parser("export.py", usage=USAGE, allow_abbrev=False)
    parser.add_argument("--adapter", type=Path, required=True, help="folder of a LoRA")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--base", help="base model, where it is not the one the adapter names")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"], help="of a merge")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--merge", action="store_true", help="merge the adapter into its base model")
    action.add_argument("--rank", type=int, help="compress the adapter to this rank")
    flags = parser.parse_args(argv)
    if flags.rank is not None and flags.rank < 1:
        raise UserError(f"--rank: must be at least 1, not {flags.rank}")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (flags.adapter / name).is_file():
            raise UserError(f"--adapter: {flags.adapter} holds no {name}")
    check_folder(flags.adapter)
    if flags.out.is_file() or flags.out.exists() and any(flags.out.iterdir()):
        raise UserError(f"--out: {flags.out} is a file, or not empty")
    return flags


def merge(adapter: Path, out: Path, base: str | None, dtype: str) -> None:
    """Write the base model with the adapter merged into it, in float32 and then rounded, as safetensors shards."""
    import torch
    from peft import PeftConfig
    from transformers import AutoTokenizer

    from utils.config import validate
    from utils.files import atomic_write
    from utils.models import load_model, merge_adapter, resolve_model

    config = PeftConfig.from_pretrained(str(adapter))
    name = base or str(config.base_model_name_or_path)
    revision = None if base else config.revision  # of the base that the adapter names
    wanted = {"name": name, "revision": revision, "dtype": "float32", "task_type": config.task_type or "CAUSAL_LM"}
    source = validate({"model": wanted}, f"--adapter: {adapter}").model
    outputs = head_size(adapter) if source.task_type == "SEQ_CLS" else None
    with_tokenizer = adapter if (adapter / "tokenizer_config.json").is_file() else resolve_model(source)
    tokenizer = AutoTokenizer.from_pretrained(with_tokenizer)
    model = merge_adapter(load_model(source, outputs), adapter)
    with atomic_write(out) as temporary:
        model.to(getattr(torch, dtype)).save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    log.info("merged %s into %s: %s", adapter, name, out)


def head_size(adapter: Path) -> int:
    """Return how many outputs an adapter's classification head has; its last layer is the one with the fewest."""
    from safetensors import safe_open

    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        shapes = [file.get_slice(key).get_shape() for key in file.keys() if "lora_" not in key]  # noqa: SIM118
    return int(min(shape[0] for shape in shapes if len(shape) == 2))


def compress(adapter: Path, rank: int, out: Path) -> dict[str, Any]:
    """Write the LoRA of at most `rank` that is nearest to the adapter in every layer.

    Returns:
        `rank`, `truncation_error` (the largest relative Frobenius error of a layer) and `bytes`.
    """
    from peft import LoraConfig

    from astra.convert import compress_lora
    from eval.candidates import PLAIN_INITIALISATIONS
    from utils.files import atomic_write, read_json
    from utils.models import QUANTIZATION, QUANTIZED_FROM, state_quantization

    config = LoraConfig.from_pretrained(str(adapter))
    if str(config.init_lora_weights) in PLAIN_INITIALISATIONS:
        config.init_lora_weights = True
    with atomic_write(out) as temporary:
        report = compress_lora(adapter, config, rank, temporary)
        stated = read_json(adapter / "adapter_config.json")
        state_quantization(temporary, stated.get(QUANTIZATION), stated.get(QUANTIZED_FROM))
        for path in adapter.iterdir():
            if path.suffix in (".json", ".jinja", ".model") and path.name not in (MANIFEST, "adapter_config.json"):
                shutil.copy(path, temporary / path.name)
    log.info("rank %d, largest relative error of a layer %.2e: %s", report["rank"], report["truncation_error"], out)
    return report


def command() -> None:
    flags = parse()
    if flags.merge:
        merge(flags.adapter, flags.out, flags.base, flags.dtype)
    else:
        compress(flags.adapter, flags.rank, flags.out)


if __name__ == "__main__":
    main(command)
