"""Files are whole whenever they exist."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from utils.errors import UserError
from utils.files import atomic_write, fingerprint, read_json, write_json


def test_an_error_while_writing_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise RuntimeError
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_replaces_the_folder_of_that_name(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with atomic_write(tmp_path / "lora") as temporary:
            temporary.mkdir()
            (temporary / name).touch()
    assert [file.name for file in (tmp_path / "lora").iterdir()] == ["new"]


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "lora") as temporary:
        temporary.mkdir()
        save_file({"w": torch.zeros(2)}, temporary / "weights.safetensors")
    (tmp_path / "plain").touch()
    assert (tmp_path / "lora" / "weights.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file.*can't be written"), atomic_write(tmp_path / "file" / "below.json"):
        pass


def test_malformed_json_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text('{"a": 1,\n oops}', encoding="utf-8")
    with pytest.raises(UserError, match=r"bad.json:2: not JSON"):
        read_json(path)


@given(st.dictionaries(st.text(), st.integers()))
def test_the_order_of_keys_does_not_change_a_fingerprint(value: dict[str, int]) -> None:
    assert fingerprint(value) == fingerprint(dict(reversed(value.items()))) != fingerprint({**value, "new": 1.5})


def test_a_folder_that_another_process_has_made_meanwhile_is_kept(tmp_path):
    with atomic_write(tmp_path / "cache", keep=True) as temporary:
        temporary.mkdir()
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / "theirs").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["cache", "theirs"]
