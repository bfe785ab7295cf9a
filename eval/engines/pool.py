"""Several engines behind the interface of one: each in a process of its own, on GPUs (or cores) of its own."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from astra.errors import out_of_memory
from eval.engines import Answer, Engine, Pair, Prompt, Request
from utils.config import EvalConfig
from utils.errors import UserError
from utils.log import log

CHUNK = 256  # requests that an engine takes at a time, unless more can be shared out four times over
VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass
class Share:
    """What one engine has to itself: GPUs, or where there are none cores (none of either: all)."""

    gpus: list[str] = field(default_factory=list)
    cores: list[int] = field(default_factory=list)


def shares(model: Path, config: EvalConfig) -> list[Share]:
    """What each engine gets: one GPU, or as many as hold the model; on a CPU its part of the cores."""
    gpus = _gpus()
    if not gpus:
        count, cores = config.engines or 1, sorted(os.sched_getaffinity(0))
        return [Share(cores=cores[len(cores) * k // count : len(cores) * (k + 1) // count]) for k in range(count)]
    size = 1
    if config.engine == "vllm":
        share = config.gpu_memory_utilization
        size = config.tensor_parallel_size or parallel_size(model, len(gpus), share * _memory())
    count = config.engines or max(len(gpus) // size, 1)
    if count * size > len(gpus):
        raise UserError(f"eval.engines: {count} engines on {size} GPUs each need {count * size}, not {len(gpus)}")
    return [Share(gpus=gpus[size * k : size * (k + 1)]) for k in range(count)]


def _gpus() -> list[str]:
    """The GPUs that may be used here."""
    import torch

    if VISIBLE in os.environ and torch.cuda.device_count():
        return [name for name in os.environ[VISIBLE].split(",") if name and not name.startswith("-")]
    return [str(k) for k in range(torch.cuda.device_count())]


def _memory() -> float:
    """The bytes of the smallest GPU; infinity where nothing tells, so that vLLM has the say."""
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()
        return min(map(int, found)) * 2**20
    except (OSError, ValueError, subprocess.CalledProcessError):
        return float("inf")


def parallel_size(model: Path, gpus: int, memory: float) -> int:
    """The smallest power of two of GPUs that hold the weights in four fifths of their memory.

    Attention heads and the MLP's width are cut into equal parts; key-value heads are cut, or else copied, evenly. A
    model that fits nowhere gets as many as it can be cut into.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model).get_text_config()
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "intermediate_size", None) or heads
    weights = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    size = 1
    while weights > 0.8 * memory * size and 2 * size <= gpus:
        double = 2 * size
        if heads % double or width % double or (kv_heads % double and double % kv_heads):
            break
        size = double
    return size


class EnginePool(Engine):
    """See `eval.engines.Engine`. A `UserError` says that an engine can't start, or ended before its time."""

    def __init__(self, parts: Sequence[Share], start: Callable[[], Engine]) -> None:
        self._workers: dict[Connection, Any] = {}
        spawn = multiprocessing.get_context("spawn")
        for number, part in enumerate(parts):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_serve, args=(theirs, part, start), name=f"engine {number}")
            process.start()
            theirs.close()
            self._workers[ours] = process
        log.info("%d engines at work", len(parts))
        try:
            self._about = [self._receive(pipe) for pipe in self._workers]
        except BaseException:
            for process in self._workers.values():
                process.terminate()
            self.__exit__()
            raise

    def run(self, requests: Mapping[int, Request]) -> Iterator[tuple[int, Answer]]:
        left = deque(_chunks(requests, len(self._workers)))
        busy = list(self._workers)[: len(left)]
        for pipe in busy:
            pipe.send(left.popleft())
        while busy:
            for ready in wait(busy):
                assert isinstance(ready, Connection)
                if answer := self._receive(ready):
                    yield answer
                elif left:
                    ready.send(left.popleft())
                else:
                    busy.remove(ready)

    def _receive(self, pipe: Connection) -> Any:
        """What an engine sends next; its error is raised here."""
        try:
            found = pipe.recv()
        except EOFError:
            process = self._workers[pipe]
            process.join()
            raise UserError(
                f"{process.name} ended with exit status {process.exitcode}; what it made is on file, and the same "
                "command goes on from there"
            ) from None
        if isinstance(found, Exception):
            raise found
        return found

    def describe(self) -> dict[str, Any]:
        return {**self._about[0], "engines": len(self._about)}

    def __exit__(self, *_: object) -> None:
        for pipe in self._workers:
            pipe.close()  # an engine ends when nobody listens
        for process in self._workers.values():
            process.join(20)
            if process.is_alive():
                process.kill()
        self._workers = {}


def _chunks(requests: Mapping[int, Request], engines: int) -> Iterator[dict[int, Request]]:
    """Yield portions of the requests; those of one adapter and with one beginning stay together."""
    order = {adapter: place for place, adapter in enumerate(dict.fromkeys(r.adapter for r in requests.values()))}

    def place(number: int) -> tuple[Any, ...]:
        request = requests[number]
        beginning = request.text if isinstance(request, Prompt) else request.prefix
        return order[request.adapter], isinstance(request, Pair), beginning

    numbers = sorted(requests, key=place)
    size = max(-(-len(numbers) // (4 * engines)), min(-(-len(numbers) // engines), CHUNK))
    for start in range(0, len(numbers), size or 1):
        yield {number: requests[number] for number in numbers[start : start + size]}


def _serve(pipe: Connection, part: Share, start: Callable[[], Engine]) -> None:
    """Start an engine, describe it, and answer what comes through the pipe until the other end is closed.

    An answer is sent as `(number, answer)`, and None when all that came together are done.
    """
    name = multiprocessing.current_process().name
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if part.gpus:
        os.environ[VISIBLE] = ",".join(part.gpus)  # in time: nothing has asked for a GPU in this process
    if part.cores:
        os.sched_setaffinity(0, part.cores)
    try:
        with start() as engine:
            pipe.send(engine.describe())
            while True:
                for answer in engine.run(pipe.recv()):
                    pipe.send(answer)
                pipe.send(None)
    except (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        return
    except UserError as error:
        pipe.send(UserError(f"{name}: {error}"))
    except Exception as error:
        kind = MemoryError if out_of_memory(error) else RuntimeError
        pipe.send(kind(f"{name}: {type(error).__name__}: {error} (its trace is above)"))
        raise
