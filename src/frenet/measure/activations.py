"""Reads and writes residual streams at sites, with any padding, cache or adapter."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet.measure.forward_passes import (
    TOKENS,
    Collected,
    cache_name,
    ending_after,
    fitting_groups,
    run_blocks,
)
from frenet.network.blocks import residual_blocks
from frenet.network.hooks.positions import Pass
from frenet.network.hooks.sites import Site, hooked
from frenet.network.measuring import measuring
from frenet.network.tasks import Batch, collate, require_tokens

# With this many rows per beginning, the rows always share a pass.
COPIES = 4


class Recording(Mapping[Site, Tensor]):
    """The streams at each site: one row (h,) per token.

    Forward passes are in order, each with the rows of its batch in order. In a call of
    ``generate`` every token of the text has one row, with or without a cache: first the tokens of
    the prompts, row by row, then those of each new token.
    """

    def __init__(self) -> None:
        self._parts: dict[Site, list[Tensor]] = {}
        self._open: dict[Site, _Text] = {}

    def take(self, site: Site, stream: Tensor, chosen: Tensor, now: Pass) -> None:
        """Append the chosen rows of one forward pass."""
        if now.again:
            # A recomputation for the backward pass has the same tensors and adds no new rows.
            stream[chosen]
        elif now.generation:
            assert now.prompt is not None
            text = self._open.setdefault(site, _Text(now.prompt.shape[1]))
            text.put(stream, chosen, now.past)
        else:
            self._parts.setdefault(site, []).append(stream[chosen])

    def finish(self, columns: int | None) -> None:
        """Add the text of a ``generate`` call that computed this many columns."""
        for site, text in self._open.items():
            self._parts.setdefault(site, []).append(text.whole(columns))
        self._open = {}

    def __getitem__(self, site: Site) -> Float[Tensor, "m h"]:
        parts = self._parts[site]
        if len(parts) > 1:
            # Stored for the next access, which may differentiate it.
            with torch.enable_grad():
                parts[:] = [torch.cat(parts)]
        return parts[0]

    def stacked(self, sites: Sequence[Site]) -> Float[Tensor, "m l h"]:
        """The rows at l sites with the same number of tokens.

        Raises:
            ValueError: the block of a site did not run.
        """
        if missing := [site.block for site in sites if site not in self._parts]:
            raise UsageError(
                f"block {missing[0]} did not run and has no stream; choose other blocks"
            )
        return torch.stack([self[site] for site in sites], 1)

    def __iter__(self) -> Iterator[Site]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


class _Text:
    """Streams of a generated text, by row and column."""

    def __init__(self, prompt: int) -> None:
        self._prompt = prompt
        self._rows: list[Tensor] = []
        self._places: list[Tensor] = []
        self._end = 0

    def put(self, stream: Float[Tensor, "b t h"], chosen: Tensor, past: int) -> None:
        """The chosen tokens of a pass that begins with column ``past``."""
        if past < self._end:
            # Rejected candidates, or everything that a pass without a cache computes again.
            self._keep_before(past)
        where = chosen.nonzero()
        self._rows.append(stream[where[:, 0], where[:, 1]])
        self._places.append(where + torch.tensor([0, past], device=where.device))
        self._end = past + stream.shape[1]

    def _keep_before(self, end: int) -> None:
        for i, places in enumerate(self._places):
            before = places[:, 1] < end
            self._rows[i], self._places[i] = self._rows[i][before], places[before]

    def whole(self, columns: int | None) -> Float[Tensor, "m h"]:
        """The rows of the prompts, row by row, then those of new tokens, column by column."""
        if columns is not None:
            self._keep_before(columns)
        rows, places = torch.cat(self._rows), torch.cat(self._places)
        row, column = places.unbind(1)
        count = int(row.max()) + 1 if len(row) else 1
        new = column * count + row
        order = torch.where(column < self._prompt, row * self._prompt + column, new)
        return rows[order.argsort()]


@contextmanager
def record(
    model: nn.Module, sites: Sequence[Site], *, path: str | None = None
) -> Iterator[Recording]:
    """Record the residual stream at the sites in every forward pass inside the context.

    Args:
        model: a decoder, also with a PEFT adapter; the hooks are removed afterwards.
        sites: blocks and positions. Vectors of an ``add`` that was entered earlier are included.
        path: dotted name of the list of blocks; None: frenet looks for it.

    Yields:
        By site, (m, h) in the dtype of the stream, one row per token in the order of the batch;
        differentiable if the forward pass is.

    Raises:
        ValueError: a block does not exist or does not run in a pass, or a position does not exist
            in a prompt or was computed before.

    >>> block = nn.Linear(2, 2)
    >>> model = nn.Module(); model.layers = nn.ModuleList([block])
    >>> model.forward = lambda input_ids: model.layers[0](torch.ones(*input_ids.shape, 2))
    >>> with record(model, [Site(0, "all")]) as seen:
    ...     _ = model(input_ids=torch.zeros(3, 4, dtype=torch.int64))
    >>> seen[Site(0, "all")].shape
    torch.Size([12, 2])
    """
    recording = Recording()

    with hooked(model, sites, recording.take, path=path, finish=recording.finish):
        yield recording


@contextmanager
def add(
    model: nn.Module, vectors: Mapping[Site, Float[Tensor, "*b h"]], *, path: str | None = None
) -> Iterator[None]:
    """Add a vector to the residual stream at each site in every forward pass inside the context.

    h_l <- h_l + v at the site's positions, in prompts, in scored text and in generation.

    Args:
        model: a decoder, also with a PEFT adapter; the hooks are removed afterwards.
        vectors: by site, (h,), or (b, h) with one vector per row of the batch.
        path: dotted name of the list of blocks; None: frenet looks for it.

    Raises:
        ValueError: see ``record``; a vector has another width or belongs to other rows; or the
            model did not run inside.
    """

    def put(site: Site, stream: Tensor, chosen: Tensor, now: Pass) -> Tensor:
        vector = vectors[site].to(stream.device, stream.dtype)
        if vector.shape[-1] != stream.shape[-1]:
            raise UsageError(
                f"the vector for block {site.block} has {vector.shape[-1]} entries, the stream "
                f"{stream.shape[-1]}; it belongs to another model"
            )
        if vector.dim() == 1:
            return stream + vector * chosen[..., None].to(stream.dtype)
        prompts = len(stream) // now.copies
        # One row becomes as many as there are vectors.
        if prompts > 1 and len(vector) not in (1, prompts):
            raise UsageError(
                f"there are {len(vector)} vectors for block {site.block}, and the batch has "
                f"{prompts} rows; pass one vector, or one per row"
            )
        rows = vector.repeat_interleave(now.copies, 0) if len(vector) > 1 else vector
        # The chosen tokens have a factor of 1, so that the product is exact.
        return torch.addcmul(stream, rows[:, None], chosen[..., None].to(stream.dtype))

    with hooked(model, tuple(vectors), put, path=path) as watch:
        yield
    if vectors and not watch.passes:
        raise UsageError(
            f"no forward pass of {type(model).__name__} ran while vectors were added to it; "
            "call this model inside, not a copy that was captured before"
        )


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

    Rows of similar length share a forward pass, to save padding. Rows that differ only in their
    last token, such as a question with either answer, share the pass over the tokens before it.

    Args:
        model: a decoder; left unchanged.
        rows: n lists of token ids.
        blocks: l block indices.
        path: see ``record``.
        tokens: most tokens in one forward pass, padding included. The cache of shared beginnings
            may hold four times as many.
        padding_side: of shorter rows; the result does not depend on it.

    Returns:
        float32, on the model's device.

    Raises:
        ValueError: there are no rows, or a row is empty or too long for the model.
        FloatingPointError: a value is not finite; names row, block and dtype.
    """
    if not rows:
        raise UsageError("there are no prompts; pass at least one")
    require_tokens(rows)
    collected = Collected(blocks)
    alone, endings = _endings(model, rows, blocks, path)
    with measuring(model), torch.no_grad():
        whole = [rows[i] for i in alone]
        for group in fitting_groups(model, whole, tokens, padding_side=padding_side):
            chosen = [alone[i] for i in group]
            batch = collate([(list(rows[i]), []) for i in chosen], padding_side=padding_side)
            collected.put(chosen, _last(model, batch, blocks, path))
        shared = [rows[members[0]][:-1] for members in endings]
        for group in fitting_groups(model, shared, tokens):
            members = [endings[i] for i in group]
            chosen = [i for each in members for i in each]
            beginnings = [list(rows[each[0]][:-1]) for each in members]
            which = [g for g, each in enumerate(members) for _ in each]
            ends = [rows[i][-1] for i in chosen]
            # Every ending has a copy of the cache of its beginning.
            most = max(COPIES * len(beginnings), tokens // (1 + max(map(len, beginnings))))
            streams = _last_of_endings(model, beginnings, which, ends, blocks, path, most)
            collected.put(chosen, streams)
    return collected.whole()


def _endings(
    model: nn.Module, rows: Sequence[Sequence[int]], blocks: Sequence[int], path: str | None
) -> tuple[list[int], list[list[int]]]:
    """Indices of rows that run in full, and of those that differ only in their last token."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(rows):
        alike.setdefault(tuple(row[:-1]), []).append(i)
    # A beginning runs through all blocks; a full row ends after the last requested block.
    deep = 2 * (max(blocks) + 1) > len(residual_blocks(model, path)[1])
    # Other hooks, such as an ``add``, need to see full rows.
    bare = not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    shares = deep and bare and cache_name(model) is not None
    endings = [members for begin, members in alike.items() if shares and begin and members[1:]]
    shared = {i for members in endings for i in members}
    return [i for i in range(len(rows)) if i not in shared], endings


def _last(
    model: nn.Module, batch: Batch, blocks: Sequence[int], path: str | None, cache: Any = None
) -> Float[Tensor, "b l h"]:
    """The streams at the last tokens; with a cache, the batch holds only these."""
    sites = [Site(block) for block in blocks]
    with record(model, sites, path=path) as seen, ending_after(model, blocks, path=path):
        run_blocks(model, batch, cache=cache)
    return seen.stacked(sites)


def _last_of_endings(
    model: nn.Module,
    beginnings: list[list[int]],
    which: list[int],
    ends: list[int],
    blocks: Sequence[int],
    path: str | None,
    most: int,
) -> Float[Tensor, "b l h"]:
    """The streams at the last tokens ``ends``, each after its beginning, given by ``which``.

    The beginnings run once, the ends in passes of at most ``most`` rows.
    """
    batch = collate([(ids, []) for ids in beginnings], padding_side="left")
    prefix_cache = run_blocks(model, batch, cache=True)[cache_name(model)]
    parts = []
    for start in range(0, len(ends), most):
        picked = torch.tensor(which[start : start + most])
        cache = prefix_cache if len(ends) <= most else copy.deepcopy(prefix_cache)
        cache.batch_select_indices(picked.to(next(model.parameters()).device))
        before = batch["attention_mask"][picked]
        one = torch.ones_like(before[:, :1])
        last: Batch = {
            "input_ids": torch.tensor(ends[start : start + most])[:, None],
            "attention_mask": torch.cat([before, one], 1),
            "position_ids": before.sum(1, keepdim=True),
        }
        parts.append(_last(model, last, blocks, path, cache))
    return torch.cat(parts)
