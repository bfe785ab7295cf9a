"""Turn an adapter into something else: merge it into its base model, cut its rank, or push it to the hub.

python export.py --adapter outputs/demo/astra-tail-r8/lora --merge --out merged
"""

import argparse
from pathlib import Path
from typing import Any, NoReturn

from utils.cli import main
from utils.errors import UserError, first_line
from utils.log import log, setup_logging

USAGE = """
  python export.py --adapter RUN/lora --merge --out FOLDER        the base model with the adapter in it (safetensors)
  python export.py --adapter RUN/lora --rank 16 --out FOLDER      the best LoRA of rank 16, with its error
  python export.py --adapter RUN/lora --push ORG/NAME             upload the folder to the hub
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"export.py: {message} (see --help)")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's flags: a folder and one thing to do with it."""
    parser = _Parser(usage=USAGE, allow_abbrev=False)
    parser.add_argument("--adapter", type=Path, required=True, help="folder of a LoRA, or of a merged model to push")
    parser.add_argument("--out", type=Path, help="folder to write")
    parser.add_argument("--base", help="base model, where it is not the one the adapter names")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"], help="of a merge")
    parser.add_argument("--merge", action="store_true", help="merge the adapter into its base model")
    parser.add_argument("--rank", type=int, help="compress the adapter to this rank")
    parser.add_argument("--push", metavar="ORG/NAME", help="repository on the hub; it is made private if it is new")
    flags = parser.parse_args(argv)
    if sum([flags.merge, flags.rank is not None, flags.push is not None]) != 1:
        raise UserError("export.py: say one of --merge, --rank and --push")
    if flags.push is None and flags.out is None:
        raise UserError("export.py: --out names the folder to write")
    if flags.rank is not None and flags.rank < 1:
        raise UserError(f"--rank: must be at least 1, not {flags.rank}")
    holds = [path.name for path in flags.adapter.glob("*config.json")]
    if "adapter_config.json" not in holds and not (flags.push and "config.json" in holds):
        raise UserError(f"--adapter: {flags.adapter} holds no adapter_config.json")
    if flags.out is not None and flags.out.exists() and any(flags.out.iterdir()):
        raise UserError(f"--out: {flags.out} is not empty")
    return flags


def merge(adapter: Path, out: Path, base: str | None, dtype: str) -> None:
    """Write the base model with the adapter merged into it, in float32 and then rounded, as safetensors shards."""
    import torch
    from peft import PeftConfig, PeftModel
    from transformers import AutoTokenizer

    from utils.config import ModelConfig
    from utils.files import atomic_write
    from utils.models import load_model

    config = PeftConfig.from_pretrained(str(adapter))
    name = base or str(config.base_model_name_or_path)
    values = {
        "name": name,
        "revision": None if base else config.revision,  # a revision of the base that the adapter names
        "dtype": "float32",
        "task_type": config.task_type or "CAUSAL_LM",
    }
    source = ModelConfig.model_validate(values)
    outputs = head_size(adapter) if source.task_type == "SEQ_CLS" else None
    model = PeftModel.from_pretrained(load_model(source, outputs), str(adapter)).merge_and_unload()
    with atomic_write(out) as temporary:
        model.to(getattr(torch, dtype)).save_pretrained(temporary)
        AutoTokenizer.from_pretrained(adapter).save_pretrained(temporary)
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
    import shutil

    from peft import LoraConfig

    from astra.convert import compress_lora
    from utils.files import atomic_write

    config = LoraConfig.from_pretrained(str(adapter))
    with atomic_write(out) as temporary:
        report = compress_lora(adapter, config, rank, temporary)
        for path in adapter.iterdir():
            if path.suffix in (".json", ".jinja", ".model") and path.name != "adapter_config.json":
                shutil.copy(path, temporary / path.name)
    log.info("rank %d, largest relative error of a layer %.2e: %s", report["rank"], report["truncation_error"], out)
    return report


def push(folder: Path, repository: str) -> None:
    """Upload a folder to the hub."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder)
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(f"--push: {repository} can't be written on the hub ({first_line(error)})") from error
    log.info("pushed %s to %s", folder, repository)


def command() -> None:
    flags = parse()
    setup_logging()
    if flags.push is not None:
        push(flags.adapter, flags.push)
    elif flags.merge:
        merge(flags.adapter, flags.out, flags.base, flags.dtype)
    else:
        compress(flags.adapter, flags.rank, flags.out)


if __name__ == "__main__":
    main(command)
