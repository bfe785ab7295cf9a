"""Word problems generated from a seed (`dataset.arithmetic`); the test split shares no filling of a template."""

from eval.tasks import Task
from eval.tasks._numbers import judge

TASK = Task("arithmetic", max_new_tokens=160, judge=judge, votes=True, version=4)
