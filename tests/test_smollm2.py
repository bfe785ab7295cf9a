"""The whole method on a real model: SmolLM2-135M, all seven projections of all 30 layers, on real text."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from astra import Calibration, attach, calibrate, save_lora
from dataset.arithmetic import generate
from dataset.templates import format_prompt
from dataset.tokens import calibration_batches
from eval.candidates import read_adapter
from eval.engines import Prompt, Sampling, open_engine
from tests.astra.oracle import excesses, second_moments
from tests.astra.tiny import relative_difference
from utils.config import LLAMA_PROJECTIONS, CalibrationConfig, EvalConfig

RANK = 8


class Trained(NamedTuple):
    """What the tests look at; logits are float32 (tokens, vocabulary) of one example."""

    calibration: Calibration
    base: Tensor
    start: Tensor
    trained: Tensor
    loaded: Tensor
    folder: Path


@pytest.fixture(scope="module")
def batches(smollm2: Path) -> list[dict[str, Tensor]]:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    wanted = CalibrationConfig(samples=8, max_length=256, batch_size=4, seed=1)
    return calibration_batches(generate("train", 8, seed=1), tokenizer, "alpaca", wanted)


@pytest.fixture(scope="module")
def trained(smollm2: Path, batches: list[dict[str, Tensor]], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Calibrate, attach, take a few optimizer steps, convert, and load the result with PEFT alone."""
    folder = tmp_path_factory.mktemp("smollm2") / "lora"
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    calibration = calibrate(model, batches, LLAMA_PROJECTIONS, RANK, ("tail", "principal", "nullspace"))
    ids = batches[0]["input_ids"][:1]
    with torch.no_grad():
        base = model(ids).logits[0]
    adapted = attach(model, calibration, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=LLAMA_PROJECTIONS))
    with torch.no_grad():
        start = adapted(ids).logits[0]
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-3)
    for batch in batches * 2:
        adapted(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    save_lora(adapted, folder, str(smollm2))
    untouched = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    plain = PeftModel.from_pretrained(untouched, folder).eval()
    with torch.no_grad():
        return Trained(calibration, base, start, adapted(ids).logits[0], plain(ids).logits[0], folder)


def test_eigenvectors_meet_the_energy_criterion(smollm2: Path, trained: Trained, batches: list) -> None:
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    layers = [f"model.layers.{k}" for k in (0, 14, 29)]
    names = [name for name in trained.calibration.layers if name.rpartition(".")[0].rpartition(".")[0] in layers]
    assert len(names) == 21
    worst = excesses(trained.calibration, second_moments(model, batches, names), RANK)
    assert worst["tail"] < 1e-2
    assert worst["principal"] < 1e-4
    assert worst["nullspace"] < 1e-10


def test_the_adapted_model_starts_as_the_base_model(trained: Trained) -> None:
    assert relative_difference(trained.start, trained.base) <= 1e-4


def test_the_plain_lora_equals_the_trained_model(trained: Trained) -> None:
    assert relative_difference(trained.trained, trained.base) > 1e-2, "training changed nothing"
    assert relative_difference(trained.loaded, trained.trained) <= 1e-4


@pytest.fixture(scope="module")
def texts(smollm2: Path, trained: Trained) -> Iterator[dict[str, list[str]]]:
    """Greedy texts of the converted adapter on held-out problems, from each engine."""
    pytest.importorskip("vllm")
    prompts = dict(enumerate(format_prompt(record, "alpaca") for record in generate("test", 4, seed=1)))
    found = {}
    adapter = read_adapter(trained.folder)
    for name in ("transformers", "vllm"):
        with open_engine(smollm2, EvalConfig(engine=name), "float32", [adapter], 160) as engine:
            asked = {number: Prompt(text, Sampling(max_new_tokens=24), adapter) for number, text in prompts.items()}
            outputs = dict(engine.run(asked))
            found[name] = [outputs[k][0].text for k in prompts]
    yield found


def test_vllm_serves_the_plain_lora_with_the_same_greedy_text(texts: dict[str, list[str]]) -> None:
    assert texts["vllm"] == texts["transformers"]
    assert all(texts["vllm"])
