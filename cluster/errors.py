"""The one exception a user is meant to read."""


class UserError(ValueError):
    """A user's mistake, told in one sentence: what was found, where, what was expected and what to do next.

    Command lines print it without a traceback and exit with status 2 (`cluster.cli`).
    """
