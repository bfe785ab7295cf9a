"""Word problems of two to four steps, the templates of the task `arithmetic`."""

from dataset.problems import measures, things  # noqa: F401  (importing a module registers its templates)
from dataset.problems.base import TEMPLATES, Problem, Template, Words

__all__ = ["TEMPLATES", "Problem", "Template", "Words"]
