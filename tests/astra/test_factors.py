"""What is saved, loaded by plain PEFT on the untouched base, is the trained model; what does not fit is refused."""

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback, TrainingArguments

from astra.adapter import attach, lora_layers
from astra.errors import AstraError
from astra.factors import saved_form
from tests.astra.tiny import Rows, calibration, relative_difference, targets, tiny_model, tokens, train

VARIANTS = [
    {},
    {"use_rslora": True},
    {"rank_pattern": {"up_proj": 7, "c_fc": 3}},
    {"rank_pattern": {"up_proj": 7}, "alpha_pattern": {"up_proj": 3}, "use_rslora": True},
]


def attached(family="llama", seed=3, name="default", **options):
    model = tiny_model(family)
    store = calibration(model, targets(family), seed=seed)
    return attach(model, store, LoraConfig(r=4, lora_alpha=8, target_modules=targets(family), **options), name)


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_saved_by_peft_and_loaded_by_peft_it_is_the_trained_model(tmp_path, family, options):
    ids, adapted = tokens(), attached(family, **options)
    train(adapted, ids)
    expected = adapted(ids).logits
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model(family), tmp_path)
    assert relative_difference(loaded(ids).logits, expected) < 1e-6
    assert relative_difference(loaded.merge_and_unload()(ids).logits, expected) < 1e-5
    assert relative_difference(adapted.merge_and_unload()(ids).logits, expected) < 1e-5


def test_an_adapter_of_another_name_is_saved_and_loaded_too(tmp_path):
    ids, adapted = tokens(), attached(name="mine")
    train(adapted, ids)
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path / "mine")
    assert relative_difference(loaded(ids).logits, adapted(ids).logits) < 1e-6


def test_it_is_loaded_into_a_live_model_over_itself_and_beside_itself(tmp_path):
    ids, adapted = tokens(), attached()
    train(adapted, ids)
    expected = adapted(ids).logits
    adapted.save_pretrained(tmp_path)
    train(adapted, ids)
    assert relative_difference(adapted(ids).logits, expected) > 1e-3
    adapted.load_adapter(tmp_path, "default")
    assert relative_difference(adapted(ids).logits, expected) < 1e-6
    train(adapted, ids)
    adapted.load_adapter(tmp_path, "beside")
    adapted.set_adapter("beside")
    assert relative_difference(adapted(ids).logits, expected) < 1e-6


def test_another_start_or_rank_is_refused_by_name(tmp_path):
    adapted, ids = attached(), tokens()
    train(adapted, ids)
    adapted.save_pretrained(tmp_path)
    before = adapted(ids).logits
    other = attached(seed=4)
    with pytest.raises(AstraError, match=r"layer model\.layers\.0\.\S+: the saved adapter started from other factors"):
        other.load_adapter(tmp_path, "default")
    assert torch.equal(other(ids).logits, tiny_model()(ids).logits)
    raw = {  # as a version before this form saved it
        f"base_model.model.{name}.{side}.weight": getattr(layer, side)["default"].delta
        for name, layer in lora_layers(adapted)
        for side in ("lora_A", "lora_B")
    }
    with pytest.raises(AstraError, match="a saved factor is 4 x 32, not 8 x 32"):
        adapted.load_state_dict({key.replace(".weight", ".default.weight"): t for key, t in raw.items()}, strict=False)
    assert torch.equal(adapted(ids).logits, before)


def test_what_deepspeed_gathers_of_split_parameters_takes_the_saved_form(tmp_path):
    ids, adapted = tokens(), attached()
    train(adapted, ids)
    gathered = {name: p.detach() for name, p in adapted.named_parameters() if p.requires_grad}
    gathered |= dict(adapted.named_buffers())
    adapted.save_pretrained(tmp_path, state_dict=gathered)
    assert set(load_file(tmp_path / "adapter_model.safetensors")) == {
        key.replace(".default", "") for key in saved_form(gathered) if "lora_" in key
    }
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path)
    assert relative_difference(loaded(ids).logits, adapted(ids).logits) < 1e-6


class Crash(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            raise RuntimeError("crash")


def trainer(folder, model, steps=4, **options):
    args = TrainingArguments(
        folder, max_steps=steps, save_steps=1, eval_steps=1, per_device_train_batch_size=2, learning_rate=1e-2,
        weight_decay=0.1, report_to="none", use_cpu=True, disable_tqdm=True, **options,
    )  # fmt: skip
    return Trainer(model, args, train_dataset=Rows(), eval_dataset=Rows())


def test_a_trainer_goes_on_from_its_checkpoint(tmp_path):
    whole = attached(lora_dropout=0.1)
    trainer(tmp_path / "whole", whole).train()
    broken = trainer(tmp_path / "broken", attached(lora_dropout=0.1))
    broken.add_callback(Crash())
    with pytest.raises(RuntimeError, match="crash"):
        broken.train()
    second = attached(lora_dropout=0.1)
    trainer(tmp_path / "broken", second).train(resume_from_checkpoint=True)
    ids = tokens()
    assert relative_difference(second.eval()(ids).logits, whole.eval()(ids).logits) < 1e-5
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path / "broken" / "checkpoint-4")
    assert relative_difference(loaded(ids).logits, second(ids).logits) < 1e-6


def test_a_trainer_loads_its_best_model_at_the_end(tmp_path):
    adapted, ids = attached(), tokens()
    options = {"eval_strategy": "steps", "load_best_model_at_end": True, "greater_is_better": True}
    run = trainer(tmp_path, adapted, **options, metric_for_best_model="eval_loss")  # the worst, which is the first
    run.train()
    assert run.state.best_model_checkpoint.endswith("checkpoint-1")
    best = PeftModel.from_pretrained(tiny_model(), tmp_path / "checkpoint-1")
    last = PeftModel.from_pretrained(tiny_model(), tmp_path / "checkpoint-4")
    assert relative_difference(adapted.eval()(ids).logits, best(ids).logits) < 1e-6
    assert relative_difference(last(ids).logits, best(ids).logits) > 1e-3
