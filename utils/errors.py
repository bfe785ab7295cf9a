"""The one exception that a user, not a developer, has to act on."""


class UserError(Exception):
    """A mistake in a config, a command or a file; its text is one line naming the key or path and what is allowed.

    Command lines print it without a traceback and exit with status 2 (see `utils.cli.main`).
    """
