"""One decoder layer at a time gives what the whole model gives, and continues where it was killed."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from astra import AstraError, Calibration, calibrate
from astra.stream import calibrate_streamed
from tests.astra.test_moments import build, tokens

SUBSPACES = ("tail", "nullspace")


def same(one: Calibration, other: Calibration) -> bool:
    return one.layers == other.layers and all(
        torch.equal(tensor, other.tables[table][name])
        for table, tensors in one.tables.items()
        for name, tensor in tensors.items()
    )


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_the_same_as_the_whole_model(name: str) -> None:
    model, targets = build(name)
    whole = calibrate(model, tokens(), targets, 4, SUBSPACES, keep_moments=True)
    streamed = calibrate_streamed(model, tokens(), targets, 4, SUBSPACES, device="cpu", keep_moments=True)
    assert list(streamed.layers) == list(whole.layers)
    for layer in whole.layers:
        torch.testing.assert_close(streamed.eigenvalues(layer), whole.eigenvalues(layer), rtol=1e-6, atol=1e-12)


def test_layers_come_from_disk_and_leave_no_weights_behind() -> None:
    model, targets = build("llama")
    whole = calibrate_streamed(model, tokens(), targets, 4, SUBSPACES, device="cpu")
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model.model.layers.to("meta")

    def source(name: str) -> Mapping[str, Tensor]:
        held = [key for key, tensor in model.named_parameters() if "layers" in key and not tensor.is_meta]
        assert held == []  # one layer at a time
        return {key.removeprefix(f"{name}."): tensor for key, tensor in state.items() if key.startswith(f"{name}.")}

    assert same(calibrate_streamed(model, tokens(), targets, 4, SUBSPACES, device="cpu", source=source), whole)


class Killed(Exception):
    pass


def test_a_killed_run_continues_after_the_last_finished_layer(tmp_path: Path) -> None:
    model, targets = build("llama")
    whole = calibrate_streamed(model, tokens(), targets, 4, SUBSPACES, device="cpu", keep_moments=True)
    seen = []

    def kill(number: int, count: int) -> None:
        seen.append(number)
        if len(seen) == 3:  # in the second layer
            raise Killed

    with pytest.raises(Killed):
        calibrate_streamed(
            model, tokens(), targets, 4, SUBSPACES, device="cpu", keep_moments=True, folder=tmp_path, on_batch=kill
        )
    again = calibrate_streamed(
        model, tokens(), targets, 4, SUBSPACES, device="cpu", keep_moments=True, folder=tmp_path, on_batch=kill
    )
    assert len(seen) == 3 + 2
    assert same(again, whole)


def test_targets_outside_the_layers_are_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(AstraError, match="one list of decoder layers"):
        calibrate_streamed(model, [{"input": torch.randn(1, 2, 3)}], ["0"], 1, device="cpu")
