"""Models that are compiled, run as they are written."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncompiled() -> Iterator[None]:
    """Inside, what ``torch.compile`` has compiled runs as it is written.

    Compiled code does not see hooks and replaced forwards that were added after it was made. This
    holds for a wrapper by ``torch.compile``, for ``model.compile()``, for single compiled layers
    and for the compiled passes of ``generate``.
    """
    # Importing the compiler takes seconds, and before that nothing can have been compiled.
    if "torch._dynamo" not in sys.modules:
        yield
        return
    import torch

    with torch.compiler.set_stance("force_eager"):
        yield
