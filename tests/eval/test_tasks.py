"""Tasks: what counts as right, what is asked, and what is said when a task can't run."""

import json

import pytest

from dataset.catalog import COMMONSENSE, expand_groups, left_out
from eval.generation import _scores, _vote
from eval.tasks import STOP, Judged, check_tasks, get_task, load_problems, names
from utils.config import Config, EvalConfig
from utils.errors import UserError


def config(mirror, **settings):
    return Config(data={"dir": str(mirror)}, eval=settings)


def judge(name, problem, *texts, grader="exact"):
    return get_task(name).judge([problem] * len(texts), texts, EvalConfig(), grader)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"tasks": ["gsm9k"]}, "eval.tasks: no task 'gsm9k'; allowed: arithmetic, forgetting, gsm8k.*commonsense"),
        ({"tasks": ["hellaswag"]}, "hellaswag is only on the hub"),
        ({"tasks": ["gsm8k"], "n_samples": 4}, "eval.temperature: must be above 0"),
    ],
)
def test_what_cannot_be_asked_is_named(mirror, wanted, said):
    with pytest.raises(UserError, match=said):
        check_tasks(config(mirror, **wanted))


@pytest.mark.parametrize("name", [name for name in names() if name != "commonsense"])
def test_every_task_loads(name):
    task = get_task(name)
    assert task.name == name
    if hasattr(task, "stop"):
        assert (task.stop == STOP) != task.completion and task.max_new_tokens >= 16


@pytest.mark.parametrize("name", ["arithmetic", "gsm8k"])
def test_numbers_are_judged_strictly_and_leniently(name):
    texts = ["So 3 + 4.\nThe answer is: 7", "It must be 7", "The answer is: 8", "", "The answer is: 7.4"]
    right, lenient, wrong, empty, near = judge(name, {"answer": "7"}, *texts)
    assert right == Judged("7", True, True)
    assert lenient == Judged(None, False, True)
    assert (wrong.correct, wrong.lenient) == (False, False)
    assert empty == Judged(None, False, False)
    assert not near.correct
    rounded = judge(name, {"answer": "7"}, texts[-1], "It must be 7", grader="metamath")
    assert rounded == [Judged("7", True, False), Judged(None, False, True)]  # those rules round


def test_mathematics_is_judged_by_equivalence():
    problem = {"answer": r"So it is $\boxed{\frac{1}{2}}$."}
    texts = [r"\boxed{0.5}", "The answer is: 1/2", "no idea", r"\boxed{0.4}", r"\boxed{\dfrac12}"]
    judged = judge("math", problem, *texts)
    assert [verdict.correct for verdict in judged] == [True, True, False, False, True]
    assert judged[2].extracted is None
    assert get_task("math").gold(problem) == r"\frac{1}{2}"
    assert get_task("math").gold({"answer": r"$\boxed{1}$ or $\boxed{-1}$, as either will do"}) == "-1"
    texts = ["The answer is: 0.5x", "The answer is: \\frac12.", r"\boxed{0.5}"]
    judged = judge("math", problem, *texts, grader="metamath")
    assert judged == [Judged("0.5x", False), Judged("\\frac12", True), Judged(None, False)]


def test_equal_answers_are_one_vote():
    texts = ["The answer is: 7", "The answer is: 7", "The answer is: 8", "The answer is: 8.0", "The answer is: $8"]
    for answer, right in (("7", 0.0), ("8", 1.0)):
        assert _vote(judge("gsm8k", {"answer": answer}, *texts)) == right
    texts = [r"\boxed{x}", r"\boxed{x}", r"\boxed{1/2}", r"\boxed{0.5}", r"\boxed{\frac12}"]
    assert _vote(judge("math", {"answer": r"\boxed{\frac{1}{2}}"}, *texts)) == 1.0
    assert _vote(judge("gsm8k", {"answer": "7"}, "none", "none")) == 0.0


def test_what_the_problems_do_not_say_is_no_group():
    task, verdicts = get_task("math"), [Judged("1", True), Judged("2", False)]
    assert _scores(task, [{"type": "MATH"}] * 2, verdicts)["by"].keys() == {"type"}
    assert "by" not in _scores(task, [{}] * 2, verdicts)


@pytest.mark.parametrize("tasks", ["[gsm8k,lm_eval/mmlu]", "gsm8k, lm_eval/mmlu", ["gsm8k", "lm_eval/mmlu"]])
def test_tasks_are_a_list_however_they_are_written(tasks):
    assert EvalConfig(tasks=tasks).tasks == ["gsm8k", "lm_eval/mmlu"]


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_canonical_programs_pass_and_others_do_not(mirror, name):
    settings = config(mirror, tasks=[name], limit=3)
    check_tasks(settings)
    problems = load_problems(name, settings)
    texts = [problem["output"] for problem in problems] + ["I don't know."] * 3
    judged = get_task(name).judge(problems * 2, texts, settings.eval, "exact")
    assert [verdict.correct for verdict in judged] == [True] * 3 + [False] * 3
    assert all(verdict.note for verdict in judged[3:])


def test_programs_that_no_sandbox_would_run_are_no_wrong_answers(mirror, monkeypatch):
    settings = config(mirror, tasks=["mbpp"], limit=2)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("eval.sandbox._run", full)
    monkeypatch.setattr("eval.sandbox.available", lambda: None)
    with pytest.raises(
        UserError, match="mbpp: 2 of 2 programs were not run .*No space left on device.*texts are kept"
    ):
        get_task("mbpp").judge(load_problems("mbpp", settings), ["pass", "pass"], settings.eval, "exact")


def own(tmp_path, *answers):
    """A configuration that scores gsm8k on records of one's own that end with these answers."""
    lines = [json.dumps({"instruction": f"Question {k}", "output": answer}) for k, answer in enumerate(answers)]
    (tmp_path / "own.jsonl").write_text("\n".join(lines * 4))
    data = {"train": str(tmp_path / "own.jsonl"), "validation": 0.75}
    return Config(data=data, eval={"split": "validation", "tasks": ["gsm8k"]})


def test_answers_of_own_records_may_have_units_and_fractions(tmp_path):
    problems = load_problems("gsm8k", own(tmp_path, "So.\nThe answer is: 18 dollars", "The answer is: 3/4"))
    assert {problem["answer"] for problem in problems} == {"18 dollars", "3/4"}
    texts = [f"The answer is: {problem['answer']}" for problem in problems]
    for grader in ("exact", "metamath", "published"):
        judged = get_task("gsm8k").judge(problems, texts, EvalConfig(), grader)
        assert all(verdict.correct for verdict in judged) == (grader == "exact")


def test_answers_that_are_no_number_are_refused_or_counted(tmp_path, monkeypatch, caplog):
    with pytest.raises(
        UserError, match="eval.split: no answer of .* is a number after 'The answer is:', as gsm8k wants"
    ):
        load_problems("gsm8k", own(tmp_path, "Eighteen", "None of them"))
    monkeypatch.setattr("utils.log.log.propagate", True)
    assert load_problems("gsm8k", own(tmp_path, "The answer is: 3", "None of them"))
    assert "answers are no number, and count as not solved: None of them" in caplog.text


def test_code_needs_a_sandbox_or_consent(monkeypatch):
    monkeypatch.setattr("eval.sandbox.available", lambda: "bubblewrap is not installed")
    with pytest.raises(UserError, match="eval.unsafe_code: bubblewrap is not installed"):
        get_task("mbpp").check(Config())
    get_task("mbpp").check(Config(eval={"unsafe_code": True}))


def test_the_first_option_named_counts():
    problem = {"instruction": "Please ...\n\nAnswer format: answer1/answer2/answer3", "answer": "answer2"}
    texts = ("the correct answer is answer2", "answer1, not answer2", "the second", "answer5, answer2")
    judged = judge("openbookqa", problem, *texts)
    assert [verdict.extracted for verdict in judged] == ["answer2", "answer1", None, "answer5"]
    assert [verdict.correct for verdict in judged] == [True, False, False, False]


def test_a_group_leaves_out_what_the_mirror_has_not(mirror):
    assert left_out(["commonsense", "gsm8k"], str(mirror)) == ["hellaswag"]
    members = expand_groups(["commonsense", "boolq", "gsm8k"], str(mirror))
    assert members == [*(name for name in COMMONSENSE if name != "hellaswag"), "gsm8k"]


def test_a_malformed_mirror_names_file_and_line(tmp_path):
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "test.jsonl").write_text('{"question": "q", "answer": "#### 1"}\n{"question": \n')
    with pytest.raises(UserError, match=r"test\.jsonl:2"):
        load_problems("gsm8k", config(tmp_path, tasks=["gsm8k"]))
