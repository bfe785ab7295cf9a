"""Records: intervals, texts apart from verdicts, resuming, comparing and showing."""

import shutil
import subprocess
import sys

import pytest

from eval import compare, show
from eval.engines import Output, Pair, Prompt, Sampling, Score
from eval.intervals import interval, mcnemar, wilson
from eval.task_record import TaskRecord, changes, find_samples, paired_samples, same
from utils.errors import UserError
from utils.files import read_lines

ABOUT = {"name": "fake"}
FIRST, SECOND = (Prompt(text, Sampling(8)) for text in ("one", "two"))


def record(folder, task="gsm8k", model="abc", **settings):
    return TaskRecord(folder, task, {"model": model, **settings}, {"model": model})


def output(text):
    return [Output(text, 3, "stop")]


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(5, 10, 0.2366, 0.7634), (0, 8, 0.0, 0.3244), (8, 8, 0.6756, 1.0), (646, 1319, 0.4629, 0.5168), (0, 0, 0, 1)],
)
def test_wilson_intervals(right, n, low, high):
    assert wilson(right, n) == pytest.approx([low, high], abs=1e-4)


def test_what_was_made_is_read_back(tmp_path):
    pair = Pair((1,), (2, 3))
    found = {FIRST.key: (output("a\nä\u2028"), 1.5), pair.key: (Score(-1.5, 2, True), 0.5)}
    for request in (FIRST, pair):
        record(tmp_path).add(request, *found[request.key], ABOUT)
    assert record(tmp_path).made == found


def test_a_torn_last_line_is_dropped_and_written_over(tmp_path):
    first = record(tmp_path)
    first.add(FIRST, output("whole"), 1.0, ABOUT)
    with open(first.texts, "ab") as file:
        file.write('{"key": "x", "made": [{"text": "ä'.encode()[:-1])
    later = record(tmp_path)
    assert later.made.keys() == {FIRST.key}
    later.add(SECOND, output("again"), 1.0, ABOUT)
    assert record(tmp_path).made.keys() == {FIRST.key, SECOND.key}


def test_answers_under_other_settings_stay_and_are_not_mixed(tmp_path):
    engines = {"a": {"name": "vllm"}, "b": {"name": "transformers"}}
    for model, engine in engines.items():
        record(tmp_path, model=model).add(FIRST, output(f"{model}'s"), 1.0, engine)
    for model, engine in engines.items():
        made = record(tmp_path, model=model)
        assert made.made[FIRST.key][0] == output(f"{model}'s") and made.engine == engine
    assert record(tmp_path, model="c").made == {}


def test_what_an_earlier_version_made_without_noting_the_tokenizer_serves_any(tmp_path):
    record(tmp_path).add(FIRST, output("first"), 1.0, ABOUT)
    now = TaskRecord(tmp_path, "gsm8k", {}, {"model": "abc", "tokenizer": "t"})
    assert now.made.keys() == {FIRST.key}
    now.add(SECOND, output("second"), 1.0, ABOUT)
    assert TaskRecord(tmp_path, "gsm8k", {}, now.deciding | {"tokenizer": "u"}).made.keys() == {FIRST.key}
    assert not same({"model": "a"}, {"model": "b", "tokenizer": "t"})


def test_another_form_is_refused(tmp_path):
    (tmp_path / "gsm8k.texts.jsonl").write_text('{"format": 99, "settings": {}, "engine": {}}\n')
    with pytest.raises(UserError, match=r"gsm8k\.texts\.jsonl: written by another version; redo it with --force"):
        _ = record(tmp_path).made
    (tmp_path / "gsm8k.json").write_text("{}")
    with pytest.raises(UserError, match=r"gsm8k\.json: written by another version"):
        record(tmp_path).earlier()


def interrupt(*_):
    raise KeyboardInterrupt


def test_a_result_says_what_it_was_made_under_and_samples_are_read_back_whatever_they_hold(tmp_path, monkeypatch):
    done = record(tmp_path, task="lm_eval/mmlu", limit=3)
    assert done.earlier() is None
    samples = [{"problem": 0, "output": "a\u2028b\u2029c\x85d\x0b\ne"}, {"problem": 1, "output": ""}]
    result = done.complete({"n": 1}, samples)
    assert result["settings"] == {"model": "abc", "limit": 3} and done.earlier() == result
    assert read_lines(tmp_path / "lm_eval-mmlu.samples.jsonl") == samples
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("eval.task_record.write_record", interrupt)
        done.complete({"n": 2}, samples[:1])
    assert done.earlier() is None  # and not a result of other samples, damaged
    done.add(FIRST, output("a"), 1.0, ABOUT)
    done.clear()
    assert list(tmp_path.iterdir()) == []


def test_intervals_are_over_problems():
    assert interval([1, 0, 0, 1]) == wilson(2, 4)
    low, high = interval([0.5] * 80 + [0.25, 0.75] * 10)
    assert 0.45 < low < 0.5 < high < 0.55, "narrower than if each problem were one trial"
    assert interval([0.5, 0.25]) == interval([0.5, 0.25]) and interval([]) == [0, 1]


def test_changes_name_added_and_removed_settings():
    assert changes({"a": 1, "b": 2}, {"b": 3, "c": 4}) == "a: 1 -> None, b: 2 -> 3, c: None -> 4"


def test_mcnemar_counts_only_where_the_two_disagree():
    assert [mcnemar(0, 0), mcnemar(1, 9), mcnemar(5, 5)] == [1.0, pytest.approx(2 * 11 / 1024), 1.0]


def finish(folder, correct, data="d", **settings):
    done = TaskRecord(folder / "eval", "gsm8k", {"data": data, **settings}, {})
    samples = [{"problem": k, "sample": 0, "correct": value, "output": f"o{k}"} for k, value in enumerate(correct)]
    done.complete({}, samples)
    return done.path("samples.jsonl")


@pytest.fixture
def printed(monkeypatch, capsys):
    """Runs `eval.show` or `eval.compare` and returns what it prints."""

    def run(module, *words):
        monkeypatch.setattr("sys.argv", ["command", *map(str, words)])
        module.command()
        return capsys.readouterr().out

    return run


def test_comparing_is_paired(tmp_path, printed):
    right = [k < 50 for k in range(100)]
    places = [finish(tmp_path / "a", right), finish(tmp_path / "b", [k < 60 for k in range(100)])]
    line = printed(compare, *places)
    assert line.startswith("gsm8k: A 50.0%, B 60.0% of 100; B - A = +10.0 points [+")
    assert line.endswith("only A right 0, only B 10, McNemar p = 0.00195\n")
    assert "+0.0 points [+0.0, +0.0]" in printed(compare, places[0], finish(tmp_path / "c", right))


def test_other_problems_are_not_paired(tmp_path, printed):
    first, second = finish(tmp_path / "a", [True, False, True]), finish(tmp_path / "b", [True, True, True])
    assert list(paired_samples(tmp_path / "a", second)) == [("gsm8k", first, second)]
    assert "B - A = +33.3 points" in printed(compare, first, second)
    finish(tmp_path / "c", [True])
    finish(tmp_path / "d", [True, False, True], data="other")
    second.with_name("gsm8k.json").unlink()
    for other in (shutil.copy(second, tmp_path), first):  # bare copies, and a copy beside its result
        assert "other settings" not in printed(compare, second, other)
    second.rename(second.with_name("math.samples.jsonl"))
    for name, said in ("c", "not the same problems"), ("d", "not the same problems"), ("b", "no task in common"):
        with pytest.raises(UserError, match=said):
            printed(show, "--flipped", tmp_path / "a", tmp_path / name)


def test_comparing_says_which_settings_differ(tmp_path, printed):
    first = finish(tmp_path / "a", [True, False], grader="exact", adapter="x")
    second = finish(tmp_path / "b", [True, True], grader="exact", adapter="y")
    assert "other settings" not in printed(compare, first, second)
    third = finish(tmp_path / "c", [True, True], grader="metamath")
    assert "A and B were made under other settings (grader: exact -> metamath)" in printed(compare, first, third)


def test_samples_without_a_verdict_are_not_compared_and_not_shown_as_wrong(tmp_path, printed):
    scores = finish(tmp_path, [None, None])
    with pytest.raises(UserError, match="not right or wrong"):
        printed(compare, scores, scores)
    assert printed(show, tmp_path, "--wrong") == "" and "#1" in printed(show, tmp_path)


def test_samples_are_found_by_run_folder_eval_folder_or_file(tmp_path):
    path = finish(tmp_path, [True])
    for place in (tmp_path, tmp_path / "eval", path):
        assert find_samples(place) == {"gsm8k": path}
    with pytest.raises(UserError, match="no samples of 'math'; there are: gsm8k"):
        find_samples(tmp_path, "math")
    (tmp_path / "eval" / "gsm8k.texts.jsonl").write_text("")
    for place in (tmp_path / "nothing", tmp_path / "eval" / "gsm8k.texts.jsonl"):
        with pytest.raises(UserError, match="no samples here"):
            find_samples(place)


def test_samples_are_selected_and_rendered(tmp_path, printed):
    path = finish(tmp_path, [k % 2 == 0 for k in range(6)])
    wrong = printed(show, path, "--wrong", "--limit", 2)
    assert [f"#{k}" in wrong for k in range(6)] == [False, True, False, True, False, False]
    right = printed(show, path, "--right")
    assert [f"#{k}" in right for k in range(6)] == [True, False] * 3
    text = show.render("gsm8k", {**read_lines(path)[1], "prompt": "How many?", "gold": "0"})
    for part in ("gsm8k #1", "WRONG", "| How many?", "> o1", "gold: 0"):
        assert part in text


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    path = finish(tmp_path, [True] * 3000)
    words = [sys.executable, "-m", "eval.show", path, "--limit", "3000"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    process.wait()


def test_what_one_run_solves_and_the_other_does_not(tmp_path, printed):
    finish(tmp_path / "a", [True, False, True, False])
    finish(tmp_path / "b", [True, True, False, False])
    text = printed(show, "--flipped", tmp_path / "a", tmp_path / "b")
    assert "gsm8k: A alone is right 1 times, B alone 1 times" in text
    assert "#1  only B is right" in text and "#2  only A is right" in text and "#0" not in text


def test_no_text_steers_a_terminal():
    text = show.render("gsm8k", {"problem": 0, "correct": False, "output": "a\x1b[2Jb\x07\x9b31m", "note": "\x1b]0;x"})
    assert all(c.isprintable() or c == "\n" for c in text) and "a\\x1b[2Jb\\x07" in text


def test_a_verdict_that_another_grader_sees_otherwise_is_shown():
    graders = {"exact": {"correct": False}, "metamath": {"correct": True}}
    assert "metamath: right" in show.render("math", {"problem": 0, "correct": False, "graders": graders})
