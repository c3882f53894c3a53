"""What frenet says when it cannot use what it was given."""


class UsageError(ValueError):
    """What the user gave cannot be used; the message says why, and what to do.

    The command line shows the message alone. Any other ValueError is a fault of frenet, and is
    shown with its traceback.
    """


class UnreachableError(UsageError, ConnectionError):
    """A host that is needed cannot be reached."""


class MissingExtraError(UsageError, ImportError):
    """A package that is needed is not installed."""
