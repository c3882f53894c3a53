"""The transformer blocks of a model: the modules that a text passes through, in order."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet.network.eager import uncompiled
from frenet.network.padding import rounding
from frenet.network.tasks import base_model, forward_arguments

# What a forward pass may raise if it needs more than a text, or other ids.
_FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, NotImplementedError)
# The place of embeddings, output head and last norm.
OUTSIDE = "outside the blocks"


class Reach(NamedTuple):
    """The parts of a model that a text reaches, and those that it does not reach.

    Attributes:
        blocks: name of the list of modules that a text runs through; "" if there is none.
        towers: names of the modules that no text reaches, such as image encoders.
    """

    blocks: str
    towers: tuple[str, ...]


# Names and not modules, because adapters may replace modules and blocks may be removed.
_CACHE: WeakKeyDictionary[nn.Module, tuple[tuple[str, ...], Reach]] = WeakKeyDictionary()


def text_reach(model: nn.Module) -> Reach:
    """The blocks that a text runs through, and the parts of the model that it never reaches.

    If a model has one list of modules, these are its blocks. If it has several, a short text runs
    through the model once, and the list that runs the most parameters holds the blocks. If no text
    runs, it is the list with the most parameters. A module that does not run is a tower, unless
    the output depends on its parameters.
    """
    inner = base_model(model)
    lists = tuple(_outermost_lists(inner))
    if len(lists) < 2:
        return Reach(lists[0] if lists else "", ())
    cached = _CACHE.get(inner)
    if cached is None or cached[0] != lists:
        cached = _CACHE[inner] = (lists, _measured_reach(inner, lists))
    return cached[1]


def block_list(model: nn.Module) -> nn.ModuleList:
    """The blocks that a text runs through; empty if there is no list of modules."""
    name = text_reach(model).blocks
    blocks = base_model(model).get_submodule(name) if name else nn.ModuleList()
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def unread(model: nn.Module) -> set[int]:
    """The ids of the parameters in parts of the model that no text reaches."""
    inner = base_model(model)
    return {id(p) for n in text_reach(model).towers for p in inner.get_submodule(n).parameters()}


def residual_blocks(model: nn.Module, path: str | None = None) -> tuple[nn.Module, nn.ModuleList]:
    """The blocks of a decoder in order, and the module that runs them.

    Args:
        model: a decoder, also inside a PEFT wrapper.
        path: dotted name of the list of blocks; None finds it.

    Raises:
        ValueError: there is no list with that name, or no list at all.
    """
    inner: Any = base_model(model)
    names = {name: m for name, m in inner.named_modules() if isinstance(m, nn.ModuleList)}
    # Called in any case, so that no text runs later inside the hooks of the caller.
    default = block_list(model)
    blocks = names.get(path) if path is not None else default
    if not blocks:
        there = ", ".join(names) or "none"
        missing = f"no module list {path!r}" if path is not None else "no list of blocks"
        raise UsageError(f"{missing} in {type(inner).__name__}; its module lists are: {there}")
    name = next(name for name, module in names.items() if module is blocks)
    return inner.get_submodule(name.rpartition(".")[0]), blocks


def parameter_blocks(model: nn.Module, names: Sequence[str]) -> dict[str, str]:
    """The place of each parameter: "block 3", counted from 0, or ``OUTSIDE``.

    Args:
        model: a decoder, also inside a PEFT wrapper. A model without a list of blocks has all its
            parameters outside.
        names: of parameters of ``model``, in any order.

    Returns:
        By name, in the order of the blocks; parameters outside come last.
    """
    blocks = {id(p): f"block {i}" for i, m in enumerate(block_list(model)) for p in m.parameters()}
    found = {name: blocks.get(id(model.get_parameter(name)), OUTSIDE) for name in names}
    order = [*dict.fromkeys(blocks.values()), OUTSIDE]
    return dict(sorted(found.items(), key=lambda item: order.index(item[1])))


def _outermost_lists(model: nn.Module) -> Iterator[str]:
    """Names of the module lists that are not inside another list, as lists of experts are."""
    last = None
    for name, module in model.named_modules():
        inside = last is not None and name.startswith(f"{last}.")
        if isinstance(module, nn.ModuleList) and len(module) and not inside:
            last = name
            yield name


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _measured_reach(model: nn.Module, lists: tuple[str, ...]) -> Reach:
    """Run a text through the model, and record what runs."""
    with _quiet(model):
        ids = short_text(model)
        ran, through = _ran(model, ids) if ids is not None else (set(), False)
        sizes = {
            name: sum(_size(m) for m in model.get_submodule(name).children() if id(m) in ran)
            for name in lists
        }
        if not any(sizes.values()):
            return Reach(max(lists, key=lambda name: _size(model.get_submodule(name))), ())
        blocks = max(lists, key=lambda name: sizes[name])
        if ids is None or not through:
            return Reach(blocks, ())
        still = list(_still(model, "", ran, model.get_submodule(blocks)))
        read = _read(model, still, ids) if still else set()
        return Reach(
            blocks, tuple(part for n in still for part in _apart(model.get_submodule(n), n, read))
        )


def short_text(model: nn.Module, length: int = 2) -> Tensor | None:
    """Tokens from the middle of the vocabulary, because special tokens are at its ends.

    Args:
        model: a model without a wrapper.
        length: number of tokens.

    Returns:
        Ids (1, length), on the device of the model; None if it reads no text.
    """
    if "input_ids" not in forward_arguments(model):
        return None
    find = getattr(model, "get_input_embeddings", None)
    try:
        table = find() if find else None
    except _FAILURES:
        table = None
    middle = getattr(table, "num_embeddings", 2) // 2
    device = next(model.parameters()).device
    ids = [max(middle - i, 0) for i in range(length)]
    return torch.tensor([ids], device=device)


def reads_ahead(model: nn.Module) -> bool:
    """Whether the logits of a token depend on later tokens; False if no text runs through.

    Such a model has seen the tokens that it should predict, so its loss means nothing.
    """
    inner = base_model(model)
    ids = short_text(inner, 8)
    if ids is None:
        return False
    other = ids.clone()
    other[0, -1] = ids[0, 0]
    with _quiet(inner), torch.no_grad():
        try:
            first, second = (text_logits(inner, each)[:, :-1].float() for each in (ids, other))
        except _FAILURES:
            return False
    spread = (first - first.mean(-1, keepdim=True)).norm()
    return bool((first - second).norm() > rounding(inner, first) * spread)


def _ran(model: nn.Module, ids: Tensor) -> tuple[set[int], bool]:
    """The ids of the modules that a text runs, and whether the forward pass finishes."""
    ran: set[int] = set()
    with ExitStack() as stack, torch.no_grad():
        for module in model.modules():
            handle = module.register_forward_pre_hook(lambda m, _: ran.add(id(m)))
            stack.callback(handle.remove)
        try:
            text_logits(model, ids)
        except _FAILURES:
            return ran, False
    return ran, True


def text_logits(model: nn.Module, ids: Tensor, **more: Tensor) -> Any:
    """The logits of a text, or the whole output if it has no logits."""
    accepted = forward_arguments(model)
    arguments: dict[str, Any] = {"input_ids": ids, **more}
    if "use_cache" in accepted:
        arguments["use_cache"] = False
    output = model(**arguments)
    return getattr(output, "logits", output)


def _still(module: nn.Module, name: str, ran: set[int], blocks: nn.Module) -> Iterator[str]:
    """Names of the largest modules in which nothing ran, outside the blocks that ran.

    Inside a block, the text decides which experts of a mixture run.
    """
    if not any(id(m) in ran for m in module.modules()):
        if next(module.parameters(), None) is not None:
            yield name
        return
    for part, child in module.named_children():
        if not (module is blocks and id(child) in ran):
            yield from _still(child, f"{name}.{part}" if name else part, ran, blocks)


def _read(model: nn.Module, names: list[str], ids: Tensor) -> set[int]:
    """The ids of the parameters that the output depends on, although their modules do not run.

    Another module may read them directly, for example a tied weight.
    """
    candidates = {p for name in names for p in model.get_submodule(name).parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(parameter in candidates and parameter.is_floating_point())
    with torch.enable_grad():
        logits = text_logits(model, ids)
    if not isinstance(logits, Tensor):
        return {id(p) for p in candidates}
    if not logits.requires_grad:
        return set()
    floating = [p for p in candidates if p.requires_grad]
    gradients = torch.autograd.grad(logits.float().sum(), floating, allow_unused=True)
    return {id(p) for p, grad in zip(floating, gradients, strict=True) if grad is not None}


def _apart(module: nn.Module, name: str, read: set[int]) -> Iterator[str]:
    """Names of the largest parts of a module in which no parameter is read."""
    if not any(id(p) in read for p in module.parameters()):
        if next(module.parameters(), None) is not None:
            yield name
        return
    for part, child in module.named_children():
        yield from _apart(child, f"{name}.{part}", read)


@contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without compiled code; all flags are restored afterwards."""
    training = [module for module in model.modules() if module.training]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        with uncompiled():
            yield
    finally:
        for module in training:
            module.training = True
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
