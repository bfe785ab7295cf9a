"""The one exception that a user, not a developer, has to act on, and other people's errors in a few words."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake in a config, a command or a file; its text is one line naming the key or path and what is allowed.

    Command lines print it without a traceback and exit with status 2 (see `utils.cli.main`).
    """


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, at most 200 characters; the error's type if it has no text."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


@contextmanager
def memory_for(advice: str) -> Iterator[None]:
    """Raise a `UserError` with `advice`, which names a setting, when memory does not suffice for the block.

    It knows PyTorch's errors, of devices and of main memory, by their names: nothing heavy is imported for it.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if not kinds & {"MemoryError", "OutOfMemoryError"} and "DefaultCPUAllocator" not in str(error):
            raise
        raise UserError(advice) from error
