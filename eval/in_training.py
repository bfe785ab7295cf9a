"""Scores of the model that trains, on problems held out of its training, so that a rate can be chosen by accuracy.

The model generates as it stands, in the process that trains it; no engine is started and nothing is written.
"""

from typing import Any

from peft import PeftModel

from eval.engines.transformers import TransformersEngine
from eval.evaluate import context, prompts
from eval.tasks import Task, get_task, load_problems
from utils.config import Config
from utils.distributed import gather, rank, world_size
from utils.models import resolve_model


class Scorer:
    """The tasks of `train.eval_tasks`, ready to be asked of the model again and again: greedy, all validation records.

    Whatever else `eval` says of prompts, lengths and the grader holds here too.
    """

    def __init__(self, config: Config, tokenizer: Any) -> None:
        greedy = {"split": "validation", "limit": None, "n_samples": 1, "temperature": 0.0}
        self.config = config.model_copy(update={"eval": config.eval.model_copy(update=greedy)})
        self.tokenizer = tokenizer
        model = resolve_model(config.model)
        self.asked = []
        for name in config.train.eval_tasks:
            task, problems = get_task(name), load_problems(name, self.config)
            assert isinstance(task, Task)
            self.asked.append((task, problems, prompts(self.config, task, model, problems)))
        self.context = context(self.config, model, [prompt for *_, made in self.asked for prompt in made])

    def __call__(self, model: Any) -> dict[str, list[float]]:
        """Per task, 1.0 for every problem that `model` solves and 0.0 for the others; every process must call it."""
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        training = base.training
        solved = {}
        with TransformersEngine(base, self.tokenizer, self.config.eval.batch_size, self.context) as engine:
            for task, problems, made in self.asked:
                mine = range(rank(), len(made), world_size())
                answers = engine.generate({number: made[number] for number in mine})
                texts = dict(gather([(number, output.text) for number, (output,) in answers]))
                grader = task.headline(self.config.eval.grader)
                verdicts = task.judge(problems, [texts[k] for k in range(len(made))], self.config.eval, grader)
                solved[task.name] = [float(verdict.correct) for verdict in verdicts]
        base.train(training)
        return solved
