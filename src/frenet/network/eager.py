"""Running compiled models eagerly."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run code compiled by ``torch.compile`` eagerly.

    Compiled code ignores hooks and replaced forwards that are added after compilation. This
    covers wrappers by ``torch.compile``, ``model.compile()``, single compiled layers and the
    compiled passes of ``generate``.
    """
    # Importing the compiler takes seconds. If nobody has imported it, nothing is compiled.
    if "torch._dynamo" not in sys.modules:
        yield
        return
    import torch

    with torch.compiler.set_stance("force_eager"):
        yield
