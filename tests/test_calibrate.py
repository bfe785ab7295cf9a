"""`calibrate.py` as a user runs it, on a small random model: resume, reuse, torchrun, offloading, bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from astra import Calibration
from tests.runs import ROOT, TORCHRUN
from training.stores import store_folder
from utils.config import load_config

RECORDS = [{"instruction": f"What is {k} plus {k}?", "output": f"It is {2 * k}, twice {k}."} for k in range(60)]


@pytest.fixture(scope="module")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config whose calibration is complete; none of the tests changes its output folder."""
    folder = tmp_path_factory.mktemp("made")
    data, path = folder / "records.jsonl", folder / "config.yaml"
    data.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    path.write_text(
        f"""
output_dir: {folder / "out"}
model: {{name: {base}, dtype: float32}}
data: {{train: {data}}}
calibration: {{samples: 40, batch_size: 4}}
train: {{forgetting: false}}
method: {{rank: 4, target_modules: [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]}}
"""
    )
    run(path)
    return path


@pytest.fixture
def config(made: Path, tmp_path: Path) -> Path:
    """The same with an empty output folder."""
    path = tmp_path / "config.yaml"
    path.write_text(made.read_text().replace(str(made.parent / "out"), str(tmp_path / "out")))
    return path


@pytest.fixture
def calibrated(made: Path, config: Path) -> Path:
    """The same with a copy of the complete calibration."""
    shutil.copytree(made.parent / "out", config.parent / "out")
    return config


def start(config: Path, *words: str, launcher: tuple[str, ...] = (sys.executable,)) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(ROOT / "calibrate.py"), "--config", str(config), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def run(config: Path, *words: str, status: int = 0, launcher: tuple[str, ...] = (sys.executable,)) -> str:
    process = start(config, *words, launcher=launcher)
    _, err = process.communicate(timeout=300)
    assert process.returncode == status, err
    return err


def the_store(config: Path) -> Path:
    (folder,) = (config.parent / "out" / "calibration").iterdir()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".json", ".safetensors")}


def test_a_store_is_made_and_reused(calibrated: Path) -> None:
    folder = the_store(calibrated)
    assert (folder / "spectrum.png").stat().st_size > 0 and not (folder / ".progress").exists()
    before = contents(folder)
    (folder / "spectrum.png").unlink()  # as if killed before it was drawn
    (folder / ".progress").mkdir()
    assert "is complete" in run(calibrated)
    assert contents(folder) == before
    assert (folder / "spectrum.png").stat().st_size > 0 and not (folder / ".progress").exists()


def test_asking_for_more_calibrates_again(calibrated: Path) -> None:
    assert "calibrating again for rank 6, more than the 4 stored" in run(calibrated, "--method.rank=6")
    assert "calibrating again for subspace nullspace" in run(calibrated, "--method.subspace=nullspace")
    wider = Calibration.load(the_store(calibrated))
    assert wider.max_rank == 6 and wider.subspaces == ("tail", "nullspace")


def test_two_processes_find_the_same_energies(made: Path, config: Path) -> None:
    alone = Calibration.load(the_store(made))
    run(config, launcher=TORCHRUN)
    both = Calibration.load(the_store(config))
    for name, info in alone.layers.items():
        assert both.layers[name].tokens == info.tokens
        largest = float(alone.eigenvalues(name)[-1])
        torch.testing.assert_close(both.eigenvalues(name), alone.eigenvalues(name), rtol=1e-6, atol=1e-13 * largest)


def test_a_spread_model_gives_the_same_bytes_in_one_process(made: Path, config: Path) -> None:
    """One process has all devices; the others that a launcher starts have nothing to do."""
    run(config, "--model.device_map=auto", launcher=TORCHRUN)
    assert contents(the_store(config)) == contents(the_store(made))


def test_a_rank_above_a_layer_is_refused(config: Path) -> None:
    err = run(config, "--method.rank=32", status=2)
    assert "method.rank: 32 is larger than the layer model.layers.0.self_attn.k_proj" in err.splitlines()[-1]


def test_targets_are_a_pattern_and_may_be_excluded(config: Path) -> None:
    run(config, r"--method.target_modules=.*\.(q|down)_proj", "--method.exclude_modules=['layers.0.mlp.down_proj']")
    assert list(Calibration.load(the_store(config)).layers) == [
        "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj",
    ]  # fmt: skip


DRIVER = """
import runpy, sys, time
from astra.calibration import _Kept
write = _Kept.write
_Kept.write = lambda *arguments: (write(*arguments), time.sleep(100))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_killed_and_started_again_ends_with_the_same_bytes(made: Path, config: Path) -> None:
    process = start(config, launcher=(sys.executable, "-c", DRIVER))
    deadline = time.monotonic() + 120
    while not list((config.parent / "out").glob("calibration/*/.progress/*/manifest.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    folder = the_store(config)
    assert not (folder / "manifest.json").exists()
    (folder / ".tail.safetensors.tmp").touch()  # what it leaves when killed while writing
    assert "calibration: continues after layer 1 of 2" in run(config)
    assert contents(folder) == contents(the_store(made))
    assert [path.name for path in folder.glob(".*")] == [".lock"]


def test_another_model_or_data_set_under_the_same_name_is_an_error(made: Path, calibrated: Path) -> None:
    data = made.parent / "records.jsonl"
    text = data.read_text()
    data.write_text(text.replace("twice", "thrice"))
    try:
        err = run(calibrated, status=2)
        assert err.count("\n") == 1 and "made with data.fingerprint" in err and "--force" in err
        run(calibrated, "--force")
    finally:
        data.write_text(text)


def test_a_truncated_file_is_one_line(calibrated: Path) -> None:
    path = the_store(calibrated) / "tail.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    err = run(calibrated, status=2)
    assert err.count("\n") == 1 and "tail.safetensors: damaged" in err


def test_a_held_out_part_of_the_data_has_a_store_of_its_own(config: Path) -> None:
    one, other = (load_config(str(config), {"data.validation": count}) for count in (0, 0.2))
    assert store_folder(one) != store_folder(other)


def test_other_methods_need_no_calibration(config: Path) -> None:
    assert "nothing to calibrate: method.name is lora" in run(config, "--method.name=lora")
