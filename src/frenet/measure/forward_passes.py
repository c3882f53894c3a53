"""Forward passes over rows of different lengths."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet.network.blocks import residual_blocks
from frenet.network.hooks.watch import CACHES
from frenet.network.limits import require_room
from frenet.network.padding import arranged, is_padded
from frenet.network.tasks import Batch, base_model, collate, forward_arguments, require_tokens

# Tokens in one pass while activations are collected.
TOKENS = 2048


class _EndedError(Exception):
    """Raised after the last block that is needed."""


@contextmanager
def ending_after(
    model: nn.Module, blocks: Sequence[int], *, path: str | None = None
) -> Iterator[None]:
    """End a forward pass inside the context after the last of the blocks, and the context with it.

    Enter it after ``record`` and ``add``, so that their hooks run first.
    """

    def end(*_: Any) -> None:
        raise _EndedError

    handle = residual_blocks(model, path)[1][max(blocks)].register_forward_hook(end)
    try:
        with suppress(_EndedError):
            yield
    finally:
        handle.remove()


def length_groups(
    rows: Sequence[Sequence[int]], tokens: int, *, alike: bool = False
) -> Iterator[list[int]]:
    """Indices of rows by increasing length, in groups with a maximum of padded tokens.

    ``alike``: all rows of a group have the same length.

    >>> list(length_groups([[1, 2, 3], [4], [5, 6], [7]], 4))
    [[1, 3], [2], [0]]
    >>> list(length_groups([[1, 2, 3], [4], [5, 6], [7]], 9, alike=True))
    [[1, 3], [2], [0]]
    """
    group: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        full = (len(group) + 1) * len(rows[i]) > tokens
        if group and (full or (alike and len(rows[i]) != len(rows[group[0]]))):
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def fitting_groups(
    model: nn.Module, rows: Sequence[Sequence[int]], tokens: int, *, padding_side: str = "left"
) -> Iterator[list[int]]:
    """``length_groups``, of one length each if padding on that side would change the streams.

    The same holds if the model takes no mask, which marks the last token of a row.

    Raises:
        ValueError: a row has no tokens.
    """
    require_tokens(rows)
    if "attention_mask" not in forward_arguments(model):
        yield from length_groups(rows, tokens, alike=True)
        return
    ends = sorted(rows, key=len)[:: max(1, len(rows) - 1)]
    pair = collate([(list(row), []) for row in ends], padding_side=padding_side) if ends else {}
    yield from length_groups(rows, tokens, alike=arranged(model, pair) is not None)


def cache_name(model: nn.Module) -> str | None:
    """The name of the model's key-value cache in its arguments and its output.

    None without a cache, or if the cache holds more than keys and values: the state of a recurrent
    block cannot be reused for another number of rows.
    """
    name = next((name for name in CACHES if name in forward_arguments(model)), None)
    config = getattr(base_model(model), "config", None)
    if name is None or config is None:
        return None
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    layers = {type(layer) for layer in DynamicCache(config=config).layers}
    return name if layers <= {DynamicLayer, DynamicSlidingWindowLayer} else None


def run_blocks(model: nn.Module, batch: Batch, *, cache: Any = None, keep: int = 1) -> Any:
    """One forward pass, with the output head on the last columns only.

    Args:
        model: a decoder.
        batch: only arguments that the model accepts are passed, and no mask without padding.
        cache: from an earlier pass, under ``cache_name`` of its output; True: make one.
        keep: number of columns with logits; models that cannot leave columns out have more.

    Raises:
        ValueError: rows are too long for the model.
    """
    positions = batch.get("position_ids")
    width = batch["input_ids"].shape[1]
    require_room(model, width if positions is None else int(positions.max()) + 1)
    accepted = forward_arguments(model)
    device = next(model.parameters()).device
    given: dict[str, Any] = {k: v.to(device) for k, v in batch.items() if k in accepted}
    given.pop("labels", None)
    if not is_padded(batch):
        given.pop("attention_mask", None)
    if "use_cache" in accepted:
        given["use_cache"] = cache is not None
    name = cache_name(model) if cache is not None else None
    if name and cache is not True:
        given[name] = cache
    if "logits_to_keep" in accepted:
        given["logits_to_keep"] = keep
    return model(**given)


class Collected:
    """Streams of rows, collected group by group."""

    def __init__(self, blocks: Sequence[int]) -> None:
        self._blocks = blocks
        self._order: list[int] = []
        self._parts: list[Tensor] = []

    def put(self, group: Sequence[int], streams: Float[Tensor, "b l h"]) -> None:
        """Add the streams of some rows.

        Raises:
            FloatingPointError: a value is not finite; names row, block and dtype.
        """
        good = torch.isfinite(streams).all(2)
        if not good.all():
            row, block = (~good).nonzero()[0].tolist()
            raise FloatingPointError(
                f"the stream of row {group[row]} is not finite after block {self._blocks[block]} "
                f"in {streams.dtype}; load the model in float32"
            )
        self._order += group
        self._parts.append(streams.float())

    def whole(self) -> Float[Tensor, "n l h"]:
        """All rows, in their original order."""
        together = torch.cat(self._parts)
        ordered = torch.empty_like(together)
        ordered[torch.tensor(self._order, device=ordered.device)] = together
        return ordered
