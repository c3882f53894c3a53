"""The transformer blocks of a model."""

from typing import Any

from torch import nn

from frenet.network.tasks import base_model


def block_list(model: nn.Module) -> nn.ModuleList:
    """The module list that holds the most parameters; empty where there is none."""
    lists = [m for m in base_model(model).modules() if isinstance(m, nn.ModuleList) and len(m)]
    sizes = [sum(p.numel() for p in each.parameters()) for each in lists]
    return lists[sizes.index(max(sizes))] if lists else nn.ModuleList()


def residual_blocks(model: nn.Module, path: str | None = None) -> tuple[nn.Module, nn.ModuleList]:
    """The blocks of a decoder in order, and the module that runs them.

    Args:
        model: a decoder, also inside a PEFT wrapper.
        path: dotted name of the list of blocks; None finds it.

    Raises:
        ValueError: there is no list of that name, or none at all.
    """
    inner: Any = base_model(model)
    names = {name: m for name, m in inner.named_modules() if isinstance(m, nn.ModuleList)}
    found = names.get(path) if path is not None else block_list(model)
    if not found:
        there = ", ".join(names) or "none"
        missing = f"no module list {path!r}" if path is not None else "no list of blocks"
        raise ValueError(f"{missing} in {type(inner).__name__}; its module lists are: {there}")
    name = next(name for name, module in names.items() if module is found)
    return inner.get_submodule(name.rpartition(".")[0]), found
