"""Configurations, command lines and records that nobody would write, through the checks that every command calls.

Each is to pass, or to be refused in one line; `Tally.tracebacks` counts whatever else happened. Deterministic.
"""

import contextlib
import io
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from astra.errors import AstraError  # noqa: E402
from dataset.sources import check_training, load_splits  # noqa: E402
from scripts.preflight import preflight  # noqa: E402
from utils.cli import parse  # noqa: E402
from utils.config import Config, DataConfig, expand_sweep  # noqa: E402
from utils.errors import UserError  # noqa: E402
from utils.runs import run_folder  # noqa: E402

BASE: dict[str, Any] = {
    "model": {"name": "smollm2", "dtype": "float32"},
    "data": {"train": "arithmetic", "limit": 8, "general_text": "python-manual"},
    "method": {"name": "astra", "rank": 4},
    "train": {"max_steps": 2, "global_batch_size": 2},
    "eval": {"tasks": ["arithmetic"], "engine": "transformers", "limit": 2},
}
KEYS = [
    f"{name}.{key}" if hasattr(found.annotation, "model_fields") else name
    for name, found in Config.model_fields.items()
    for key in getattr(found.annotation, "model_fields", [name])
    if name != "output_dir"
]
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 3, 2**31, 2**63, 10**40, 0.5, 1e308, -0.0, float("nan"), float("inf"), "", " ", "a",
    "..", "../up", "../../etc/passwd", "/", "/dev/null", "a/b", "~", "x" * 5000, "\0", "a\0b", "\ud800", "é\u2028ü",
    "%s{}", "ladder", "smollm2", "lora", "rte", "[", ".*", "(", "2e-5", "null", [], [None], [[]], ["a", 1], ["q_proj"],
    {}, {"a": 1}, {"": None},
    {"method.rank": 1}, {"lora": {"method.name": "lora"}}, [1] * 50, "validation", "chat", "x.jsonl", "lm_eval/none",
]  # fmt: skip


@dataclass
class Tally:
    """What became of the cases: how many, how many were refused in one line, and all others that did not pass."""

    cases: int = 0
    refused: int = 0
    tracebacks: list[str] = field(default_factory=list)

    def run(self, case: str, check: Callable[[], object]) -> None:
        """Count one case; a refusal has to be one line that says where, before a colon, or what, in quotes."""
        self.cases += 1
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                check()
        except (UserError, AstraError) as error:
            self.refused += 1
            text = str(error)
            if text.strip().count("\n") or not any(mark in text for mark in (":", "'")):
                self.tracebacks.append(f"{case}: says {text!r}")
        except SystemExit as error:
            if error.code not in (0, 2):
                self.tracebacks.append(f"{case}: ends with {error.code}")
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            self.tracebacks.append(f"{case}: {type(error).__name__}: {error}")


def _each(count: int, strategy: st.SearchStrategy[Any], one: Callable[[Any], None]) -> None:
    """Call `one` with `count` examples; it notes what fails, so that nothing is shrunk or repeated."""
    limits = settings(
        max_examples=count, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    limits(given(strategy)(one))()


def fuzz_configs(count: int) -> Tally:
    """Mutated YAML files and command lines through `parse` and the preflight check; nothing else may be written."""

    def check(path: Path, argv: list[str]) -> None:
        config, _ = parse("usage", {"force": False}, ["--config", str(path), *argv])
        preflight(config)
        for run in expand_sweep(config):
            assert run_folder(run).parent == Path(config.output_dir), f"a run in {run_folder(run)}"

    return _mutate(count, check)


def fuzz_commands(count: int) -> Tally:
    """The same through the command line that checks an experiment, a process each: status 0, or 2 and one line."""

    def check(path: Path, argv: list[str]) -> None:
        words = [sys.executable, "-m", "scripts.preflight", "--config", str(path), *argv]
        try:
            ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        except (ValueError, UnicodeError):  # no word of a command line can hold this
            return
        said = [line for line in ended.stderr.splitlines() if "error: " in line]
        assert "Traceback" not in ended.stderr and ended.returncode in (0, 2), ended.stderr
        if ended.returncode == 2:
            assert len(said) == 1, ended.stderr
            raise UserError(said[0].partition("error: ")[2])

    return _mutate(count, check)


def _mutate(count: int, check: Callable[[Path, list[str]], None]) -> Tally:
    """Call `check` with mutated files of a config and words of a command line."""
    tally = Tally()
    key = st.sampled_from(
        [*KEYS, "train.learning_rte", "trian", "sweep.method.rank", "sweep.arm", "extends", "a.b.c", ""]
    )
    value = st.one_of(st.sampled_from(ODD), st.text(max_size=8), st.integers(), st.floats())
    edits = st.lists(st.tuples(key, value), min_size=1, max_size=3)
    words = st.lists(
        st.one_of(
            st.tuples(key, st.one_of(st.sampled_from(ODD), st.text(max_size=8))).map(lambda p: f"--{p[0]}={p[1]}"),
            st.sampled_from(["stray", "-", "--", "---", "--train", "--force=3", "-x", "--=1", "--a=", "--config"]),
            st.text(max_size=6),
        ),
        min_size=1, max_size=3,
    )  # fmt: skip
    holes = st.tuples(
        st.integers(0, 400),
        st.integers(0, 6),
        st.one_of(st.binary(max_size=4), st.text(max_size=6).map(lambda text: text.encode(errors="replace"))),
    )
    with tempfile.TemporaryDirectory() as place:
        folder, out = Path(place), Path(place) / "out"

        def one(case: tuple[str, Any]) -> None:
            kind, mutation = case
            values, argv = json.loads(json.dumps(BASE)), []
            if kind == "values":
                for dotted, new in mutation:
                    section, _, name = dotted.partition(".")
                    if name and isinstance(values.setdefault(section, {}), dict):
                        values[section][name] = new
                    else:
                        values[section] = new
            text = yaml.safe_dump(values, allow_unicode=False).encode("utf-8", errors="replace")
            head = f"output_dir: '{out}'\n".encode()  # which nothing below it can change
            if kind == "text":
                start, length, new = mutation
                text = text[:start] + new + text[start + length :]
            elif kind == "words":
                argv = mutation
            (folder / "config.yaml").write_bytes(head + text)
            shown = f"{kind} {mutation!r}"[:300]

            tally.run(shown, lambda: check(folder / "config.yaml", argv))
            if strangers := {path.name for path in folder.iterdir()} - {"config.yaml", "out"}:
                tally.tracebacks.append(f"{shown}: wrote {sorted(strangers)}")
                for name in strangers:
                    shutil.rmtree(folder / name, ignore_errors=True)

        cases = st.one_of(
            edits.map(lambda edit: ("values", edit)), words.map(lambda given: ("words", given)),
            holes.map(lambda hole: ("text", hole)),
        )  # fmt: skip
        _each(count, cases, one)
    return tally


def fuzz_records(count: int) -> Tally:
    """Mutated records and files of records through the check and the reading of a user's own data."""
    tally = Tally()

    def as_line(value: Any) -> bytes:
        return json.dumps(value).encode()

    leaf = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
        st.sampled_from(["", " ", "\0", "a\0b", "\ud800", "x" * 2**20, "\r", "\u2028", "nul\\l"]),
    )  # fmt: skip
    anything = st.recursive(
        leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    )
    row = st.dictionaries(st.sampled_from(["instruction", "output", "input", "messages", "id"]), anything, max_size=5)
    conversation = [{"role": "user", "content": "Add."}, {"role": "assistant", "content": "2"}]
    turns = st.just(conversation) | st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "x"]), "content": leaf}),
        max_size=4,
    )
    good = {"instruction": "Add 1 and 1.", "output": "2"}
    raw = st.sampled_from([
        b"{", b"[", b"null", b"3", b'"text"', b"[" * 100_000, b'{"a": ' * 100_000, b"1" * 5000, b"\xff\xfe{", b"\0",
        b"\xef\xbb\xbf", b'{"instruction": "a", "output": "b"} {"instruction"', b"\xed\xa0\x80", b"{'a': 1}", b"NaN",
    ])  # fmt: skip
    lines = st.lists(
        st.one_of(
            st.just(json.dumps(good).encode()), leaf.map(lambda x: {**good, "id": 1, "output": x}).map(as_line),
            leaf.map(lambda x: {**good, "instruction": x}).map(as_line), row.map(as_line),
            turns.map(lambda found: {"messages": found}).map(as_line), raw, st.binary(max_size=12),
        ),
        max_size=4,
    )  # fmt: skip
    form = st.tuples(
        lines, st.sampled_from([b"\n", b"\r\n", b"\r", b"\n\n"]), st.sampled_from([".jsonl", ".json", ".jsonl.gz"]),
        st.sampled_from(["utf-8", "utf-16", "latin-1"]), st.booleans(),
    )  # fmt: skip
    fields = [{"instruction": "instruction", "output": "output", "input": "input"}, {"messages": "messages"}]
    with tempfile.TemporaryDirectory() as place:

        def one(case: Any) -> None:
            import gzip

            found, end, ending, encoding, packed = case
            text = end.join([*found, b""])
            if encoding != "utf-8":
                text = text.decode("utf-8", errors="replace").encode(encoding, errors="replace")
            if ending.endswith("gz") and packed:
                text = gzip.compress(text, mtime=0)[: None if len(found) != 2 else -5]
            path = Path(place) / f"own{ending}"
            path.write_bytes(text)
            for names in fields:
                template = "chat" if "messages" in names else "alpaca"
                data = DataConfig.model_validate({"train": str(path), "fields": names, "template": template})

                def check(data: DataConfig = data) -> None:
                    check_training(data)
                    splits = load_splits(data)
                    json.dumps(splits.train, ensure_ascii=False).encode()  # as the cache of tokens does

                tally.run(f"{ending} {encoding} {text[:120]!r}", check)

        _each(count, form, one)
    return tally
