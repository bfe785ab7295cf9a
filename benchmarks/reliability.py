"""Try to break an experiment, and count: kills, lost processes, damaged files, odd configurations and records.

    python benchmarks/reliability.py --kills=40 --terms=10 --ranks --files --memory \\
        --configs=2000 --commands=50 --records=2000

What is not asked for is not run: its figures are those of the file --out, or null. A trial of the kills is noted as
it ends: started again with the same folder, or the same --out, the campaign goes on with the next; Ctrl-C ends it
early. The last line is one JSON object; in it

    kills, kills_survived        trials, and those that the same command then brought to the undisturbed result
    rank_failures, .._stopped    one of two processes killed or raising, and the other stopped within 30 s naming it
    files_damaged, damage_detected   files times kinds of damage, and those that the next reader named
    configs_fuzzed, commands_fuzzed, records_fuzzed, tracebacks   cases, the second through the command lines
                                 themselves, and all that neither passed nor was refused in one line
    unsafe_loads                 pickles that were loaded, or not refused by name, where a run or an adapter is read
    memory_estimate_error        largest error of the memory that --dry-run states, relative to what was measured
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.provenance import provenance  # noqa: E402
from utils.files import read_lines, read_record  # noqa: E402
from utils.runs import commit  # noqa: E402

SECONDS_TO_STOP = 30

WATCH = """
import os, signal
def watched(rename):
    def renamed(source, target, **options):
        rename(source, target, **options)
        if not str(target).startswith(os.environ["OUT"]):
            return
        with open(os.environ["RENAMES"], "a+") as log:
            log.write(f"{target}\\n")
            log.seek(0)
            if sum(1 for _ in log) == int(os.environ["KILL_AFTER"]):
                os.kill(os.getppid(), signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)
    return renamed
os.replace, os.rename = watched(os.replace), watched(os.rename)
"""  # every Python process imports it first: it notes what is renamed in the folder, and can end there


def command(config: Path, out: Path, renames: Path, kill_after: int = 0) -> subprocess.Popen[bytes]:
    """Start an experiment from its config, its messages in `<out>.log`; `renames` lists what it wrote."""
    words = ["bash", "scripts/demo/run.sh", f"--config={config}", f"--output_dir={out}"]
    watch = out.parent / "watch"
    watch.mkdir(exist_ok=True)
    (watch / "sitecustomize.py").write_text(WATCH, encoding="utf-8")
    renames.write_text("", encoding="utf-8")
    told = {"OUT": str(out), "RENAMES": str(renames), "KILL_AFTER": str(kill_after), "PYTHONPATH": str(watch)}
    with open(out.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(
            words, cwd=ROOT, env={**os.environ, "ASTRA_VENV": sys.prefix, **told}, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip


def result(out: Path) -> dict[str, Any]:
    """What two runs of an experiment have in common: calibration, losses, adapter and texts."""
    stores = {path.name: path.read_bytes() for path in out.glob("calibration/*/*.safetensors")}
    losses = [line["loss"] for path in out.glob("*/metrics.jsonl") for line in read_lines(path) if "loss" in line]
    adapter = {path: load_file(path) for path in out.glob("*/lora/*.safetensors")}
    texts = {
        line["key"]: line["made"]
        for path in out.glob("*/eval/*.texts.jsonl")
        for line in map(json.loads, path.read_text(encoding="utf-8").splitlines())
        if "key" in line
    }
    return {"stores": stores, "losses": losses, "adapter": next(iter(adapter.values()), {}), "texts": texts}


def differs(found: dict[str, Any], whole: dict[str, Any]) -> str | None:
    """The first thing in which a result differs from that of an undisturbed run."""
    if found["stores"] != whole["stores"]:
        return "the calibration has other bytes"
    if len(found["losses"]) != len(whole["losses"]):
        return f"{len(found['losses'])} steps, not {len(whole['losses'])}"
    if max(abs(a - b) for a, b in zip(found["losses"], whole["losses"], strict=True)) > 1e-4:
        return "other losses"
    left, right = _products(found["adapter"]), _products(whole["adapter"])
    if left.keys() != right.keys() or any(not left[k].allclose(right[k], atol=1e-4, rtol=1e-3) for k in left):
        return "another adapter"
    return "other texts" if found["texts"] != whole["texts"] else None


def _products(adapter: dict[str, Any]) -> dict[str, Any]:
    """Each layer's B A: its factors may be turned against each other."""
    return {
        key: adapter[key.replace("lora_A", "lora_B")] @ factor for key, factor in adapter.items() if "lora_A" in key
    }


def end(process: subprocess.Popen[bytes], sent: signal.Signals) -> None:
    """SIGKILL takes all that the script has started, as a machine that fails does; SIGTERM asks the script alone."""
    told = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(sent)
    for child in told if sent == signal.SIGKILL else ():
        child.kill()
    process.wait()
    psutil.wait_procs(told)


# What is written once and never again: a layer's decomposition, the results of the stages.
ONCE = re.compile(r"calibration/[^/]+/(\.progress/[^/]+/)?manifest\.json|[^/]+/metrics\.json|[^/]+/eval/[^/]+\.json")


@dataclass(frozen=True)
class Whole:
    """An undisturbed run: its seconds, how many files it put in place, and its result."""

    seconds: float
    renames: int
    result: dict[str, Any]


def undisturbed(config: Path, work: Path) -> Whole:
    """Make the run that all others are compared with, once."""
    work.mkdir(parents=True, exist_ok=True)
    out, timing = work / "whole", work / "whole.json"
    if not timing.is_file():
        shutil.rmtree(out, ignore_errors=True)
        started, log = time.monotonic(), work / "whole.renames"
        if command(config, out, log).wait():
            raise SystemExit(f"the undisturbed run failed: see {out.with_suffix('.log')}")
        count = len(log.read_text(encoding="utf-8").splitlines())
        timing.write_text(json.dumps([time.monotonic() - started, count]), encoding="utf-8")
    seconds, renames = json.loads(timing.read_text(encoding="utf-8"))
    return Whole(seconds, renames, result(out))


def kill_trial(config: Path, work: Path, whole: Whole, moment: float, sent: str) -> str | None:
    """Stop an experiment at some share of its seconds, or of its renames, and start it again.

    Args:
        sent: "SIGKILL" or "SIGTERM" after so many seconds; "rename": SIGKILL right after a file was put in place.

    Returns:
        What is wrong with its end, or None.
    """
    out, logs = work / "killed", [work / "first.renames", work / "second.renames"]
    shutil.rmtree(out, ignore_errors=True)
    after = 1 + int(moment * whole.renames) if sent == "rename" else 0
    process = command(config, out, logs[0], after)
    try:
        process.wait(timeout=None if after else moment * whole.seconds)
    except subprocess.TimeoutExpired:
        end(process, signal.Signals[sent])
    if status := command(config, out, logs[1]).wait():
        return f"ended with {status}: {out.with_suffix('.log').read_text(errors='replace').splitlines()[-1:]}"
    first, second = (set(log.read_text(encoding="utf-8").splitlines()) for log in logs)
    again = sorted(path for path in first & second if ONCE.fullmatch(os.path.relpath(path, out)))
    return f"{again[0]} was made again" if again else differs(result(out), whole.result)


def kills(
    config: Path, work: Path, count: int, terms: int, known: Sequence[dict[str, Any]] = ()
) -> list[dict[str, Any]]:
    """Kill experiments at moments spread over their length, and let them end; Ctrl-C ends the campaign early.

    Every fourth SIGKILL comes right after a file was put in place. A trial is noted as it ends; `known` are those of
    an earlier campaign, which goes on with the others.
    """
    whole, notes = undisturbed(config, work), work / "trials.jsonl"
    trials = {line["trial"]: line for line in [*known, *read_lines(notes)]}
    with suppress(KeyboardInterrupt):
        for trial in random.Random(0).sample(range(count + terms), count + terms):
            if trial in trials:
                continue
            number, of = (trial, count) if trial < count else (trial - count, terms)
            sent = "SIGTERM" if trial >= count else "rename" if trial % 4 == 3 else "SIGKILL"
            moment = (number + random.Random(trial).random()) / of
            wrong = kill_trial(config, work, whole, moment, sent)
            about = {"seconds": round(whole.seconds, 1), "wrong": wrong, "commit": commit()}
            trials[trial] = {"trial": trial, "signal": sent, "moment": round(moment, 3), **about}
            with open(notes, "a", encoding="utf-8") as file:
                file.write(json.dumps(trials[trial]) + "\n")
            print(json.dumps(trials[trial]), flush=True)
    return [trials[trial] for trial in sorted(trials) if trial < count + terms]


def memory_error(config: Path, work: Path) -> float:
    """The largest error of the memory that --dry-run states, relative to what the undisturbed run's stages took."""
    undisturbed(config, work)
    whole = work / "whole"
    words = [sys.executable, "-m", "scripts.preflight", "--config", str(config), f"--output_dir={whole}", "--costs"]
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stderr
    stated = {stage: float(size) * 2**30 for stage, size in re.findall(r"(\w+) ([0-9.]+) GiB", said)}
    taken = {path.stem: read_record(path)["peak_memory_bytes"] for path in whole.glob("**/stages/*.json")}
    return max(abs(stated[stage] / taken[stage] - 1) for stage in ("calibrate", "train"))


DRIVER = """
import os, runpy, sys, time
sys.path.insert(0, os.getcwd())
kind, script = sys.argv[1:3]
sys.argv = sys.argv[2:]
def lost(*args, **kwargs):
    if os.environ["RANK"] == "1":
        print("lost", time.time(), flush=True)
        if kind == "raises":
            raise RuntimeError("a fault in the middle")
        os.kill(os.getpid(), 9)
    return whole(*args, **kwargs)
if script == "train.py":
    from training.trainer import RunTrainer
    whole, RunTrainer.training_step = RunTrainer.training_step, lost
else:
    from astra import calibration
    whole, calibration._decompose = calibration._decompose, lost
runpy.run_path(script, run_name="__main__")
"""


def rank_trial(config: Path, script: str, kind: str, work: Path) -> str | None:
    """Lose the second of two processes in the middle of a stage; what the first did wrong, or None."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "driver.py").write_text(DRIVER, encoding="utf-8")
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words += ["--shutdown-timeout", "110", "--", str(work / "driver.py"), kind, script, "--config", str(config)]
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600)
    ended, lost = time.time(), [line.split()[1] for line in run.stdout.splitlines() if line.startswith("lost")]
    if not lost:
        return f"never came to the fault: {run.stderr[-300:]}"
    if run.returncode == 0:
        return "ended as if nothing had happened"
    if ended - float(lost[0]) > SECONDS_TO_STOP:
        return f"took {ended - float(lost[0]):.0f} s to stop"
    cause = "a fault in the middle" if kind == "raises" else "SIGKILL"
    named = cause in run.stderr and ("rank      : 1" in run.stderr or "(process 1)" in run.stderr)
    return None if named else f"did not name rank and cause: {run.stderr[-600:]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/reliability.yaml"))
    parser.add_argument("--work", type=Path, default=Path("outputs/reliability-campaign"))
    for name in ("kills", "terms", "configs", "commands", "records"):
        parser.add_argument(f"--{name}", type=int, default=0)
    parser.add_argument("--ranks", action="store_true", help="lose a process in calibration and in training")
    parser.add_argument("--files", action="store_true", help="damage every file in every way, and place pickles")
    parser.add_argument("--memory", action="store_true", help="compare the memory that is stated with what is taken")
    parser.add_argument("--out", type=Path, help="also write the JSON object to this file, and docs/reliability.md")
    given = parser.parse_args()
    found = json.loads(given.out.read_text(encoding="utf-8")) if given.out and given.out.is_file() else {}
    found = campaign(given, found)
    if given.out:
        given.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        (ROOT / "docs" / "reliability.md").write_text(page(found), encoding="utf-8")
    print(json.dumps(found))


def page(found: dict[str, Any]) -> str:
    """Return docs/reliability.md: what was tried, how often, and what came of it."""
    rows = [
        ("killed at a random moment and started again with the same command", "kills", "kills_survived"),
        ("one of two processes killed, or raising, in calibration and in training", "rank_failures",
         "rank_failures_stopped"),
        ("a file that a later command reads truncated, one bit flipped, emptied, made a folder or unreadable",
         "files_damaged", "damage_detected"),
    ]  # fmt: skip
    lines = [f"| {what} | {found[tried]} | {found[good]} |" for what, tried, good in rows if found[tried] is not None]
    for name in ("configs", "commands", "records"):
        if (count := found[f"{name}_fuzzed"]) is not None:
            lines.append(f"| mutated {name}, each to pass or to be refused in one line | {count} | |")
    left = [what for what, tried, _ in rows if found[tried] is None]
    wrong = [f"- {part}: {' '.join(line.split())[:300]}" for part, p in found["parts"].items() for line in p["wrong"]]
    ran: dict[tuple[str, ...], list[str]] = {}
    for name, part in found["parts"].items():
        ran.setdefault((f"`{part['command']}`", part["commit"], part["machine"]), []).append(name)
    commands = [f"| {' | '.join((', '.join(names), *how))} |" for how, names in ran.items()]
    return "\n".join([
        "# Reliability", "",
        "Written by `benchmarks/reliability.py --out=benchmarks/results/reliability.json`, which ran what it claims.",
        "The experiment is that of the named config; `config.yaml`, files and lost processes are those of a random",
        "Llama of two layers.",
        "", "| tried | times | came out well |", "|---|---|---|", *lines, "",
        f"Tracebacks among the mutated ones: {found['tracebacks']}. Kills came as "
        f"{', '.join(f'{count} {name}' for name, count in found.get('kills_by_signal', {}).items()) or 'nothing'}.",
        "", "| parts | command | commit | machine |", "|---|---|---|---|", *commands, "",
        f"Pickles loaded of those placed in a run and an adapter folder: {_known(found['unsafe_loads'], 'd')}.",
        f"Largest error of the memory that `--dry-run` states: {_known(found['memory_estimate_error'], '.0%')}.", "",
        f"Not run: {'; '.join(left) or 'nothing of the above'}.",
        "", "What went wrong:" if wrong else "Nothing went wrong.", *wrong, "",
        *(part["found"] for part in found["parts"].values() if "found" in part), "",
    ])  # fmt: skip


def _known(value: float | None, form: str) -> str:
    return "not measured" if value is None else f"{value:{form}}"


def campaign(given: argparse.Namespace, before: dict[str, Any]) -> dict[str, Any]:
    """Run what was asked for and return the figures, those of `before` where a part was not asked for."""
    from benchmarks.damage import damage_files, loaded_pickles, make_finished
    from benchmarks.fuzz import fuzz_commands, fuzz_configs, fuzz_records

    work = given.work.absolute()
    keys = (
        "kills", "kills_survived", "rank_failures", "rank_failures_stopped", "files_damaged", "damage_detected",
        "configs_fuzzed", "commands_fuzzed", "records_fuzzed", "tracebacks", "unsafe_loads", "memory_estimate_error",
    )  # fmt: skip
    found: dict[str, Any] = {**dict.fromkeys(keys), "parts": {}, **before}

    def note(part: str, wrong: list[str], **figures: Any) -> None:
        found.update(figures)
        found["parts"][part] = {**provenance(given.config.name, "arithmetic"), "wrong": wrong}

    if given.kills or given.terms:
        known = found["parts"].get("kills", {}).get("trials", ())
        trials = kills(given.config, work, given.kills, given.terms, known)
        signals = Counter(trial["signal"] for trial in trials)
        survived = sum(trial["wrong"] is None for trial in trials)
        wrong = [str(trial) for trial in trials if trial["wrong"]]
        commits = sorted({str(trial["commit"]) for trial in trials})
        note("kills", wrong, kills=len(trials), kills_survived=survived, kills_by_signal=dict(signals))
        # The commits are those of the trials, whenever the campaign is resumed.
        found["parts"]["kills"] |= {"commit": ", ".join(commits), "trials": trials}
    if given.memory:
        note("memory", [], memory_estimate_error=memory_error(given.config, work))
    if given.ranks or given.files:
        config, path = make_finished(work / "finished")
    if given.ranks:
        said = {}
        for script in ("calibrate.py", "train.py"):
            for kind in ("killed", "raises"):
                shutil.rmtree(work / "ranks", ignore_errors=True)
                (work / "ranks").mkdir(parents=True)
                ranks = work / "ranks" / "config.yaml"
                out = work / "ranks" / "out"
                if script == "train.py":
                    shutil.copytree(Path(config.output_dir) / "calibration", out / "calibration")
                text = path.read_text(encoding="utf-8").replace(str(config.output_dir), str(out))
                ranks.write_text(text, encoding="utf-8")
                said[f"{script} {kind}"] = rank_trial(ranks, script, kind, work / "ranks")
                print(script, kind, said[f"{script} {kind}"], flush=True)
        wrong = [f"{case}: {what}" for case, what in said.items() if what]
        note("ranks", wrong, rank_failures=len(said), rank_failures_stopped=len(said) - len(wrong))
    if given.files:
        damage = damage_files(config)
        note("files", damage.missed, files_damaged=damage.damaged, damage_detected=damage.detected)
        loaded = loaded_pickles(config)
        note("pickles", loaded, unsafe_loads=len(loaded))
    for name, fuzz in (("configs", fuzz_configs), ("commands", fuzz_commands), ("records", fuzz_records)):
        if count := getattr(given, name):
            tally = fuzz(count)
            note(name, tally.tracebacks, **{f"{name}_fuzzed": tally.cases})
    odd = [len(found["parts"][part]["wrong"]) for part in ("configs", "commands", "records") if part in found["parts"]]
    return {**found, "tracebacks": sum(odd) if odd else None}


if __name__ == "__main__":
    main()
