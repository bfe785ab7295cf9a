"""Word problems that the project generates from a seed; its test split shares no filling of a template with training.

Data: none needed (`dataset.arithmetic`).
"""

from eval.tasks import Task
from eval.tasks._numbers import judge

TASK = Task("arithmetic", max_new_tokens=160, judge=judge, votes=True, version=3)
