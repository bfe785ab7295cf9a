"""Figures that others have published, with their sources: they stand apart from what was measured here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from utils.files import read_json

FOLDER = Path(__file__).parent.parent / "docs" / "published"
TASKS = {"metamath": "math", "code": "code"}  # training set -> the task of the published ladders
NAMES = {"LoRA": "lora", "DoRA": "dora", "PiSSA": "pissa", "MiLoRA": "milora", "Init[AB]": "lora, A and B random"}


def published(config: dict[str, Any]) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Title, note and table of what others report of the training set of an experiment (its flat settings)."""
    rows = pd.DataFrame(read_json(FOLDER / "figures.json"))
    rows = rows[rows["train"] == config["data.train"]].drop(columns="train").dropna(axis="columns", how="all")
    if len(rows):
        note = "Other models and protocols than this experiment's, in percent as each source states it."
        yield (
            "Published by others, not measured here",
            note,
            rows.fillna("").rename(columns={"accuracy": "accuracy (%)"}),
        )
    ladders = read_json(FOLDER / "learning-rate-matters.json")
    best = [
        {
            "method": NAMES[row["method"]], "rank": row["rank"], "batch size": row["batch_size"],
            "best rate": max(row["accuracy"], key=row["accuracy"].get), "accuracy (%)": max(row["accuracy"].values()),
            "at 2e-5": row["accuracy"]["2e-05"],
        }
        for row in ladders["rows"]
        if row["task"] == TASKS.get(config["data.train"])
    ]  # fmt: skip
    if best:
        note = f"{ladders['source']}. {ladders['note']}"
        yield "Published by others: each method at its best rate", note, pd.DataFrame(best)


def curves(config: dict[str, Any]) -> dict[int, dict[str, dict[float, float]]]:
    """Rank -> method -> rate -> accuracy, a share, of published ladders of the same model, data and batch size."""
    same = str(config["model.name"]).rpartition("/")[2] == "Llama-2-7b-hf" and config["data.limit"] == 100_000
    found: dict[int, dict[str, dict[float, float]]] = {}
    for row in read_json(FOLDER / "learning-rate-matters.json")["rows"] if same else ():
        if row["task"] == TASKS.get(config["data.train"]) and row["batch_size"] == config["train.global_batch_size"]:
            ladder = {float(rate): score / 100 for rate, score in row["accuracy"].items()}
            found.setdefault(row["rank"], {})[NAMES[row["method"]]] = ladder
    return found
