"""Records: intervals, settings that guard them, resuming, comparing and showing."""

import pytest

from eval.compare import compare, compare_files, mcnemar, settings_differ
from eval.show import render, select
from eval.task_record import TaskRecord, changes, find_samples, read_samples, wilson
from utils.errors import UserError

SETTINGS = {"model": "abc", "limit": 3}


def record(folder, **settings):
    return TaskRecord(folder, "gsm8k", {**SETTINGS, **settings})


@pytest.mark.parametrize(
    ("accuracy", "n", "low", "high"),
    [
        (0.5, 10, 0.2366, 0.7634),
        (0.0, 8, 0.0, 0.3244),
        (1.0, 8, 0.6756, 1.0),
        (0.49, 1319, 0.4631, 0.5170),
        (0, 0, 0, 1),
    ],
)
def test_wilson_intervals(accuracy, n, low, high):
    assert wilson(accuracy, n) == pytest.approx((low, high), abs=1e-4)


def test_what_was_made_before_an_interruption_is_kept(tmp_path):
    with record(tmp_path).open({}) as writer:
        writer.add(2, [{"text": "b"}], 1.5)
        writer.add(0, [{"text": "a\nä\u2028"}], 2.5)
    later = record(tmp_path)
    kept = later.resume()
    assert kept == {2: [{"text": "b"}], 0: [{"text": "a\nä\u2028"}]}
    assert later.seconds == 2.5


def test_a_torn_last_line_is_dropped_and_written_over(tmp_path):
    first = record(tmp_path)
    with first.open({}) as writer:
        writer.add(0, ["whole"], 1.0)
    with open(first.partial_path, "a") as file:
        file.write('{"problem": 1, "seconds": 2, "ma')
    later = record(tmp_path)
    with later.open(later.resume()) as writer:
        writer.add(1, ["again"], 3.0)
    assert record(tmp_path).resume() == {0: ["whole"], 1: ["again"]}


def test_what_was_made_under_other_settings_is_started_over(tmp_path, caplog):
    with record(tmp_path).open({}) as writer:
        writer.add(0, ["old"], 1.0)
    assert record(tmp_path, limit=5).resume() == {}
    assert not record(tmp_path).partial_path.exists()


def test_a_finished_record_of_other_settings_says_what_changed(tmp_path):
    done = record(tmp_path)
    done.complete({"task": "gsm8k", "settings": done.settings}, [{"problem": 0}])
    assert record(tmp_path).finished()["task"] == "gsm8k"
    with pytest.raises(UserError, match=r"gsm8k\.json: made under other settings \(limit: 3 -> 5\).*--force"):
        record(tmp_path, limit=5).finished()
    record(tmp_path).clear()
    assert record(tmp_path, limit=5).finished() is None


def test_completing_removes_the_partial_file(tmp_path):
    done = record(tmp_path)
    done.open({}).file.close()
    done.complete({"settings": done.settings}, [{"problem": 0}, {"problem": 1}])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gsm8k.json", "gsm8k.samples.jsonl"]
    assert [sample["problem"] for sample in read_samples(done.samples_path)] == [0, 1]


def test_changes_name_added_and_removed_settings():
    assert changes({"a": 1, "b": 2}, {"b": 3, "c": 4}) == "a: 1 -> None, b: 2 -> 3, c: None -> 4"


def test_a_malformed_samples_file_names_its_line(tmp_path):
    path = tmp_path / "x.samples.jsonl"
    path.write_text('{"problem": 0}\n{oops\n')
    with pytest.raises(UserError, match=r"x\.samples\.jsonl:2: not JSON"):
        read_samples(path)


def test_samples_are_read_back_whatever_they_hold(tmp_path):
    done = record(tmp_path)
    samples = [{"problem": 0, "output": "a\u2028b\u2029c\x85d\x0b\ne"}, {"problem": 1, "output": ""}]
    done.complete({"settings": done.settings}, samples)
    assert read_samples(done.samples_path) == samples


def test_mcnemar_counts_only_where_the_two_disagree():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(1, 9) == pytest.approx(2 * 11 / 1024)
    assert mcnemar(5, 5) == 1.0


def test_compare_is_paired():
    first, second = [1.0] * 50 + [0.0] * 50, [1.0] * 60 + [0.0] * 40
    found = compare(first, second)
    assert (found["a"], found["b"], found["only_a"], found["only_b"]) == (0.5, 0.6, 0, 10)
    assert found["difference"] == pytest.approx(0.1)
    assert 0.03 < found["interval"][0] < 0.1 < found["interval"][1] < 0.18
    assert found["p"] == pytest.approx(2 / 1024)
    assert compare(first, first)["interval"] == [0, 0]
    assert compare(first, second) == found
    assert "p" not in compare([0.5], [1.0])


def finish(folder, correct, data="d", **settings):
    done = TaskRecord(folder / "eval", "gsm8k", {"data": data, **settings})
    samples = [{"problem": k, "sample": 0, "correct": value, "output": f"o{k}"} for k, value in enumerate(correct)]
    done.complete({"settings": done.settings}, samples)
    return done.samples_path


def test_comparing_files_refuses_other_problems(tmp_path):
    first = finish(tmp_path / "a", [True, False, True])
    assert compare_files(first, finish(tmp_path / "b", [True, True, True]))["difference"] == pytest.approx(1 / 3)
    for other in (finish(tmp_path / "c", [True]), finish(tmp_path / "d", [True, False, True], data="other")):
        with pytest.raises(UserError, match="not the same problems"):
            compare_files(first, other)


def test_comparing_says_which_settings_differ(tmp_path):
    first = finish(tmp_path / "a", [True, False], grader="exact", adapter="x")
    assert settings_differ(first, finish(tmp_path / "b", [True, True], grader="exact", adapter="y")) == ""
    assert settings_differ(first, finish(tmp_path / "c", [True], grader="metamath")) == "grader: exact -> metamath"


def test_samples_without_a_verdict_are_not_compared_and_not_shown_as_wrong(tmp_path):
    scores = finish(tmp_path, [None, None])
    with pytest.raises(UserError, match="not right or wrong"):
        compare_files(scores, scores)
    assert list(select(read_samples(scores), True, False, 5)) == []
    assert len(list(select(read_samples(scores), False, False, 5))) == 2


def test_samples_are_found_by_run_folder_eval_folder_or_file(tmp_path):
    path = finish(tmp_path, [True])
    for place in (tmp_path, tmp_path / "eval", path):
        assert find_samples(place) == {"gsm8k": path}
    with pytest.raises(UserError, match="no samples of 'math'; there are: gsm8k"):
        find_samples(tmp_path, "math")
    with pytest.raises(UserError, match="no samples here"):
        find_samples(tmp_path / "nothing")


def test_samples_are_selected_and_rendered():
    samples = [
        {
            "problem": k,
            "correct": k % 2 == 0,
            "prompt": "How many?",
            "output": f"It is {k}.",
            "gold": "0",
            "extracted": k,
        }
        for k in range(6)
    ]
    assert [sample["problem"] for sample in select(samples, True, False, 2)] == [1, 3]
    assert [sample["problem"] for sample in select(samples, False, True, 9)] == [0, 2, 4]
    assert len(list(select(samples, False, False, 5))) == 5
    text = render("gsm8k", samples[1])
    for part in ("gsm8k #1", "WRONG", "| How many?", "> It is 1.", "gold: 0"):
        assert part in text
