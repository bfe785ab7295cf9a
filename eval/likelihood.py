"""Tasks that read likelihoods instead of generating: their requests are scored, recorded and resumed like texts."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from eval.candidates import Target
from eval.engines import Engine, Score
from eval.task_record import TaskRecord
from utils.config import Config
from utils.log import Progress, log

Pair = tuple[list[int], list[int]]
Scorer = Callable[[Sequence[Pair]], list[Score]]


@dataclass(frozen=True)
class LikelihoodTask:
    """A benchmark whose answers are likelihoods.

    Attributes:
        name: Its name in results and of its files.
        source: Its name in `eval.tasks` and in the data catalogue.
        run: From problems, the engine, a scorer of (prefix ids, continuation ids) and the configuration to the
            result's figures and the samples.
        own_data: Whether lm-eval loads its data itself when there is no mirror.
        context: Tokens that its longest request may take.
        version: Counted up when its requests or rules change.
    """

    name: str
    source: str
    run: Callable[[list[dict[str, Any]], Engine, Scorer, "LikelihoodTask", Config], tuple[dict[str, Any], list[Any]]]
    own_data: bool = False
    context: int = 2048
    version: int = 2


def score_task(
    config: Config,
    task: LikelihoodTask,
    problems: list[dict[str, Any]],
    record: TaskRecord,
    engine: Engine,
    target: Target,
) -> dict[str, Any]:
    """Score what is missing and write the record.

    A request is known by its place, which depends on the settings alone.
    """
    scores: dict[int, Score] = {n: Score(**values[0]) for n, values in record.resume().items()}
    if scores:
        log.info("%s, %s: %d requests done earlier", target.name, task.name, len(scores))
    started, earlier = time.monotonic(), record.seconds
    asked = 0
    with record.open({number: [asdict(score)] for number, score in scores.items()}) as writer:

        def scorer(pairs: Sequence[Pair]) -> list[Score]:
            nonlocal asked
            numbers = range(asked, asked + len(pairs))
            asked += len(pairs)
            missing = {number: pair for number, pair in zip(numbers, pairs, strict=True) if number not in scores}
            with Progress(f"{target.name}, {task.name}", len(missing), "request") as bar:
                for number, score in engine.score(missing, target.adapter):
                    scores[number] = score
                    writer.add(number, [asdict(score)], earlier + time.monotonic() - started)
                    bar.update()
            return [scores[number] for number in numbers]

        figures, samples = task.run(problems, engine, scorer, task, config)
    result = {
        "task": task.name,
        "target": target.name,
        **figures,
        "requests": asked,
        "seconds": round(earlier + time.monotonic() - started, 3),
        "adapter": str(target.adapter.path) if target.adapter else None,
        "base_model": config.model.name,
        "engine": engine.describe(),
        "settings": record.settings,
    }
    record.complete(result, samples)
    return result
