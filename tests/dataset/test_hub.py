"""Downloading: the hub's own library gets a repository from a server that stands in for the hub, once."""

import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from time import monotonic

import pytest

from dataset import converters
from dataset.catalog import DISTINCT, EVALUATION, TESTED_BY, TRAINING, Source
from dataset.prepare import prepare
from dataset.sources import load_evaluation
from utils.errors import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROWS = [
    {"instruction": f"question {i}", "output": f"answer {i}", "type": ("GSM_SV", "other")[i % 3 == 0]}
    for i in range(40)
]
WANTED = [row for row in ROWS if row["type"] == "GSM_SV"]
FILES = {
    f"metamath/{name}.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode()
    for name, rows in (("train-1", ROWS[:25]), ("train-2", ROWS[25:]))
} | {"python/train.jsonl": b"{}"}


class Repository(BaseHTTPRequestHandler):
    """The hub's answers for one data set; what is asked is noted, and files in `broken` are not given."""

    asked: list[str]
    broken: set[str]

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        self.asked.append(path)
        name = path.partition(f"/resolve/{COMMIT}/")[2]
        if "/tree/" in path:
            tree = [{"type": "file", "path": n, "size": len(d), "oid": f"oid {n}"} for n, d in FILES.items()]
            self.answer(json.dumps(tree).encode())
        elif path.startswith("/api/datasets/me/set"):
            self.answer(json.dumps({"id": "me/set", "sha": COMMIT, "siblings": []}).encode())
        elif name in FILES and name not in self.broken:
            self.answer(FILES[name], {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT})
        else:
            self.send_error(404)

    def answer(self, body, headers=()):
        self.send_response(200)
        for key, value in {"Content-Length": str(len(body)), **dict(headers)}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def caches(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture
def server(caches, monkeypatch):
    """The server's class, reachable as the hub; what follows is in its `asked`."""
    handler = type("Handler", (Repository,), {"asked": [], "broken": set()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    yield handler
    server.shutdown()


METAMATH = converters.instruction(converters.METAMATH_TYPES)


def source(count=26, task="metamath", role="train", convert=METAMATH):
    return Source(task, "me/set", convert, count, role, split="train", folder="metamath")


def test_a_download_is_filtered_counted_and_done_once(server, monkeypatch):
    assert list(source().records(None)) == WANTED
    assert not [path for path in server.asked if "python" in path]
    server.asked.clear()
    assert list(source().records(None)) == WANTED
    source().check(None)
    assert source().origin(None) == {"me/set": f"commit {COMMIT}"}
    assert not server.asked
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert list(source().records(None)) == WANTED


def test_an_interrupted_download_goes_on(server):
    server.broken.add("metamath/train-2.jsonl")
    with pytest.raises(UserError, match="data.train: metamath comes from me/set on the hub, which can't be read"):
        list(source().records(None))
    server.broken.clear()
    server.asked.clear()
    assert list(source().records(None)) == WANTED
    assert not [path for path in server.asked if "train-1" in path]


def test_a_wrong_count_and_a_strange_row_are_errors(server):
    with pytest.raises(UserError, match="data.train: metamath: me/set gave 26 records and is known to have 30"):
        list(source(30).records(None))
    with pytest.raises(UserError, match="me/set, train row 1: not a row of me/set as published"):
        list(source(convert=converters.gsm8k).records(None))


def test_what_came_from_the_hub_is_reported(server, monkeypatch):
    monkeypatch.setitem(TRAINING, "metamath", source())
    monkeypatch.setitem(EVALUATION, "gsm8k", source(task="gsm8k", role="test"))
    monkeypatch.setitem(TESTED_BY, "metamath", ("gsm8k",))
    found, origin = prepare("metamath"), {"me/set": f"commit {COMMIT}"}
    assert found["gsm8k test"] == {"records": 26, "origin": origin}
    held = {"gsm8k": 26, "any": 26}
    assert found["train"] == {
        "records": 26, "origin": origin, "contain_a_test_question": held, "share_13_words_with_a_test_question": held
    }  # fmt: skip


@pytest.mark.parametrize("act", [Source.check, lambda *given: list(Source.records(*given))])
@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_out_of_reach_is_one_line_and_soon(caches, act, offline, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    started = monotonic()
    with pytest.raises(UserError, match="data.train: metamath comes from fxmeng/pissa-dataset on the hub") as error:
        act(TRAINING["metamath"], None)
    assert "data.dir" in str(error.value) and "\n" not in str(error.value)
    assert monotonic() - started < 10


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("boolq", {"question": "is ice cold", "answer": True, "passage": "..."}),
        ("piqa", {"goal": "Open it", "sol1": "Pull.", "sol2": "Push.", "label": 1}),
        (
            "social_i_qa",
            {"context": "A.", "question": "Why?", "answerA": "x", "answerB": "y", "answerC": "z", "label": "2"},
        ),
        ("hellaswag", {"activity_label": "Run", "ctx": "He", "endings": ["a", "b", "c", "d"], "label": "1"}),
        ("winogrande", {"sentence": "The _ is.", "option1": "cat", "option2": "dog", "answer": "2"}),
        ("ARC-Easy", {"question": "Q?", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"}),
        ("openbookqa", {"question_stem": "Q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"}),
    ],
)
def test_the_hubs_commonsense_sets_take_the_form_of_the_mirrors(task, row):
    record = EVALUATION[task].convert(row)
    assert record["answer"] == {"boolq": "true", "piqa": "solution2", "hellaswag": "ending2"}.get(
        task, "option2" if task == "winogrande" else "answer2"
    )
    assert record["output"] == f"the correct answer is {record['answer']}"
    assert record["question"] in record["instruction"]


@pytest.mark.parametrize("task", ["piqa", "social_i_qa", "winogrande", "ARC-Easy", "openbookqa", "boolq"])
def test_their_prompts_are_the_mirrors_to_the_letter(mirror, task):
    """A row in the hub's form, taken apart from a prompt of the mirror, gives that prompt again."""
    for record in load_evaluation(task, mirror)[:50]:
        row = hub_row(task, record)
        assert EVALUATION[task].convert(row)["instruction"] == record["instruction"]


def hub_row(task, record):
    body = re.search(r"(?:question|sentence): (.*?)(?:\n\n| )Answer format", record["instruction"], re.DOTALL)[1]
    if task == "boolq":
        return {"question": body.removesuffix("?"), "answer": True}
    word = {"piqa": "Solution", "winogrande": "Option"}.get(task, "Answer")
    parts = re.split(rf"{word}\d: ", body)
    gap = "\n\n" if task == "piqa" else " "
    options = [part.removesuffix(gap) for part in parts[1:-1]] + [parts[-1]]
    question = parts[0].removesuffix("\n\n")
    if task == "piqa":
        return {"goal": question, "sol1": options[0], "sol2": options[1], "label": 0}
    if task == "winogrande":
        return {"sentence": question, "option1": options[0], "option2": options[1], "answer": "1"}
    if task == "social_i_qa":
        context, asked = question.rsplit(". ", 1) if ". " in question else question.split(" ", 1)
        context = f"{context}." if ". " in question else context
        answers = dict(zip(("answerA", "answerB", "answerC"), options, strict=True))
        return {"context": context, "question": asked, **answers, "label": "1"}
    letters = "ABCDE"[: len(options)]
    choices = {"text": options, "label": list(letters)}
    return {"question": question, "question_stem": question, "choices": choices, "answerKey": "A"}


def test_the_table_names_each_hub_set_once():
    for sources in (TRAINING.values(), [EVALUATION[name] for name in DISTINCT]):
        seen = [(s.repository, s.configs, s.folder, s.split) for s in sources]
        assert len(seen) == len(set(seen))
