"""Train a tiny attached model with the plain Trainer and DeepSpeed, and write down the trained model's logits.

Usage, in each of two processes: zero_trainer.py STAGE FOLDER [best | resume]
"""

import sys

import deepspeed
import torch
from peft import LoraConfig
from transformers import Trainer, TrainingArguments

from astra import attach
from tests.astra.tiny import Rows, calibration, targets, tiny_model, tokens


def main(stage: int, folder: str, mode: str = "") -> None:
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo")
    zero = {"stage": stage}
    if stage == 3:
        zero |= {"stage3_param_persistence_threshold": 0, "stage3_gather_16bit_weights_on_model_save": True}
    settings = {
        "zero_optimization": zero, "train_micro_batch_size_per_gpu": "auto", "train_batch_size": "auto",
        "gradient_accumulation_steps": "auto", "zero_allow_untested_optimizer": True,
    }  # fmt: skip
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    args = TrainingArguments(
        folder, max_steps=4, save_steps=2, eval_steps=2, eval_strategy="steps", per_device_train_batch_size=2,
        learning_rate=1e-2, weight_decay=0.1, report_to="none", use_cpu=True, disable_tqdm=True, deepspeed=settings,
        **(best if mode == "best" else {}),
    )  # fmt: skip
    model, ids = tiny_model(), tokens()
    store, before = calibration(model, targets()), model(ids).logits
    model = attach(model, store, LoraConfig(r=4, lora_alpha=8, target_modules=targets(), use_rslora=True))
    trainer = Trainer(model, args, train_dataset=Rows(), eval_dataset=Rows())
    trainer.train(resume_from_checkpoint=f"{folder}/checkpoint-2" if mode == "resume" else None)
    engine = trainer.model_wrapped
    engine.eval()
    with torch.no_grad():
        trained = engine(input_ids=ids).logits
        with model.disable_adapter():
            base = engine(input_ids=ids).logits
    if args.process_index == 0:
        torch.save({"before": before, "trained": trained, "base": base}, f"{folder}/logits-{mode}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
