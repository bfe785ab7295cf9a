"""The store gives back what was saved, and refuses what is not whole."""

import errno
import json
from pathlib import Path

import pytest
import torch

from astra import AstraError, Calibration, LayerInfo


def make(rank: int = 3) -> Calibration:
    torch.manual_seed(0)
    layers, spectra, tail = {}, {}, {}
    for name in ("model.b", "model.a"):  # the model's order, not the alphabet's
        layers[name] = LayerInfo(name, (6, 4), False, "input", name, 100, 4, 4, 3.2, 1.0)
        spectra[name] = torch.arange(6, dtype=torch.float64)
        tail[name] = torch.linalg.qr(torch.randn(6, rank)).Q
    tables = {"spectra": spectra, "tail": tail}
    return Calibration(layers, rank, ("tail",), {"model": "x"}, tables, left_out=("model.c",))


def test_a_store_gives_back_what_was_saved(tmp_path: Path) -> None:
    saved = make()
    saved.save(tmp_path / "store")
    loaded = Calibration.load(tmp_path / "store")
    assert list(loaded.layers) == ["model.b", "model.a"] and loaded.layers == saved.layers
    assert (loaded.settings, loaded.max_rank, loaded.left_out) == ({"model": "x"}, 3, ("model.c",))
    for name in loaded.layers:
        assert torch.equal(loaded.vectors(name, "tail", 2), saved.vectors(name, "tail", 3)[:, :2])
        assert torch.equal(loaded.eigenvalues(name), saved.eigenvalues(name))


def test_the_same_calibration_has_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        make().save(tmp_path / folder)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("name", "subspace", "rank", "message"),
    [
        ("model.c", "tail", 1, "layer 'model.c' was not calibrated"),
        ("model.a", "principal", 1, "subspace 'principal' is not in this calibration, which has tail"),
        ("model.a", "tail", 0, "rank 0 is outside 1..3"),
        ("model.a", "tail", 4, "rank 4 is outside 1..3"),
    ],
)
def test_what_is_not_there_is_named(name: str, subspace: str, rank: int, message: str) -> None:
    with pytest.raises(AstraError, match=message):
        make().vectors(name, subspace, rank)


def test_a_folder_without_manifest_is_no_store(tmp_path: Path) -> None:
    make().save(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(AstraError, match=r"no complete calibration \(manifest.json is missing\)"):
        Calibration.load(tmp_path)


@pytest.mark.parametrize("kind", ["short", "altered", "missing"])
def test_a_file_that_is_not_what_was_written_is_noticed(kind: str, tmp_path: Path) -> None:
    make().save(tmp_path)
    path = tmp_path / "tail.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-8] if kind == "short" else data[:-1] + bytes([data[-1] ^ 1]))
    if kind == "missing":
        path.unlink()
    with pytest.raises(AstraError, match="damaged.* calibrate again"):
        Calibration.load(tmp_path)


@pytest.mark.parametrize("text", ["{", "{}", json.dumps({"format": 1})])
def test_a_damaged_manifest_is_one_line(tmp_path: Path, text: str) -> None:
    make().save(tmp_path)
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(AstraError, match="damaged|format 1 is not 2") as caught:
        Calibration.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_full_disk_leaves_nothing_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make().save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(path: Path, text: str, encoding: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(AstraError, match="cannot write the calibration to .*: No space left on device"):
        make(2).save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_saving_again_drops_what_is_stale(tmp_path: Path) -> None:
    wide = make()
    wide.tables["principal"], wide.subspaces = wide.tables["tail"], ("tail", "principal")
    wide.save(tmp_path)
    assert Calibration.load(tmp_path).subspaces == ("tail", "principal")
    make().save(tmp_path)
    assert not (tmp_path / "principal.safetensors").exists() and Calibration.load(tmp_path).subspaces == ("tail",)


def test_saving_leaves_the_files_of_others_alone(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    make().save(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == b"weights"
