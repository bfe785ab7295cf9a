"""Run folders: two commands never work in one."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from utils.errors import UserError
from utils.files import read_record
from utils.runs import held, peak_memory, spent, stage

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from utils.runs import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_held_by_one_command_and_free_when_that_is_killed(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {holder.pid} on .* is at work here"), held(tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait()
    time.sleep(0.1)
    with held(tmp_path):
        pass


def test_a_stage_counts_what_was_spent_before_and_the_memory_of_the_processes_it_started(tmp_path):
    taken = peak_memory() + 2**26
    with stage(tmp_path, "evaluate", before=1e6):
        subprocess.run([sys.executable, "-c", f"b'x' * {taken}"], check=True)
    assert read_record(tmp_path / "stages" / "evaluate.json")["peak_memory_bytes"] > taken
    assert spent(tmp_path, "evaluate") > 1e6
