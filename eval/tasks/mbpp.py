"""MBPP (Austin et al., 2021): 500 short Python tasks (11 to 510), judged by three tests each."""

from eval.code import blocks, mbpp_program
from eval.sandbox import Program
from eval.tasks import Record
from eval.tasks._code import code_task


def program(record: Record, text: str) -> Program:
    """The program of a generation; the reference solution says which names the tests need."""
    return mbpp_program({**record, "code": blocks(record["output"])[0]}, text)


TASK = code_task("mbpp", program, lambda record: "\n".join(record["test_list"]))
