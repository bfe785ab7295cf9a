"""Files that are damaged, full disks and read-only folders: one line that names the file, and nothing is removed."""

import os
import pickle
import subprocess

import pytest

from benchmarks.damage import DAMAGES, damage_files, starved
from eval.candidates import read_adapter
from training.check import finished
from training.checkpoints import last_complete
from utils.errors import UserError
from utils.files import read_record
from utils.runs import run_folder


@pytest.mark.parametrize("kinds", [("flipped",), pytest.param(tuple(DAMAGES), marks=pytest.mark.slow)])
def test_every_damaged_file_is_named_and_left(experiment, kinds):
    found = damage_files(experiment, kinds)
    assert found.damaged > 20 * len(kinds) and found.missed == []


@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_a_place_that_takes_nothing_is_one_line_in_every_stage(experiment, tmp_path, kind):
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], capture_output=True).returncode:
        pytest.skip("only root may mount")
    subprocess.run(["umount", str(tmp_path)], check=True)
    assert starved(experiment, kind) == []


def test_a_pickle_in_a_run_or_an_adapter_folder_is_refused_by_name(experiment):
    run = run_folder(experiment)
    step = run / "checkpoints" / "checkpoint-2"
    settings = read_record(run / "metrics.json")["settings"]
    for place, read in (
        (run / "optimizer.pt", lambda: finished(experiment, run)),
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
