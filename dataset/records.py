"""Reading rows from files: JSON lines (plain or gzipped), JSON lists and TSV; errors name the file and the line."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from utils.errors import UserError, first_line

Row = dict[str, Any]
Record = dict[str, Any]
Converter = Callable[[Row], Record | None]  # None: a row that is not wanted


def read_rows(path: str | Path, columns: Sequence[str] = ()) -> Iterator[tuple[str, Row]]:
    """Yield every object of a `.jsonl`, `.jsonl.gz`, `.json` or `.tsv` file with where it stands.

    A JSON file that begins with `[` is a list; any other holds one object per line (which is also what
    `datasets.Dataset.to_json` writes under the name `.json`). In a TSV file a quotation mark is part of the text.

    `columns` names the columns of a TSV file that has no header line.

    Yields:
        `("data.jsonl:3", row)`, or `("data.json: record 3", row)` for a list; both count from 1.
    """
    path = Path(path)
    try:
        for place, row in _tsv_rows(path, columns) if path.suffix == ".tsv" else _json_rows(path):
            if not isinstance(row, dict):
                raise UserError(f"{place}: holds {type(row).__name__}, not an object")
            yield place, row
    except (OSError, EOFError, zlib.error) as error:  # of a gzip file that was cut off or altered
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{path}:{number}: not UTF-8 text ({error.reason})") from error
            yield number, text


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    lines = _lines(path)
    begin = number, first = next((line for line in lines if line[1].strip()), (1, ""))
    try:
        if first.lstrip().startswith("["):
            rows = json.loads(first + "".join(text for _, text in lines))
            yield from ((f"{path}: record {place}", row) for place, row in enumerate(rows, start=1))
            return
        for number, text in chain([begin], lines):
            if text.strip():
                yield f"{path}:{number}", json.loads(text.strip())
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{number + error.lineno - 1}: not JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:  # longer numbers, or deeper lists, than Python reads
        raise UserError(f"{path}:{number}: not JSON ({first_line(error)})") from error


def _tsv_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Row]]:
    lines = _lines(path)
    names = columns or next(lines, (1, ""))[1].rstrip("\r\n").split("\t")
    for number, line in lines:
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
