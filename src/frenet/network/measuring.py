"""Measuring without a trace: evaluation mode, chosen gradients, everything restored."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from frenet._errors import UsageError
from frenet.network.eager import uncompiled
from frenet.network.space import ParamSpace

Forward = Callable[..., Tensor]
# Words in torch's errors about a layer that has only a backward pass.
_NO_FORWARD_MODE = ("forward AD", "autograd.Function with functorch", "jvp")


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Run with this number of torch threads, and restore the old number.

    The number affects the last digits of sums, so results that go into a shared cache need a fixed
    number.

    Raises:
        ValueError: the number is below 1.
    """
    if threads < 1:
        raise UsageError(f"threads={threads} is not possible; give 1 or more")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def measuring(model: nn.Module, space: ParamSpace | None = None) -> Iterator[None]:
    """Dropout off, and gradients only for the parameters of ``space`` (None: for no parameter).

    Training flags, ``requires_grad`` and ``.grad`` are restored afterwards. Evaluation mode also
    switches off gradient checkpointing, which ``torch.func`` does not support. The padding row of
    an embedding has a gradient like all other rows, since its id may also be a word of the text;
    masked tokens have none. Compiled models run eagerly (see ``eager.uncompiled``).
    """
    # A large model has thousands of modules, and most are already in evaluation mode: only the
    # others are touched.
    training, embeddings = [], []
    for module in model.modules():
        if module.training:
            training.append(module)
        if isinstance(module, nn.Embedding) and _padded_without_need(module):
            embeddings.append((module, module.padding_idx))
    chosen = set(map(id, space.parameters(model))) if space else set()
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    try:
        if training:
            model.eval()
        for embedding, _ in embeddings:
            embedding.padding_idx = None
        for parameter, flag, _ in parameters:
            if flag != (id(parameter) in chosen):
                parameter.requires_grad_(not flag)
            # A backward pass would add to the saved tensor in place.
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
    """Whether only the gradient depends on the index of the padding row.

    Some embeddings of positions count from this index in their forward pass.
    """
    if module.padding_idx is None:
        return False
    forward: Any = type(module).forward
    return forward is nn.Embedding.forward or "padding_idx" not in forward.__code__.co_names


@dataclass
class Calls:
    """How often a replaced forward has run."""

    count: int = 0


@contextmanager
def patched(module: nn.Module, forward: Forward) -> Iterator[Calls]:
    """Replace ``module.forward`` on this instance, and count its calls.

    The replacement may never run, since another module may read the weights directly. A caller
    that relies on it has to check the count, or to compare outputs.
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
    """``measuring``, in a state in which ``torch.func`` can differentiate and batch the model.

    Attention, experts and the activation of BLOOM use implementations that have forward-mode and
    second derivatives and batching rules. Gradient checkpointing adds hooks that make the
    embeddings require gradients. ``torch.func`` refuses them, so they are off.

    Raises:
        ValueError: a layer has no derivative in forward mode, for example a compiled kernel.
    """
    with (
        measuring(model),
        _without_input_hooks(model),
        _experts_in_turn(model),
        _plain_gelu(model),
        warnings.catch_warnings(),
        sdpa_kernel(SDPBackend.MATH),
    ):
        # On first use, forward mode compiles some of torch's formulas with torch.jit.script.
        warnings.filterwarnings("ignore", "`torch.jit.script`", DeprecationWarning)
        try:
            yield
        except RuntimeError as error:
            if not any(sign in str(error) for sign in _NO_FORWARD_MODE):
                raise
            raise UsageError(
                f"{type(model).__name__} has a layer without derivatives in forward mode, so its "
                f"slopes and Hessian products cannot be measured ({str(error)[:120]} ...); "
                "load it without compiled kernels, such as those of mamba_ssm, causal_conv1d or "
                "flash-linear-attention, or measure gradients"
            ) from error


@contextmanager
def twice_forward(model: nn.Module) -> Iterator[None]:
    """``transformable``, for two derivatives in forward mode.

    Layer normalisation is computed by its formula: the derivative of torch's own one has itself a
    wrong derivative in forward mode, because it takes mean and deviation as constants (torch 2.13).
    Gradient mode stays on, without which the derivative of SiLU has none.
    """
    with transformable(model), torch.enable_grad(), _PlainLayerNorm():
        yield


class _PlainLayerNorm(TorchFunctionMode):
    """Layer normalisation by its formula."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (F.layer_norm, torch.layer_norm):
            return _layer_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    axes = tuple(range(-len(normalized_shape), 0))
    centred = x - x.mean(axes, keepdim=True)
    y = centred * (centred.square().mean(axes, keepdim=True) + eps).rsqrt()
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


@contextmanager
def _experts_in_turn(model: nn.Module) -> Iterator[None]:
    """Switch off grouped products in a mixture of experts, which have no forward mode."""
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
    """Replace BLOOM's GELU, which has no forward mode and no second derivative, by its formula."""
    with ExitStack() as stack:
        for module in model.modules():
            if type(module).__name__ == "BloomGelu":
                stack.enter_context(patched(module, partial(F.gelu, approximate="tanh")))
        yield


@contextmanager
def _without_input_hooks(model: nn.Module) -> Iterator[None]:
    """Remove the hooks of ``enable_input_require_grads`` of transformers for a while."""
    handles = [h for m in model.modules() for h in getattr(m, "_require_grads_hooks", None) or ()]
    hooks = {id(hooks): hooks for h in handles if (hooks := h.hooks_dict_ref()) is not None}
    saved = [(hooks, hooks.copy()) for hooks in hooks.values()]
    try:
        for handle in handles:
            for registered in hooks.values():
                registered.pop(handle.id, None)
        yield
    finally:
        for registered, copy in saved:
            registered.clear()
            registered.update(copy)
