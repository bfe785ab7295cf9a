"""What docs/extending.md adds works as it is written there: a method, a data set, a benchmark and a loss."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from tests.runs import ROOT, folder_of, losses, metrics

ROOMS = ("astra", "dataset", "eval", "training", "utils", "calibrate.py", "train.py")


def apply(document: Path, tree: Path) -> None:
    """Make the changes that the diffs of a document show; every hunk must fit one place of its file."""
    for diff in re.findall(r"```diff\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL):
        for name, hunks in re.findall(r"^\+\+\+ b/(.*)\n((?:(?!--- ).*\n)*)", diff, re.MULTILINE):
            path = tree / name
            text = path.read_text(encoding="utf-8") if path.is_file() else ""
            for hunk in hunks.removeprefix("@@\n").split("@@\n"):
                lines = hunk.splitlines(keepends=True)
                old = "".join(line[1:] for line in lines if line[0] in " -")
                new = "".join(line[1:] for line in lines if line[0] in " +")
                assert not old or text.count(old) == 1, f"{name}: {old}"
                text = text.replace(old, new) if old else new
            path.write_text(text, encoding="utf-8")


def write_mirror(folder: Path) -> None:
    folder.mkdir(parents=True)
    for split, count in (("train", 700), ("test", 300)):
        said = {"Body": "Ann has some nuts.", "Question": "How many are two more?"}
        rows = [{**said, "Equation": f"( {k} + 2 )", "Answer": k + 2} for k in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_what_is_added_as_documented_trains_and_is_scored(config, tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ROOMS:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tree / name)
    apply(ROOT / "docs/extending.md", tree)
    write_mirror(tmp_path / "mirror/svamp")
    this = config(
        data={"train": "svamp", "dir": str(tmp_path / "mirror"), "limit": 8, "max_length": 128},
        train__forgetting=False, method__name="random", run="added",
        eval={"tasks": ["svamp"], "engine": "transformers", "limit": 2, "max_new_tokens": 4},
    )  # fmt: skip
    values = this.model_dump()
    values["train"]["label_smoothing"] = 0.1
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    for stage in (["train.py"], ["-m", "eval"]):
        command = [sys.executable, *stage, "--config", str(tmp_path / "config.yaml")]
        subprocess.run(command, cwd=tree, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    found = metrics(this)
    assert found["settings"]["train.label_smoothing"] == 0.1 and found["method"] == "random"
    assert losses(this)[-1] < losses(this)[0]
    assert json.loads((folder_of(this) / "eval/svamp.json").read_text(encoding="utf-8"))["n"] == 2
