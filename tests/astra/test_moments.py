"""Second moments of small random models of every supported kind, against the definition in float64."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import BartConfig, BartForConditionalGeneration

from astra import AstraError, calibrate
from astra.blocks import survey
from astra.forward import Batch, Forward, TokenRows, evaluation
from astra.moments import Moment, Sums
from astra.targets import find_targets
from tests.astra.families import FAMILIES
from tests.astra.oracle import excesses, second_moments

SIDE = {"layers": 2, "ffn_dim": 64, "attention_heads": 4}  # of an encoder or a decoder


@torch.no_grad()
def collect(model: nn.Module, batches: list[Batch], targets: list[str] | str) -> dict[str, Moment]:
    """The second moments that all target layers use, in one pass."""
    found = find_targets(model, targets)
    forward = Forward(model, list(found))
    with evaluation(model):
        sums = Sums(found, survey(model, forward, found, batches).leader)
        for number, batch in enumerate(batches):
            with sums.batch(number, TokenRows(batch)):
                forward(batch)
    moments = sums.reduce()
    return {name: moments[sums.key(name)] for name in found}


def build(family: str) -> tuple[nn.Module, list[str] | str]:
    return FAMILIES[family]()


def tokens(rows: int = 6, length: int = 40) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 97, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 30:] = 0
    mask[3, 5:] = 0
    half = rows // 2
    return [{"input_ids": ids[part], "attention_mask": mask[part]} for part in (slice(0, half), slice(half, rows))]


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_layers_that_read_the_same_tensor_share_one_moment(name: str) -> None:
    model, targets = build(name)
    moments = collect(model, tokens(), targets)
    attention, mlp = "model.layers.1.self_attn.", "model.layers.1.mlp."
    assert {moments[attention + x].group for x in ("q_proj", "k_proj", "v_proj")} == {attention + "q_proj"}
    assert moments[mlp + "up_proj"].group == mlp + "gate_proj"
    assert moments[mlp + "down_proj"].kind == "output"  # its input is the wider side
    assert len({moment.group for moment in moments.values()}) == 2 * 4


def test_a_layer_that_reads_what_another_block_reads_sums_its_own() -> None:
    sizes = {f"{side}_{what}": value for side in ("encoder", "decoder") for what, value in SIDE.items()}
    model = BartForConditionalGeneration(BartConfig(vocab_size=97, d_model=32, **sizes)).eval()
    ids = [batch["input_ids"] for batch in tokens()]
    batches = [{"input_ids": x, "attention_mask": torch.ones_like(x), "decoder_input_ids": x} for x in ids]
    found = calibrate(model, batches, r"model\.decoder\.layers.*\.(q|k|v)_proj", 4)
    worst = excesses(found, second_moments(model, batches, list(found.layers)), 4)
    assert len(found.layers) == 2 * 2 * 3 and worst["tail"] < 1e-6


def regroup(batches: list[dict[str, Tensor]], size: int, side: str) -> list[dict[str, Tensor]]:
    """The same sequences in batches of another size, padded on another side."""
    rows = [ids[mask.bool()] for batch in batches for ids, mask in zip(*batch.values(), strict=True)]
    result = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        padded = [
            nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_side=side)
            for tensors in (part, [torch.ones_like(row) for row in part])
        ]
        result.append({"input_ids": padded[0], "attention_mask": padded[1]})
    return result


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "gemma2"])
@pytest.mark.parametrize(("size", "side"), [(1, "right"), (6, "right"), (6, "left")])
def test_padding_and_batch_size_change_nothing(family: str, size: int, side: str) -> None:
    model, targets = build(family)
    expected = collect(model, tokens(), targets)
    found = collect(model, regroup(tokens(), size, side), targets)
    for name, moment in expected.items():
        if "pooler" in name and side == "left":
            continue  # BERT pools the first position, which is padding then
        assert found[name].tokens == moment.tokens
        assert (found[name].matrix - moment.matrix).abs().max() < 1e-5 * moment.matrix.abs().max()


def test_packed_sequences_count_every_token() -> None:
    model, targets = build("llama")
    rows = [torch.arange(5, 25), torch.arange(30, 42)]
    apart = collect(model, [{"input_ids": row[None]} for row in rows], targets)
    packed = {
        "input_ids": torch.cat(rows)[None],
        "position_ids": torch.cat([torch.arange(len(row)) for row in rows])[None],
    }
    together = collect(model, [packed], targets)
    for name, moment in apart.items():
        assert together[name].tokens == 32
        assert (together[name].matrix - moment.matrix).abs().max() < 1e-4 * moment.matrix.abs().max()


class Forked(nn.Module):
    """Two layers that read one tensor in most batches, and different ones when the batch is odd."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 9, bias=False), nn.Linear(6, 9, bias=False)
        self.odd = 0

    def forward(self, x: Tensor, odd: bool = False) -> Tensor:
        self.odd += odd
        y = self.a(x)
        return y + self.b(x + 1 if odd else x)


def test_a_layer_that_stops_sharing_is_named() -> None:
    model, xs = Forked(), torch.randn(3, 2, 5, 6)
    batches = [{"x": xs[0]}, {"x": xs[1], "odd": True}, {"x": xs[2]}]
    with pytest.raises(AstraError, match="layer b reads the input of a in the first sample but not in .* batch 1"):
        calibrate(model, batches, ["a", "b"], 2)


class Repeated(nn.Module):
    """One layer called twice, one called never."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.never = nn.Linear(6, 6), nn.Linear(6, 6)
        self.tied = self.twice

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(self.twice(x))


def test_a_layer_called_twice_sums_both_calls() -> None:
    model, x = Repeated(), torch.randn(2, 5, 6)
    moment = collect(model, [{"x": x}], ["twice"])["twice"]
    rows = torch.cat([x.reshape(-1, 6), model.twice(x).detach().reshape(-1, 6)]).double()
    rows = torch.cat([rows, torch.ones(20, 1, dtype=torch.float64)], dim=1)
    assert moment.tokens == 20
    torch.testing.assert_close(moment.matrix, rows.T @ rows / 20)


def test_a_layer_never_called_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    found = calibrate(Repeated(), [{"x": torch.randn(1, 5, 6)}], ["twice", "never"], 2)
    assert list(found.layers) == ["twice"] and found.left_out == ("never",)
    assert "1 target layers are never called and left out: never" in caplog.text
    with pytest.raises(AstraError, match="none of the target layers is called"):
        calibrate(Repeated(), [{"x": torch.randn(1, 5, 6)}], ["never"], 2)


def test_modes_are_restored() -> None:
    model, targets = build("gpt2")  # which drops out a tenth while it trains
    expected = calibrate(model, tokens(), targets, 4).layers
    model.train()
    model.transformer.h[0].eval()
    assert calibrate(model, tokens(), targets, 4).layers == expected
    assert model.training and not model.transformer.h[0].training
    adapted = get_peft_model(model, LoraConfig(target_modules=targets))
    adapted.requires_grad_(False)
    assert calibrate(adapted, tokens(), targets, 4).layers == expected
    assert not any(parameter.requires_grad for parameter in adapted.parameters())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_activation_names_layer_and_batch(value: float) -> None:
    model, targets = build("llama")
    batches = [{"inputs_embeds": torch.randn(2, 7, 32)} for _ in range(3)]
    batches[2]["inputs_embeds"][1, 3] = value
    with pytest.raises(AstraError, match=r"layer model.layers.0.self_attn.q_proj: NaN or Inf .* batch 2"):
        calibrate(model, batches, targets, 4)


def test_masks_that_leave_no_token() -> None:
    model, targets = build("llama")
    batch = tokens()[0]
    with pytest.raises(AstraError, match="attention_mask leaves none in any batch"):
        calibrate(model, [{**batch, "attention_mask": torch.zeros_like(batch["attention_mask"])}], targets, 4)


def test_recomputed_outputs_are_float32_under_autocast() -> None:
    model, x = nn.Linear(40, 12), torch.randn(200, 40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = collect(nn.Sequential(model), [{"input": x}], ["0"])["0"]
    assert found.kind == "output"
    y = model(x).detach().double()
    torch.testing.assert_close(found.matrix, y.T @ y / 200, rtol=1e-5, atol=1e-6)


def test_float32_products_are_exact_in_the_pass_and_as_before_after_it() -> None:
    inside: list[str] = []

    class Watch(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            inside.append(torch.backends.cuda.matmul.fp32_precision)
            assert not torch.backends.cuda.matmul.allow_tf32  # the older switch can be read too
            return super().forward(x)

    torch.set_float32_matmul_precision("high")
    try:
        calibrate(nn.Sequential(Watch(4, 3), Watch(3, 3)), [{"input": torch.randn(9, 4)}], ["0", "1"], 2)
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert set(inside) == {"ieee"}


def test_inference_mode_changes_nothing() -> None:
    model, targets = build("llama")
    expected = calibrate(model, tokens(), targets, 4)
    with torch.inference_mode():
        found = calibrate(model, tokens(), targets, 4)
    for name in expected.layers:
        q = found.vectors(name, "tail", 4)
        assert torch.equal(q, expected.vectors(name, "tail", 4)) and not q.is_inference()
    with torch.inference_mode():
        x = torch.randn(2, 5, 6)
    assert calibrate(Repeated(), [{"x": x}], ["twice"], 4).layers["twice"].tokens == 20


def test_a_bad_weight_of_the_last_layer_is_named() -> None:
    model, targets = build("llama")
    bad = "model.layers.1.self_attn.o_proj"  # the last target: nothing is computed with it
    model.get_submodule(bad).weight.data[3, 4] = torch.nan
    with pytest.raises(AstraError, match=f"layer {bad}: NaN or Inf in its weights"):
        calibrate(model, tokens(), ["q_proj", "o_proj"], 4)


def test_no_tokens_and_unknown_subspaces() -> None:
    model, targets = build("llama")
    with pytest.raises(AstraError, match="subspace 'top' is not one of tail"):
        calibrate(model, tokens(), targets, 4, ("tail", "top"))
    with pytest.raises(AstraError, match="calibration set is empty"):
        calibrate(model, [], targets, 4)


def test_half_precision_outputs_are_recomputed() -> None:
    model, targets = build("llama")
    model.to(torch.bfloat16)
    batches = tokens()
    found = calibrate(model, batches, targets, 8, ("tail", "principal", "nullspace"))
    worst = excesses(found, second_moments(model, batches, list(found.layers)), 8)
    assert worst["tail"] < 1e-2 and worst["principal"] < 1e-4 and worst["nullspace"] < 1e-10
