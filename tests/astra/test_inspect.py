"""The table and the warnings of `python -m astra.inspect`."""

from pathlib import Path

import pytest
import torch
from torch import nn

from astra import Calibration, calibrate
from astra.inspect import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 5, bias=False))
    calibrate(model, [{"input": torch.randn(3, 10, 8)}], ["0", "2"], 4).save(tmp_path)
    return tmp_path


def test_one_line_a_layer_and_a_warning(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["layer", "shape"]
    assert lines[1].split()[:7] == ["0", "20", "x", "8", "+", "b", "9"]
    info = Calibration.load(folder).layers["2"]
    assert lines[2].split()[:6] == ["2", "5", "x", "20", "5", str(info.numerical_rank)]
    assert "30 calibration tokens; 32 would do" in lines[3]


def test_what_was_not_computed_is_a_dash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("astra.decompose.LARGE", 4)
    model, batch = nn.Sequential(nn.Linear(8, 8, bias=False)), {"input": torch.randn(3, 10, 8)}
    calibrate(model, [batch], ["0"], 2, ("principal",), spectrum="ends").save(tmp_path)
    assert main([str(tmp_path)]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert line.split()[-3:-1] == ["-", "-"] and "nan" not in line  # effective rank, tail energy; then the condition


def test_a_folder_that_is_no_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
