"""Judging answers that are one number."""

from collections.abc import Sequence

from eval import metamath_rules, published_rules
from eval.numbers import extract_number, last_number, numbers_equal
from eval.tasks import Judged, Record
from utils.config import EvalConfig


def judge(problems: Sequence[Record], texts: Sequence[str], config: EvalConfig, grader: str) -> list[Judged]:
    """Judge texts strictly (exact: the number after "The answer is:") and leniently (the last number)."""
    return [_judge(text, str(problem["answer"]), grader) for problem, text in zip(problems, texts, strict=True)]


def _judge(text: str, gold: str, grader: str) -> Judged:
    lenient = numbers_equal(last_number(text), gold)
    if grader == "exact":
        extracted = extract_number(text)
        return Judged(extracted, numbers_equal(extracted, gold), lenient)
    rules = {"metamath": metamath_rules.gsm8k_equal, "published": published_rules.gsm8k_equal}
    number = metamath_rules.gsm8k_number(text)
    return Judged(None if number is None else str(number), rules[grader](text, gold), lenient)
