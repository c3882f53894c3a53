"""Errors about the user's input."""


class UsageError(ValueError):
    """The user's input cannot be used; the message says why, and what to do.

    The command line shows only the message. Any other ValueError is a bug in frenet, and is shown
    with its traceback.
    """


class UnreachableError(UsageError, ConnectionError):
    """A host that is needed cannot be reached."""


class MissingExtraError(UsageError, ImportError):
    """A package that is needed is not installed."""
