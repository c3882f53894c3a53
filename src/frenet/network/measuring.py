"""Measuring without a trace: evaluation mode, chosen gradients, everything put back."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from frenet._errors import UsageError
from frenet.network.eager import uncompiled
from frenet.network.space import ParamSpace

Forward = Callable[..., Tensor]
# What torch says of a layer that has a backward pass only.
_NO_FORWARD_MODE = ("forward AD", "autograd.Function with functorch", "jvp")


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Run with so many torch threads, and put the old number back.

    The number has a say in the last digits of sums: what is kept in a cache and shared by runs with
    other numbers is made with a fixed one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def measuring(model: nn.Module, space: ParamSpace | None = None) -> Iterator[None]:
    """Dropout off, and a gradient for the parameters of ``space`` only (None: for no parameter).

    Training flags, ``requires_grad`` and ``.grad`` are afterwards as they were. Evaluation mode
    also switches gradient checkpointing off, which ``torch.func`` does not support. The row of an
    embedding that is named as padding has its gradient like all others, since its id may also be a
    word of the text; padding itself has none. Compiled models run as they are written, since
    compiled code does not see hooks and replaced forwards.
    """
    # Most models are in evaluation mode already, and a large one has thousands of modules: what is
    # as it should be is not touched.
    training, embeddings = [], []
    for module in model.modules():
        if module.training:
            training.append(module)
        if isinstance(module, nn.Embedding) and _padded_without_need(module):
            embeddings.append((module, module.padding_idx))
    wanted = set(map(id, space.parameters(model))) if space else set()
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    try:
        if training:
            model.eval()
        for embedding, _ in embeddings:
            embedding.padding_idx = None
        for parameter, flag, _ in parameters:
            if flag != (id(parameter) in wanted):
                parameter.requires_grad_(not flag)
            # A backward pass would add to the very tensor that is kept for the end.
            parameter.grad = None
        with uncompiled():
            yield
    finally:
        for module in training:
            module.training = True
        for embedding, index in embeddings:
            embedding.padding_idx = index
        for parameter, flag, grad in parameters:
            parameter.requires_grad_(flag)
            parameter.grad = grad


def _padded_without_need(module: nn.Embedding) -> bool:
    """Whether only the gradient depends on which row is named as padding.

    Some positions are counted from it, which the forward pass of their class shows.
    """
    if module.padding_idx is None:
        return False
    own: Any = type(module).forward
    return own is nn.Embedding.forward or "padding_idx" not in own.__code__.co_names


@dataclass
class Calls:
    """How often a replaced forward has run."""

    count: int = 0


@contextmanager
def patched(module: nn.Module, forward: Forward) -> Iterator[Calls]:
    """``module.forward`` replaced on this one instance; its calls are counted.

    A forward that never runs changes nothing: another module may read the weights past it. Whoever
    relies on it has to look at the count, or to compare.
    """
    before = module.__dict__.get("forward")
    calls = Calls()

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls.count += 1
        return forward(*args, **kwargs)

    try:
        module.__dict__["forward"] = counted
        with uncompiled():
            yield calls
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before


@contextmanager
def transformable(model: nn.Module) -> Iterator[None]:
    """``measuring``, in the state in which ``torch.func`` can differentiate and batch the model.

    Attention runs through the one kernel that has forward-mode and second derivatives and batching
    rules, and so do experts and the activation of BLOOM. Hooks that make the embeddings require
    gradients, which come with gradient checkpointing and which ``torch.func`` refuses, are off:
    evaluation mode does without both.

    Raises:
        ValueError: a layer has no derivative in forward mode, as some compiled kernels.
    """
    with (
        measuring(model),
        _without_input_hooks(model),
        _experts_in_turn(model),
        _plain_gelu(model),
        warnings.catch_warnings(),
        sdpa_kernel(SDPBackend.MATH),
    ):
        # The first use of forward mode has torch script some formulas of its own.
        warnings.filterwarnings("ignore", "`torch.jit.script`", DeprecationWarning)
        try:
            yield
        except RuntimeError as error:
            if not any(sign in str(error) for sign in _NO_FORWARD_MODE):
                raise
            raise UsageError(
                f"{type(model).__name__} has a layer without derivatives in forward mode, so that "
                f"slopes and Hessian products of it cannot be measured ({str(error)[:120]} ...); "
                "load it without compiled kernels, such as those of mamba_ssm, causal_conv1d or "
                "flash-linear-attention, or measure gradients"
            ) from error


@contextmanager
def _experts_in_turn(model: nn.Module) -> Iterator[None]:
    """Without the grouped products of a mixture of experts, which have no forward mode."""
    field = "_experts_implementation_internal"
    configs = {id(c): c for m in model.modules() if (c := vars(m).get("config")) is not None}
    saved = [(c, before) for c in configs.values() if (before := getattr(c, field, None))]
    try:
        for config, _ in saved:
            setattr(config, field, "eager")
        yield
    finally:
        for config, before in saved:
            setattr(config, field, before)


@contextmanager
def _plain_gelu(model: nn.Module) -> Iterator[None]:
    """BLOOM's GELU by its formula: its own function has one derivative, and no forward mode."""
    with ExitStack() as stack:
        for module in model.modules():
            if type(module).__name__ == "BloomGelu":
                stack.enter_context(patched(module, partial(F.gelu, approximate="tanh")))
        yield


@contextmanager
def _without_input_hooks(model: nn.Module) -> Iterator[None]:
    """Without the hooks of ``enable_input_require_grads`` of transformers."""
    handles = [h for m in model.modules() for h in getattr(m, "_require_grads_hooks", None) or ()]
    hooks = {id(hooks): hooks for h in handles if (hooks := h.hooks_dict_ref()) is not None}
    saved = [(hooks, hooks.copy()) for hooks in hooks.values()]
    try:
        for handle in handles:
            for own in hooks.values():
                own.pop(handle.id, None)
        yield
    finally:
        for own, copy in saved:
            own.clear()
            own.update(copy)
