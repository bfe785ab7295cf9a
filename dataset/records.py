"""Reading records from files: JSON lines (plain or gzipped) and JSON lists; errors name the file and the line."""

import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from utils.errors import UserError

Record = dict[str, Any]


def read_rows(path: str | Path) -> Iterator[tuple[str, Record]]:
    """Yield every object of a `.jsonl`, `.jsonl.gz` or `.json` file with where it stands.

    A file that begins with `[` is a JSON list; any other holds one object a line (which is also what
    `datasets.Dataset.to_json` writes under the name `.json`).

    Yields:
        `("data.jsonl:3", row)`, or `("data.json: record 3", row)` for a list; both count from 1.

    Raises:
        UserError: the file is missing or unreadable, a line is not JSON, or a row is not an object.
    """
    path = Path(path)
    if not path.name.endswith((".json", ".jsonl", ".jsonl.gz")):
        raise UserError(f"{path}: unknown kind of file; allowed: .json, .jsonl, .jsonl.gz")
    try:
        with _open(path) as file:
            is_list = file.read(64).lstrip().startswith("[")
            file.seek(0)
            for place, row in _list_rows(path, file) if is_list else _line_rows(path, file):
                if not isinstance(row, dict):
                    raise UserError(f"{place}: holds {type(row).__name__}, not an object")
                yield place, row
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except (OSError, EOFError) as error:  # EOFError: a gzip file that was cut off
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return open(path, encoding="utf-8-sig")


def _list_rows(path: Path, file: IO[str]) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.load(file)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg})") from error
    for number, row in enumerate(rows, start=1):
        yield f"{path}: record {number}", row


def _line_rows(path: Path, file: IO[str]) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                yield f"{path}:{number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}:{number}: not JSON ({error.msg})") from error


def own_record(row: Mapping[str, Any], fields: Mapping[str, str], place: str) -> Record:
    """Turn a row of a user's own file into a training record.

    Args:
        row: The row as read.
        fields: `data.fields`: `{"instruction": key, "output": key}`, with `"input": key` for a text that may be empty
            and belongs below the instruction (Alpaca's form); or `{"messages": key}` for a list of turns with `role`
            and `content`, of which the last assistant turn is the response and the turns before it the prompt.
        place: Where the row stands, for errors.

    Raises:
        UserError: a field is missing, empty or of the wrong type, or a conversation has no assistant turn to learn.
    """
    if "messages" in fields:
        return _conversation(_field(row, fields, "messages", list, place), place)
    instruction = _field(row, fields, "instruction", str, place)
    if "input" in fields and row.get(fields["input"]):
        instruction = f"{instruction}\n\n{_field(row, fields, 'input', str, place)}"
    return {"instruction": instruction, "output": _field(row, fields, "output", str, place), "type": "own"}


def check_fields(fields: Mapping[str, str]) -> None:
    """Raise a `UserError` unless `data.fields` names instruction and output, or messages."""
    if set(fields) - {"input"} != {"instruction", "output"} and set(fields) != {"messages"}:
        raise UserError(
            f"data.fields: has {', '.join(fields) or 'nothing'}; allowed: instruction, output (and input), or messages"
        )


def _field(row: Mapping[str, Any], fields: Mapping[str, str], field: str, kind: type, place: str) -> Any:
    key = fields[field]
    if key not in row:
        raise UserError(
            f"{place}: no field {key!r} (data.fields.{field}); it has: {', '.join(map(str, row)) or 'none'}"
        )
    value = row[key]
    if not isinstance(value, kind):
        wanted = "text" if kind is str else "a list of turns"
        raise UserError(f"{place}: field {key!r} holds {type(value).__name__}, not {wanted}")
    if not value or (isinstance(value, str) and not value.strip()):
        raise UserError(f"{place}: field {key!r} is empty")
    return value


def _conversation(turns: list[Any], place: str) -> Record:
    for turn in turns:
        if not isinstance(turn, dict) or not all(isinstance(turn.get(key), str) for key in ("role", "content")):
            raise UserError(f"{place}: each turn of messages needs role and content, both text")
    last = max((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), default=0)
    before = [{"role": turn["role"], "content": turn["content"]} for turn in turns[:last]]
    asked = [turn["content"] for turn in before if turn["role"] == "user"]
    if not asked or not turns[last]["content"].strip():
        raise UserError(f"{place}: messages needs a user turn and, after it, an assistant turn with text")
    return {"instruction": asked[-1], "output": turns[last]["content"], "type": "own", "messages": before}
