"""The scripts people run: what they start, what they refuse, and, in the slow tier, whole experiments."""

import functools
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

from scripts.preflight import run_bytes
from utils.config import validate
from utils.models import model_bytes

ROOT = Path(__file__).parent.parent
EXPERIMENTS = ("demo", "metamath", "code", "commonsense")


def run_script(experiment: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run an experiment's script in the environment that runs the tests."""
    variables = {**os.environ, "ASTRA_VENV": sys.prefix, **environment}
    command = ["bash", f"scripts/{experiment}/run.sh", *words]
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=1800)


def small(tmp_path: Path, *words: str) -> tuple[str, ...]:
    """Overrides that make any experiment one of a few steps on a machine without a hub."""
    return (
        f"--output_dir={tmp_path}/out", "--model.name=smollm2", "--model.dtype=float32",
        "--data.general_text=python-manual", *words,
    )  # fmt: skip


def test_set_up_changes_nothing_when_nothing_changed() -> None:
    variables = {**os.environ, "ASTRA_VENV": sys.prefix}
    run = subprocess.run(["bash", "scripts/setup.sh"], cwd=ROOT, env=variables, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_a_dry_run_prints_the_stages_in_order(tmp_path: Path) -> None:
    run = run_script("demo", "--dry-run", f"--output_dir={tmp_path}/out", "--sweep.method.rank=[4,8]")
    assert run.returncode == 0, run.stderr
    stages = [line.split(" --config")[0] for line in run.stdout.splitlines()]
    assert stages == [
        "python -m dataset.prepare", "python calibrate.py", "python train.py", "python train.py", "python -m eval",
        "python -m eval.report",
    ]  # fmt: skip
    assert not list(tmp_path.glob("out/calibration"))


@pytest.mark.parametrize("environment", [{"ASTRA_PROCESSES": "3"}, {"CUDA_VISIBLE_DEVICES": "2,3,6"}])
def test_torchrun_starts_as_many_processes_as_asked_for_or_gpus_are_visible(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    run = run_script("demo", "--dry-run", f"--output_dir={tmp_path}/out", **environment)
    train = next(line for line in run.stdout.splitlines() if " train.py " in line)
    assert train.startswith("torchrun --standalone --nproc-per-node 3 ")


def bash(script: str, tmp_path: Path, **environment: str) -> subprocess.Popen[str]:
    """Start a script with the functions of scripts/common.sh, in which `python` only notes how it was called."""
    python = tmp_path / "venv/bin/python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(
        "#!/usr/bin/env bash\n"
        f'echo "$* on ${{CUDA_VISIBLE_DEVICES:-}}" >>{tmp_path}/calls\n'
        "[[ $* != *bad* ]] || exit 2\n",
        encoding="utf-8",
    )
    python.chmod(0o755)
    variables = {**os.environ, "ASTRA_VENV": str(tmp_path / "venv"), **environment}
    words = ["bash", "-c", f"source scripts/common.sh; {script}"]
    # Tests that run in the background of a shell ignore SIGINT, and what they start would, too.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(words, cwd=ROOT, env=variables, stdin=subprocess.PIPE, text=True, preexec_fn=heed)


def calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "calls").read_text(encoding="utf-8").splitlines()


def test_a_failed_run_does_not_stop_the_rest_and_the_status_says_so(tmp_path: Path) -> None:
    assert bash("runs=(one bad three); wave train.py; exit $failed", tmp_path).wait() == 2
    assert calls(tmp_path) == [f"train.py --config {name} on " for name in ("one", "bad", "three")]


def test_runs_side_by_side_have_a_gpu_each_of_those_that_are_visible(tmp_path: Path) -> None:
    visible = {"CUDA_VISIBLE_DEVICES": "5,7"}
    assert bash("jobs=2; runs=(one bad three); wave train.py; exit $failed", tmp_path, **visible).wait() == 2
    found = calls(tmp_path)
    assert sorted(line.split()[2] for line in found) == ["bad", "one", "three"]
    assert {line.split()[-1] for line in found} == {"5", "7"}


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_stage_under_way_and_nothing_else(
    tmp_path: Path, sent: signal.Signals, status: int
) -> None:
    stage = tmp_path / "pid"
    run = bash(f"run bash -c 'echo $$ >{stage}; sleep 60 & wait'", tmp_path)  # in this process's own group
    while not stage.is_file() or not stage.read_text(encoding="utf-8"):
        time.sleep(0.02)
    run.send_signal(sent)
    assert run.wait(timeout=20) == status
    # A process whose parent is gone may take a moment to end, or be left a zombie by a container's first process.
    alive = ["pgrep", "--pgroup", stage.read_text(encoding="utf-8").strip(), "--runstates", "D,R,S"]
    deadline = time.monotonic() + 10
    while subprocess.run(alive, capture_output=True).returncode == 0:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_signal_stops_a_stage_that_is_just_starting(tmp_path: Path) -> None:
    marker = f"{os.getpid()}.25"
    for k in range(40):
        run = bash(f"run sleep {marker}", tmp_path)
        time.sleep(0.0005 * k)
        run.terminate()
        run.wait(timeout=20)
    assert subprocess.run(["pgrep", "-f", f"^sleep {marker}"], capture_output=True).returncode == 1


@pytest.mark.parametrize("word", ["--jobs=two", "--jobs=0", "--jobs=3"])
def test_jobs_that_cannot_be_had_are_refused(word: str) -> None:
    run = run_script("demo", word, CUDA_VISIBLE_DEVICES="0,1")
    assert run.returncode == 2 and "--jobs" in run.stderr and len(run.stderr.splitlines()) == 1


def test_a_job_warned_of_its_time_limit_is_queued_again(tmp_path: Path) -> None:
    stubs = {
        "srun": "echo $$ >$STEP; exec sleep 60",
        "scancel": "kill $(cat $STEP)",
        "scontrol": "echo $* >>$STEP.requeued",
    }
    for name, text in stubs.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    step = tmp_path / "step"
    variables = {
        **os.environ, "ASTRA_VENV": sys.prefix, "PATH": f"{tmp_path}:{os.environ['PATH']}", "STEP": str(step),
        "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(ROOT),
    }  # fmt: skip
    job = subprocess.Popen(["bash", "scripts/slurm.sh", "configs/demo.yaml"], cwd=ROOT, env=variables)
    while not step.is_file() or not step.read_text(encoding="utf-8"):
        time.sleep(0.02)
    job.terminate()
    assert job.wait(timeout=20) == 0
    assert "requeue 7" in (tmp_path / "step.requeued").read_text(encoding="utf-8")


@pytest.mark.parametrize("experiment", EXPERIMENTS[1:])
def test_an_experiment_stops_before_it_starts_when_the_hub_is_out_of_reach(experiment: str, tmp_path: Path) -> None:
    run = run_script(experiment, f"--output_dir={tmp_path}/out", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert run.returncode == 2
    assert run.stderr.startswith("error: model.name: the hub can't be reached for meta-llama/Llama-2-7b-hf")
    assert len(run.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("--method.rnk=3", "unknown key method.rnk"),
        ("--eval.tasks=gsm9k", "gsm9k"),
        ("--data.train=nowhere.jsonl", "nowhere.jsonl"),
        ("--train.deepspeed=nowhere.json", "nowhere.json"),
        ("--output_dir=/proc/out", "output_dir: /proc/out can't be written"),
        ("--model.name=./nowhere", "model.name: ./nowhere"),
    ],
)
def test_a_mistake_is_one_line_before_anything_starts(tmp_path: Path, word: str, named: str) -> None:
    run = run_script("demo", f"--output_dir={tmp_path}/out", word)
    assert run.returncode == 2
    assert named in run.stderr and len(run.stderr.splitlines()) == 1
    assert run.stdout == ""


def test_a_run_that_exports_a_merged_model_needs_room_for_it(smollm2: Path) -> None:
    model = {"name": str(smollm2), "dtype": "float32"}
    lora, dora = (validate({"model": model, "method": {"name": name}}) for name in ("lora", "dora"))
    assert run_bytes(dora) - run_bytes(lora) == model_bytes(dora.model)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "words", "task"),
    [
        ("metamath", ("--data.train=gsm8k", "--eval.tasks=gsm8k"), "gsm8k"),
        ("code", ("--eval.tasks=humaneval",), "humaneval"),
        ("commonsense", ("--eval.tasks=commonsense",), "commonsense"),
    ],
)
def test_each_experiment_runs_through_all_stages(
    tmp_path: Path, mirror: Path, experiment: str, words: tuple[str, ...], task: str
) -> None:
    few = (
        f"--data.dir={mirror}", "--data.limit=64", "--calibration.samples=8", "--method.rank=8", "--train.max_steps=2",
        "--train.global_batch_size=2", "--eval.limit=2", "--eval.max_new_tokens=16",
    )  # fmt: skip
    run = run_script(experiment, *small(tmp_path, *few, *words))
    assert run.returncode == 0, run.stderr[-2000:]
    summary = json.loads((tmp_path / "out/summary.json").read_text(encoding="utf-8"))
    assert set(summary["seconds"]) == {"calibrate", "train", "evaluate"}
    (arm,) = summary["arms"].values()
    assert all((Path(lora) / "adapter_model.safetensors").is_file() for lora in arm["loras"])
    assert list((tmp_path / "out").glob(f"*/eval/{task}*.json"))


@pytest.mark.slow
def test_a_classifier_learns_a_task_of_glue(tmp_path: Path, mirror: Path) -> None:
    few = (
        f"--output_dir={tmp_path}/out", f"--data.dir={mirror}", "--model.name=minilm", "--data.limit=64",
        "--calibration.samples=8", "--train.max_steps=4",
    )  # fmt: skip
    run = run_script("nlu", "cola", *few)
    assert run.returncode == 0, run.stderr[-2000:]
    result = json.loads(next((tmp_path / "out").glob("*/eval/cola.json")).read_text(encoding="utf-8"))
    assert result["metric"] == "matthews_correlation" and -1 <= result["score"] <= 1 and result["n"] == 1043
    assert "matthews correlation (%)" in (tmp_path / "out/results.md").read_text(encoding="utf-8")


def test_a_task_that_glue_has_not_is_refused() -> None:
    run = run_script("nlu", "wnli")
    assert run.returncode == 2
    assert "cola mnli mrpc qnli qqp rte sst2 stsb" in run.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_sweep_calibrates_once_and_ends_with_a_report(tmp_path: Path) -> None:
    words = (
        f"--output_dir={tmp_path}/out", "--sweep.method.rank=[4,8,16]", "--sweep.method.name=[astra,lora]",
        "--calibration.samples=16", "--train.max_steps=8", "--eval.limit=16", "--eval.base=false",
        "--train.forgetting=false",
    )  # fmt: skip
    run = run_script("demo", *words)
    assert run.returncode == 0, run.stderr[-2000:]
    assert len(list((tmp_path / "out").glob("calibration/*/manifest.json"))) == 1
    assert len(list((tmp_path / "out").glob("*/eval/arithmetic.json"))) == 6
    assert (tmp_path / "out/arithmetic-rank.png").is_file()
    again = run_script("demo", *words)
    assert again.returncode == 0 and "finished: nothing to do" in again.stderr


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_comparison_that_was_killed_ends_with_the_same_report(tmp_path: Path) -> None:
    def words(name: str) -> tuple[str, ...]:
        return (
            "--config=configs/compare-demo.yaml", f"--output_dir={tmp_path}/{name}", "--data.limit=64",
            "--calibration.samples=8", "--train.max_steps=2", "--train.forgetting=false", "--eval.engine=transformers",
            "--eval.limit=2", "--eval.max_new_tokens=8", "--eval.base=false", "--compare.max_runs=8",
        )  # fmt: skip

    variables = {**os.environ, "ASTRA_VENV": sys.prefix}
    script = ["bash", "scripts/demo/run.sh", *words("killed")]
    run = subprocess.Popen(script, cwd=ROOT, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list((tmp_path / "killed").glob("arm=*/metrics.json"))) < 2:
        assert run.poll() is None
        time.sleep(0.1)
    tree = psutil.Process(run.pid)
    for process in [tree, *tree.children(recursive=True)]:
        process.kill()
    run.wait()
    for name in ("killed", "undisturbed"):
        finished = run_script("demo", *words(name))
        assert finished.returncode == 0, finished.stderr[-2000:]
    tables = [(tmp_path / name / "results.csv").read_text(encoding="utf-8") for name in ("killed", "undisturbed")]
    first, second = (
        pd.read_csv(io.StringIO(table.replace(f"{tmp_path}/killed", f"{tmp_path}/undisturbed"))) for table in tables
    )
    timed = [name for name in first.columns if any(word in name for word in ("second", "memory"))]
    assert len(first) >= 2 and set(first["arm"]) >= {"lora", "tail"}
    pd.testing.assert_frame_equal(first.drop(columns=timed), second.drop(columns=timed))
