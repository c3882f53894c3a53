"""Measuring without a trace: evaluation mode, chosen gradients, everything put back."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from frenet.network.space import ParamSpace


@contextmanager
def measuring(model: nn.Module, space: ParamSpace | None = None) -> Iterator[None]:
    """Dropout off, and a gradient for the parameters of ``space`` only (None: for no parameter).

    Training flags, ``requires_grad`` and ``.grad`` are afterwards as they were. Evaluation mode
    also switches gradient checkpointing off, which ``torch.func`` does not support.
    """
    training = [(module, module.training) for module in model.modules()]
    wanted = set(map(id, space.parameters(model))) if space else set()
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    try:
        model.eval()
        for parameter, _, _ in parameters:
            parameter.requires_grad_(id(parameter) in wanted)
        yield
    finally:
        for module, flag in training:
            module.training = flag
        for parameter, flag, grad in parameters:
            parameter.requires_grad_(flag)
            parameter.grad = grad


@contextmanager
def differentiable_attention() -> Iterator[None]:
    """The one attention kernel that has forward-mode and second derivatives and batching rules."""
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
        # The first use of forward mode has torch script some formulas of its own.
        warnings.filterwarnings("ignore", "`torch.jit.script`", DeprecationWarning)
        yield
