"""Under DeepSpeed's ZeRO, what a plain Trainer saves and loads is the trained model too."""

import os
import subprocess

import pytest
import torch
from peft import PeftModel

from tests.astra.tiny import relative_difference, tiny_model, tokens
from tests.runs import ROOT, TORCHRUN

pytestmark = pytest.mark.slow


def run(*words) -> dict:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    subprocess.run([*TORCHRUN, "tests/astra/zero_trainer.py", *map(str, words)], cwd=ROOT, env=environment, check=True)
    mode = words[2] if len(words) > 2 else ""
    return torch.load(words[1] / f"logits-{mode}.pt", weights_only=True)


def loaded(folder) -> torch.Tensor:
    with torch.no_grad():
        return PeftModel.from_pretrained(tiny_model(), folder)(tokens()).logits


@pytest.mark.parametrize("stage", [2, 3])
def test_a_trainer_saves_goes_on_and_finds_its_best(tmp_path, stage):
    found = run(stage, tmp_path)
    assert torch.equal(found["base"], found["before"])
    assert relative_difference(found["trained"], found["before"]) > 1e-3
    assert relative_difference(loaded(tmp_path / "checkpoint-4"), found["trained"]) < 1e-5
    again = run(stage, tmp_path, "resume")
    assert relative_difference(again["trained"], found["trained"]) < 1e-5
    best = run(stage, tmp_path, "best")
    assert relative_difference(best["trained"], found["trained"]) > 1e-3
    assert relative_difference(loaded(tmp_path / "checkpoint-2"), best["trained"]) < 1e-5
