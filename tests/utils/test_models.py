"""Names of models: packaged, local, or on the hub."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from utils.config import ModelConfig
from utils.errors import UserError
from utils.models import (
    check_model,
    load_model,
    load_tokenizer,
    model_bytes,
    model_fingerprint,
    tokenizer_in,
    usable_dtype,
)


def test_smollm2_is_a_real_model_without_a_hub(smollm2: Path) -> None:
    model = load_model(ModelConfig(name="smollm2", dtype="float32"))
    tokenizer = load_tokenizer(ModelConfig(name="smollm2"))
    text = tokenizer("The capital of France is", return_tensors="pt")
    (token,) = model(**text).logits[0, -1].topk(1).indices
    assert tokenizer.decode(token).strip() == "Paris"
    assert not hasattr(model.config, "quantization_config")


def test_a_fingerprint_tells_weights_apart(smollm2: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "config.json").write_bytes((smollm2 / "config.json").read_bytes())
    weights = load_file(smollm2 / "model.safetensors")
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    same = model_fingerprint(copy)
    weights["model.norm.weight"] = weights["model.norm.weight"] + 1
    weights["model.embed_tokens.weight"] *= 2
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    assert model_fingerprint(copy) != same


def test_the_size_of_a_local_model_is_known(smollm2: Path) -> None:
    assert model_bytes(ModelConfig(name=str(smollm2), dtype="float32")) == 134515008 * 4
    assert model_bytes(ModelConfig(name=str(smollm2), dtype="bfloat16")) == 134515008 * 2


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("./nowhere", "model.name: ./nowhere is not a model folder"),
        ("two words", "model.name: two words is neither a folder nor a hub id"),
        ("no-such-owner/no-such-model", "model.name: .*no-such-owner/no-such-model"),
    ],
)
def test_a_model_that_cannot_be_had_is_named(name: str, named: str) -> None:
    with pytest.raises(UserError, match=named):
        check_model(ModelConfig(name=name))


@pytest.mark.parametrize("kind", ["bert", "qwen2", "llama"])
def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path, base: Path, kind: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}), encoding="utf-8")
    shutil.copy(base / "model.safetensors", tmp_path)
    with pytest.raises(UserError, match=f"model.name: {tmp_path} holds no tokenizer"):
        check_model(ModelConfig(name=str(tmp_path)))
    (tmp_path / "tokenizer_config.json").write_text("{}", encoding="utf-8")  # which alone is none
    with pytest.raises(UserError, match=r"model.name: .* (holds no tokenizer \(none of|can't be loaded)"):
        load_tokenizer(ModelConfig(name=str(tmp_path)))
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=f"model.name: the tokenizer in {tmp_path} can't be loaded"):
        tokenizer_in(tmp_path)


def test_damaged_weights_are_named(tmp_path: Path, base: Path) -> None:
    shutil.copytree(base, tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    whole = weights.read_bytes()
    for content in (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", whole[:-1], b""):
        weights.write_bytes(content)
        with pytest.raises(UserError, match=r"m/model\.safetensors: damaged, or a pointer of Git LFS"):
            check_model(ModelConfig(name=str(tmp_path / "m")))
    weights.write_bytes(whole)
    weights.with_name("model.safetensors.index.json").write_text('{"weight_map": {"a": "second.safetensors"}}')
    with pytest.raises(UserError, match=r"m/second\.safetensors: damaged.*No such file"):
        check_model(ModelConfig(name=str(tmp_path / "m")))


@pytest.mark.parametrize(("capability", "used"), [("AVX2", "float32"), ("AVX512", "bfloat16")])
def test_half_precision_becomes_float32_where_the_cpu_is_slow_at_it(
    monkeypatch: pytest.MonkeyPatch, capability: str, used: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert usable_dtype("bfloat16") == used
    assert usable_dtype("float32") == usable_dtype("float16") == "float32"


def test_a_decoder_that_classifies_knows_its_padding(tmp_path, base):
    folder = tmp_path / "unpadded"
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": None}), encoding="utf-8")
    settings = ModelConfig(name=str(folder), dtype="float32", task_type="SEQ_CLS")
    assert load_model(settings, 2).config.pad_token_id == load_tokenizer(settings).pad_token_id
