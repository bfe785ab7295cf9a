"""What comes from others runs nothing and leaves no folder; what is secret stays out of files; text stays text."""

import json
import os
import shutil

import pytest

from benchmarks.damage import Bomb
from tests.reliability.conftest import SECRETS
from utils.config import ModelConfig
from utils.errors import UserError
from utils.models import check_model, load_model


def test_no_secret_of_the_environment_is_written(experiment):
    files = [os.path.join(folder, name) for folder, _, names in os.walk(experiment.output_dir) for name in names]
    assert any(path.endswith("environment.json") for path in files)
    for path in files:
        with open(path, "rb") as file:
            content = file.read()
        assert not [name for name, value in SECRETS.items() if value.encode() in content], path


def test_weights_that_are_pickles_are_refused(base, tmp_path):
    import torch

    shutil.copytree(base, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save(Bomb(tmp_path / "trace"), tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"holds no safetensors; other weights are pickles"):
        check_model(ModelConfig(name=str(tmp_path / "model")))


def test_an_index_may_not_lead_out_of_its_folder(base, tmp_path):
    shutil.copytree(base, tmp_path / "model")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "../model.safetensors"}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(UserError, match=r"index\.json: names \.\./model\.safetensors"):
        check_model(ModelConfig(name=str(tmp_path / "model")))


def test_code_that_comes_with_a_model_is_not_run(base, tmp_path):
    shutil.copytree(base, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    own = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | own), encoding="utf-8")
    (tmp_path / "model" / "mine.py").write_text("import os; os._exit(66)", encoding="utf-8")
    with pytest.raises(UserError, match=r"model\.name: .*can't be loaded"):
        load_model(ModelConfig(name=str(tmp_path / "model"), dtype="float32"))
