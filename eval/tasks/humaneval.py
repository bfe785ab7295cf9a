"""HumanEval (Chen et al., 2021): 164 Python functions to complete, judged by their tests."""

from eval.code import humaneval_program
from eval.tasks._code import code_task

TASK = code_task("humaneval", humaneval_program, lambda record: record["entry_point"])
