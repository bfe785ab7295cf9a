"""One experiment at a time in an output folder, even if the script that began it has been killed."""

import os
import signal
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def start(folder: Path, words: str) -> subprocess.Popen[str]:
    script = f"source scripts/common.sh; hold {folder}; echo held; run {words}"
    return subprocess.Popen(
        ["bash", "-c", script], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip


def test_the_second_of_two_is_told_who_is_at_work_though_the_script_is_gone(tmp_path):
    first = start(tmp_path, "sleep 60")
    assert first.stdout is not None and first.stdout.readline() == "held\n"
    while "sleep" not in (tmp_path / ".lock").read_text(encoding="utf-8"):
        time.sleep(0.01)
    stage = int((tmp_path / ".lock").read_text(encoding="utf-8").split()[1])
    try:
        for _ in range(2):
            _, said = (second := start(tmp_path, "true")).communicate()
            assert second.returncode == 2 and said.count("\n") == 1
            assert f"{tmp_path}: process {stage} (sleep 60) on " in said and "is at work here" in said
            os.kill(first.pid, signal.SIGKILL)  # the second time round only the stage is left
            time.sleep(0.1)
    finally:
        os.kill(stage, signal.SIGKILL)
    first.wait()
    while start(tmp_path, "true").wait() != 0:  # free as soon as the stage has gone
        time.sleep(0.05)
