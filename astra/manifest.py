"""What tells a damaged file from a whole one: records that hold a digest of themselves, and those of other files.

A digest finds what a disk, a copy or an editor changed. It does not tell who wrote a file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

SEAL = "seal"


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with the digest of its other entries."""
    return {**value, SEAL: _digest(value)}


def unsealed(value: dict[str, Any]) -> dict[str, Any]:
    """The object without its digest, which must be right; one that has none is another program's: as it is."""
    rest = {key: entry for key, entry in value.items() if key != SEAL}
    if SEAL in value and value[SEAL] != _digest(rest):
        raise ValueError("not what was written")
    return rest


def hashes(folder: Path, paths: Iterable[Path]) -> dict[str, str]:
    """The SHA-256 of files, in hexadecimal, by their path inside `folder`."""
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in paths}


def damaged(folder: Path, files: Mapping[str, str]) -> str | None:
    """Why the first file that is not what `hashes` found is none, with its path in front; None if all are."""
    for name, digest in files.items():
        path = folder / name
        try:
            if sha256_file(path) != digest:
                return f"{path}: damaged (not what was written)"
        except OSError as error:
            return f"{path}: damaged ({error.strerror})"
    return None


def sha256_file(path: str | Path) -> str:
    """The SHA-256 of a file's bytes in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(value: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps(value))  # as it will be read: every key a string
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
