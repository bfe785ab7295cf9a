"""TRL's SFTTrainer trains an adapter that starts from a calibration, whoever makes the PeftModel."""

import pytest
import torch
from peft import LoraConfig, PeftModel

from astra import attach, initialize_lora_weights
from tests.astra.tiny import calibration, relative_difference, targets, tiny_model, tokens

pytestmark = pytest.mark.slow
CONFIG = {"r": 4, "lora_alpha": 8, "target_modules": targets(), "task_type": "CAUSAL_LM"}


@pytest.mark.parametrize("maker", ["attach", "peft_config"])
def test_sft_runs_to_a_saved_adapter_that_loads_on_the_base(tmp_path, base, maker):
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoTokenizer

    rows = Dataset.from_dict({"input_ids": tokens(16).tolist()})
    args = trl.SFTConfig(
        tmp_path, max_steps=3, save_steps=2, per_device_train_batch_size=2, learning_rate=1e-2, report_to="none",
        use_cpu=True, bf16=False, gradient_checkpointing=False, disable_tqdm=True,
    )  # fmt: skip
    model, ids, tokenizer = tiny_model(), tokens(), AutoTokenizer.from_pretrained(base)
    store, before = calibration(model, targets()), model(ids).logits
    if maker == "attach":
        adapted = attach(model, store, LoraConfig(**CONFIG))
        trainer = trl.SFTTrainer(adapted, args, train_dataset=rows, processing_class=tokenizer)
    else:
        trainer = trl.SFTTrainer(
            model, args, train_dataset=rows, processing_class=tokenizer, peft_config=LoraConfig(**CONFIG)
        )
        initialize_lora_weights(trainer.model, store)
    trainer.model.eval()
    assert torch.equal(trainer.model(input_ids=ids).logits, before)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    trained = trainer.model.eval()(input_ids=ids).logits.float()
    assert relative_difference(trained, before) > 1e-3
    for folder in ("saved", "checkpoint-3"):
        loaded = PeftModel.from_pretrained(tiny_model(), tmp_path / folder).eval()
        assert relative_difference(loaded(ids).logits, trained) < 1e-6
    with trainer.model.disable_adapter():
        assert torch.equal(trainer.model(input_ids=ids).logits, before)
