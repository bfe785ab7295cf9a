"""Files that are damaged, full disks and read-only folders: one line that names the file, and nothing is removed."""

import os
import pickle
import subprocess

import pytest

from benchmarks.damage import DAMAGES, damage_files, make_finished, starved
from eval.candidates import read_adapter
from training.check import finished
from training.checkpoints import last_complete
from utils.errors import UserError
from utils.files import read_record
from utils.runs import run_folder


@pytest.fixture(scope="module")
def finished_experiment(tmp_path_factory, smollm2):
    return make_finished(tmp_path_factory.mktemp("finished"))[0]


@pytest.mark.parametrize("kinds", [("flipped",), pytest.param(tuple(DAMAGES), marks=pytest.mark.slow)])
def test_every_damaged_file_is_named_and_left(finished_experiment, kinds):
    found = damage_files(finished_experiment, kinds)
    assert found.damaged > 20 * len(kinds) and found.missed == []


@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_a_place_that_takes_nothing_is_one_line_in_every_stage(finished_experiment, tmp_path, kind):
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], capture_output=True).returncode:
        pytest.skip("only root may mount")
    subprocess.run(["umount", str(tmp_path)], check=True)
    assert starved(finished_experiment, kind) == []


def test_a_pickle_in_a_run_or_an_adapter_folder_is_refused_by_name(finished_experiment):
    run = run_folder(finished_experiment)
    step = run / "checkpoints" / "checkpoint-2"
    settings = read_record(run / "metrics.json")["settings"]
    for place, read in (
        (run / "optimizer.pt", lambda: finished(finished_experiment, run)),
        (run / "lora" / "adapter_model.bin", lambda: read_adapter(run / "lora")),
        (step / "rng_state_1.pth", lambda: last_complete(step.parent, settings)),
        (step / "pytorch_model.bin", lambda: last_complete(step.parent, settings)),
    ):
        place.write_bytes(pickle.dumps(Bomb()))
        try:
            with pytest.raises(UserError, match=f"{place.name}: a pickle can run anything"):
                read()
        finally:
            place.unlink()


class Bomb:
    """What runs when it is unpickled."""

    def __reduce__(self):
        return os._exit, (66,)
