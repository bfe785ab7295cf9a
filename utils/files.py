"""Files that are whole whenever they exist, and fingerprints that tell two settings apart."""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from astra.manifest import damaged, hashes, sealed, unsealed
from utils.errors import UserError, first_line

MANIFEST = "manifest.json"  # the record of a folder that is complete
FILES = "files"  # of a record: the digests of the files that were written before it
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")  # to read one is to run what it says
UMASK = os.umask(0o077)  # there is no way to read it but to set it
os.umask(UMASK)
AGAIN = "restore it from a copy, or make it anew with --force"


@contextmanager
def atomic_write(path: str | Path, keep: bool = False) -> Iterator[Path]:
    """Yield a temporary file or folder name beside `path`; rename it to `path` when the block ends without an error.

    A process that is killed in the block leaves `path` as it was. What stood at `path` is replaced; a folder only by a
    folder, and not at all with `keep`: another process has made the same one meanwhile, and may be reading it.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _remove(temporary)
            yield temporary
            _share(temporary)
            if temporary.is_dir() and not keep:
                _remove(path)
            try:
                os.replace(temporary, path)
            except OSError:
                if not (keep and path.is_dir()):
                    raise
        finally:
            _remove(temporary)
    except OSError as error:
        raise UserError(f"{error.filename or path}: can't be written ({error.strerror or error})") from error


def _share(path: Path) -> None:
    """Let others read files as the umask says; safetensors makes its own private."""
    for file in path.rglob("*") if path.is_dir() else (path,):
        mode = stat.S_IMODE(file.stat().st_mode)
        if file.is_file() and not file.is_symlink() and mode != (wanted := mode | 0o666 & ~UMASK):
            file.chmod(wanted)


def discard_temporary(folder: Path) -> None:
    """Remove what killed processes left half written in a folder that no other process writes to."""
    for path in [*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")]:
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; a `UserError` names it and the line that is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, numbers or depths that Python refuses
        raise UserError(f"{path}: not JSON ({first_line(error)})") from error


def write_record(path: str | Path, value: dict[str, Any], files: Iterable[Path] = ()) -> None:
    """Write what a command found as JSON with its own digest and that of `files`, which lie in its folder or below.

    Write it last: where there is a record, all that it speaks of is complete.
    """
    path = Path(path)
    if found := hashes(path.parent, sorted(files)):
        value = {**value, FILES: found}
    write_json(path, sealed(value))


def read_record(path: str | Path, again: str = AGAIN) -> dict[str, Any]:
    """Read what `write_record` wrote and check it and its files; one of another program is read as it is.

    A file that is missing or is not what was written, or a pickle beside them, is named in a `UserError`, which says
    how to make it `again`.
    """
    path = Path(path)
    try:
        value = unsealed(read_json(path))
    except (UserError, AttributeError, ValueError) as error:
        why = str(error).removeprefix(f"{path}").removeprefix(": ")
        raise UserError(f"{path}: damaged ({why}); {again}") from error
    files = value.pop(FILES, {})
    if fault := damaged(path.parent, files):
        raise UserError(f"{fault}; {again}")
    refuse_pickles(path.parent, files)
    return value


def check_folder(folder: Path) -> None:
    """Raise a `UserError` when a folder that others may have filled is damaged, or holds what could run."""
    if (folder / MANIFEST).exists():
        read_record(folder / MANIFEST)
    refuse_pickles(folder)


def refuse_pickles(folder: Path, known: Iterable[str] = ()) -> None:
    """Raise a `UserError` that names the first pickle in a folder, those `known` by their hash apart."""
    for path in sorted(folder.iterdir()):
        if path.suffix in PICKLES and path.name not in known:
            raise UserError(f"{path}: a pickle can run anything when it is loaded, and none belongs here; remove it")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a JSON-lines file; a line cut off by a crash is left out."""
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines if line.endswith("}")]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged ({first_line(error)}); {AGAIN}") from error


def fingerprint(value: Any) -> str:
    """Return 16 hexadecimal digits that stand for a JSON-serialisable value, whatever the order of its keys."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
