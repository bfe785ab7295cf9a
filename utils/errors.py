"""The one exception that a user, not a developer, has to act on, and other people's errors in a few words."""

from collections.abc import Iterator
from contextlib import contextmanager

from astra.errors import out_of_memory


class UserError(Exception):
    """A mistake in a config, a command or a file; its text is one line naming the key or path and what is allowed.

    Command lines print it without a traceback and exit with status 2 (see `utils.cli.main`).
    """


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, at most 200 characters; the error's type if it has no text."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


@contextmanager
def memory_for(advice: str) -> Iterator[None]:
    """Raise a `UserError` with `advice`, which names a setting, when memory does not suffice for the block."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise UserError(advice) from error
