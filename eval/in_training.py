"""Scores of the model that trains, on problems held out of its training, so that a rate can be chosen by accuracy.

The model generates as it stands, in the process that trains it; no engine is started and nothing is written.
"""

from typing import Any

from peft import PeftModel

from astra.parallel import gather
from eval.candidates import base_target
from eval.engines.transformers import TransformersEngine
from eval.evaluate import context, jobs
from eval.tasks import Task
from utils.config import Config
from utils.distributed import rank, world_size


class Scorer:
    """The tasks of `train.eval_tasks`, ready to be asked of the model again and again: greedy, all validation records.

    Whatever else `eval` says of prompts, lengths and the grader holds here too.
    """

    def __init__(self, config: Config, tokenizer: Any) -> None:
        greedy = {"split": "validation", "limit": None, "n_samples": 1, "temperature": 0.0}
        wanted = config.eval.model_copy(update={"tasks": config.train.eval_tasks, **greedy})
        self.config, self.tokenizer = config.model_copy(update={"eval": wanted}), tokenizer
        base = base_target(config)
        self.jobs = list(jobs(self.config, [base]))
        self.context = context(self.config, base.model, [prompt for job in self.jobs for prompt in job.prompts])

    def __call__(self, model: Any) -> dict[str, list[float]]:
        """Per task, 1.0 for every problem that `model` solves and 0.0 for the others; every process must call it."""
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        training = base.training
        solved = {}
        with TransformersEngine(base, self.tokenizer, self.config.eval.batch_size, self.context) as engine:
            for job in self.jobs:
                task, asked = job.task, job.prompts
                assert isinstance(task, Task)
                answers = engine.generate({k: asked[k] for k in range(rank(), len(asked), world_size())})
                texts = {k: output.text for k, (output,) in answers}
                grader = task.headline(self.config.eval.grader)
                own = [job.problems[k] for k in texts]  # each process judges what it has generated
                verdicts = task.judge(own, list(texts.values()), self.config.eval, grader)
                judged = {k: float(found.correct) for k, found in zip(texts, verdicts, strict=True)}
                right = {k: found for part in gather(judged) for k, found in part.items()}
                solved[task.name] = [right[k] for k in range(len(asked))]
        base.train(training)
        return solved
