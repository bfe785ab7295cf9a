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
import numpy as np
import pytest
import yaml

from eval.intervals import difference, smallest_difference
from eval.report import write_report
from eval.results import collect
from utils.config import Config
from utils.errors import UserError
from utils.files import write_json
from utils.runs import write_config
from utils.settings import flat_settings


def make_run(
    folder: Path, name: str, rate: float, seed: int, accuracy: float, validation: float, method: str = "astra",
    forgetting: float = 0.1, n: int = 50, records: int = 0, task: str = "gsm8k", arm: str = "",
    **settings: Any,
) -> Path:  # fmt: skip
    run = folder / name
    config: dict[str, Any] = {"output_dir": str(folder), "run": name, "arm": arm or None}
    config["method"] = {"name": method, "rank": 8, **settings}
    write_config(Config.model_validate({**config, "train": {"learning_rate": rate, "seed": seed}}), run)
    add_score(run, task, accuracy, n)
    metrics = {
        "validation_loss": validation,
        "forgetting": {"rise": forgetting, "text": "a manual", "fingerprint": "0123"},
        "update": {"relative_norm": 30 * rate},
        "trainable_parameters": 1234,
    }
    if records:
        noise = np.random.default_rng(0).normal(0, 0.2, records)  # records differ alike in all runs
        own = np.random.default_rng(seed + int(1e6 * rate)).normal(0, 0.01, records)
        losses = validation + noise + own
        write_json(run / "losses.json", dict.fromkeys(("validation", "reporting"), list(losses)))
        metrics["validation_loss"] = metrics["reporting_loss"] = losses.mean()
    write_json(run / "metrics.json", metrics)
    (run / "lora").mkdir()
    lines = [{"step": step, "loss": 2.0 / step} for step in range(1, 41)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return run


def add_score(run: Path, task: str, accuracy: float, n: int = 50) -> None:
    result = {"task": task, "accuracy": accuracy, "interval": [accuracy - 0.1, accuracy + 0.1], "n": n}
    write_json(run / "eval" / f"{task}.json", result)
    right = np.random.default_rng(7).permutation(n) < round(accuracy * n)  # the same order of difficulty for all
    lines = [json.dumps({"problem": k, "correct": bool(right[k])}) + "\n" for k in range(n)]
    (run / "eval" / f"{task}.samples.jsonl").write_text("".join(lines), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "experiment"
    for seed, accuracy in ((1, 0.40), (2, 0.50)):
        make_run(folder, f"low-{seed}", 1e-4, seed, accuracy, validation=0.5)
    make_run(folder, "high-1", 1e-3, 1, accuracy=0.90, validation=0.9)
    make_run(folder, "lora-1", 1e-3, 1, accuracy=0.30, validation=0.4, method="lora")
    return folder


def section(text: str, title: str) -> str:
    return text.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_seeds_are_averaged_at_the_rate_that_validation_chose(folder: Path) -> None:
    text = write_report(folder)
    results = section(text, "Results")
    assert "45.0 ± 7.1" in results and "30.0 [20.0, 40.0]" in results
    assert "90.0" not in results, "the rate with the higher test accuracy has the worse validation loss"
    tuned = collect([folder]).arms
    assert (tuned["astra (tail)"].rate, tuned["astra (tail)"].seeds) == (1e-4, (1, 2))


def test_a_best_rate_at_the_end_of_its_ladder_is_said_not_to_be_tuned(folder: Path) -> None:
    text = write_report(folder)
    assert (
        "**Not tuned**, as no clearly worse rate was tried on one side of the best: astra (tail) (lowest of 2)" in text
    )
    assert "1e-4 (edge)" in section(text, "Results")


def test_runs_that_differ_in_any_setting_are_not_seeds_of_one(folder: Path) -> None:
    make_run(folder, "balanced", 1e-4, 1, 0.10, validation=0.5, split="balanced")
    make_run(folder, "scaled", 1e-4, 1, 0.20, validation=0.5, alpha=16)
    arms = {row.run: row.arm for row in collect([folder]).runs.itertuples()}
    assert arms["low-1"] == arms["low-2"] == arms["high-1"]
    assert len({arms["low-1"], arms["balanced"], arms["scaled"]}) == 3
    assert "split balanced" in arms["balanced"] and "alpha 16" in arms["scaled"]


def test_methods_that_share_a_named_arm_are_not_seeds_of_one(tmp_path: Path) -> None:
    for name, method, subspace in (
        ("a", "lora", "tail"), ("b", "pissa", "tail"), ("c", "lora", "middle"), ("d", "astra", "tail"),
        ("e", "astra", "middle"), ("f", "full", "tail"),
    ):  # fmt: skip
        make_run(tmp_path / "e", name, 1e-4, 1, 0.5, 0.5, method, arm="plain", subspace=subspace)
    arms = {row.run: row.arm for row in collect([tmp_path / "e"]).runs.itertuples()}
    assert arms.pop("c") == arms["a"] == "plain, name lora" and arms["e"] == "plain, name astra, subspace middle"
    assert len(set(arms.values())) == 5


def test_arms_of_a_comparison_have_their_names_and_their_ladders(tmp_path: Path) -> None:
    for arm, losses in (("plain", (0.7, 0.5, 0.6)), ("decayed", (0.8, 0.6, 0.4))):
        for rate, loss in zip((1e-4, 3e-4, 1e-3), losses, strict=True):
            make_run(tmp_path / "e", f"{arm}-{rate}", rate, 1, 1 - loss, loss, "lora", records=40, arm=arm)
    ladders = section(write_report(tmp_path / "e"), "How each arm was tuned").splitlines()
    assert "| plain | 3 | 1e-4, 3e-4, 1e-3 | 3e-4 |  | yes |  |" in ladders
    assert "| decayed | 3 | 1e-4, 3e-4, 1e-3 | 1e-3 |  | no: highest |  |" in ladders


def test_where_all_arms_are_equal_none_is_best(tmp_path: Path) -> None:
    for arm in ("plain", "decayed"):
        make_run(tmp_path / "e", arm, 1e-3, 1, 0.0, 0.5, "lora", arm=arm)
    text = write_report(tmp_path / "e")
    assert "gsm8k (%): all 2 arms are at 0.0." in text and "**0.0" not in text


def test_only_shares_are_shown_as_percent(folder: Path) -> None:
    for run, perplexity in (("low-1", 25.5), ("low-2", 24.5), ("lora-1", 31.25)):
        result = {"task": "lm_eval/wiki", "metric": "word_perplexity", "score": perplexity, "higher_is_better": False}
        write_json(folder / run / "eval" / "lm_eval-wiki.json", {**result, "interval": [20, 40], "n": 62})
    text = write_report(folder)
    assert "31.25 [20, 40]" in section(text, "Results") and "25 ± 0.7071" in section(text, "Results")
    assert "lm_eval/wiki word perplexity: best is astra (tail) (25)" in text, "the lowest is best"


def test_what_was_trained_is_shown_not_what_the_config_says_now(folder: Path) -> None:
    metrics = json.loads((folder / "low-1/metrics.json").read_text(encoding="utf-8"))
    trained = flat_settings(yaml.safe_load((folder / "low-1/config.yaml").read_text(encoding="utf-8")))
    write_json(folder / "low-1/metrics.json", {**metrics, "settings": trained})
    write_config(Config.model_validate({"train": {"learning_rate": 0.7}}), folder / "low-1")
    assert 0.7 not in set(collect([folder]).runs["rate"])


def test_runs_set_by_their_step_stand_at_the_rate_that_was_measured(folder: Path) -> None:
    for name, figures in (("high-1", {"learning_rate": 2e-3}), ("low-2", {})):
        config = Config.model_validate(yaml.safe_load((folder / name / "config.yaml").read_text(encoding="utf-8")))
        config.train.relative_step = 1e-3
        write_config(config, folder / name)
        metrics = json.loads((folder / name / "metrics.json").read_text(encoding="utf-8"))
        write_json(folder / name / "metrics.json", {**metrics, **figures})
    results = collect([folder])
    assert results.axis == "train.learning_rate"
    assert results.arms["astra (tail)"].tried == (1e-4, 2e-3)
    assert "The rate is the learning rate." in write_report(folder)


def test_every_task_has_its_column_and_its_place_in_the_summary(folder: Path) -> None:
    add_score(folder / "lora-1", "math", 0.2)  # the first arm lacks it
    write_json(folder / "low-1" / "eval" / "forgetting.json", {"task": "forgetting", "loss": 3.25, "n": 4})
    heading = next(line for line in write_report(folder).splitlines() if line.startswith("| arm | rate | gsm8k (%)"))
    assert all(heading.count(f"| {name} |") == 1 for name in ("math (%)", "forgetting loss", "forgetting (rise)"))
    assert heading.count("seeds") == 1 and heading.endswith("| seeds |")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert set(summary["tasks"]) == {"gsm8k", "math", "forgetting"}
    assert summary["arms"]["astra (tail)"]["edge"] == "lowest"


def test_two_general_texts_never_share_a_column(folder: Path) -> None:
    for run, text in (("low-1", "one"), ("low-2", "one"), ("lora-1", "two")):
        result = {"task": "forgetting", "loss": 3.0, "n": 256, "text": text, "fingerprint": f"0{text}"}
        write_json(folder / run / "eval" / "forgetting.json", result)
    metrics = json.loads((folder / "lora-1/metrics.json").read_text(encoding="utf-8"))
    metrics["forgetting"] = {"rise": 7.5, "standard_error": 0.25, "text": "two", "fingerprint": "0two"}
    write_json(folder / "lora-1/metrics.json", metrics)
    text = write_report(folder)
    heading = next(line for line in text.splitlines() if line.startswith("| arm | rate | gsm8k (%)"))
    assert "| forgetting on one 0one loss |" in heading and "| forgetting on two 0two loss |" in heading
    assert "| forgetting (rise) on a manual 0123 |" in heading and "| forgetting (rise) on two 0two |" in heading
    assert "+7.5000 ± 0.2500" in section(text, "Results") and "on a manual 0123 and two 0two" in text
    arms = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["arms"]
    assert arms["lora"]["forgetting_text"] == "two 0two" and arms["lora"]["forgetting"] == 7.5


def test_an_arm_is_the_best_only_where_the_others_are_significantly_worse(tmp_path: Path) -> None:
    for name, method, accuracy in (("a", "astra", 0.60), ("b", "lora", 0.59), ("c", "pissa", 0.20)):
        for seed in (1, 2):
            make_run(tmp_path / "e", f"{name}-{seed}", 1e-3, seed, accuracy + 0.01 * seed, 0.5, method, n=200)
    text = write_report(tmp_path / "e")
    rows = {line.split(" | ")[0].strip("| "): line for line in section(text, "Results").splitlines()}
    assert "**61.5" in rows["astra (tail)"]
    assert "60.5 ± 0.7 †" in rows["lora"]
    assert "†" not in rows["pissa"] and "21.5" in rows["pissa"]
    assert "gsm8k (%): best is astra (tail)" in text and "2 seeds could have shown a difference" in text


def test_differences_are_paired_over_problems_and_over_seeds() -> None:
    rng = np.random.default_rng(0)
    problems = rng.normal(0, 1, 400)  # problems differ much more than arms
    first = np.stack([problems + rng.normal(0, 0.05, 400) for _ in range(3)])
    low, high = difference(first, first + 0.02)[1:]
    assert 0 < low < 0.02 < high
    shaky = np.stack([problems + shift for shift in (-0.5, 0.0, 0.5)])
    mean, low, high = difference(first, shaky + 0.02)
    assert low < 0 < high and mean == pytest.approx(0.02, abs=0.02), "three seeds that far apart show nothing"
    assert smallest_difference([1.0, 1.0], 3) == pytest.approx(3.04, abs=0.01)
    assert smallest_difference([1.0], 1) is None


def test_three_seeds_seldom_tell_equal_arms_apart_where_seeds_differ_more_than_problems() -> None:
    rng, found = np.random.default_rng(1), 0
    for _ in range(200):
        problems = rng.normal(0, 0.01, 100)
        first, second = (problems + rng.normal(0, 0.1, (3, 1)) for _ in range(2))
        low, high = difference(first, second)[1:]
        found += not low <= 0 <= high
    assert found <= 20, "5% of 200, and no more than chance allows; a bootstrap over three seeds finds 37"


def test_results_of_other_problems_are_not_tested_against_each_other(tmp_path: Path) -> None:
    for name, method, data in (("a", "astra", "x"), ("b", "lora", "y")):
        run = make_run(tmp_path / "e", name, 1e-3, 1, 0.6 if name == "a" else 0.2, 0.5, method, n=200)
        record = json.loads((run / "eval" / "gsm8k.json").read_text())
        write_json(run / "eval" / "gsm8k.json", {**record, "settings": {"data": data, "adapter": name}})
    text = write_report(tmp_path / "e")
    assert "gsm8k: 200 problems, **not all alike** (data: x -> y)." in text
    assert "no test was made: there are no single answers to equal problems" in text


def test_a_base_model_that_was_scored_otherwise_is_said_to_be_and_the_arms_are_tested_all_the_same(
    tmp_path: Path,
) -> None:
    for name, method, accuracy, limit in (("a", "astra", 0.9, 50), ("b", "lora", 0.1, 50), ("base", "", 0.2, 20)):
        make_run(tmp_path / "e", name, 1e-3, 1, accuracy, 0.5, method) if method else None
        add_score(tmp_path / "e" / name, "gsm8k", accuracy)
        record = json.loads((tmp_path / "e" / name / "eval" / "gsm8k.json").read_text())
        write_json(tmp_path / "e" / name / "eval" / "gsm8k.json", {**record, "settings": {"problems": limit}})
    text = write_report(tmp_path / "e")
    assert "**not all alike** (problems: 20 -> 50)" in text and "every other arm is significantly worse" in text


def test_a_score_that_is_no_mean_of_single_answers_is_not_tested_by_them(tmp_path: Path) -> None:
    for name, method, score in (("a", "astra", 0.52), ("b", "lora", 0.2)):
        run = make_run(tmp_path / "e", name, 1e-3, 1, 0.9, 0.5, method, n=200)
        record = json.loads((run / "eval" / "gsm8k.json").read_text())
        write_json(run / "eval" / "gsm8k.json", {**record, "accuracy": score, "metric": "matthews_correlation"})
    text = section(write_report(tmp_path / "e"), "Findings")
    assert "best is astra (tail) (52.0); no test was made" in text and "significantly worse" not in text


def test_base_models_are_never_averaged(tmp_path: Path) -> None:
    folders = [tmp_path / "e", tmp_path / "f"]
    for folder, accuracy in zip(folders, (0.2, 0.7), strict=True):
        make_run(folder, "a", 1e-3, 1, 0.8, 0.5)
        add_score(folder / "base", "gsm8k", accuracy)
    both = collect(folders)
    assert list(both.of_base("gsm8k")["score"]) == [0.2]  # of one model the first
    path = folders[1] / "a" / "config.yaml"
    path.write_text(path.read_text().replace("meta-llama/Llama-2-7b-hf", "another/model"))
    both = collect(folders)
    assert not len(both.of_base("gsm8k")) and both.tasks(ranked=True) == ["gsm8k", "validation loss"]


def test_seeds_are_counted_whichever_seed_was_swept_and_only_those_that_ended(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        run = make_run(tmp_path / "e", f"s{seed}", 1e-3, 1, 0.5 + 0.01 * seed, 0.5, records=40)
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["method"]["seed"] = seed
        (run / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "e" / "s3" / "metrics.json").unlink()
    (row,) = [line for line in section(write_report(tmp_path / "e"), "Results").splitlines() if "astra" in line]
    assert row.split(" | ")[-1].strip(" |") == "2"


def test_a_run_without_a_result_is_listed_with_its_reason(folder: Path) -> None:
    failed = folder / "failed"
    write_config(Config(), failed)
    (failed / "log.txt").write_text("2026-01-01 error: loss is NaN at step 3\n", encoding="utf-8")
    text = write_report(folder)
    assert "| failed | loss is NaN at step 3 |" in text and "4 of 5 runs" in text


def test_diverged_runs_count_as_worse_and_are_shown(tmp_path: Path) -> None:
    folder = tmp_path / "e"
    for rate, loss in ((1e-4, 0.6), (3e-4, 0.5)):
        make_run(folder, f"r{rate}", rate, 1, 0.5, loss, records=40)
    worst = make_run(folder, "r1e-3", 1e-3, 1, 0.0, 0.1)
    (worst / "metrics.json").unlink()
    shutil.rmtree(worst / "eval")
    write_json(worst / "diverged.json", {"step": 3})
    text = write_report(folder)
    tuned = collect([folder]).arms["astra (tail)"]
    assert (tuned.rate, tuned.edge, tuned.diverged) == (3e-4, "", (1e-3,))
    assert "Diverged: astra (tail) 1 of 3 runs" in text


def test_published_figures_are_kept_apart_and_only_where_the_data_are_the_same(folder: Path, tmp_path: Path) -> None:
    ours, _, published = write_report(folder).partition("## Published by others, not measured here")
    assert "pull request 3725" in published and "pull request 3725" not in ours
    other = make_run(tmp_path / "mine", "a", 1e-3, 1, 0.5, 0.5)
    config = {"output_dir": str(tmp_path / "mine"), "run": "a", "data": {"train": "arithmetic"}}
    write_config(Config.model_validate(config), other)
    assert "Published" not in write_report(tmp_path / "mine")


def test_experiments_stand_side_by_side(folder: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "second", "a", 1e-3, 1, 0.7, 0.5)
    text = write_report([folder, tmp_path / "second"])
    assert "second, astra (tail)" in text and "experiment, lora" in text
    assert (tmp_path / "experiment+second" / "report.html").is_file()
    make_run(tmp_path / "other" / "second", "a", 1e-3, 1, 0.7, 0.5)
    with pytest.raises(UserError, match="other/second and .*second: two experiments of one name"):
        collect([tmp_path / "other" / "second", tmp_path / "second"])


def test_an_experiment_may_be_the_folder_one_is_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert write_report(Path(".")).startswith("# experiment: ")
    assert (folder / "report.html").is_file() and not list(folder.glob(".*.tmp"))


def test_the_seed_of_the_tests_is_none_of_training(folder: Path) -> None:
    config = yaml.safe_load((folder / "high-1/config.yaml").read_text(encoding="utf-8"))
    write_config(Config.model_validate({**config, "eval": {"seed": 7}}), folder / "high-1")
    draws = {row.run: row.draw for row in collect([folder]).runs.itertuples()}
    assert draws["high-1"] == draws["low-1"] != draws["low-2"]


def test_the_page_shows_what_a_run_wrote_runs_nothing_and_needs_no_other_file(folder: Path) -> None:
    (folder / "bad").mkdir()
    script = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    write_config(Config(arm=script), folder / "bad")
    (folder / "bad" / "log.txt").write_text(f"x error: {script}\n", encoding="utf-8")
    write_report(folder)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page and "<img src=x" not in page and page.count("&lt;script&gt;") > 1
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
    base = {"task": "gsm8k", "accuracy": 0.1, "interval": [0, 0.2], "n": 50}
    write_json(folder / "base" / "eval" / "gsm8k.json", base)
    write_json(run / "stages" / "train.json", {"seconds": 12.0, "peak_memory_bytes": 99})
    write_json(folder / "stages" / "calibrate.json", {"seconds": 3.0, "peak_memory_bytes": 100})
    text = write_report(folder)
    assert "| base model |" in text and "**" not in section(text, "Results"), "one arm is not the best of anything"
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    scores = summary["tasks"]["gsm8k"]
    (before,), (after,) = scores["base model"], scores["astra (tail)"]
    assert (before["score"], after["score"], after["n"]) == (0.1, 0.6, 50)
    assert summary["seconds"] == {"calibrate": 3.0, "train": 12.0}
    assert summary["peak_memory_bytes"] == 100
    assert summary["arms"]["astra (tail)"]["loras"] == [str(run / "lora")]
    (run / "lora").rename(run / "merged")
    write_report(folder)
    assert json.loads((folder / "summary.json").read_text())["arms"]["astra (tail)"]["loras"] == []


def test_a_folder_is_enough_and_the_files_agree_with_each_other(folder: Path) -> None:
    run = subprocess.run([sys.executable, "-m", "eval.report", str(folder)], capture_output=True, text=True)
    assert run.returncode == 0 and "## Results" in run.stdout
    assert (folder / "results.md").read_text(encoding="utf-8") + "\n" == run.stdout
    with open(folder / "results.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["run"] for row in rows} == {"low-1", "low-2", "high-1", "lora-1"}
    assert not any(value.startswith(("[", "{")) for row in rows for value in row.values()), "one value per cell"


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run in this folder"):
        write_report(tmp_path)
