"""HumanEval+ (Liu et al., 2023): HumanEval with some 80 times as many tests, the original ones among them."""

from eval.code import humaneval_program
from eval.tasks._code import code_task

TASK = code_task("humaneval_plus", humaneval_program, lambda record: record["entry_point"])
