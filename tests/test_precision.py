"""What trains is float32, whatever the base model's data type and the engine; nf4 says what it can't do."""

import json

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, LlamaConfig, TrainerCallback

from tests.runs import ROOT, TORCHRUN, calibrate, folder_of, losses, train_and_reload, watch_training, write_config
from training import arguments
from training import model as model_
from training.methods import Request, build
from utils import models
from utils.config import MethodConfig
from utils.errors import UserError
from utils.quantize import quantize_base


def tiny_classifier(dtype: torch.dtype) -> nn.Module:
    settings = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0
    )
    return AutoModelForSequenceClassification.from_config(settings, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["lora", "full"])
def test_what_trains_is_float32_and_the_rest_stays_as_loaded(name, dtype):
    method = MethodConfig(name=name, rank=2, target_modules=["q_proj"])
    model = build(tiny_classifier(dtype), Request(method, "SEQ_CLS"))
    model_.upcast_trainable(model)
    trained = {key: p.dtype for key, p in model.named_parameters() if p.requires_grad}
    assert set(trained.values()) == {torch.float32} and any("score" in key for key in trained)
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == ({dtype} if name == "lora" else set())


@pytest.mark.parametrize(("name", "dtypes"), [("lora", {torch.float32, torch.bfloat16}), ("full", {torch.float32})])
def test_a_bfloat16_run_learns(config, monkeypatch, name, dtypes):
    for module in (models, arguments, model_):
        monkeypatch.setattr(module, "usable_dtype", lambda dtype: dtype)
    this, seen = config(method__name=name, model__dtype="bfloat16", data__limit=4), set()

    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            seen.update(p.dtype for p in model.parameters())

    watch_training(monkeypatch, Look())
    assert train_and_reload(this) < 0.05
    assert losses(this)[-1] < losses(this)[0] and seen == dtypes


@pytest.mark.parametrize("engine", ["zero2", pytest.param("zero3", marks=pytest.mark.slow)])
def test_deepspeed_leaves_the_adapter_in_float32_and_the_base_in_bfloat16(config, tmp_path, engine):
    path = f"configs/deepspeed/{engine}.json"
    this = config(model__dtype="bfloat16", method__name="astra", train__deepspeed=path, train__max_steps=3)
    calibrate(this)
    found = tmp_path / "dtypes.json"
    run_processes(this, tmp_path, found)
    assert json.loads(found.read_text()) == {
        "trained": ["torch.float32"], "frozen": ["torch.bfloat16"], "reduced": ["torch.float32"],
    }  # fmt: skip
    assert len(losses(this)) == 3 and (folder_of(this) / "lora").is_dir()


@pytest.mark.slow
def test_under_zero3_all_weights_train_in_float32(config, tmp_path):
    path = "configs/deepspeed/zero3.json"
    this = config(model__dtype="bfloat16", method__name="full", train__deepspeed=path, train__max_steps=3)
    run_processes(this, tmp_path, tmp_path / "dtypes.json")
    found = json.loads((tmp_path / "dtypes.json").read_text())
    assert found["trained"] == found["reduced"] == ["torch.float32"]


def run_processes(config, tmp_path, found) -> None:
    import os
    import subprocess

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    script = [*TORCHRUN, "tests/engine_dtypes.py", str(write_config(config, tmp_path)), str(found)]
    assert subprocess.run(script, cwd=ROOT, env=environment).returncode == 0


@pytest.mark.parametrize(("engine", "used"), [("zero2", False), ("zero3", False), ("zero3_offload", True)])
def test_one_process_uses_deepspeed_only_to_offload(config, engine, used):
    settings = arguments.deepspeed_settings(config(train__deepspeed=f"configs/deepspeed/{engine}.json"))
    assert (settings is not None) == used


def test_of_several_gpus_one_process_uses_one(config, monkeypatch, tmp_path):
    monkeypatch.setattr(arguments.TrainingArguments, "n_gpu", 4)
    args = arguments.training_arguments(config(), tmp_path)
    assert args._n_gpu == 1


def test_nf4_refuses_what_it_cannot_quantise():
    pytest.importorskip("bitsandbytes")
    from transformers import GPT2Config, GPT2LMHeadModel

    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2))
    model = build(gpt2, Request(MethodConfig(name="lora", rank=2, target_modules=["c_attn"])))
    with pytest.raises(UserError, match=r"model\.quantization: .*c_attn is a Conv1D"):
        quantize_base(model, "cpu")
