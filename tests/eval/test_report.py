"""The report says what the run folders say, and chooses rates without looking at the test set."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import yaml

from eval.report import write_report
from eval.results import best_rates, collect, summarise
from utils.config import Config
from utils.errors import UserError
from utils.files import write_json
from utils.runs import write_config
from utils.settings import flat_settings


def make_run(
    folder: Path, name: str, rate: float, seed: int, accuracy: float, validation: float, method: str = "astra",
    **settings: Any,
) -> Path:  # fmt: skip
    run = folder / name
    config = {"output_dir": str(folder), "run": name, "method": {"name": method, "rank": 8, **settings}}
    write_config(Config.model_validate({**config, "train": {"learning_rate": rate, "seed": seed}}), run)
    result = {"task": "gsm8k", "accuracy": accuracy, "interval": [accuracy - 0.1, accuracy + 0.1], "n": 50}
    write_json(run / "eval" / "gsm8k.json", result)
    metrics = {"validation_loss": validation, "forgetting": {"rise": 0.1}, "trainable_parameters": 1234}
    write_json(run / "metrics.json", metrics)
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n', encoding="utf-8")
    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "experiment"
    for seed, accuracy in ((1, 0.40), (2, 0.50)):
        make_run(folder, f"low-{seed}", 1e-4, seed, accuracy, validation=0.5)
    make_run(folder, "high-1", 1e-3, 1, accuracy=0.90, validation=0.9)
    make_run(folder, "lora-1", 1e-3, 1, accuracy=0.30, validation=0.4, method="lora")
    return folder


def test_seeds_are_averaged_and_settings_are_not(folder: Path) -> None:
    rows = summarise(collect(folder), "gsm8k")
    assert [(row["label"], row["learning_rate"], row["seeds"]) for row in rows] == [
        ("astra (tail)", 1e-4, 2),
        ("astra (tail)", 1e-3, 1),
        ("lora", 1e-3, 1),
    ]
    assert rows[0]["accuracy"] == pytest.approx(0.45)
    assert rows[0]["accuracy_sd"] == pytest.approx(0.0707, abs=1e-4)


def test_runs_that_differ_in_any_setting_are_not_seeds_of_one(folder: Path) -> None:
    make_run(folder, "balanced", 1e-4, 1, 0.10, validation=0.5, split="balanced")
    make_run(folder, "scaled", 1e-4, 1, 0.20, validation=0.5, alpha=16)
    rows = [row for row in summarise(collect(folder), "gsm8k") if row["learning_rate"] == 1e-4]
    assert sorted((row["method.split"], row["alpha"], row["seeds"]) for row in rows) == [
        ("balanced", 8, 1),
        ("orthonormal", 8, 2),
        ("orthonormal", 16, 1),
    ]
    heading = next(line for line in write_report(folder).splitlines() if line.startswith("| method"))
    assert "| alpha |" in heading and "| method.split |" in heading


def test_what_was_trained_is_shown_not_what_the_config_says_now(folder: Path) -> None:
    metrics = json.loads((folder / "low-1/metrics.json").read_text(encoding="utf-8"))
    trained = flat_settings(yaml.safe_load((folder / "low-1/config.yaml").read_text(encoding="utf-8")))
    write_json(folder / "low-1/metrics.json", {**metrics, "settings": trained})
    write_config(Config.model_validate({"train": {"learning_rate": 0.7}}), folder / "low-1")
    assert 0.7 not in {row["learning_rate"] for row in collect(folder)}


def test_a_method_without_a_rank_and_a_task_without_an_accuracy_have_their_place(folder: Path) -> None:
    make_run(folder, "wide", 1e-4, 1, 0.5, validation=0.5, rank=16)
    full = make_run(folder, "full", 1e-5, 1, 0.6, validation=0.5, method="full")
    write_json(full / "eval" / "forgetting.json", {"task": "forgetting", "loss": 3.25, "text": "wikitext", "n": 4})
    text = write_report(folder)
    assert "| full |" in text and "3.250" in text.partition("## forgetting")[2]
    assert (folder / "gsm8k-rank.png").is_file() and not (folder / "forgetting-rank.png").exists()


def test_a_folder_is_enough(folder: Path) -> None:
    run = subprocess.run([sys.executable, "-m", "eval.report", str(folder)], capture_output=True, text=True)
    assert run.returncode == 0 and "## gsm8k" in run.stdout


def test_the_rate_is_chosen_on_validation_not_on_test(folder: Path) -> None:
    best = {row["label"]: row["learning_rate"] for row in best_rates(summarise(collect(folder), "gsm8k"))}
    assert best["astra (tail)"] == 1e-4, "the rate with the higher test accuracy has the worse validation loss"


def test_a_run_without_a_result_is_listed_with_its_reason(folder: Path) -> None:
    failed = folder / "failed"
    write_config(Config(), failed)
    (failed / "log.txt").write_text("2026-01-01 error: loss is NaN at step 3\n", encoding="utf-8")
    text = write_report(folder)
    assert "| failed | loss is NaN at step 3 |" in text


def test_files_agree_with_each_other(folder: Path) -> None:
    text = write_report(folder)
    assert (folder / "results.md").read_text(encoding="utf-8") == text
    with open(folder / "results.csv", newline="", encoding="utf-8") as file:
        assert {row["run"] for row in csv.DictReader(file)} == {"low-1", "low-2", "high-1", "lora-1"}
    assert "45.0 ± 7.1" in text


def test_published_figures_are_kept_apart(folder: Path) -> None:
    ours, _, published = write_report(folder).partition("## Published by others, not measured here")
    assert "pull request 3725" in published and "pull request 3725" not in ours


def test_the_page_needs_no_other_file(folder: Path) -> None:
    write_report(folder)
    page = (folder / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"]{0,20})', page)
    assert sources and all(source.startswith("data:image/png") for source in sources)
    assert "url(" not in page and "@import" not in page


def browse(page: Path, place: Path) -> tuple[Path, list[str]]:
    """A picture of a page, and what it asked the network for; the browser's own requests have no origin."""
    log, picture = place / f"{page.stem}.net.json", place / f"{page.stem}.png"
    quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic")
    subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", *quiet,
         f"--user-data-dir={place / 'profile'}", f"--log-net-log={log}", f"--screenshot={picture}",
         "--window-size=1200,1600", page.as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    events = [event.get("params", {}) for event in json.loads(log.read_text(encoding="utf-8"))["events"]]
    asked = [event["url"] for event in events if event.get("initiator", "not an origin") != "not an origin"]
    return picture, [url for url in asked if url.startswith("http")]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_a_browser_shows_the_page_and_requests_nothing(folder: Path, tmp_path: Path) -> None:
    asking = tmp_path / "asking.html"
    asking.write_text('<img src="http://example.org/x.png">', encoding="utf-8")
    assert browse(asking, tmp_path)[1] == ["http://example.org/x.png"]  # such a request would be seen
    write_report(folder)
    picture, asked = browse(folder / "report.html", tmp_path)
    assert asked == []
    image = matplotlib.image.imread(picture)
    assert image.shape[:2] == (1600, 1200) and image[..., :3].std() > 0.05, "an empty page"


def test_a_single_run_has_a_summary(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    run = make_run(folder, "astra-tail-r8", 1e-3, 1, 0.6, 0.5)
    write_json(
        folder / "base" / "eval" / "gsm8k.json", {"task": "gsm8k", "accuracy": 0.1, "interval": [0, 0.2], "n": 50}
    )
    write_json(run / "stages" / "train.json", {"seconds": 12.0, "peak_memory_bytes": 99})
    write_json(folder / "stages" / "calibrate.json", {"seconds": 3.0, "peak_memory_bytes": 100})
    write_report(folder)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert (summary["base"]["accuracy"], summary["adapted"]["accuracy"], summary["n"]) == (0.1, 0.6, 50)
    assert summary["seconds"] == {"calibrate": 3.0, "train": 12.0}
    assert (summary["peak_memory_bytes"], summary["trainable_parameters"]) == (100, 1234)
    assert summary["lora"] == str(run / "lora")


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run in this folder"):
        write_report(tmp_path)
