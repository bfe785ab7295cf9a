"""Rows that are not the batch's tokens are refused by name, never summed."""

import pytest
import torch
from transformers import DebertaV2Config, DebertaV2Model, T5Config, T5ForConditionalGeneration

from astra import AstraError, calibrate
from astra.forward import first_sample

SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_first_sample_is_short_and_holds_tokens(side: str) -> None:
    ids, mask = torch.arange(400).view(2, 200), torch.ones(2, 200, dtype=torch.long)
    mask[0, slice(0, 100) if side == "left" else slice(100, 200)] = 0
    sample = first_sample({"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1])})
    assert sample["input_ids"].shape == (1, 128) and int(sample["attention_mask"].sum()) == 100


@pytest.mark.parametrize("padding", [0, 5])
def test_relative_positions_are_not_tokens(padding: int) -> None:
    model = DebertaV2Model(
        DebertaV2Config(**SIZES, relative_attention=True, share_att_key=True, pos_att_type="c2p|p2c")
    )
    ids, mask = torch.randint(5, 97, (2, 16)), torch.ones(2, 16, dtype=torch.long)
    mask[0, 16 - padding :] = 0
    with pytest.raises(AstraError, match=r"query_proj.*rows of its input are not the tokens"):
        calibrate(model, [{"input_ids": ids, "attention_mask": mask}], ["query_proj", "key_proj"], 2)


def t5() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    return T5ForConditionalGeneration(T5Config(vocab_size=97, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4))


def test_encoder_decoders_need_decoder_inputs() -> None:
    with pytest.raises(AstraError, match="needs decoder_input_ids"):
        calibrate(t5(), [{"input_ids": torch.ones(2, 9, dtype=torch.long), "labels": torch.ones(2, 4)}], ["q"], 2)


def test_encoder_and_decoder_count_their_own_tokens() -> None:
    ids, mask = torch.randint(5, 97, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[0, 6:] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids[:, :5]}
    batch["decoder_attention_mask"] = torch.ones(2, 5, dtype=torch.long)
    batch["decoder_attention_mask"][1, 3:] = 0
    found = calibrate(t5(), [batch], ["q", "k", "v"], 2)
    for name, info in found.layers.items():
        reads_encoder = name.startswith("encoder") or name.endswith(("EncDecAttention.k", "EncDecAttention.v"))
        assert info.tokens == (15 if reads_encoder else 8)


def test_lengths_that_agree_with_other_masks_are_refused() -> None:
    ids, mask = torch.randint(5, 97, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    other = mask.clone()
    other[0, 4:] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids, "decoder_attention_mask": other}
    with pytest.raises(AstraError, match="pad inputs and outputs to different lengths"):
        calibrate(t5(), [batch], ["q"], 2)
