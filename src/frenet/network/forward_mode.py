"""Derivatives of a model along a step of its weights, in forward mode."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_PRODUCTS = (torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__)
_SUMS = (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)


def derivative_along(
    function: Callable[[dict[str, Tensor]], Tensor],
    point: Mapping[str, Tensor],
    step: Mapping[str, Tensor],
) -> Tensor:
    """d/dt f(theta + t step) at t = 0, as ``torch.func.jvp``, in two thirds of its time.

    Args:
        function: of named tensors, differentiable in forward mode.
        point: theta.
        step: one tensor for each of theta, of its shape and dtype.

    Raises:
        RuntimeError: an operation has no derivative in forward mode.
    """
    with dual_level(), _Rules():
        value = function({name: make_dual(x, step[name]) for name, x in point.items()})
        value, moved = unpack_dual(value)
    return torch.zeros_like(value) if moved is None else moved


class _Rules(TorchFunctionMode):
    """Shorter formulas for what takes most of the time in a transformer.

    torch takes a missing derivative in a product or a sum as a tensor of zeros, and works out its
    shape in Python; it adds the two products of a linear layer in a pass of their own; and its
    formula for a softmax takes the exponential a second time.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The result of a function, by one of the rules or by torch."""
        kwargs = kwargs or {}
        rule = _RULES.get(func)
        found = None if rule is None else rule(func, *args, **kwargs)
        return func(*args, **kwargs) if found is None else found


def _parts(x: Any) -> tuple[Any, Tensor | None]:
    """Value and derivative; numbers and integer tensors have none."""
    if isinstance(x, Tensor) and x.is_floating_point():
        value, moved = unpack_dual(x)
        return value, moved
    return x, None


def _with_constant(func: Any, *args: Any, **kwargs: Any) -> Tensor | None:
    """A product with a constant, or a sum with one."""
    if kwargs:
        return None
    (x, dx), (y, dy) = map(_parts, args)
    if (dx is None) == (dy is None):
        return None
    value = func(x, y)
    if func in _PRODUCTS:
        moved = func(x if dx is None else dx, y if dy is None else dy)
    else:
        moved = dy if dx is None else dx
        assert moved is not None
        moved = moved.to(value.dtype).expand(value.shape)
    return make_dual(value, moved)


def _linear(func: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """x W^T + b, with the derivative dx W^T + x dW^T + db."""
    (x, dx), (weight, dweight), (bias, dbias) = map(_parts, (x, weight, bias))
    if dx is None or dweight is None or (bias is not None and dbias is None):
        return None
    moved = F.linear(dx, weight, dbias)
    moved.view(-1, moved.shape[-1]).addmm_(x.flatten(0, -2), dweight.T)
    return make_dual(F.linear(x, weight, bias), moved)


def _softmax(
    func: Any, x: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None
) -> Tensor | None:
    """p = softmax(x), with the derivative p (dx - <p, dx>)."""
    value, moved = _parts(x)
    if moved is None or dim is None:
        return None
    p = func(value, dim, dtype=dtype)
    return make_dual(p, _softmax_moved(p, moved.to(p.dtype, copy=True), dim))


def _softmax_moved(p: Tensor, moved: Tensor, dim: int) -> Tensor:
    moved.mul_(p)
    return moved.addcmul_(p, moved.sum(dim, keepdim=True), value=-1)


def _attention(
    func: Any,
    query: Float[Tensor, "*b h t c"],
    key: Float[Tensor, "*b g s c"],
    value: Float[Tensor, "*b g s e"],
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    """O = P V with P = softmax(scale Q K^T + mask), and dO = dP V + P dV."""
    pairs = [_parts(x) for x in (query, key, value)]
    known = all(moved is not None for _, moved in pairs) and _parts(attn_mask)[1] is None
    if not known or dropout_p or query.dim() != 4:
        return None
    rows, heads, t, width = query.shape
    if key.shape[:2] != value.shape[:2] or not (enable_gqa or key.shape[:2] == (rows, heads)):
        return None  # torch broadcasts
    # Half precision is too coarse for the scores, as in torch's own plain products.
    kind = torch.promote_types(query.dtype, torch.float32)

    def flat(x: Tensor) -> Tensor:
        if enable_gqa:
            x = x.repeat_interleave(heads // x.shape[1], 1)
        return x.to(kind).reshape(rows * heads, *x.shape[2:])

    (q, dq), (k, dk), (v, dv) = (map(flat, pair) for pair in pairs)
    times = width**-0.5 if scale is None else scale
    scores = torch.bmm(q, k.mT).mul_(times).view(rows, heads, t, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[2:], dtype=torch.bool, device=q.device).tril()
    # A number in place of minus infinity, so that a row of padding, which sees no token, is finite.
    least = torch.finfo(kind).min
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores.masked_fill_(~attn_mask, least)
    elif attn_mask is not None:
        scores.add_(attn_mask).clamp_(min=least)
    p = scores.softmax(-1).flatten(0, 1)
    moved = torch.bmm(dq, k.mT).baddbmm_(q, dk.mT, beta=times, alpha=times)
    dp = _softmax_moved(p, moved, -1)
    results = torch.bmm(p, v), torch.bmm(dp, v).baddbmm_(p, dv)
    return make_dual(*(x.view(rows, heads, t, -1).to(query.dtype) for x in results))


_RULES: dict[Any, Callable[..., Tensor | None]] = {
    **dict.fromkeys((*_PRODUCTS, *_SUMS), _with_constant),
    F.linear: _linear,
    F.softmax: _softmax,
    F.scaled_dot_product_attention: _attention,
}
