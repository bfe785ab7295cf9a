"""What a run writes while it trains, and how it stops when it is told to."""

import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from utils.distributed import is_main, world_size
from utils.files import read_lines, write_text
from utils.log import Progress, log


class MetricsFile(TrainerCallback):
    """Appends every log to `metrics.jsonl`; a resumed run first drops the lines of steps it will repeat."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if is_main():
            kept = [line for line in read_lines(self.path) if line["step"] <= state.global_step]
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if is_main() and logs and ("loss" in logs or "eval_loss" in logs):
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


class PackingCheck(TrainerCallback):
    """Looks before the first step whether packed examples stay apart; `require` raises if they don't."""

    def __init__(self, require: Callable[[], None]) -> None:
        self.require = require

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.require()


class StepProgress(TrainerCallback):
    """A bar on a terminal, lines in a log file."""

    bar: Progress | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is None:  # its clock leaves out what is measured before the first step
            self.bar = Progress("training", state.max_steps - state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        every = max(state.max_steps // 20, 1)
        if logs and "eval_loss" in logs:
            log.info("step %d: validation loss %.4f", state.global_step, logs["eval_loss"])
        elif logs and "loss" in logs and math.isfinite(logs["loss"]) and state.global_step % every == 0:
            log.info("step %d of %d: loss %.4f", state.global_step, state.max_steps, logs["loss"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.close()


class StopOnSignal(TrainerCallback):
    """On SIGTERM, such as a scheduler's pre-emption, all processes checkpoint after the same step and stop."""

    def __init__(self) -> None:
        self.stopped = False
        self._asked = False
        self._before: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._before = signal.signal(signal.SIGTERM, self._note)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _note(self, *_: object) -> None:
        self._asked = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        asked = torch.tensor(int(self._asked), device=args.device)
        if world_size() > 1:
            torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
        if bool(asked) and state.global_step < state.max_steps:
            log.info("told to stop: writing a checkpoint after step %d", state.global_step)
            self.stopped = control.should_save = control.should_training_stop = True
