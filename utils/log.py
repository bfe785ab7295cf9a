"""Messages and progress, set up once: bars on a terminal, plain lines in a log file."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from utils.distributed import is_main
from utils.errors import UserError

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 15.0

log = logging.getLogger("astra")


def setup_logging() -> None:
    """Send the project's messages to stderr; only the first process of several speaks."""
    logging.raiseExceptions = False  # a message that finds the disk full is lost, and nothing else
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers = [handler]
    log.propagate = False
    log.setLevel(logging.INFO if is_main() else logging.CRITICAL)


def log_to(path: Path) -> None:
    """Append the project's messages to a file of the experiment or the run as well, once however often it is asked."""
    files = [handler.baseFilename for handler in log.handlers if isinstance(handler, logging.FileHandler)]
    if is_main() and str(path.absolute()) not in files:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handler = logging.FileHandler(path, encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path}: can't be written ({error.strerror})") from error
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        log.addHandler(handler)


class Progress:
    """A bar when stderr is a terminal, otherwise a line now and then with rate and time left.

    Args:
        desc: What is under way.
        total: Units to come, or None if unknown.
        unit: What is counted, in the singular.
    """

    def __init__(self, desc: str, total: int | None = None, unit: str = "step") -> None:
        self.desc, self.total, self.unit = desc, total, unit
        self.done = 0
        self._started = self._spoke = time.monotonic()
        self._bar: tqdm[Any] | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, desc=desc, unit=unit, unit_scale=True, disable=not is_main())

    def update(self, count: int = 1) -> None:
        """Count `count` more units as done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._spoke > SECONDS_BETWEEN_LINES:
            self._spoke = time.monotonic()
            log.info(self._line())

    def _line(self) -> str:
        rate = self.done / max(time.monotonic() - self._started, 1e-9)
        line = f"{self.desc}: {self.done:,}"
        if not self.total:
            return line + f" {self.unit}s, {rate:,.1f} per second"
        left = max(self.total - self.done, 0) / max(rate, 1e-9)
        return line + f" of {self.total:,} {self.unit}s, {rate:,.1f} per second, {left:.0f} s left"

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def progress(iterable: Iterable[T], desc: str, total: int | None = None, unit: str = "step") -> Iterator[T]:
    """Yield from `iterable`, counting each item as one unit of progress."""
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with Progress(desc, total, unit) as bar:
        for item in iterable:
            yield item
            bar.update()
