"""Layer by layer, wherever the weights are, gives what the whole model gives, and continues where it was killed."""

import logging
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from astra import AstraError, Calibration, blocks, calibrate, moments
from astra.sums import OuterSum
from tests.astra.test_moments import build, regroup, tokens

SUBSPACES = ("tail", "nullspace")


def same(one: Calibration, other: Calibration) -> bool:
    return one.layers == other.layers and all(
        torch.equal(tensor, other.tables[table][name])
        for table, tensors in one.tables.items()
        for name, tensor in tensors.items()
    )


def at_once(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> Calibration:
    with monkeypatch.context() as patch:
        patch.setattr(blocks, "_list_of_layers", lambda *_: 1 / 0)
        return calibrate(*arguments)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_the_same_as_the_whole_model_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, targets = build(name)
    arguments = (model, tokens(), targets, 4, SUBSPACES)
    assert same(calibrate(*arguments), at_once(monkeypatch, *arguments))


def test_sums_of_one_layer_at_a_time_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    model, targets = build("llama")
    calls: list[list[str]] = []

    class Watched(moments.Sums):
        def reduce(self) -> Any:
            calls.append(sorted({name.split(".")[2] for name in self.sums}))
            return super().reduce()

    monkeypatch.setattr("astra.calibration.Sums", Watched)
    calibrate(model, tokens(), targets, 4)
    assert calls == [["0"], ["1"]]


class Adding(nn.Module):
    """Layers between which something is added, which a list of layers does not tell."""

    def __init__(self, between: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
            if self.between:
                x = x + self.between
        return x


@pytest.mark.parametrize("between", [0.0, 1.0])
def test_layers_that_pass_on_more_are_one_block(between: float, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "astra")
    torch.manual_seed(0)
    model, x = Adding(between), torch.randn(4, 5, 6)
    found = calibrate(model, [{"x": x}], r"layers\.\d", 2)
    assert ("the whole model is calibrated at once" in caplog.text) == bool(between)
    y = x
    for k, layer in enumerate(model.layers):
        y = layer(y).detach()
        assert found.layers[f"layers.{k}"].trace == pytest.approx(float(y.square().sum()) / 20, rel=1e-5)
        y = y + between


def test_layers_before_and_after_the_targets_are_run_no_more_than_needed() -> None:
    model, _ = build("llama")
    ran: list[str] = []
    for name in ("lm_head", "model.norm", "model.layers.0.mlp", "model.layers.1.self_attn.o_proj"):
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    calibrate(model, tokens(), r"model\.layers\.1\.self_attn\.q_proj", 4)
    sample = ["model.layers.0.mlp", "model.layers.1.self_attn.o_proj", "model.norm"]
    assert ran == [*sample, *sample[:2], *sample[:1] * 2]  # the first sample both ways, then two batches


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_offloaded_weights_are_fetched_once_and_given_back(place: str, tmp_path: Path) -> None:
    whole, targets = build("mistral")
    whole.save_pretrained(tmp_path / "model")
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "disk", "lm_head": "disk"}
    places |= {"model.layers.0": "disk", "model.layers.1": place}
    spread = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "offload"
    )
    fetched: list[str] = []
    hook = spread.model.layers[0].mlp.up_proj._hf_hook
    real = hook.weights_map
    hook.weights_map = type("Map", (), {"__getitem__": lambda _, key: fetched.append(key) or real[key]})()
    found = calibrate(spread, tokens(), targets, 4, SUBSPACES)
    assert fetched == ["weight"] * 3  # for the sample, both ways, and for all batches
    assert spread.model.layers[0].mlp.up_proj.weight.is_meta
    assert same(found, calibrate(whole, tokens(), targets, 4, SUBSPACES))


def test_offloaded_half_precision_is_summed_in_float32_in_one_block_too(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, targets = build("mistral")
    whole.to(torch.bfloat16)
    spread = cpu_offload(deepcopy(whole), execution_device=torch.device("cpu"))
    found, expected = (at_once(monkeypatch, model, tokens(), targets, 4, SUBSPACES) for model in (spread, whole))
    assert same(found, expected)


class Killed(Exception):
    pass


def killed_after(count: int) -> Any:
    def step(done: int, total: int) -> None:
        if done == count:
            raise Killed

    return step


def test_a_killed_calibration_continues_with_the_next_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, targets = build("llama")
    options = {"folder": tmp_path, "settings": {}}
    with pytest.raises(Killed):  # in the second layer of two
        calibrate(model, tokens(), targets, 4, SUBSPACES, on_batch=killed_after(3), **options)
    assert [path.name for path in tmp_path.iterdir()] == ["model.layers.0"]
    summed: list[int] = []

    class Counted(OuterSum):
        def add(self, x: Tensor) -> None:
            summed.append(len(x))
            super().add(x)

    with monkeypatch.context() as patch:
        patch.setattr(moments, "OuterSum", Counted)
        again = calibrate(model, tokens(), targets, 4, SUBSPACES, **options)
        assert len(summed) == 2 * 4  # batches by moments, of the second layer alone
        finished = calibrate(model, tokens(), targets, 4, SUBSPACES, **options)
        assert len(summed) == 2 * 4
    whole = calibrate(model, tokens(), targets, 4, SUBSPACES)
    assert same(again, whole) and same(finished, whole)


@pytest.mark.parametrize("other", ["settings", "batches", "rank"])
def test_layers_of_another_calibration_are_not_used(other: str, tmp_path: Path) -> None:
    model, targets = build("llama")
    batches = regroup(tokens(), 1, "right") if other == "batches" else tokens()
    rank, settings = (5 if other == "rank" else 4), {"a": other == "settings"}
    first = build("qwen2")[0] if other == "settings" else model  # other weights under the same names
    calibrate(first, batches, targets, rank, folder=tmp_path, settings=settings)
    found = calibrate(model, tokens(), targets, 4, folder=tmp_path, settings={"a": False})
    assert same(found, calibrate(model, tokens(), targets, 4))


def test_progress_needs_settings(tmp_path: Path) -> None:
    model, targets = build("llama")
    with pytest.raises(AstraError, match="folder needs settings"):
        calibrate(model, tokens(), targets, 4, folder=tmp_path)


def test_a_disk_too_full_for_progress_does_not_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, targets = build("llama")
    (tmp_path / "file").touch()
    found = calibrate(model, tokens(), targets, 4, folder=tmp_path / "file", settings={})
    assert "no progress kept" in caplog.text
    assert same(found, calibrate(model, tokens(), targets, 4))


def test_memory_that_does_not_suffice_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    model, targets = build("llama")

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr(OuterSum, "add", full)
    with pytest.raises(AstraError, match=r"^out of memory in model.layers.0: use smaller batches \(calibration.batch"):
        calibrate(model, tokens(), targets, 4)
