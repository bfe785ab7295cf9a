"""A comparison on disk: what counts as one of its runs."""

import pytest

from utils.comparison import ended, planned
from utils.comparison import tested as to_be_tested
from utils.config import validate
from utils.errors import UserError
from utils.files import write_record
from utils.ladder import nearest, value
from utils.runs import run_folder
from utils.settings import FORMAT, flat_settings, scored


def comparison(tmp_path, **sections):
    """A ladder over two arms that were given no names."""
    sweep = {"method.name": ["astra", "lora"], "train.relative_step": "ladder"}
    sections = {"data": {"validation": 0.1}, "sweep": sweep} | sections
    return validate({"output_dir": str(tmp_path), **sections})


def end(run, losses, without="", solved=None):
    """Leave behind what a run does, but for the settings that begin with `without`."""
    settings = flat_settings(run.model_dump(include={"model", "data", "method", "train", "calibration"})) | scored(run)
    kept = {key: value for key, value in settings.items() if not (without and key.startswith(without))}
    write_record(run_folder(run) / "losses.json", {"validation": losses, "solved": solved or {}})
    write_record(run_folder(run) / "metrics.json", {"format": FORMAT, "settings": kept})


def test_a_run_of_another_calibration_is_refused_by_name(tmp_path):
    for run in planned(comparison(tmp_path)):
        end(run, [1.0, 2.0], without="calibration." if run.method.name == "lora" else "")
    assert all(len(runs) == 3 for runs in ended(comparison(tmp_path)).values())
    with pytest.raises(UserError, match="name=astra.*was made with calibration.samples=256, now 512"):
        ended(comparison(tmp_path, calibration={"samples": 512}))
    only_lora = {"method.name": ["lora"], "train.relative_step": "ladder"}
    assert ended(comparison(tmp_path, calibration={"samples": 512}, sweep=only_lora))["lora"]  # it reads none


@pytest.mark.parametrize(
    ("key", "value"),
    [("response_prefix", " So"), ("stop", {"gsm8k": ["x"]}), ("chat_template_kwargs", {"enable_thinking": False})],
)
def test_accuracies_that_were_scored_otherwise_are_not_compared(tmp_path, key, value):
    wanted = {"train": {"eval_tasks": ["gsm8k"]}, "compare": {"select": "accuracy"}}
    for run in planned(comparison(tmp_path, **wanted, eval={key: value})):
        end(run, [1.0], "eval." if run.method.name == "lora" else "", {"gsm8k": [1.0, 0.0]})
    assert len(ended(comparison(tmp_path, **wanted, eval={key: value, "batch_size": 3}))["astra"]) == 3
    with pytest.raises(UserError, match=f"was made with eval.{key}=.*, now"):
        ended(comparison(tmp_path, **wanted))
    sweep = {"method.name": ["lora"], "train.relative_step": "ladder"}
    earlier = comparison(tmp_path, **wanted, sweep=sweep)
    assert len(ended(earlier)["lora"]) == 3, "runs of an earlier version did not keep how they were scored"


def test_a_divergence_is_a_result_in_arms_without_names_too(tmp_path):
    runs = planned(comparison(tmp_path))
    assert [run.arm for run in runs] == [""] * 6
    write_record(run_folder(runs[0]) / "diverged.json", {
        "format": FORMAT, "settings": flat_settings(runs[0].model_dump(include={"model", "data", "method", "train"})),
    })  # fmt: skip
    assert ended(comparison(tmp_path))["astra"] == {nearest(runs[0].train.relative_step): {42: None}}


def test_only_the_chosen_rung_meets_the_test_set(tmp_path):
    for run in planned(comparison(tmp_path)):
        end(run, [run.train.relative_step, 2 * run.train.relative_step])  # the lowest is clearly the best
    found = to_be_tested(comparison(tmp_path))
    assert [run.train.relative_step for run in found] == [value(nearest(1e-3) - 1)] * 2
    assert [len(to_be_tested(comparison(tmp_path, compare={"test": name}))) for name in ("all", "none")] == [6, 0]
