"""MBPP (Austin et al., 2021): 500 short Python tasks (11 to 510), judged by three tests each.

Data: `google-research-datasets/mbpp` on the hub, `mbpp/mbpp.jsonl` in a mirror.
"""

from eval.code import extract_code, mbpp_program
from eval.sandbox import Program
from eval.tasks import Record, Task
from eval.tasks._code import check, judge_with


def program(record: Record, text: str) -> Program:
    """Return the program of a generation; the reference solution says which names the tests need."""
    return mbpp_program({**record, "code": extract_code(record["output"])}, text)


TASK = Task(
    "mbpp",
    max_new_tokens=512,
    judge=judge_with(program),
    gold=lambda record: "\n".join(record["test_list"]),
    check=check,
    version=2,
)
