"""The figure of a calibration."""

from pathlib import Path

import pytest
from matplotlib import pyplot

from astra import calibrate
from tests.astra.test_moments import build, tokens
from utils.plots import plot_spectra


@pytest.mark.parametrize(
    ("family", "panels"),
    [
        ("gpt2", ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]),
        ("llama", [*(f"self_attn.{x}_proj" for x in "qkvo"), *(f"mlp.{x}_proj" for x in ("gate", "up", "down"))]),
    ],
)
def test_a_panel_for_each_kind_of_layer(
    family: str, panels: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, targets = build(family)
    with monkeypatch.context() as patch:
        patch.setattr(pyplot, "close", lambda _: None)
        plot_spectra(calibrate(model, tokens(), targets, 4), tmp_path / "spectrum.png", 4)
    drawn = pyplot.gcf().axes
    pyplot.close("all")
    assert [axis.get_title().split("  ")[0] for axis in drawn if axis.get_title()] == [*panels, "effective rank"]
    assert all(len(axis.lines) == 2 for axis in drawn[: len(panels)])  # one line for each decoder layer
    assert (tmp_path / "spectrum.png").stat().st_size > 0
