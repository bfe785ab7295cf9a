"""Runs of other model families, and of the cases at the edge: few examples, no memory, a loss that is not a number."""

import contextlib
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml
from transformers import AutoTokenizer, OPTConfig, OPTForCausalLM

import train as training
from tests.astra.families import FAMILIES
from tests.runs import TORCHRUN, Crash, calibrate, crash_at, folder_of, launch, losses, metrics, train_and_reload
from training import data, model
from training import trainer as fitting
from training.check import check, finished
from training.data import Share, tokenize
from training.model import rank_pattern
from training.stores import require_store
from training.trainer import RunTrainer
from utils.errors import UserError
from utils.runs import held, write_config


def test_a_run_that_is_at_work_is_left_alone(config, tmp_path, monkeypatch):
    this = config()
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", str(write_config(this, tmp_path))])
    with held(folder_of(this)), pytest.raises(UserError, match="is at work here"):
        training.command()


@pytest.mark.parametrize("family", ["gemma2", "gpt2"])
def test_every_family_trains_and_is_exported(config, base, tmp_path, family):
    tokenizer, (model, names) = AutoTokenizer.from_pretrained(base), FAMILIES[family]()
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path / family)
    tokenizer.save_pretrained(tmp_path / family)
    this = config(
        model__name=str(tmp_path / family), method__name="astra", method__target_modules=names,
        train__max_steps=3, data__limit=4,  # so every step sees the same examples
        data__max_length=64, calibration__max_length=64,
    )  # fmt: skip
    calibrate(this)
    assert train_and_reload(this) < 1e-5
    assert losses(this)[-1] < losses(this)[0]


def test_fewer_examples_than_processes_is_one_line(config):
    this = config()
    many = SimpleNamespace(main_process_first=lambda desc: contextlib.nullcontext(), world_size=25)
    with pytest.raises(UserError, match=r"data\.train: 24 examples are fewer than the 25 processes"):
        data.load_examples(this, AutoTokenizer.from_pretrained(this.model.name), many)


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_validation_examples_count_once_whatever_the_number_of_processes(config, tmp_path, processes):
    this = config()
    rows = [{"instruction": f"Add {k}.", "output": "so " * (k + 1)} for k in range(4)]
    examples = tokenize(rows, AutoTokenizer.from_pretrained(this.model.name), this.data, tmp_path)
    shares = [Share(examples, process, processes) for process in range(processes)]
    assert len({len(share) for share in shares}) == 1
    labelled = [share[k] for share in shares for k in range(len(share)) if max(share[k]["labels"]) >= 0]
    assert sorted(map(str, labelled)) == sorted(str(examples[k]) for k in range(4))


def test_encoding_changes_no_fingerprint_and_damaged_tokens_say_how_to_go_on(config, tmp_path):
    this, cache = config(), tmp_path / "tokens"
    rows = [{"instruction": "Add 1.", "output": "so"}]
    tokenizer = AutoTokenizer.from_pretrained(this.model.name)
    first = tokenize(rows, tokenizer, this.data, cache)
    tokenizer(["some", "other words"], padding=True, truncation=True, max_length=4)
    assert tokenize(rows, tokenizer, this.data, cache).fingerprint == first.fingerprint
    (cache / f"{first.fingerprint}.safetensors").unlink()
    with pytest.raises(UserError, match=r"\.safetensors: .*; delete .*tokens, and the tokens are made anew"):
        tokenize(rows, tokenizer, this.data, cache)


@pytest.mark.slow
def test_two_processes_validate_as_one(config, tmp_path):
    changes = {"data__validation": 0.2, "train__max_steps": 2}  # 5 examples
    alone, both = config(run="alone", **changes), config(run="both", **changes)
    training.train(alone)
    launch(both, tmp_path, *TORCHRUN)
    assert metrics(both)["validation_loss"] == pytest.approx(metrics(alone)["validation_loss"], abs=1e-5)


def test_no_room_on_the_gpu_is_one_line_that_says_what_to_set(config, monkeypatch):
    def exhausted(*args, **kwargs):
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(RunTrainer, "training_step", exhausted)
    with pytest.raises(UserError, match=r"train\.micro_batch_size: .* 2 examples .*gradient_checkpointing"):
        training.train(config())


def test_no_room_for_the_model_is_one_line(config, monkeypatch):
    def exhausted(*args):
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(model, "load_base", exhausted)
    with pytest.raises(UserError, match=r"model\.name: there is no room"):
        training.train(config())


def test_a_run_goes_on_with_less_memory_and_ends_the_same(config, monkeypatch):
    whole, broken = config(run="whole"), config(run="broken")
    training.train(whole)
    with monkeypatch.context() as patched, pytest.raises(Crash):
        crash_at(patched, 3)
        training.train(broken)
    remedy = {"train__micro_batch_size": 1, "train__gradient_checkpointing": True}
    training.train(config(run="broken", **remedy))
    assert losses(broken) == pytest.approx(losses(whole), abs=1e-4)


def test_a_loss_that_is_not_a_number_stops_a_float16_run_too(config, monkeypatch):
    make, total = fitting.make_trainer, RunTrainer.summed_loss

    def half(*args):
        trainer = make(*args)
        trainer.args.fp16 = True  # its loss scaler passes over gradients that are not finite
        return trainer

    def broken(self, model, inputs):
        loss, count = total(self, model, inputs)
        return (loss * float("nan") if self.state.global_step == 3 else loss), count

    monkeypatch.setattr(fitting, "make_trainer", half)
    monkeypatch.setattr(RunTrainer, "summed_loss", broken)
    with pytest.raises(UserError, match="not a number at step 4"):
        training.train(config())


@pytest.mark.parametrize(("name", "rank", "warned"), [("pissa", 300, 1), ("pissa", 256, 0), ("lora", 300, 0)])
def test_an_adapter_that_will_be_cut_is_announced(config, caplog, name, rank, warned):
    check(config(method__name=name, method__rank=rank))
    assert (f"at rank {rank} has rank {2 * rank}; its adapter is cut to 512" in caplog.text) == warned


def test_models_that_let_packed_examples_see_each_other_are_refused(config, tmp_path, base):
    folder = tmp_path / "opt"
    tokenizer = AutoTokenizer.from_pretrained(base)
    settings = OPTConfig(
        vocab_size=len(tokenizer), hidden_size=32, word_embed_proj_dim=32, ffn_dim=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=512, init_std=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    OPTForCausalLM(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    this = config(
        model__name=str(folder), method__name="lora", method__target_modules=["q_proj", "v_proj"], train__packing=True
    )
    with pytest.raises(UserError, match=r"train\.packing: a model of type opt lets packed examples see each other"):
        training.train(this)


def test_a_calibration_of_other_records_is_refused(config, tmp_path, records):
    own = tmp_path / "mine.jsonl"
    own.write_text(records.read_text(encoding="utf-8"), encoding="utf-8")
    this = config(method__name="astra", data__train=str(own))
    calibrate(this)
    own.write_text("".join(sorted(own.read_text(encoding="utf-8").splitlines(keepends=True))[::-1]), encoding="utf-8")
    with pytest.raises(UserError, match=r"made with data\.fingerprint"):
        training.train(this)


def test_a_force_that_is_refused_leaves_the_finished_run_alone(config, tmp_path, monkeypatch):
    this = config(method__name="lora")
    training.train(this)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(this.model_dump()), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", str(path), "--force", "--data.train=missing.jsonl"])
    with pytest.raises(UserError, match="missing.jsonl"):
        training.command()
    assert finished(this, folder_of(this))


def test_ranks_shared_by_effective_rank_do_not_depend_on_what_other_runs_store(config):
    changes = {"method__name": "astra", "method__rank": 2, "method__rank_allocation": "effective_rank"}
    alone, beside = (config(output_dir=str(config().output_dir) + name, **changes) for name in ("1", "2"))
    calibrate(alone)
    calibrate(beside.model_copy(update={"sweep": {"method.rank": [2, 8]}}))
    patterns = [rank_pattern(this, require_store(this)) for this in (alone, beside)]
    assert patterns[0] == patterns[1] and len(set(patterns[0].values())) > 1
