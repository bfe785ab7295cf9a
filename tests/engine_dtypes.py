"""Train as train.py does, in bfloat16 even where the CPU is slow at it, and write down the data types inside.

Usage: engine_dtypes.py CONFIG.yaml FILE.json
"""

import sys

import torch
from transformers import TrainerCallback

import train
from training import arguments, model, trainer
from utils import models
from utils.config import load_config
from utils.distributed import is_main
from utils.files import write_json


class Look(TrainerCallback):
    """Notes, after the first step, what data types the weights have and in which gradients are reduced."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        wrapped = self.trainer.model_wrapped
        found = {
            "trained": {str(p.dtype) for p in wrapped.module.parameters() if p.requires_grad},
            "frozen": {str(p.dtype) for p in wrapped.module.parameters() if not p.requires_grad},
            "reduced": {str(dtype) for dtype in wrapped.optimizer.ipg_buckets},
        }
        if is_main() and state.global_step == 1:
            write_json(sys.argv[2], {key: sorted(values) for key, values in found.items()})


def main() -> None:
    for module in (models, arguments, model):
        module.usable_dtype = lambda dtype: dtype
    make = trainer.make_trainer

    def looking(*args):
        made, look = make(*args), Look()
        look.trainer = made
        made.add_callback(look)
        return made

    trainer.make_trainer = looking
    train.train(load_config(sys.argv[1]))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
