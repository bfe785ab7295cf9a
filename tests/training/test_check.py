"""What stops a run is said in one line before anything heavy is loaded; a new method is known wherever it must be."""

import subprocess
import sys

import pytest

from tests.runs import ROOT
from training.check import check
from training.methods import METHODS, Method
from training.stores import stores
from utils.config import CHOOSERS
from utils.errors import UserError


def test_an_unknown_method_names_those_there_are(config):
    with pytest.raises(UserError, match=r"method\.name: no method 'lorra'; allowed: astra, lora, .*full"):
        check(config(method__name="lorra"))


def test_every_point_of_a_sweep_is_checked(config):
    with pytest.raises(UserError, match=r"method\.name: no method 'lorra'"):
        check(config(sweep={"method.name": ["lora", "lorra"]}))


def test_whatever_method_reads_a_calibration_is_calibrated(config, monkeypatch):
    build = METHODS["astra"].build
    monkeypatch.setitem(METHODS, "other", Method(build, rates=(1e-4, 1e-3), needs="calibration"))
    assert len(stores(config(method__name="other"))) == 1
    assert not stores(config(method__name="lora"))


def test_the_methods_that_take_a_subspace_are_those_that_read_a_calibration():
    assert set(CHOOSERS) == {name for name, method in METHODS.items() if method.needs == "calibration"}


@pytest.mark.parametrize("module", ["training.check", "scripts.preflight"])
def test_checking_loads_neither_torch_nor_peft(module):
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'peft', 'transformers'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
