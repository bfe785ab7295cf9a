"""Scoring classifiers on the validation split of their GLUE task, by the metric that GLUE ranks it by."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dataset.glue import GLUE, load_glue, num_labels
from dataset.tokens import collate, encode_records
from eval.candidates import Target
from eval.evaluate import describe
from eval.task_record import TaskRecord, wilson
from utils.config import Config
from utils.errors import UserError
from utils.files import fingerprint
from utils.log import log, progress
from utils.models import load_model, load_tokenizer, usable_dtype
from utils.runs import stage

VERSION = 1


def score_classifiers(config: Config, targets: Sequence[Target], force: bool = False) -> None:
    """Write `<target.folder>/<task>.json` and `<task>.samples.jsonl` for every trained classifier.

    Raises:
        UserError: the base model is among the targets, or a finished record was made under other settings.
    """
    task = config.data.train
    problems = load_glue(task, "validation", config.data.dir)
    for target in targets:
        if target.name == "base":
            raise UserError("eval.base: an untrained classification head has nothing to score")
        settings = {
            **target.fingerprints(),
            "data": fingerprint(problems),
            "dtype": usable_dtype(config.model.dtype),
            "max_length": config.data.max_length,
            "task_version": VERSION,
        }
        record = TaskRecord(target.folder, task, settings)
        if force:
            record.clear()
        result = record.finished()
        if result is None:
            with stage(Path(config.output_dir), "evaluate"):
                result = _score(config, target, problems, record)
        log.info("%s", describe(result))


def _score(config: Config, target: Target, problems: list[dict[str, Any]], record: TaskRecord) -> dict[str, Any]:
    glue, started = GLUE[config.data.train], time.monotonic()
    gold = [problem["label"] for problem in problems]
    outputs = _predict(config, target, problems)
    predicted = outputs[:, 0].tolist() if not glue.labels else outputs.argmax(1).tolist()
    result: dict[str, Any] = {
        "task": config.data.train,
        "target": target.name,
        "metric": glue.metric,
        "score": score(glue.metric, gold, predicted),
        "n": len(problems),
        "seconds": round(time.monotonic() - started, 3),
        "base_model": config.model.name,
        "settings": record.settings,
    }
    if glue.labels:
        accuracy = score("accuracy", gold, predicted)
        result |= {"accuracy": accuracy, "interval": list(wilson(accuracy, len(problems)))}

    def shown(label: float) -> Any:
        return glue.labels[int(label)] if glue.labels else round(label, 4)

    samples = [
        {
            "problem": number,
            "sample": 0,
            "prompt": "\n".join(filter(None, (problem["text"], problem["text_pair"]))),
            "output": str(shown(found)),
            "gold": str(shown(problem["label"])),
            "correct": found == problem["label"] if glue.labels else None,
        }
        for number, (problem, found) in enumerate(zip(problems, predicted, strict=True))
    ]
    record.complete(result, samples)
    return result


def score(metric: str, gold: Sequence[float], predicted: Sequence[float]) -> float:
    """Return "accuracy", "matthews_correlation" or "pearson" of predictions."""
    if metric == "accuracy":
        return float(np.mean(np.equal(gold, predicted)))
    if metric == "matthews_correlation":
        # Of two classes it is Pearson's correlation; where only one is predicted, or there, it is 0 by convention.
        constant = len(set(gold)) == 1 or len(set(predicted)) == 1
        return 0.0 if constant else float(np.corrcoef(gold, predicted)[0, 1])
    from scipy.stats import pearsonr

    return float(pearsonr(gold, predicted).statistic)


def _predict(config: Config, target: Target, problems: list[dict[str, Any]]) -> np.ndarray:
    """Return the outputs of the head, float32 (problems, classes or 1)."""
    import torch
    from peft import PeftModel

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source = config.model.model_copy(update={"name": str(target.model)})
    model = load_model(source, num_labels(config))
    if target.adapter is not None:
        model = PeftModel.from_pretrained(model, target.adapter.path)
    model.to(device).eval()
    tokenizer = load_tokenizer(config.model)
    features = encode_records(problems, tokenizer, config.data.template, config.data.max_length).features
    order = sorted(range(len(features)), key=lambda index: -len(features[index]["input_ids"]))
    size = config.eval.batch_size
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    outputs: np.ndarray | None = None
    with torch.inference_mode():
        for batch in progress(batches, f"{target.name}, {config.data.train}", len(batches), "batch"):
            inputs = collate([features[index] for index in batch], tokenizer.pad_token_id or 0)
            del inputs["labels"]
            logits = model(**{key: value.to(device) for key, value in inputs.items()}).logits.float().cpu().numpy()
            outputs = np.empty((len(features), logits.shape[1]), dtype=np.float32) if outputs is None else outputs
            outputs[batch] = logits
    assert outputs is not None
    return outputs
