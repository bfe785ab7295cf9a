"""GSM8K (Cobbe et al., 2021): 1,319 grade-school word problems."""

from eval.tasks import Task
from eval.tasks._numbers import judge

TASK = Task(
    "gsm8k", max_new_tokens=512, judge=judge, graders=("exact", "metamath", "published"), votes=True, version=4
)
