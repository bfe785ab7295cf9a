"""Command lines: parse everything, validate, and only then start anything.

Every command takes `--config FILE`, dotted overrides such as `--train.max_steps=20`, `--force` and `--help`. `fire`
only parses: it returns the words it was given, so that `--help` starts nothing and a stray word is noticed before a
model loads.
"""

import argparse
import errno
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import fire

from astra.errors import AstraError
from utils.config import Config, describe_keys, load_config
from utils.distributed import rank
from utils.errors import UserError, first_line
from utils.log import log, setup_logging


def parse(usage: str, flags: dict[str, Any], argv: Sequence[str] | None = None) -> tuple[Config, dict[str, Any]]:
    """Return the validated configuration and the command's own flags, which `flags` names with their defaults."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or "--help" in words or "-h" in words:
        print(inspect.cleandoc(usage))
        print(f"\nKeys of the configuration, each also a flag, with their defaults:\n{describe_keys()}")
        raise SystemExit(0 if words else 2)
    dashes = [word for word in words if word and not word.strip("-")]  # which fire takes for orders to itself
    stray, given = (tuple(dashes), {}) if dashes else _fire(words)
    if stray:
        raise UserError(f"unexpected word {str(stray[0])!r}; flags are written --key=value (see --help)")
    config = given.pop("config", None)
    if not isinstance(config, str):
        raise UserError("--config: name a YAML file, such as configs/demo.yaml")
    values = {name: given.pop(name, default) for name, default in flags.items()}
    for name, default in flags.items():
        if isinstance(default, bool) and not isinstance(values[name], bool):
            raise UserError(f"--{name}: takes no value, not {values[name]!r}")
        if not isinstance(values[name], type(default) | str):
            raise UserError(f"--{name}: takes a name or a path (such as ./2024), not {values[name]!r}")
    known = Config.model_fields
    for key in given:
        if key.split(".")[0] not in known:
            raise UserError(f"unknown flag --{key}; allowed: {', '.join(['config', *flags, *known])}")
    return load_config(config, given), values


def _fire(words: list[str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional words and the flags that `fire` finds in `words`, with YAML's null, true and false."""
    found: list[Any] = []
    fire.Fire(lambda *stray, **given: found.extend((stray, given)), command=[_whole(word) for word in words])
    stray, given = found
    names = {"null": None, "true": True, "false": False}
    return stray, {key: names.get(value, value) if isinstance(value, str) else value for key, value in given.items()}


def _whole(word: str) -> str:
    """Quote a value with a # outside quotes: in Python a comment begins there, and `fire` would drop it."""
    flag, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    return flag + equals + (repr(value) if "#" in re.sub(r"'[^']*'|\"[^\"]*\"", "", value) else value)


class Parser(argparse.ArgumentParser):
    """For the commands that read no configuration; a mistake is one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message} (see --help)")


def main(command: Callable[[], None]) -> None:
    """Run a command; a user's mistake becomes one line on stderr and exit status 2."""
    setup_logging()
    try:
        command()
    except (UserError, AstraError) as error:
        _say(str(error))
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:
        if (unwritable := _unwritable(error)) is not None:
            _say(unwritable)
            raise SystemExit(2) from None
        # a defect: the whole trace is shown, and the run's log says why it has no result
        _say(f"{type(error).__name__}: {error}")
        raise


def _unwritable(error: BaseException) -> str | None:
    """Return one line for a full disk or a forbidden place, in whichever library's words; None for all else."""
    if isinstance(error, OSError) and error.errno == errno.EACCES:  # on reading or on writing: it does not say
        return f"{error.filename or 'output_dir'}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return f"{error.filename or 'output_dir'}: can't be written ({error.strerror})"
    if "No space left on device" in str(error) or "PytorchStreamWriter failed" in str(error):
        return f"output_dir: can't be written ({first_line(error)}); make room, and the same command goes on"
    before = error.__cause__ or error.__context__
    return _unwritable(before) if before is not None else None


def _say(message: str) -> None:
    """Log an error on one line; every process logs its own."""
    place = f" (process {rank()})" if rank() else ""
    log.critical("error%s: %s", place, " ".join(message.split()))
