"""Calibration of small random models of many families, padded left and right, against the definition in float64."""

import pytest
import torch
from torch import Tensor

from astra import calibrate
from tests.astra.families import FAMILIES
from tests.astra.oracle import excesses, second_moments

ONE_BLOCK = {"albert", "bert"}  # one block called several times; a pooler besides the layers


def padded(side: str, pad: int) -> list[dict[str, Tensor]]:
    """Two batches of three sequences, the middle one of half the length."""
    ids = torch.randint(5, 97, (6, 16), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1::3, 8:] = 0
    ids[mask == 0] = pad
    if side == "left":
        ids[1::3], mask = ids[1::3].roll(8, 1), mask.flip(1)
    return [{"input_ids": ids[part], "attention_mask": mask[part]} for part in (slice(0, 3), slice(3, 6))]


@pytest.mark.parametrize("name", FAMILIES)
def test_energies_meet_the_criterion(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "astra")
    model, targets = FAMILIES[name]()
    right, left = (padded(side, model.config.get_text_config().pad_token_id or 0) for side in ("right", "left"))
    found = calibrate(model, right, targets, 4, ("tail", "principal", "nullspace"))
    names = [layer for layer in found.layers if "pooler" not in layer]  # reads one position per sequence
    worst = excesses(found, second_moments(model, right, names), 4)
    assert worst["tail"] < 1e-2 and worst["principal"] < 1e-4 and worst["nullspace"] < 1e-10
    assert {found.layers[layer].tokens for layer in names} == {160 if name == "albert" else 80}
    other = calibrate(model, left, targets, 4)
    for layer in names:
        assert other.layers[layer].trace == pytest.approx(found.layers[layer].trace, rel=1e-3)
    assert ("the whole model is calibrated at once" in caplog.text) == (name in ONE_BLOCK)
