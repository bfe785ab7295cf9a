"""One decoder layer at a time gives what the whole model gives, and continues where it was killed."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from astra import AstraError, Calibration, calibrate
from astra.store import write_table
from astra.stream import HIDDEN, calibrate_streamed
from tests.astra.test_moments import build, regroup, tokens

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
        own = {key.removeprefix(f"{name}."): tensor for key, tensor in state.items() if key.startswith(f"{name}.")}
        return {**own, "self_attn.rotary_emb.inv_freq": torch.ones(4)}  # as older checkpoints have it

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

    options = {"device": "cpu", "keep_moments": True, "folder": tmp_path, "settings": {}, "on_batch": kill}
    with pytest.raises(Killed):
        calibrate_streamed(model, tokens(), targets, 4, SUBSPACES, **options)
    again = calibrate_streamed(model, tokens(), targets, 4, SUBSPACES, **options)
    assert len(seen) == 3 + 2
    assert same(again, whole)


def kill_after(batches: int) -> Callable[[int, int], None]:
    left = [batches]

    def count(number: int, tokens: int) -> None:
        left[0] -= 1
        if not left[0]:
            raise Killed

    return count


def test_layers_of_another_batching_are_not_used(tmp_path: Path) -> None:
    model, targets = build("llama")
    options = {"device": "cpu", "folder": tmp_path, "settings": {}}
    with pytest.raises(Killed):  # in the second layer
        calibrate_streamed(model, regroup(tokens(), 1, "right"), targets, 4, on_batch=kill_after(7), **options)
    found = calibrate_streamed(model, tokens(), targets, 4, **options)
    assert same(found, calibrate_streamed(model, tokens(), targets, 4, device="cpu"))


def test_a_layer_that_another_run_left_behind_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, targets = build("llama")
    options = {"device": "cpu", "folder": tmp_path, "settings": {}}
    with pytest.raises(Killed):  # in the second layer of two
        calibrate_streamed(model, tokens(), targets, 4, on_batch=kill_after(3), **options)

    def killed_between(path: Path, *rest: Any) -> None:
        if path.name == HIDDEN:
            raise Killed
        write_table(path, *rest)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("astra.stream.write_progress", killed_between)
        calibrate_streamed(model, tokens(), targets, 4, ("principal",), **options)
    found = calibrate_streamed(model, tokens(), targets, 4, **options)
    assert same(found, calibrate_streamed(model, tokens(), targets, 4, device="cpu"))


def test_progress_needs_settings(tmp_path: Path) -> None:
    model, targets = build("llama")
    with pytest.raises(AstraError, match="folder needs settings"):
        calibrate_streamed(model, tokens(), targets, 4, device="cpu", folder=tmp_path)


def test_targets_outside_the_layers_are_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(AstraError, match="one list of decoder layers"):
        calibrate_streamed(model, [{"input": torch.randn(1, 2, 3)}], ["0"], 1, device="cpu")
