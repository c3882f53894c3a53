"""Residual streams, read and written at sites: any padding, with a cache, with adapters."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet.network.blocks import residual_blocks
from frenet.network.context import measuring
from frenet.network.sites import Site, hooked
from frenet.network.tasks import Batch, collate, forward_arguments

# Tokens that go through the network at once while activations are collected.
TOKENS = 2048


class Recording(dict[Site, Tensor]):
    """What was seen at each site: a row (h,) a token, of all forward passes in their order."""

    def __init__(self, sites: Sequence[Site]) -> None:
        super().__init__()
        self._parts: dict[Site, list[Tensor]] = {site: [] for site in sites}

    def take(self, site: Site, rows: Float[Tensor, "m h"]) -> None:
        """Append the rows of one forward pass."""
        self._parts[site].append(rows)
        self[site] = torch.cat(self._parts[site])


@contextmanager
def record(
    model: nn.Module, sites: Sequence[Site], *, path: str | None = None
) -> Iterator[Recording]:
    """Inside, every forward pass of the model leaves its residual stream at the sites.

    Args:
        model: a decoder, also with a PEFT adapter; nothing is left behind on it.
        sites: where to look. What an ``add`` that was entered earlier adds is seen.
        path: dotted name of the list of blocks, where it is not found by itself.

    Yields:
        By site, (m, h) in the dtype of the stream: one row a token, row by row of the batch;
        differentiable where the forward pass is.

    Raises:
        ValueError: a block that the model does not have.

    >>> block = nn.Linear(2, 2)
    >>> model = nn.Module(); model.layers = nn.ModuleList([block])
    >>> model.forward = lambda input_ids: model.layers[0](torch.ones(*input_ids.shape, 2))
    >>> with record(model, [Site(0, "all")]) as seen:
    ...     _ = model(input_ids=torch.zeros(3, 4, dtype=torch.int64))
    >>> seen[Site(0, "all")].shape
    torch.Size([12, 2])
    """
    found = Recording(sites)

    def see(site: Site, stream: Tensor, chosen: Tensor) -> None:
        found.take(site, stream[chosen])

    with hooked(model, sites, see, path=path):
        yield found


@contextmanager
def add(
    model: nn.Module, vectors: Mapping[Site, Float[Tensor, "*b h"]], *, path: str | None = None
) -> Iterator[None]:
    """Inside, every forward pass has a vector added to its residual stream at each site.

    h_l <- h_l + v at the site's positions, in prompts, in scored text and in generation alike.

    Args:
        model: a decoder, also with a PEFT adapter; nothing is left behind on it.
        vectors: by site, (h,), or (b, h) with one vector a row of the batch.
        path: dotted name of the list of blocks, where it is not found by itself.

    Raises:
        ValueError: a block that the model does not have, or a vector of another width.
    """

    def put(site: Site, stream: Tensor, chosen: Tensor) -> Tensor:
        vector = vectors[site].to(stream.device, stream.dtype)
        if vector.shape[-1] != stream.shape[-1]:
            raise ValueError(
                f"the vector for block {site.block} has {vector.shape[-1]} entries, the stream "
                f"{stream.shape[-1]}; it belongs to another model"
            )
        rows = vector if vector.dim() == 1 else vector[:, None]
        return stream + rows * chosen[..., None].to(stream.dtype)

    with hooked(model, tuple(vectors), put, path=path):
        yield


def last_activations(
    model: nn.Module,
    rows: Sequence[Sequence[int]],
    blocks: Sequence[int],
    *,
    path: str | None = None,
    tokens: int = TOKENS,
    padding_side: str = "right",
) -> Float[Tensor, "n l h"]:
    """The residual stream at the last token of every row, after each of the blocks.

    Rows of like length share a forward pass, so that little is spent on padding.

    Args:
        model: a decoder; left exactly as it is.
        rows: n lists of token ids.
        blocks: l block indices.
        path: see ``record``.
        tokens: at most so many, padding included, in one forward pass.
        padding_side: where shorter rows are padded; the result does not depend on it.

    Returns:
        float32, on the model's device.

    Raises:
        ValueError: no rows, or an empty one.
        FloatingPointError: a value is not finite; names row, block and dtype.
    """
    if not rows:
        raise ValueError("no prompts to look at; pass at least one")
    sites = [Site(block) for block in blocks]
    found = Collected(blocks)
    with measuring(model), torch.no_grad():
        for group in length_groups(rows, tokens):
            batch = collate([(list(rows[i]), []) for i in group], padding_side=padding_side)
            require_maskable(model, batch)
            with record(model, sites, path=path) as seen, ending_after(model, blocks, path=path):
                run_blocks(model, batch)
            found.put(group, torch.stack([seen[site] for site in sites], 1))
    return found.whole()


class _EndedError(Exception):
    """Raised after the last block that is needed."""


@contextmanager
def ending_after(
    model: nn.Module, blocks: Sequence[int], *, path: str | None = None
) -> Iterator[None]:
    """Inside, a forward pass ends after the last of the blocks, and the context ends with it.

    To be entered after ``record`` and ``add``, whose hooks run first.
    """

    def end(*_: Any) -> None:
        raise _EndedError

    handle = residual_blocks(model, path)[1][max(blocks)].register_forward_hook(end)
    try:
        with suppress(_EndedError):
            yield
    finally:
        handle.remove()


def length_groups(rows: Sequence[Sequence[int]], tokens: int) -> Iterator[list[int]]:
    """Indices of rows by increasing length, in groups of at most so many padded tokens.

    >>> list(length_groups([[1, 2, 3], [4], [5, 6], [7]], 4))
    [[1, 3], [2], [0]]
    """
    group: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        if group and (len(group) + 1) * len(rows[i]) > tokens:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def run_blocks(model: nn.Module, batch: Batch) -> Any:
    """One forward pass, with the output head on the last column only."""
    accepted = forward_arguments(model)
    device = next(model.parameters()).device
    given: dict[str, Any] = {k: v.to(device) for k, v in batch.items() if k in accepted}
    given.pop("labels", None)
    if not _padded(batch):
        given.pop("attention_mask", None)
    if "use_cache" in accepted:
        given["use_cache"] = False
    if "logits_to_keep" in accepted:
        given["logits_to_keep"] = 1
    return model(**given)


class Collected:
    """Streams of rows, put together from groups of them."""

    def __init__(self, blocks: Sequence[int]) -> None:
        self._blocks = blocks
        self._order: list[int] = []
        self._parts: list[Tensor] = []

    def put(self, group: Sequence[int], streams: Float[Tensor, "b l h"]) -> None:
        """Take the streams of some rows.

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
        """All rows, in their own order."""
        together = torch.cat(self._parts)
        found = torch.empty_like(together)
        found[torch.tensor(self._order, device=found.device)] = together
        return found


def require_maskable(model: nn.Module, batch: Batch) -> None:
    """Raise ValueError where rows are padded and the model has no way to know it."""
    if _padded(batch) and "attention_mask" not in forward_arguments(model):
        raise ValueError(
            f"{type(model).__name__} takes no attention mask, so that rows of unlike length cannot "
            "share a forward pass; pass them one at a time (tokens=1)"
        )


def _padded(batch: Batch) -> bool:
    mask = batch.get("attention_mask")
    return mask is not None and not bool(mask.all())
