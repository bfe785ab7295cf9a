"""Every file of a finished experiment damaged in turn, and what the next command that reads it says.

The experiment is made once, on a random two-layer model. Each damaged file lies in a copy of its own; the command must
end as a user error that names the file, and leave it as it is.
"""

import contextlib
import importlib
import io
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from astra.errors import AstraError  # noqa: E402
from utils.cli import main  # noqa: E402
from utils.config import Config  # noqa: E402
from utils.errors import UserError  # noqa: E402
from utils.files import read_record  # noqa: E402
from utils.runs import run_folder  # noqa: E402

DAMAGES: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size * 2 // 3),
    "flipped": lambda path: _flip(path),
    "emptied": lambda path: os.truncate(path, 0),
    "a folder": lambda path: _make_folder(path),
    "unreadable": lambda path: path.chmod(0),  # and `stranger` keeps root from reading it nevertheless
}
STAGES = ("dataset.prepare", "calibrate", "train", "eval.__main__", "eval.report")
NOBODY = 65534


@dataclass
class Damage:
    """How many files were damaged in how many ways, and what the command said that did not name the file."""

    damaged: int = 0
    detected: int = 0
    missed: list[str] = field(default_factory=list)


def _make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _flip(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@contextlib.contextmanager
def stranger(folder: Path, locked: Path) -> Iterator[None]:
    """Be `nobody`, who owns a folder but for one file in it: permissions stop everyone but root."""
    if os.geteuid():
        yield
        return
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, NOBODY if path != locked else 0, -1)
    modes = {path: path.stat().st_mode for path in folder.parents}
    for path, mode in modes.items():
        path.chmod(mode | 0o011)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        for path, mode in modes.items():
            path.chmod(mode)


def make_finished(folder: Path) -> tuple[Config, Path]:
    """Make a finished experiment in a folder, on a random Llama of two layers; its config, and the file of that."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from utils.config import ModelConfig, validate
    from utils.models import resolve_model

    values = {
        "output_dir": str(folder / "out"), "run": "mine",
        "model": {"name": str(folder / "model"), "dtype": "float32"},
        "data": {"train": "arithmetic", "limit": 24, "validation": 0.2, "general_text": "python-manual"},
        "calibration": {"samples": 8, "batch_size": 4}, "method": {"rank": 4},
        "train": {"global_batch_size": 4, "micro_batch_size": 2, "max_steps": 2, "save_steps": 2, "forgetting": False},
        "eval": {"tasks": ["arithmetic"], "engine": "transformers", "limit": 4, "max_new_tokens": 8},
    }  # fmt: skip
    path = folder / "config.yaml"
    if not path.is_file():
        tokenizer = AutoTokenizer.from_pretrained(resolve_model(ModelConfig(name="smollm2")))
        torch.manual_seed(0)
        shape = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        LlamaForCausalLM(shape).save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        make_experiment(validate(values))
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return validate(values), path


def make_experiment(config: Config) -> None:
    """Calibrate, train, evaluate and report in this process."""
    import calibrate
    import train
    from eval.candidates import base_target, run_target
    from eval.evaluate import evaluate
    from eval.report import write_report
    from training.stores import stores

    for folder, (run, need) in stores(config).items():
        calibrate.calibrate_store(folder, run, need, False)
    train.train(config)
    evaluate(config, [base_target(config), run_target(config, run_folder(config))])
    write_report(Path(config.output_dir))


def readers(config: Config) -> dict[str, Callable[[Config], Any]]:
    """Which files are read (patterns below the experiment's folder), and what reads them next."""
    from eval.candidates import base_target, run_target
    from eval.evaluate import evaluate
    from eval.report import write_report
    from eval.results import shares
    from training.check import finished
    from training.stores import require_store

    def again(config: Config) -> None:
        other = config.model_copy(update={"run": "again"})
        import train

        try:
            train.train(other)
        finally:
            shutil.rmtree(run_folder(other))

    def rate(config: Config) -> None:
        evaluate(config, [base_target(config), run_target(config, run_folder(config))], regrade=True)

    def report(config: Config) -> None:
        shares.cache_clear()
        write_report(Path(config.output_dir))

    return {
        "calibration/*/*.json": require_store,
        "calibration/*/*.safetensors": require_store,
        "tokens/*": again,
        "base/losses-*.json": again,
        "*/metrics.json": lambda config: finished(config, run_folder(config)),
        "*/config.yaml": report,
        "*/metrics.jsonl": report,
        "*/losses.json": report,
        "*/stages/*.json": report,
        "stages/*.json": report,
        "*/lora/*.json": rate,
        "*/lora/*.safetensors": rate,
        "*/lora/*.jinja": rate,
        "*/eval/*.json": report,
        "*/eval/*.samples.jsonl": report,
        "*/eval/*.texts.jsonl": rate,
    }


def damage_files(config: Config, kinds: tuple[str, ...] = tuple(DAMAGES)) -> Damage:
    """Damage every file of a finished experiment that a later command reads, in each way, one at a time."""
    found, out = Damage(), Path(config.output_dir)
    for pattern, command in readers(config).items():
        paths = sorted(path for path in out.glob(pattern) if path.is_file())
        assert paths, pattern
        for path in paths:
            for kind in kinds:
                _one(found, config, path, kind, command)
    return found


def _one(found: Damage, config: Config, path: Path, kind: str, command: Callable[[Config], Any]) -> None:
    kept = path.with_name(f".{path.name}.kept")
    shutil.copy2(path, kept)
    try:
        DAMAGES[kind](path)
        before = path.read_bytes() if path.is_file() else None
        found.damaged += 1
        case = f"{path.relative_to(config.output_dir)} {kind}"
        try:
            with stranger(Path(config.output_dir).parent, path) if kind == "unreadable" else contextlib.nullcontext():
                command(config)
            found.missed.append(f"{case}: nothing said")
        except (UserError, AstraError) as error:
            if path.name in str(error) and "\n" not in str(error).strip():
                found.detected += 1
            else:
                found.missed.append(f"{case}: {error}")
        except Exception as error:
            found.missed.append(f"{case}: {type(error).__name__}: {error}")
        if path.is_dir() != (before is None) or (before is not None and path.read_bytes() != before):
            found.missed.append(f"{case}: was changed or removed")
    finally:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        kept.rename(path)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self.trace), "w")


def pickles(config: Config) -> dict[Path, Callable[[], Any]]:
    """Where a pickle could lie in a run and in an adapter's folder, and what reads there."""
    from eval.candidates import read_adapter
    from training.check import finished
    from training.checkpoints import last_complete

    run = run_folder(config)
    step, settings = run / "checkpoints" / "checkpoint-2", read_record(run / "metrics.json")["settings"]

    def resume() -> Any:
        return last_complete(step.parent, settings)

    return {
        run / "optimizer.pt": lambda: finished(config, run),
        run / "lora" / "adapter_model.bin": lambda: read_adapter(run / "lora"),
        **{step / name: resume for name in ("rng_state_1.pth", "pytorch_model.bin", "model.pt", "optimizer.bin")},
    }


def loaded_pickles(config: Config) -> list[str]:
    """Place a pickle in every such place, in turn; those that were loaded, or not refused by the file's name."""
    wrong, trace = [], Path(config.output_dir) / "unpickled"
    for place, read in pickles(config).items():
        place.write_bytes(pickle.dumps(Bomb(trace)))
        try:
            read()
            wrong.append(f"{place.name}: nothing said")
        except UserError as error:
            if f"{place.name}: a pickle can run anything" not in str(error):
                wrong.append(f"{place.name}: {error}")
        except Exception as error:
            wrong.append(f"{place.name}: {type(error).__name__}: {error}")
        finally:
            place.unlink()
        if trace.exists():
            trace.unlink()
            wrong.append(f"{place.name}: loaded")
    return wrong


def starved(config: Config, kind: str) -> list[str]:
    """Run every stage where nothing can be written: on a "full" disk or a "read-only" one; root alone may.

    Returns:
        What a stage did other than end in one line that names a file or key; empty is good.
    """
    wrong = []
    for stage in STAGES:
        with tempfile.TemporaryDirectory() as place:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", place], check=True)
            try:
                out = Path(place) / "out"
                shutil.copytree(config.output_dir, out)
                for made in _made_by(stage, out, config):
                    shutil.rmtree(made) if made.is_dir() else made.unlink(missing_ok=True)
                path = Path(place) / "config.yaml"
                path.write_text(yaml.safe_dump({**config.model_dump(), "output_dir": str(out)}), encoding="utf-8")
                if kind == "full":
                    subprocess.run(["dd", "if=/dev/zero", f"of={place}/fill"], stderr=subprocess.DEVNULL)
                else:
                    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
                if said := _outcome(stage, path):
                    wrong.append(f"{stage}, {kind}: {said}")
            finally:
                subprocess.run(["umount", "-l", place], check=True)
    return wrong


def _made_by(stage: str, out: Path, config: Config) -> list[Path]:
    run = out / str(config.run)
    return {
        "dataset.prepare": [out / "data.json"],
        "calibrate": [out / "calibration"],
        "train": [run / "metrics.json", run / "lora", run / "checkpoints"],
        "eval.__main__": [run / "eval", out / "base" / "eval"],
        "eval.report": [out / "report.html"],
    }[stage]


def _outcome(stage: str, path: Path) -> str | None:
    """What a stage's command did other than say one line and end with status 2."""
    said = io.StringIO()
    try:
        with patch("sys.argv", [stage, "--config", str(path)]), contextlib.redirect_stderr(said):
            main(importlib.import_module(stage).command)
    except SystemExit as error:
        errors = [line for line in said.getvalue().splitlines() if "error" in line]
        return None if error.code == 2 and len(errors) == 1 and errors[0].count(":") > 1 else f"{errors}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing said"
