"""Tasks read from likelihoods, with a scorer whose values are known: what is scored, what counts, what is recorded."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from eval.candidates import Target
from eval.engines import Score
from eval.likelihood import score_task
from eval.show import render
from eval.task_record import TaskRecord, read_samples
from eval.tasks import _choices, forgetting, get_task, load_problems
from utils.config import Config

WHY = (
    "Please choose the correct answer to the question: Why?\n\n"
    "Answer1: {} Answer2: {}\n\nAnswer format: answer1/answer2"
)
BLANK = (
    "Please choose the correct answer to fill in the blank to complete the given sentence: "
    "Ann met Eve, so _ waved.\n\nOption1: Ann Option2: Eve Answer format: option1/option2"
)


class FakeEngine:
    """An engine whose log-likelihoods are looked up by (end of the prefix, continuation); what it scored is kept."""

    context = 2048

    def __init__(self, tokenizer, values):
        self.tokenizer, self.values, self.asked = tokenizer, values, []

    def score(self, pairs, adapter=None):
        for number, (prefix, continuation) in pairs.items():
            texts = self.tokenizer.decode(prefix), self.tokenizer.decode(continuation)
            self.asked.append(texts)
            value = next(v for (end, text), v in self.values.items() if texts[0].endswith(end) and texts[1] == text)
            yield number, Score(value, len(continuation), False)

    def describe(self):
        return {"name": "fake"}


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    return AutoTokenizer.from_pretrained(smollm2)


def score(tmp_path, engine, name, problems):
    pytest.importorskip("lm_eval")
    config = Config(data={"dir": "mirror"}, eval={"protocol": "loglikelihood"})
    target = Target("base", Path("model"), None, tmp_path)
    task = get_task(name, "loglikelihood")
    record = TaskRecord(tmp_path, task.name, {"data": "x"})
    result = score_task(config, task, problems, record, engine, target)
    return result, read_samples(record.samples_path)


def test_the_likeliest_choice_counts_as_it_is_and_by_its_characters(tmp_path, tokenizer):
    rows = [("it", "a long one", "answer1"), ("it", "a long one", "answer2"), ("éé", "no", "answer2")]
    problems = [
        {"instruction": WHY.format(first, second), "answer": answer, "type": "ARC-Easy"}
        for first, second, answer in rows
    ]
    # "a long one" is likelier by the character; "éé" would be likelier than "no" by the byte only.
    values = {("", " it"): -2.0, ("", " a long one"): -3.0, ("", " éé"): -4.0, ("", " no"): -3.0}
    result, samples = score(tmp_path, FakeEngine(tokenizer, values), "ARC-Easy", problems)
    assert [sample["correct"] for sample in samples] == [True, False, True]
    assert [sample["correct_norm"] for sample in samples] == [False, True, True]
    assert (result["accuracy"], result["acc_norm"], result["n"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3), 3)
    assert [(sample["extracted"], sample["gold"]) for sample in samples] == [(0, 0), (0, 1), (1, 1)]
    assert samples[0]["prompt"] == "Question: Why?\nAnswer:"
    assert samples[0]["output"] == [" it", " a long one"] and samples[0]["logprobs"] == [-2.0, -3.0]


@pytest.mark.parametrize(("answer", "correct"), [("option1", False), ("option2", True)])
def test_winogrande_records_every_context_and_the_right_option(tmp_path, tokenizer, answer, correct):
    engine = FakeEngine(tokenizer, {("so Ann", " waved."): -2.0, ("so Eve", " waved."): -1.0})
    result, (sample,) = score(
        tmp_path, engine, "winogrande", [{"instruction": BLANK, "answer": answer, "type": "winogrande"}]
    )
    assert sample["prompt"] == ["Ann met Eve, so Ann", "Ann met Eve, so Eve"]
    assert sample["extracted"] == 1 and sample["gold"] == int(answer[-1]) - 1
    assert sample["correct"] is correct and result["accuracy"] == float(correct)
    assert "so Ann" in render("winogrande", sample) and "so Eve" in render("winogrande", sample)


def test_requests_done_before_an_interruption_are_not_scored_again(tmp_path, tokenizer):
    values = {("", " it"): -2.0, ("", " that"): -1.0}
    problems = [{"instruction": WHY.format("it", "that"), "answer": "answer2", "type": "ARC-Easy"}]

    class Killed(FakeEngine):
        def score(self, pairs, adapter=None):
            yield next(super().score(pairs))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(tmp_path, Killed(tokenizer, values), "ARC-Easy", problems)
    engine = FakeEngine(tokenizer, values)
    result, (sample,) = score(tmp_path, engine, "ARC-Easy", problems)
    assert len(engine.asked) == 1 and result["requests"] == 2
    assert sample["correct"] and sample["logprobs"] == [-2.0, -1.0]


def test_hub_data_is_known_by_its_documents(monkeypatch):
    monkeypatch.setattr(_choices, "hub_documents", lambda name: [{"query": name, "gold": 0}] * 3)
    wanted = {"protocol": "loglikelihood", "limit": 2}
    assert load_problems("piqa", Config(eval=wanted)) == [{"query": "piqa", "gold": 0}] * 2


def test_gold_of_lm_evals_own_documents():
    assert _choices._gold({"doc": {"label": 1}, "target": 1}) == 1
    assert _choices._gold({"doc": {"gold": 2, "query": "q"}, "target": 2}) == 2
    assert _choices._gold({"doc": {"answer": "2", "sentence": "_"}, "target": "waved."}) == 1


def test_forgetting_is_the_mean_loss_of_a_token(tokenizer):
    problems = [{"instruction": f"Sentence number {k} is about nothing at all.", "type": "text"} for k in range(100)]
    asked = []

    def scorer(pairs):
        asked.extend(pairs)
        return [Score(-2.0 * len(text), len(text), False) for _, text in pairs]

    figures, samples = forgetting.run(
        problems, SimpleNamespace(tokenizer=tokenizer), scorer, forgetting.TASK, Config()
    )
    assert figures["loss"] == pytest.approx(2.0) and figures["text"] == "text"
    assert figures["n"] == len(samples) == len(asked) > 1 and figures["tokens"] == 127 * len(asked)
    assert all(len(prefix) == 1 and len(text) == 127 for prefix, text in asked)
    assert all(sample["loss"] == pytest.approx(2.0) for sample in samples)


def test_the_loss_of_forgetting_weighs_tokens_not_windows(tokenizer):
    problems = [{"instruction": "One, two, three, four. " * 80, "type": "text"}]
    values = iter([-127.0, -254.0, *[-127.0] * 62])
    figures, _ = forgetting.run(
        problems,
        SimpleNamespace(tokenizer=tokenizer),
        lambda pairs: [Score(next(values), 127, False) for _ in pairs],
        forgetting.TASK,
        Config(),
    )
    assert figures["loss"] == pytest.approx(1 + 1 / figures["n"]) and math.isfinite(figures["loss"])
