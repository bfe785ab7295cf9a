"""Scoring classifiers on the validation split of their GLUE task, by the metrics that GLUE ranks it by.

GLUE ranks MRPC and QQP by the mean of accuracy and F1, STS-B by the mean of Pearson's and Spearman's correlation,
CoLA by Matthews' correlation, the rest by accuracy; MNLI on both of its sets. The headline here is the first of a
task's metrics, as papers on adapters give it (MNLI: the matched set); all are in the result.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dataset.glue import GLUE, load_glue, num_labels
from dataset.tokens import collate, encode_records
from eval.candidates import Target
from eval.evaluate import describe
from eval.intervals import interval
from eval.task_record import TaskRecord, same
from eval.tasks import Record
from eval.tracking import check_trackers, track
from utils.config import Config
from utils.files import fingerprint
from utils.log import log, progress
from utils.models import load_model, load_tokenizer, usable_dtype
from utils.runs import held, spent, stage

VERSION = 2
METRICS: dict[str, tuple[str, ...]] = {
    "cola": ("matthews_correlation", "accuracy"),
    "mrpc": ("accuracy", "f1"),
    "qqp": ("accuracy", "f1"),
    "stsb": ("pearson", "spearman"),
}


def score_classifiers(config: Config, targets: Sequence[Target], force: bool = False) -> None:
    """Write `<target.folder>/<task>.json` and `<task>.samples.jsonl` for every trained classifier."""
    check_trackers(config)
    task = config.data.train
    problems = load_glue(task, "validation", config.data.dir)[: config.eval.limit]
    others = load_glue(task, "mismatched", config.data.dir)[: config.eval.limit] if task == "mnli" else []
    shared = {
        "data": fingerprint([problems, others]),
        "dtype": usable_dtype(config.model.dtype),
        "max_length": config.data.max_length,
        "task_version": VERSION,
    }
    before = 0.0 if force else spent(Path(config.output_dir), "evaluate")
    for target in targets:
        record = TaskRecord(target.folder, task, {**target.fingerprints(), **shared})
        result = None if force else record.earlier()
        if result is None or not same(result["settings"], record.settings):
            with held(target.folder.parent), stage(Path(config.output_dir), "evaluate", before):
                if force:
                    record.clear()
                started = time.monotonic()
                predicted = _predict(config, target, problems + others)
                figures, samples = _figures(task, problems, others, predicted)
                about = {"target": target.name, "base_model": config.model.name}
                seconds = round(time.monotonic() - started, 3)
                result = record.complete({**about, **figures, "seconds": seconds}, samples)
            track(config, target, {task: result})
        log.info("%s", describe(result))


def _figures(
    task: str, problems: list[Record], others: list[Record], predicted: list[float]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The figures and samples of predictions; of `others`, whose predictions come last, the accuracy alone."""
    labels, n, metrics = GLUE[task].labels, len(problems), METRICS.get(task, ("accuracy",))
    gold = [problem["label"] for problem in problems + others]
    found = {metric: score(metric, gold[:n], predicted[:n]) for metric in metrics}
    if others:
        found["accuracy_mismatched"] = score("accuracy", gold[n:], predicted[n:])
    samples: list[dict[str, Any]] = [
        {
            "problem": number,
            "prompt": "\n".join(filter(None, (problem["text"], problem["text_pair"]))),
            "output": labels[int(guess)] if labels else f"{guess:.4f}",
            "gold": labels[int(problem["label"])] if labels else f"{problem['label']:.4f}",
            "correct": guess == problem["label"] if labels else None,
        }
        for number, (problem, guess) in enumerate(zip(problems, predicted, strict=False))
    ]
    figures: dict[str, Any] = {"metric": metrics[0], "score": found[metrics[0]], "metrics": found, "n": n}
    if metrics[0] == "accuracy":
        figures |= {"accuracy": found["accuracy"], "interval": interval([sample["correct"] for sample in samples])}
    return figures, samples


def score(metric: str, gold: Sequence[float], predicted: Sequence[float]) -> float:
    """A metric of labels or scores; a correlation, or an F1, that is undefined (constant predictions) is 0."""
    a, b = np.asarray(gold, dtype=float), np.asarray(predicted, dtype=float)
    if metric == "accuracy":
        return float((a == b).mean())
    if metric == "f1":
        hits = ((a == 1) & (b == 1)).sum()
        return float(2 * hits / max((a == 1).sum() + (b == 1).sum(), 1))
    if metric == "spearman":
        from scipy.stats import rankdata

        a, b = rankdata(a), rankdata(b)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])  # of two classes it is Matthews' correlation


def _predict(config: Config, target: Target, problems: list[Record]) -> list[float]:
    """The likeliest class, or the score, of every problem."""
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
    size, outputs = config.eval.batch_size, dict[int, Any]()
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    with torch.inference_mode():
        for batch in progress(batches, f"{target.name}, {config.data.train}", len(batches), "batches"):
            inputs = collate([features[index] for index in batch], tokenizer.pad_token_id or 0)
            del inputs["labels"]
            logits = model(**{key: value.to(device) for key, value in inputs.items()}).logits.float().cpu()
            outputs.update(zip(batch, logits.argmax(1) if logits.shape[1] > 1 else logits[:, 0], strict=True))
    return [outputs[index].item() for index in range(len(features))]
