"""The configuration: what a user writes is either run as written or refused in one line."""

from pathlib import Path

import pytest

from eval.tasks import names
from utils.config import describe_keys, expand_sweep, load_config
from utils.errors import UserError

ROOT = Path(__file__).parents[2]


def config_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_published_differs_from_ours_in_what_docs_reproducing_lists() -> None:
    ours = load_config(ROOT / "configs/metamath.yaml").model_dump()
    published = load_config(ROOT / "configs/published/metamath.yaml").model_dump()
    assert (published["method"].pop("subspace"), ours["method"].pop("subspace")) == ("principal", "tail")
    assert (published["train"].pop("learning_rate"), ours["train"].pop("learning_rate")) == (2e-5, 4e-4)
    changed = {key for key, value in published["eval"].items() if value != ours["eval"][key]}
    assert changed == {"dtype", "response_prefix", "max_new_tokens", "stop", "grader"}
    for config in (published, ours):
        del config["output_dir"], config["eval"]
    assert published == ours


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_is_valid_and_a_sweep_of_ranks_keeps_the_scaling(path: Path) -> None:
    config = load_config(path, {"sweep.method.rank": [4, 8, 64]})
    assert all(name in names() or name.startswith("lm_eval/") for name in config.eval.tasks)
    assert {run.method.scaled_alpha / run.method.rank for run in expand_sweep(config)} == {1}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("train: {learning_rte: 1}", "unknown key train.learning_rte; allowed here: learning_rate"),
        ("trian: {}", "unknown key trian; allowed here: output_dir"),
        ("method: {rank: 0}", "method.rank: input should be greater than or equal to 1, not 0"),
        ("method: {rank: many}", "method.rank: input should be a valid integer"),
        ("method: {subspace: null}", "method.subspace: input should be 'tail'"),
        ("eval: {max_new_tokens: 0}", "eval.max_new_tokens: input should be greater than 0, not 0"),
        ("eval: {max_new_tokens: {gsm8k: -1}}", "eval.max_new_tokens.gsm8k: input should be greater than 0, not -1"),
        ("eval: {stop: {gsm8k: [1]}}", "eval.stop.gsm8k: input should be a valid string, not 1"),
        ("train: {learning_rate: 0}", "train.learning_rate: input should be greater than 0"),
        ("train: 3", "train: must be a section of keys, not 3"),
        ("sweep: {method.rank: [8, 0]}", "method.rank: input should be greater than or equal to 1"),
        ("sweep: {method.rank: []}", "sweep.method.rank: names no value"),
        ("sweep: {arm: {}}", "sweep.arm: names no value"),
        ("sweep: {arm: {a: 3}}", "sweep.arm.a: input should be a valid dictionary, not 3"),
        ("sweep: {model.name: [a, b]}", "sweep.model.name: all runs of an experiment share it"),
        ("sweep: {data.template: [alpaca, chat]}", "sweep.data.template: all runs of an experiment share it"),
        ("sweep: {method.rnk: [8]}", "unknown key method.rnk"),
        (
            "train: {relative_step: 1e-3}\nsweep: {train.learning_rate: [1e-4, 1e-3]}",
            "sweep.train.learning_rate: train.",
        ),
        ("train: {relative_step: 1e-3}\ndata: {validation: 0.1}\nsweep: {train.learning_rate: ladder}", "the two"),
        (
            "model: {task_type: SEQ_CLS}\ndata: {train: rte, validation: 0.1}\nsweep: {train.relative_step: ladder}",
            "sweep.train.relative_step: a classifier",
        ),
        ("compare: {select: accuracy}", "compare.select: accuracy is that of train.eval_tasks"),
        (
            "data: {validation: 0.1}\nsweep: {train.relative_step: ladder, arm: {a: {train.learning_rate: 1}}}",
            "the two",
        ),
        ("eval: {tasks: [a]}\neval: {limit: 2}", "given twice"),
        ("a: [", "config.yaml:"),
        ("- 1", "must hold `key: value` lines"),
        ("extends: nowhere.yaml", "nowhere.yaml: No such file"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(config_file(tmp_path, text))
    assert named in str(error.value)
    assert "\n" not in str(error.value).strip()


def test_numbers_with_a_bare_exponent_are_numbers(tmp_path: Path) -> None:
    assert load_config(config_file(tmp_path, "train: {learning_rate: 2e-5}")).train.learning_rate == 2e-5


def test_overrides_win_over_the_file_and_the_file_over_its_parent(tmp_path: Path) -> None:
    (tmp_path / "parent.yaml").write_text("method: {rank: 4, alpha: 4}\ndata: {limit: 7}", encoding="utf-8")
    path = config_file(tmp_path, "extends: parent.yaml\nmethod: {rank: 8}")
    config = load_config(path, {"data.limit": 9})
    assert (config.method.rank, config.method.alpha, config.data.limit) == (8, 4, 9)


def test_a_rate_that_the_step_sets_is_refused_on_the_command_line_and_may_be_inherited(tmp_path: Path) -> None:
    (tmp_path / "parent.yaml").write_text("train: {learning_rate: 1e-4}", encoding="utf-8")
    path = config_file(tmp_path, "extends: parent.yaml\ntrain: {relative_step: 1e-3}")
    assert load_config(path).train.relative_step == 1e-3
    with pytest.raises(UserError, match="train.learning_rate: train.relative_step is set, and sets the rate"):
        load_config(path, {"train.learning_rate": 1e-5})


def test_a_home_folder_may_be_a_tilde(tmp_path: Path) -> None:
    config = load_config(config_file(tmp_path, "output_dir: ~/runs"), {"data.dir": "~/data", "model.name": "~/m"})
    assert [config.output_dir, config.data.dir, config.model.name] == [
        str(Path.home() / x) for x in ("runs", "data", "m")
    ]


def test_a_sweep_is_a_grid_of_runs_with_a_folder_each(tmp_path: Path) -> None:
    path = config_file(tmp_path, "sweep: {method.rank: [8, 16], train.seed: [1, 2, 3]}")
    runs = expand_sweep(load_config(path))
    assert [(run.method.rank, run.train.seed) for run in runs] == [(r, s) for r in (8, 16) for s in (1, 2, 3)]
    assert len({run.run for run in runs}) == 6
    assert not any(run.sweep for run in runs)
    (alone,) = expand_sweep(load_config(config_file(tmp_path, "method: {rank: 8}")))
    assert alone.run == "astra-tail-r8"


def test_every_key_is_described() -> None:
    assert "--method.subspace=tail" in describe_keys()
    assert "\n      None" not in describe_keys()
