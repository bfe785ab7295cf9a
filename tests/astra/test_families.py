"""Small random models of many families: calibrated, padded left and right, as defined in float64; adapted; saved."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import Tensor

from astra import AstraError, attach, calibrate
from tests.astra.families import FAMILIES
from tests.astra.oracle import excesses, second_moments
from tests.astra.tiny import relative_difference

FUSED = {"deepseek-v3", "qwen3-next"}  # where PEFT adapts experts under names that linear layers have, too
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


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_attached_trained_and_saved_loads_on_the_base(name: str, tmp_path: Path) -> None:
    model, targets = FAMILIES[name]()
    batch, other = padded("right", model.config.get_text_config().pad_token_id or 0)
    store = calibrate(model, [batch, other], targets, 4)
    with torch.no_grad():
        before = model(**batch).logits
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets)
    if name in FUSED:
        with pytest.raises(AstraError, match=r"layer \S+_proj: on a \S+ PEFT takes its name for that of"):
            attach(model, store, config)
        config.exclude_modules = ["gate_proj", "up_proj", "down_proj"]
    adapted = attach(model, store, config).eval()
    assert torch.equal(adapted(**batch).logits, before)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        (-adapted(**batch).logits.float().log_softmax(-1)[..., 0].mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        trained = adapted(**batch).logits
        assert relative_difference(trained, before) > 1e-3
        with adapted.disable_adapter():
            assert torch.equal(adapted(**batch).logits, before)
        adapted.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(FAMILIES[name]()[0], tmp_path).eval()
        assert relative_difference(loaded(**batch).logits, trained) < 1e-5
