"""Messages and progress, set up once: bars on a terminal, plain lines in a log file."""

import logging
import sys
from collections.abc import Iterable, Iterator
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


class Progress(tqdm):
    """A bar when stderr is a terminal, otherwise a line of the log now and then with rate and time left.

    `unit` is what is counted, in the plural.
    """

    monitor_interval = 0  # no thread of its own: processes may be forked beside it

    def __init__(self, desc: str, total: int | None = None, unit: str = "steps", iterable: Any = None) -> None:
        how: dict[str, Any] = {"unit": f" {unit}", "miniters": 1, "disable": not is_main()}
        if not sys.stderr.isatty():
            form = "{desc}: {n_fmt} of {total_fmt}{unit}, {rate_noinv_fmt}, {remaining} left"
            seconds = SECONDS_BETWEEN_LINES
            how |= {"file": _Lines(), "bar_format": form, "mininterval": seconds, "delay": seconds, "leave": False}
        super().__init__(iterable, desc, total, **how)


class _Lines:
    """A file, to tqdm, whose lines go to the log."""

    def write(self, text: str) -> None:
        if text.strip():
            log.info(" ".join(text.split()))

    def flush(self) -> None:
        pass


def progress(iterable: Iterable[T], desc: str, total: int | None = None, unit: str = "steps") -> Iterator[T]:
    """Yield from `iterable`, counting each item."""
    return iter(Progress(desc, total, unit, iterable))
