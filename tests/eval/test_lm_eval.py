"""lm-eval's tasks on our engines: its own definitions, read from local YAML files, of likelihood and of generation."""

import json

import pytest
import yaml

from eval.candidates import base_target
from eval.evaluate import evaluate
from eval.show import render
from eval.tasks import check_tasks
from eval.tasks._lm_eval import _figures, _settings
from tests.eval.engine_fixtures import write_config
from utils.config import Config, load_config
from utils.errors import UserError
from utils.files import read_lines

pytest.importorskip("lm_eval")
DOCS = [
    {"question": f"What is {a} + {a}?", "choices": [str(2 * a), "many"], "answer": str(2 * a)} for a in range(1, 6)
]
TASKS = {
    "sums_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "choices",
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "sums_text": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "fewshot_split": "test",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 5, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
    "sums_rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
}


@pytest.fixture(scope="module")
def definitions(tmp_path_factory):
    """One folder for all tests: lm-eval reads its own thousands of definitions again for each."""
    folder = tmp_path_factory.mktemp("definitions")
    (folder / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    long = {"sums_long": {**TASKS["sums_rolling"], "doc_to_target": "{{question * 99}}"}}
    both = {name: {**TASKS["sums_choice"], "tag": "sums_both"} for name in ("first", "second")}
    for name, definition in {**TASKS, **both, **long}.items():
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "docs.jsonl")}}}
        text = yaml.safe_dump({"task": name, "test_split": "test", **data, **definition, "metadata": {"version": 1}})
        (folder / f"{name}.yaml").write_text(text)
    return folder


@pytest.fixture
def config_file(tiny, definitions, tmp_path):
    wanted = {"task_dir": str(definitions), "tasks": [f"lm_eval/{name}" for name in TASKS]}
    return write_config(tmp_path, tiny, wanted)


def score(path, regrade=False, **changes):
    config = load_config(path, {f"eval.{key}": value for key, value in changes.items()})
    check_tasks(config)
    found = evaluate(config, [base_target(config)], regrade=regrade)["base"]
    return found, path.parent / "out" / "base" / "eval"


def test_likelihoods_texts_and_whole_texts_are_served(config_file, monkeypatch):
    found, folder = score(config_file)
    choice, text, rolling = (found[f"lm_eval/{name}"] for name in TASKS)
    assert choice["metric"] == "acc" and choice["n"] == 5 and choice["requests"] == 10
    assert {"acc,none", "acc_norm,none", "acc_stderr,none"} <= choice["metrics"]["sums_choice"].keys()
    samples = read_lines(folder / "lm_eval-sums_choice.samples.jsonl")
    assert [sample["logprobs"][0] >= sample["logprobs"][1] for sample in samples] == [
        sample["correct"] for sample in samples
    ]
    assert choice["score"] == sum(sample["correct"] for sample in samples) / 5
    assert samples[0]["output"] == [" 2", " many"] and "Question: What is 1 + 1?" in render("t", samples[0])
    assert text["metric"] == "exact_match" and text["n"] == 5
    assert rolling["metric"] == "word_perplexity" and rolling["score"] > 1
    monkeypatch.setattr("eval.evaluate.open_engine", lambda *_: pytest.fail("all answers are on file"))
    assert score(config_file)[0] == found
    again, _ = score(config_file, regrade=True)
    assert all(again[name]["metrics"] == found[name]["metrics"] for name in found)


def test_a_set_of_tasks_is_known_by_its_mean(config_file):
    found, made = score(config_file, tasks=["lm_eval/sums_both"], limit=2)
    result = found["lm_eval/sums_both"]
    assert result["n"] == 4 and result["score"] == result["metrics"]["first"]["acc,none"]
    numbers = [sample["problem"] for sample in read_lines(made / "lm_eval-sums_both.samples.jsonl")]
    assert numbers == [0, 1, 2, 3]
    found = {"results": {"a": {"acc,none": 1.0}, "b": {"em,none": 0.5}}}
    with pytest.raises(UserError, match="eval.tasks: lm_eval/both has no metric that all its tasks have; name a, b"):
        _figures("both", {**found, "n-samples": {name: {"effective": 1} for name in "ab"}})


def test_windows_longer_than_the_model_reads_are_refused(config_file):
    wanted = {"tasks": ["lm_eval/sums_long"], "limit": 1}
    with pytest.raises(UserError, match="eval.max_model_len: windows of 2048 tokens don't fit"):
        score(config_file, **wanted)
    found, _ = score(config_file, **wanted, max_model_len=512)
    assert found["lm_eval/sums_long"]["score"] > 1


def test_likelihoods_that_lose_their_beginning_are_counted(config_file):
    for length, lost in ((None, 0), (16, 10)):
        found, _ = score(config_file, tasks=["lm_eval/sums_choice"], num_fewshot=length and 2, max_model_len=length)
        assert found["lm_eval/sums_choice"]["too_long"] == lost


def test_every_file_of_your_own_definitions_counts(tmp_path):
    names = ["a/docs.json", "b/docs.json", "b/prompt"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert list(_settings("lm_eval/own", Config(eval={"task_dir": str(tmp_path)}))["task_dir"]) == names


def test_examples_stand_before_the_question(config_file):
    found, folder = score(config_file, tasks=["lm_eval/sums_text"], num_fewshot=2, limit=3)
    assert found["lm_eval/sums_text"]["n"] == 3
    assert found["lm_eval/sums_text"]["lm_eval"]["num_fewshot"] == {"sums_text": 2}
    sample = read_lines(folder / "lm_eval-sums_text.samples.jsonl")[0]
    assert sample["prompt"].count("What is") == 3 and sample["prompt"].endswith("What is 1 + 1?")


def test_what_is_said_of_a_task_counts_for_it(config_file):
    wanted = {"max_new_tokens": {"lm_eval/sums_text": 2}, "limit": 2}
    found, folder = score(config_file, tasks=["lm_eval/sums_text"], **wanted)
    made = [json.loads(line) for line in (folder / "lm_eval-sums_text.texts.jsonl").read_text().splitlines()[1:]]
    assert [output["tokens"] for line in made for output in line["made"]] == [2, 2]
    assert found["lm_eval/sums_text"]["settings"]["max_new_tokens"] == 2


def test_more_problems_ask_for_the_missing_ones_alone(config_file):
    _, folder = score(config_file, tasks=["lm_eval/sums_choice"], limit=2)
    made = folder / "lm_eval-sums_choice.texts.jsonl"
    before = made.read_text()
    score(config_file, tasks=["lm_eval/sums_choice"], limit=5)
    assert made.read_text().startswith(before) and made.read_text().count('"key"') == 10


def test_mistakes_are_named(config_file):
    with pytest.raises(UserError, match="eval.tasks: lm-eval has no task 'hellaswagg'; it has .*hellaswag"):
        score(config_file, tasks=["lm_eval/hellaswagg"])
    with pytest.raises(UserError, match="eval.num_fewshot: is for lm-eval's tasks"):
        score(config_file, tasks=["gsm8k"], task_dir=None, num_fewshot=5)
    with pytest.raises(UserError, match="eval.task_dir: nowhere is not a folder"):
        score(config_file, task_dir="nowhere")
