"""HumanEval (Chen et al., 2021): 164 Python functions to complete, judged by their tests.

Data: `openai/openai_humaneval` on the hub, `humaneval/HumanEval.jsonl.gz` in a mirror.
"""

from eval.code import humaneval_program
from eval.tasks import Task
from eval.tasks._code import check, judge_with

TASK = Task(
    "humaneval",
    max_new_tokens=512,
    judge=judge_with(humaneval_program),
    gold=lambda record: record["entry_point"],
    check=check,
    version=2,
)
