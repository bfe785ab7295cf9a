"""`train.eval_tasks`: what the model that trains solves of the validation records, and rates chosen by it."""

import json

import pytest

import train as training
from eval.candidates import run_target
from eval.evaluate import evaluate
from tests.runs import TORCHRUN, folder_of, launch, losses, metrics
from utils.comparison import deciding, planned
from utils.errors import UserError
from utils.files import read_lines, read_record


@pytest.fixture
def scored(config, tmp_path):
    """Makes a run on records of which three in four have one answer; a tiny model learns to say it of all."""
    path = tmp_path / "sums.json"
    answers = [7 if k % 4 else 8 for k in range(24)]
    rows = [{"instruction": f"What is asked in {k}?", "output": f"The answer is: {a}"} for k, a in enumerate(answers)]
    path.write_text(json.dumps(rows), encoding="utf-8")

    def make(**changes):
        common = {
            "data__train": str(path), "data__validation": 0.34, "train__max_steps": 100, "train__save_steps": 50,
            "train__eval_tasks": ["gsm8k"], "eval__engine": "transformers", "eval__tasks": ["gsm8k"],
            "eval__max_new_tokens": 16, "method__name": "full", "train__learning_rate": 1e-2,
        }  # fmt: skip
        return config(**{**common, **changes})

    return make


def test_a_run_says_what_it_solves_as_the_evaluation_does_and_trains_as_without(scored):
    this, without = scored(run="scored"), scored(run="without", train__eval_tasks=[])
    training.train(this)
    training.train(without)
    assert losses(this) == losses(without)
    found = read_record(folder_of(this) / "losses.json")["solved"]["gsm8k"]
    assert len(found) == 8 and 0 < sum(found) < 8
    assert metrics(this)["validation_accuracy"] == sum(found) / 8
    seen = [line["step"] for line in read_lines(folder_of(this) / "metrics.jsonl") if "eval_gsm8k" in line]
    assert seen == [50], "the last step's is in losses.json"

    held_out = this.model_copy(update={"eval": this.eval.model_copy(update={"split": "validation"})})
    target = run_target(this, folder_of(this))
    evaluate(held_out, [target])
    samples = read_lines(target.folder / "gsm8k-validation.samples.jsonl")
    assert [float(sample["correct"]) for sample in samples] == found


@pytest.mark.slow
def test_two_processes_solve_what_one_does(scored, tmp_path):
    alone, both = scored(run="alone"), scored(run="both")
    training.train(alone)
    launch(both, tmp_path, *TORCHRUN)
    one, two = (read_record(folder_of(run) / "losses.json")["solved"] for run in (alone, both))
    assert one == two and sum(one["gsm8k"]) > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train__eval_tasks": ["humaneval"]}, r"train\.eval_tasks: validation records serve .*, not humaneval"),
        ({"data__validation": 0}, r"train\.eval_tasks: validation needs records held out"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_anything_is_loaded(scored, changes, words):
    from eval.tasks import check_scored_in_training

    with pytest.raises(UserError, match=words):
        check_scored_in_training(scored(**changes))


def test_a_comparison_can_choose_by_accuracy(scored):
    ladder = {"sweep": {"train.learning_rate": "ladder", "train.seed": [1]}, "run": None}
    with pytest.raises(UserError, match=r"compare\.select: accuracy is that of train\.eval_tasks"):
        scored(compare={"select": "accuracy"}, train__eval_tasks=[], **ladder)
    by_loss = scored(compare={"start": 1e-3}, train__max_steps=2, train__save_steps=2, **ladder)
    by_accuracy = scored(
        compare={"start": 1e-3, "select": "accuracy"}, train__max_steps=2, train__save_steps=2, **ladder
    )
    first = planned(by_loss)
    assert len(first) == 3
    for run in first:
        training.train(run)
    assert {run.train.learning_rate for run in planned(by_loss)} == {3.2e-3}, "the loss falls with the rate"
    assert {run.train.learning_rate for run in planned(by_accuracy)} == {3.2e-4, 3.2e-3}, "none solves anything: a tie"
    kept = read_record(folder_of(first[0]) / "losses.json")
    assert deciding(kept, "accuracy").tolist() == [1.0] * 8
    assert deciding({"solved": {"a": [1.0], "b": [0.0, 0.5]}}, "accuracy").tolist() == [0, 1, 0.5]
