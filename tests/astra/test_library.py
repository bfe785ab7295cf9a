"""The ten lines of README, run as they are printed there."""

import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM

from tests.astra.test_moments import build, tokens

PAGE = Path(__file__).parent.parent.parent / "README.md"


def test_the_printed_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    match = re.search(r"```python\n(from peft import LoraConfig.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert match is not None
    base, _ = build("llama")
    base.save_pretrained(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    ids = tokens()[0]["input_ids"]

    def train(model: nn.Module) -> None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))

    scope = {"name": "base", "batches": tokens(), "train": train}
    exec(compile(match.group(1), str(PAGE), "exec"), scope)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "lora").eval()
    with torch.no_grad():
        trained, loaded = scope["model"].eval()(ids).logits, plain(ids).logits
        unchanged = base(ids).logits
    spread = float(trained.max() - trained.min())
    assert float((trained - loaded).abs().max()) < 1e-4 * spread
    assert float((trained - unchanged).abs().max()) > 1e-2 * spread
