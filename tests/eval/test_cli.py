"""`python -m eval` as a user meets it: results, skipping, resuming after a kill, and one line for each mistake."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from dataset.sources import load_splits
from eval.__main__ import FLAGS, find_targets
from eval.candidates import adapter_target, base_target, run_target
from eval.engines import Prompt, Sampling
from eval.evaluate import context, evaluate, jobs
from eval.tasks import Judged, check_tasks, get_task
from tests.eval.engine_fixtures import save_adapter, write_config
from utils.config import load_config
from utils.errors import UserError
from utils.files import read_lines, read_record, write_json
from utils.runs import held
from utils.settings import flat_settings

ROOT = Path(__file__).parents[2]
TIMES = dict.fromkeys(("seconds", "seconds_grading", "tokens_per_second"))


@pytest.fixture
def config_file(tiny, tmp_path):
    """A config for `tiny`; its run folder `<output_dir>/mine` is trained."""
    shutil.copytree(tiny.parent / "adapter1", tmp_path / "out" / "mine" / "lora")
    wanted = {"tasks": ["arithmetic"], "limit": 6, "max_new_tokens": 12, "batch_size": 2}
    return write_config(tmp_path, tiny, wanted, run="mine")


def start(*words, **kwargs):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "eval", *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stderr=subprocess.PIPE, **kwargs)


def refused(*words):
    """The one line with which a command ends."""
    process = start(*words)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2 and errors.count("\n") == 1
    return errors


def mine(config):
    return run_target(config, Path(config.output_dir) / "mine")


def score(path, force=False, regrade=False, **changes):
    """The result of the run `mine`."""
    config = load_config(path, {f"eval.{key}": value for key, value in changes.items()})
    return evaluate(config, [mine(config)], force, regrade)["mine"]["arithmetic"]


def test_a_record_holds_what_an_audit_needs_and_what_is_finished_is_skipped(config_file, monkeypatch):
    config = load_config(config_file)
    targets = [base_target(config), mine(config)]
    found = evaluate(config, targets)
    for target in targets:
        result = read_record(target.folder / "arithmetic.json")
        assert result == found[target.name]["arithmetic"]
        assert bool(result["settings"]["adapter"]) == (target.name == "mine")
        assert result["n"] == 6 and 0 <= result["interval"][0] <= result["accuracy"] <= result["interval"][1]
        assert result["length_stops"] == 6 and result["unparsable"] == 6 and result["too_long"] == 0
        assert result["tokens"] == 72 and result["seconds"] > 0 and result["tokens_per_second"] > 0
        assert result["engine"]["version"] and result["settings"]["max_new_tokens"] == 12
        samples = read_lines(target.folder / "arithmetic.samples.jsonl")
        assert [sample["problem"] for sample in samples] == list(range(6))
        for sample in samples:
            assert "### Instruction:" in sample["prompt"] and sample["tokens"] == 12
            assert sample["correct"] is False and sample["gold"]
    no_engine(monkeypatch)
    assert evaluate(config, targets) == found


def texts(config_file):
    return config_file.parent / "out" / "mine" / "eval" / "arithmetic.texts.jsonl"


def no_engine(monkeypatch):
    monkeypatch.setattr("eval.evaluate.open_engine", lambda *_: pytest.fail("nothing is left to generate"))


def test_more_problems_add_the_missing_texts_and_fewer_use_a_part(config_file, monkeypatch):
    score(config_file, limit=4)
    before = texts(config_file).read_text()
    assert score(config_file, limit=6)["n"] == 6
    after = texts(config_file).read_text()
    assert after.startswith(before) and after.count('"key"') == 6
    no_engine(monkeypatch)
    assert score(config_file, limit=2)["n"] == 2


def test_another_grader_or_a_mended_one_needs_no_engine(config_file, monkeypatch, caplog):
    task = replace(get_task("arithmetic"), graders=("exact", "metamath"))
    monkeypatch.setattr("eval.evaluate.get_task", lambda _: task)
    exact = score(config_file)
    assert exact["grader"] == "exact" and exact["graders"].keys() == {"exact", "metamath"}
    no_engine(monkeypatch)
    caplog.set_level("INFO", "astra")
    other = score(config_file, grader="metamath")
    assert other["grader"] == "metamath" and "grader: exact -> metamath" in caplog.text
    task = replace(task, version=99, judge=lambda problems, *_: [Judged("1", True) for _ in problems])
    assert score(config_file)["accuracy"] == 1.0


def test_what_makes_other_texts_generates_them_and_the_earlier_ones_stay(config_file, monkeypatch):
    score(config_file)
    score(config_file, max_new_tokens=3)
    monkeypatch.setattr("dataset.templates.ALPACA", "Q: {instruction} A:")
    score(config_file)
    monkeypatch.undo()
    monkeypatch.setattr("eval.evaluate.engine_version", lambda _: "another")
    score(config_file)
    monkeypatch.undo()
    assert texts(config_file).read_text().count('"key"') == 24
    no_engine(monkeypatch)
    assert score(config_file)["tokens"] == 72


def test_a_mended_generation_config_makes_other_texts(config_file, tiny, tmp_path, monkeypatch):
    shutil.copytree(tiny, tmp_path / "own")
    config = load_config(config_file, {"model.name": str(tmp_path / "own"), "eval.limit": 2})
    found = evaluate(config, [base_target(config)])
    no_engine(monkeypatch)
    assert evaluate(config, [base_target(config)]) == found
    (tmp_path / "own" / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    with pytest.raises(pytest.fail.Exception, match="nothing is left to generate"):
        evaluate(config, [base_target(config)])


def test_regrading_needs_all_texts_and_no_engine(config_file, monkeypatch):
    first = score(config_file)
    no_engine(monkeypatch)
    again = score(config_file, regrade=True)
    assert {**again, **TIMES} == {**first, **TIMES}
    monkeypatch.setattr("eval.evaluate.engine_version", lambda _: "of another machine")
    monkeypatch.setattr("eval.evaluate.usable_dtype", lambda _: "bfloat16")
    assert score(config_file, regrade=True)["settings"] == first["settings"]
    with pytest.raises(UserError, match=r"arithmetic\.texts\.jsonl: holds 6 of 8 texts; run without --regrade"):
        score(config_file, regrade=True, limit=8)


def test_files_of_an_older_version_are_refused_and_forced_all_is_generated_again(config_file):
    score(config_file)
    path = texts(config_file).with_name("arithmetic.json")
    result = read_record(path)
    del result["format"]
    path.write_text(json.dumps(result))
    with pytest.raises(UserError, match=r"arithmetic\.json: written by another version; redo it with --force"):
        score(config_file)
    score(config_file, force=True, limit=5)
    assert texts(config_file).read_text().count('"key"') == 5


def test_a_second_evaluation_of_a_folder_is_told_who_holds_it(config_file):
    with held(config_file.parent / "out" / "mine"):
        said = refused("--config", config_file)
    assert f"mine: process {os.getpid()} on" in said and "is at work here" in said


def test_several_samples_give_pass_at_k_and_the_vote(config_file):
    found = score(config_file, n_samples=2, temperature=0.7, top_p=0.9)
    assert [entry["score"] for entry in found["pass_at_k"].values()] == [0.0, 0.0]
    assert found["maj_at_k"]["2"]["score"] == 0 and found["unparsable"] == 12 and found["unparsable_share"] == 1
    samples = read_lines(texts(config_file).with_name("arithmetic.samples.jsonl"))
    assert [(sample["problem"], sample["sample"]) for sample in samples[:3]] == [(0, 0), (0, 1), (1, 0)]


def test_limits_and_stop_strings_may_be_given_and_what_is_too_long_is_counted(config_file):
    found = score(config_file, max_model_len=48, max_new_tokens=4)
    assert 0 < found["too_long"] <= 6 and found["n"] == 6
    wanted = {"max_new_tokens": {"arithmetic": 3, "gsm8k": 400}, "stop": {"arithmetic": ["zz"]}}
    found = score(config_file, **wanted)
    assert found["settings"]["max_new_tokens"] == 3 and found["settings"]["stop"] == ["zz"]
    for name in ("gsm9k", "commonsense"):
        with pytest.raises(UserError, match=f"eval.max_new_tokens: no task '{name}'; allowed: arithmetic, .*NAME"):
            check_tasks(load_config(config_file, {"eval.max_new_tokens": {name: 3}}))


def test_variables_reach_the_chat_template(config_file, tiny, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.chat_template = "{{ messages[0].content }}{% if enable_thinking is false %}<no thoughts>{% endif %}"
    shutil.copytree(tiny, tmp_path / "chat")
    tokenizer.save_pretrained(tmp_path / "chat")
    changes = {"model.name": str(tmp_path / "chat"), "eval.chat_template_kwargs": {"enable_thinking": False}}
    config = load_config(config_file, {**changes, "data.template": "chat", "eval.response_prefix": " So"})
    (job,) = jobs(config, [base_target(config)])
    assert all(prompt.text.endswith("?<no thoughts> So") for prompt in job.prompts)
    with pytest.raises(UserError, match="eval.chat_template_kwargs: data.template alpaca takes none"):
        check_tasks(load_config(config_file, changes))


def test_what_is_held_out_of_training_can_be_scored(config_file):
    changes = {"data.train": "arithmetic", "data.limit": 40, "data.validation": 0.2, "eval.split": "validation"}
    config = load_config(config_file, {**changes, "eval.limit": None})
    run = mine(config)
    found = evaluate(config, [run])["mine"]["arithmetic-validation"]
    held = load_splits(config.data)[1]
    assert found["n"] == len(held) == 8 and found["settings"]["source"] == "arithmetic, 0.2 held out"
    samples = read_lines(texts(config_file).with_name("arithmetic-validation.samples.jsonl"))
    assert [sample["gold"] for sample in samples] == [record["answer"] for record in held]
    with pytest.raises(UserError, match="eval.split: validation needs records held out"):
        check_tasks(load_config(config_file, {"eval.split": "validation"}))
    settings = flat_settings({"data": config.data.model_dump()})
    for key, value in {"data.dir": "elsewhere", "data.general_text": "other", "model.name": "other"}.items():
        write_json(run.folder.parent / "metrics.json", {"format": 2, "settings": {**settings, key: value}})
        assert evaluate(config, [run])["mine"]["arithmetic-validation"] == found
    write_json(run.folder.parent / "metrics.json", {"format": 2, "settings": {**settings, "data.validation": 0.1}})
    with pytest.raises(UserError, match=r"mine was made with data.validation=0.1, now 0.2"):
        evaluate(config, [run])


@pytest.mark.parametrize(("engine", "limit"), [("transformers", 6), pytest.param("vllm", 300, marks=pytest.mark.slow)])
def test_killed_in_the_middle_it_goes_on_where_it_stopped(config_file, engine, limit):
    settings = {"engine": engine, "limit": limit}
    whole = score(config_file, **settings)
    folder = config_file.parent / "out" / "mine" / "eval"
    expected = read_lines(folder / "arithmetic.samples.jsonl")
    for path in folder.iterdir():
        path.unlink()
    words = ("--config", config_file, f"--eval.engine={engine}", f"--eval.limit={limit}", "--eval.batch_size=2")
    process = start(*words)
    try:
        while process.poll() is None and not (
            texts(config_file).exists() and texts(config_file).read_text().count("\n") > 2
        ):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    finally:
        process.communicate()
    if not (folder / "arithmetic.json").exists():  # a fast machine may have finished before the kill
        assert 2 <= texts(config_file).read_text().count("\n") - 1 < limit
    again = score(config_file, **settings)
    assert read_lines(folder / "arithmetic.samples.jsonl") == expected
    assert {**again, **TIMES} == {**whole, **TIMES}


def test_an_adapter_of_another_shape_is_named(config_file, tiny, smollm2):
    config = load_config(config_file, {"model.name": str(smollm2)})
    lora = config_file.parent / "out" / "mine" / "lora"
    with pytest.raises(UserError, match="adapter's base is .*, not model.name"):
        run_target(config, lora.parent)
    settings = json.loads((lora / "adapter_config.json").read_text())
    (lora / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": str(smollm2)}))
    with pytest.raises(UserError, match=r"down_proj \(64 inputs, the model's weight is 576 x 1536\) does not fit"):
        run_target(config, lora.parent)


def test_a_run_is_given_by_its_folder_or_by_its_name_and_an_adapter_has_a_folder_of_its_own(config_file, tiny):
    config = load_config(config_file)
    (target,) = find_targets(config, {**FLAGS, "adapter": str(tiny.parent / "adapter1")})
    assert target.name.startswith("adapter1-")
    assert target.folder == config_file.parent / "out" / "adapters" / target.name / "eval"
    folder = Path(config.output_dir) / "second"
    shutil.copytree(folder.with_name("mine"), folder)
    for given, found in ("second", folder), (str(folder), folder), ("", folder.with_name("mine")):
        (target,) = find_targets(config, {**FLAGS, "run": given})
        assert target.folder == found / "eval"
    config.eval.base = True
    assert [target.name for target in find_targets(config, {**FLAGS, "run": "second"})] == ["base", "second"]


def test_the_base_model_is_no_classifier_and_keeps_no_texts(config_file):
    config = load_config(config_file, {"model.task_type": "SEQ_CLS", "data.train": "rte"})
    for flag in ("base", "regrade"):
        with pytest.raises(UserError, match="--base and --regrade: a classifier makes no texts"):
            find_targets(config, {**FLAGS, flag: True})
    config.eval.base = True
    with pytest.raises(UserError, match="eval.base: a classifier without training has no head"):
        check_tasks(config)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--run", "nowhere"], "out/nowhere: holds neither lora/ nor merged/"),
        (["--run"], "--run: takes a name or a path (such as ./2024), not True"),
        (["--base", "--run", "x"], "--run, --adapter and --base: give one of them"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(config_file, words, said):
    assert said in refused("--config", config_file, *words)


def test_an_adapter_that_no_engine_serves_is_scored_merged(config_file, tiny, tmp_path):
    config = load_config(config_file)
    dora = save_adapter(tiny, tmp_path / "dora", 4, seed=1, use_dora=True)
    weights = dora / "adapter_model.safetensors"
    scaled = {key: 50 * tensor if "lora_B" in key else tensor for key, tensor in load_file(weights).items()}
    save_file(scaled, weights, {"format": "pt"})  # so that the small model writes something else
    targets = [base_target(config), adapter_target(config, dora)]
    assert targets[1].merged and targets[1].served is None
    evaluate(config, targets)
    base, own = ([x["output"] for x in read_lines(t.folder / "arithmetic.samples.jsonl")] for t in targets)
    assert base != own


def test_the_context_holds_the_longest_answer_to_a_prompt_that_is_asked_twice(config_file):
    config = load_config(config_file)
    asked = [Prompt("the same", Sampling(tokens)) for tokens in (128, 32)]
    assert context(config, base_target(config).model, asked) >= 128
