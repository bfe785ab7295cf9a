"""Reading rows from files: JSON lines (plain or gzipped), JSON lists and TSV; errors name the file and the line."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from utils.errors import UserError, first_line

Row = dict[str, Any]
Record = dict[str, Any]
Converter = Callable[[Row], Record | None]  # None: a row that is not wanted


def read_rows(path: str | Path, columns: Sequence[str] = ()) -> Iterator[tuple[str, Row]]:
    """Yield every object of a `.jsonl`, `.jsonl.gz`, `.json` or `.tsv` file with where it stands.

    A JSON file that begins with `[` is a list; any other holds one object per line (which is also what
    `datasets.Dataset.to_json` writes under the name `.json`). In a TSV file a quotation mark is part of the text.

    Args:
        columns: Names of the columns of a TSV file that has no header line.

    Yields:
        `("data.jsonl:3", row)`, or `("data.json: record 3", row)` for a list; both count from 1.

    Raises:
        UserError: the file is missing or unreadable, a line is malformed, or a row is not an object.
    """
    path = Path(path)
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="\n") as file:
            for place, row in _tsv_rows(path, file, columns) if path.suffix == ".tsv" else _json_rows(path, file):
                if not isinstance(row, dict):
                    raise UserError(f"{place}: holds {type(row).__name__}, not an object")
                yield place, row
    except UnicodeDecodeError as error:
        raise UserError(f"{_undecodable(path)}: not UTF-8 text ({error.reason})") from error
    except (OSError, EOFError, zlib.error) as error:  # of a gzip file that was cut off or altered
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def _undecodable(path: Path) -> str:
    """The first line that is not UTF-8, as `file:line`; decoding errors count bytes from somewhere inside the file."""
    number = 0
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            for line in file:
                number += 1
                line.decode("utf-8")
    except (UnicodeDecodeError, OSError, EOFError, zlib.error):  # or the file is cut off as well
        pass
    return f"{path}:{max(number, 1)}"


def _json_rows(path: Path, file: IO[str]) -> Iterator[tuple[str, Any]]:
    is_list = file.read(64).lstrip().startswith("[")
    file.seek(0)
    number = 1  # of the line where a text of JSON begins
    try:
        if is_list:
            yield from ((f"{path}: record {place}", row) for place, row in enumerate(json.load(file), start=1))
            return
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"{path}:{number}", json.loads(line.strip())
    except UnicodeDecodeError:
        raise
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{number + error.lineno - 1}: not JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:  # longer numbers, or deeper lists, than Python reads
        raise UserError(f"{path}:{number}: not JSON ({first_line(error)})") from error


def _tsv_rows(path: Path, file: IO[str], columns: Sequence[str]) -> Iterator[tuple[str, Row]]:
    names = columns or next(file, "").rstrip("\r\n").split("\t")
    for number, line in enumerate(file, start=1 if columns else 2):
        values = line.rstrip("\r\n").split("\t")
        if len(values) != len(names):
            raise UserError(f"{path}:{number}: has {len(values)} columns, not {len(names)}")
        yield f"{path}:{number}", dict(zip(names, values, strict=True))


def converted(rows: Iterable[tuple[str, Row]], convert: Converter, name: str) -> Iterator[Record]:
    """Yield the records of a published data set's rows; `name` is what an error calls the set."""
    for place, row in rows:
        try:
            record = convert(row)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{place}: not a row of {name} as published ({error!r})") from error
        if record is not None:
            yield record
