"""What stops a run is said in one line before anything heavy is loaded; a new method is known wherever it must be."""

import importlib.util
import subprocess
import sys

import pytest
import torch

from tests.runs import ROOT, folder_of
from training.arguments import training_arguments
from training.check import check, check_combination, finished, run_settings
from training.checkpoints import last_complete
from training.methods import METHODS, Method
from training.stores import stores
from utils.config import CHOOSERS
from utils.errors import UserError
from utils.files import write_json, write_record
from utils.settings import FORMAT, require_same


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method__name": "lorra"}, r"method\.name: no method 'lorra'; allowed: astra, lora, .*full"),
        ({"sweep": {"method.name": ["lora", "lorra"]}}, r"method\.name: no method 'lorra'"),
        ({"method__rank_allocation": "effective_rank"}, r"method\.rank_allocation: effective_rank needs"),
        ({"train__early_stopping": 2}, r"train\.early_stopping: .*data\.validation"),
        ({"train__deepspeed": "nowhere.json"}, r"train\.deepspeed: .*nowhere\.json"),
        ({"data__train": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"train__report_to": ["tensorbord"]}, r"train\.report_to: tensorbord is not installed"),
        ({"method__freeze_b": True}, r"method\.freeze_b: lora has no start of B"),
        (
            {"model__dtype": "float16", "train__deepspeed": "configs/deepspeed/zero2.json"},
            r"model\.dtype: DeepSpeed would train in float16",
        ),
        (
            {"train__eval_tasks": ["gsm8k"], "train__deepspeed": "configs/deepspeed/zero3.json"},
            r"train\.eval_tasks: ZeRO-3 splits",
        ),
    ],
)
def test_what_stops_a_run_is_one_line(config, changes, words):
    with pytest.raises(UserError, match=words):
        check(config(**changes))


@pytest.mark.parametrize("key", ["optimizer", "scheduler"])
def test_a_deepspeed_file_does_not_override_the_run(config, tmp_path, key):
    write_json(tmp_path / "zero.json", {key: {"type": "auto"}})
    with pytest.raises(UserError, match=rf"train\.deepspeed: .*zero\.json has its own {key}"):
        check(config(train__deepspeed=str(tmp_path / "zero.json")))


def test_whatever_method_reads_a_calibration_is_calibrated(config, monkeypatch):
    build = METHODS["astra"].build
    monkeypatch.setitem(METHODS, "other", Method(build, rates=(1e-4, 1e-3), needs="calibration"))
    assert len(stores(config(method__name="other"))) == 1
    assert not stores(config(method__name="lora"))


def test_the_methods_that_take_a_subspace_are_those_that_read_a_calibration():
    assert set(CHOOSERS) == {name for name, method in METHODS.items() if method.needs == "calibration"}


def test_checking_loads_neither_torch_nor_peft():
    code = "import sys, scripts.preflight; sys.exit(bool({'torch', 'peft', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_what_an_older_version_wrote_is_refused_by_its_format(config):
    this = config()
    (folder_of(this) / "lora").mkdir(parents=True)
    write_json(folder_of(this) / "metrics.json", {"method": "lora", "settings": {}})
    with pytest.raises(UserError, match=r"written by another version \(format 1, not 2\)"):
        finished(this, folder_of(this))
    write_json(folder_of(this) / "checkpoints/checkpoint-2/manifest.json", {"step": 2, "settings": {}, "files": {}})
    with pytest.raises(UserError, match=r"checkpoint-2 was written by another version"):
        last_complete(folder_of(this) / "checkpoints", {})


def test_to_have_diverged_is_a_result_of_a_comparison(config):
    this = config()
    record = {"format": FORMAT, "reason": "", "settings": run_settings(this)}
    write_record(folder_of(this) / "diverged.json", record)
    assert not finished(this, folder_of(this))
    assert finished(this.model_copy(update={"arm": "lora"}), folder_of(this))
    with pytest.raises(UserError, match=r"train\.learning_rate"):
        finished(config(train__learning_rate=0.5).model_copy(update={"arm": "lora"}), folder_of(this))


def test_kernels_that_are_not_there_are_refused(config, tmp_path):
    if importlib.util.find_spec("liger_kernel") is None:
        with pytest.raises(UserError, match=r"train\.liger_kernel: the package liger-kernel is not installed"):
            check(config(train__liger_kernel=True))
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"train\.liger_kernel: its kernels need a GPU"):
            training_arguments(config(train__liger_kernel=True), tmp_path)


def test_b_can_be_frozen_where_it_starts_somewhere(config):
    check_combination(config(method__name="pissa", method__freeze_b=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__quantization": "nf4", "method__name": "dora"}, r"model\.quantization: nf4 freezes"),
        ({"model__quantization": "nf4", "model__task_type": "SEQ_CLS"}, r"model\.quantization: nf4 is for language"),
        (
            {"model__task_type": "SEQ_CLS", "data__reporting": 0.2},
            r"data\.reporting: a classifier is reported on its task's own set",
        ),
        (
            {"method__name": "astra", "method__split": "balanced", "method__subspace": "nullspace"},
            r"method\.split: balanced",
        ),
    ],
)
def test_settings_that_make_no_sense_together_are_refused(config, changes, message):
    with pytest.raises(UserError, match=message):
        check_combination(config(**changes))


def test_a_deepspeed_file_need_not_name_a_stage(config, tmp_path):
    path = tmp_path / "deepspeed.json"
    path.write_text("{}")
    check_combination(config(model__quantization="nf4", train__deepspeed=str(path)))


def test_a_rank_that_may_be_doubled_needs_room_in_the_store(config):
    with pytest.raises(UserError, match=r"calibration\.max_rank: 4 is less than method\.rank, 4 twice over"):
        stores(config(method__name="astra", method__rank_allocation="effective_rank", calibration__max_rank=4))


@pytest.mark.parametrize("name", ["base", "calibration", "stages"])
def test_a_run_is_not_called_like_a_folder_of_the_experiment(config, name):
    with pytest.raises(UserError, match="run: "):
        config(run=name)


def test_what_leaves_the_result_as_it_is_may_change(config, tmp_path):
    this = config()
    record = {"format": FORMAT, "settings": run_settings(this)}
    other = config(calibration__subspaces=["tail"], calibration__max_rank=64, data__dir=str(tmp_path))
    require_same(record, run_settings(other), "here")


def test_the_trainer_is_told_what_the_config_says(config, tmp_path):
    wanted = {
        "learning_rate": 0.02, "weight_decay": 0.1, "scheduler": "linear", "max_grad_norm": 0.5, "warmup_ratio": 0.25,
        "epochs": 3.0, "max_steps": 7, "seed": 11, "logging_steps": 2, "gradient_checkpointing": True,
    }  # fmt: skip
    args = training_arguments(config(**{f"train__{key}": value for key, value in wanted.items()}), tmp_path)
    assert training_arguments(config(train__logging_steps=3, data__validation=0.2), tmp_path).load_best_model_at_end
    names = {"scheduler": "lr_scheduler_type", "warmup_ratio": "warmup_steps", "epochs": "num_train_epochs"}
    assert {key: getattr(args, names.get(key, key)) for key in wanted} == wanted
