"""Files that are damaged, full disks and read-only folders: one line that names the file, and nothing is removed."""

import subprocess

import pytest

from benchmarks.damage import DAMAGES, damage_files, loaded_pickles, pickles, starved


@pytest.mark.parametrize("kinds", [("flipped", "unreadable"), pytest.param(tuple(DAMAGES), marks=pytest.mark.slow)])
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
    assert len(pickles(experiment)) == 6 and loaded_pickles(experiment) == []
