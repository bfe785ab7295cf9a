"""`python -m eval`: score the base model, runs, or any adapter."""

import os
from pathlib import Path
from typing import Any

from utils.cli import main, parse
from utils.comparison import tested
from utils.config import Config, ladder_key, validate
from utils.errors import UserError
from utils.log import log, log_to
from utils.runs import run_folder

USAGE = """
Score models on benchmarks: the runs of an experiment, one run, any PEFT adapter, or the base model.

  python -m eval --config configs/metamath.yaml                      all runs of the experiment (of its sweep)
  python -m eval --config configs/metamath.yaml --run outputs/x/y    one run folder; else --run=NAME is the key `run`
  python -m eval --config configs/metamath.yaml --adapter path       any PEFT LoRA adapter of the same base model
  python -m eval --config configs/metamath.yaml --base               the base model alone
  --eval.base=true                                                   the base model, too
  --regrade                                                          judge the texts that are there anew, in seconds
  --force                                                            forget what is there, texts included

Each task leaves <task>.texts.jsonl, <task>.samples.jsonl and <task>.json in <run>/eval. A text is generated once: an
interrupted evaluation goes on where it stopped, more problems add the missing texts, another grader needs none.
Look at samples with `python -m eval.show RUN`, compare two results with `python -m eval.compare A B`.
"""
FLAGS = {"run": "", "adapter": "", "base": False, "regrade": False, "force": False}


def command() -> None:
    """Parse, find the models to score, and score them."""
    config, flags = parse(USAGE, FLAGS)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from eval.tasks import check_tasks

    check_tasks(config)
    log_to(Path(config.output_dir) / "log.txt")
    targets = find_targets(config, flags)
    if config.model.task_type == "SEQ_CLS":
        from eval.classification import score_classifiers

        score_classifiers(config, targets, flags["force"])
        return
    from eval.evaluate import evaluate

    evaluate(config, targets, flags["force"], flags["regrade"])


def find_targets(config: Config, flags: dict[str, Any]) -> list[Any]:
    """The models that the flags ask for; without one, every trained run of the experiment."""
    from eval.candidates import adapter_target, base_target, run_target

    if sum(bool(flags[name]) for name in ("run", "adapter", "base")) > 1:
        raise UserError("--run, --adapter and --base: give one of them (--eval.base=true adds the base model)")
    if flags["regrade"] and flags["force"]:
        raise UserError("--regrade and --force: the one reads the texts that the other removes")
    if config.model.task_type == "SEQ_CLS" and (flags["base"] or flags["regrade"]):
        raise UserError("--base and --regrade: a classifier makes no texts, and without training it has no head")
    if flags["base"]:
        return [base_target(config)]
    targets = [base_target(config)] if config.eval.base else []
    run = flags["run"]
    if run and ("/" in run or Path(run).is_dir()):
        return [*targets, run_target(config, Path(run))]
    if flags["adapter"]:
        return [*targets, adapter_target(config, Path(flags["adapter"]))]
    if run:
        config = validate({**config.model_dump(), "run": run}, "--run")
    folders = [run_folder(run) for run in tested(config)]
    if not folders and ladder_key(config):
        log.info("compare.test: %s: no run is scored", config.compare.test)
        return targets
    trained = [folder for folder in folders if (folder / "lora").is_dir() or (folder / "merged").is_dir()]
    for folder in folders:
        if trained and folder not in trained:
            log.warning("%s: left out, it is not trained", folder)
    return [*targets, *(run_target(config, folder) for folder in trained or folders)]  # untrained: refused


if __name__ == "__main__":
    main(command)
