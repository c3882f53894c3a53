"""Batches of rows with different lengths: how a model treats padding is measured."""

import inspect
import math
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from frenet._errors import UsageError

IGNORE = -100
# Tokens of a row, and logits of a token, that the measurement compares.
LOOKED_AT, ENTRIES = 256, 1024
# Relative difference of logits that counts as rounding; the same in units of the last place.
ROUNDING, LAST_PLACES = 1e-4, 16
# What a model may raise on inputs that it does not support.
_REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError)


class Way(NamedTuple):
    """How a model treats padded rows.

    Attributes:
        left: with a mask (b, t), padding on the left changes no logit of a real token.
        right: the same for padding on the right.
        causal: without a mask, later tokens do not change the logits of a token.
    """

    left: bool
    right: bool
    causal: bool

    def runs(self, mask: Int[Tensor, "b t"]) -> bool:
        """Whether rows with this mask may run unchanged."""
        return (self.left or bool(mask[:, 0].all())) and (self.right or bool(mask[:, -1].all()))


class Part(NamedTuple):
    """Rows of a batch that run together.

    Attributes:
        rows: their indices in the batch, on the CPU.
        batch: their tokens; each row starts in the first column.
    """

    rows: Int[Tensor, " g"]
    batch: dict[str, Tensor]


_KNOWN: "WeakKeyDictionary[nn.Module, tuple[Any, Way]]" = WeakKeyDictionary()
_FROM_ZERO: "WeakKeyDictionary[nn.Module, bool]" = WeakKeyDictionary()
_SAID: "WeakSet[nn.Module]" = WeakSet()
# Models with forward passes that somebody watches row by row.
_WATCHED: "WeakKeyDictionary[nn.Module, int]" = WeakKeyDictionary()


def base_model(model: Any) -> Any:
    """The model itself, or the model inside wrappers of PEFT, torch.compile or data parallelism."""
    while inner := getattr(model, "_modules", {}).get("_orig_mod"):
        model = inner
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return base_model(model.module)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def forward_arguments(model: nn.Module) -> frozenset[str]:
    """Names that the forward pass of the model, or of the model inside a wrapper, accepts.

    Positions are left out if the model does not count them from 0; this is measured once.
    """
    inner = base_model(vars(model).get("inner", model))
    names = frozenset(inspect.signature(inner.forward).parameters)
    if "position_ids" not in names or not hasattr(inner, "get_input_embeddings"):
        return names
    if inner not in _FROM_ZERO:
        with _quiet(inner):
            _FROM_ZERO[inner] = _counts_from_zero(inner)
    return names if _FROM_ZERO[inner] else names - {"position_ids"}


def _counts_from_zero(model: Any) -> bool:
    """Whether explicit positions 0, 1, 2 change no logits; True if the model cannot run them."""
    try:
        count = model.get_input_embeddings().weight.shape[0]
        device = next(model.parameters()).device
        ids = torch.arange(2, 6, device=device)[None] % count
        places = torch.arange(4, device=device)[None]
        plain, placed = (
            model(input_ids=ids, **more).logits[..., :ENTRIES].float()
            for more in ({}, {"position_ids": places})
        )
    except _REFUSALS:
        return True
    spread = (plain - plain.mean(-1, keepdim=True)).norm()
    return not bool((placed - plain).norm() > rounding(model, plain) * spread)


def is_padded(batch: dict[str, Tensor]) -> bool:
    """Whether the batch has a mask (b, t) with zeros."""
    mask = batch.get("attention_mask")
    return mask is not None and mask.dim() == 2 and not bool(mask.all())


def padded_way(model: nn.Module, batch: dict[str, Tensor]) -> Way:
    """How the model can run padded rows, measured once for each model object.

    The beginnings of rows, of three lengths, run through the model one by one and together: padded
    on the left, padded on the right, and with more text instead of padding. Hooks do not run, and
    the random state does not change.

    Args:
        model: a decoder, also inside a PEFT wrapper or a ``Functional``; it does not change.
        batch: padded rows.
    """
    outer = vars(model).get("inner", model)
    inner = base_model(outer)
    attention = getattr(getattr(inner, "config", None), "_attn_implementation", None)
    cached, way = _KNOWN.get(inner, (None, None))
    if way is None or cached != attention:
        with _quiet(outer):
            way = _measured(outer, batch)
        _KNOWN[inner] = (attention, way)
    return way


@contextmanager
def rows_in_order(model: nn.Module) -> Iterator[None]:
    """Require the rows of a batch to run through the model together and in order."""
    inner = base_model(vars(model).get("inner", model))
    _WATCHED[inner] = _WATCHED.get(inner, 0) + 1
    try:
        yield
    finally:
        _WATCHED[inner] -= 1


def arranged(model: nn.Module, batch: dict[str, Tensor]) -> list[Part] | None:
    """Split the batch into parts that this model runs correctly; None: it runs unchanged.

    Raises:
        ValueError: the rows cannot run unchanged, and something is recorded or added in them.

    Warns:
        RuntimeWarning: padding would change the results; once for each model.
    """
    if not is_padded(batch) or _has_holes(batch["attention_mask"]):
        return None
    way = padded_way(model, batch)
    if way.runs(batch["attention_mask"]):
        return None
    inner = base_model(vars(model).get("inner", model))
    name = type(inner).__name__
    if _WATCHED.get(inner):
        also = ", or pad them on the right" if way.right else ""
        raise UsageError(
            f"padding would change what {name} computes, and sites are read or added to in whole "
            f"batches only; pass rows of one length{also}"
        )
    if inner not in _SAID:
        _SAID.add(inner)
        how = "with padding on the right" if way.right else "in groups of one length, more slowly"
        warnings.warn(
            f"padding would change what {name} computes: rows of different lengths run {how}, so "
            "that each gives the same numbers as alone",
            RuntimeWarning,
            stacklevel=3,
        )
    return [_whole(batch)] if way.right else _apart(batch)


def unmasked(model: nn.Module, batch: dict[str, Tensor]) -> list[Part]:
    """Padded rows in parts with a mask of ones, so that the mask has no effect.

    A part has rows of one length. In a causal model it may have shorter rows, followed by text
    without targets.

    Raises:
        ValueError: a row has masked columns between others.
    """
    if _has_holes(batch["attention_mask"]):
        raise UsageError("a mask leaves out tokens in the middle of a row")
    parts = [_whole(batch)] if padded_way(model, batch).causal else _apart(batch)
    ones = [torch.ones_like(part.batch["attention_mask"]) for part in parts]
    return [
        Part(part.rows, part.batch | {"attention_mask": mask})
        for part, mask in zip(parts, ones, strict=True)
    ]


def _whole(batch: dict[str, Tensor]) -> Part:
    every = torch.arange(len(batch["attention_mask"]))
    return Part(every, _moved(batch, every))


def _apart(batch: dict[str, Tensor]) -> list[Part]:
    lengths = batch["attention_mask"].sum(1).cpu()
    groups = [(lengths == length).nonzero().flatten() for length in lengths.unique()]
    return [Part(rows, _moved(batch, rows)) for rows in groups]


def placed(
    pieces: list[Tensor], parts: list[Part], batch: dict[str, Tensor], keep: int
) -> Float[Tensor, "b k v"]:
    """Put logits of the last columns of each part into the last ``keep`` columns of the batch.

    A column of padding, or before all targets of its part, gets the logits of another column.
    """
    mask = batch["attention_mask"].bool().cpu()
    order = (mask.long().cumsum(1) - 1)[:, -keep:]
    source = torch.zeros_like(order)
    start = 0
    for piece, part in zip(pieces, parts, strict=True):
        rows, columns = piece.shape[:2]
        first = part.batch["labels"].shape[1] - columns
        local = start + torch.arange(rows)[:, None] * columns + order[part.rows] - first
        source[part.rows] = local.where(mask[part.rows, -keep:] & (order[part.rows] >= first), 0)
        start += rows * columns
    # Out of place, as torch.func requires.
    return torch.cat([piece.flatten(0, 1) for piece in pieces])[source.to(pieces[0].device)]


def _has_holes(mask: Int[Tensor, "b t"]) -> bool:
    """Whether a row is empty, or masked in the middle: a mask of the user, not padding."""
    real = mask.bool().int()
    return bool(((real.diff(dim=1) == 1).sum(1) + real[:, 0] != 1).any())


def _moved(batch: dict[str, Tensor], rows: Int[Tensor, " g"]) -> dict[str, Tensor]:
    """These rows with all padding on the right, as wide as the longest of them."""
    mask = batch["attention_mask"]
    count, width = mask.shape
    rows = rows.to(mask.device)
    real = mask[rows].bool()
    columns = (~real).int().argsort(dim=1, stable=True)[:, : int(real.sum(1).max())]
    tokens = real.gather(1, columns)
    moved = {}
    for key, value in batch.items():
        if value.dim() > 1 and value.shape[1] == width and value.shape[0] in (1, count):
            chosen = value.expand(count, *value.shape[1:])[rows.to(value.device)]
            moved[key] = chosen[torch.arange(len(rows))[:, None], columns.to(value.device)]
        else:
            moved[key] = value[rows.to(value.device)] if value.shape[:1] == (count,) else value
    if "labels" in moved:
        moved["labels"] = moved["labels"].where(tokens.to(moved["labels"].device), IGNORE)
    if "position_ids" in moved:
        # Positions continue after a row: positions that restart would mean packed texts.
        places = moved["position_ids"]
        beyond = (~tokens).long().cumsum(1).to(places.device)
        last = places.gather(1, tokens.sum(1, keepdim=True).to(places.device) - 1)
        moved["position_ids"] = places.where(beyond == 0, last + beyond)
    return moved


def _measured(model: nn.Module, batch: dict[str, Tensor]) -> Way:
    """How a model treats padding; if it cannot run single rows, its arguments decide."""
    lengths = batch["attention_mask"].sum(1).cpu()
    chosen = torch.stack([lengths.argmin(), lengths.argmax(), lengths.argmax()])
    long = min(int(lengths.max()), LOOKED_AT)
    # Odd numbers of padding columns, so that pooling in blocks would cut the text elsewhere.
    sizes = [long - min(long - 1, part | 1) for part in (2 * long // 3, long // 4)] + [long]
    sizes[0] = min(sizes[0], int(lengths.min()))
    rows = _first_columns(_moved(batch, chosen), long)
    rows.pop("labels", None)
    rows["attention_mask"] = torch.ones_like(rows["attention_mask"])
    try:
        single = [_first_columns(_row(rows, i), size) for i, size in enumerate(sizes)]
        expected = torch.cat([_logits(model, row)[0] for row in single])
        spread = float((expected - expected.mean(1, keepdim=True)).norm())
    except _REFUSALS:
        spread = math.nan
    if not math.isfinite(spread):
        takes_mask = "attention_mask" in forward_arguments(model)
        return Way(takes_mask, takes_mask, causal=False)

    def agrees(together: dict[str, Tensor], starts: list[int]) -> bool:
        try:
            logits = _logits(model, together)
        except _REFUSALS:
            return False
        spans = zip(logits, starts, sizes, strict=True)
        off = torch.cat([row[start : start + size] for row, start, size in spans]) - expected
        return float(off.norm()) <= rounding(model, expected) * spread

    first, shifts = [0] * len(sizes), [long - size for size in sizes]
    left = agrees(_masked(rows, shifts, sizes), shifts)
    return Way(left, agrees(_masked(rows, first, sizes), first), agrees(rows, first))


def rounding(model: nn.Module, logits: Tensor) -> float:
    """Relative difference of logits that is rounding in the coarsest type of the computation."""
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()} | {logits.dtype}
    if torch.is_autocast_enabled(logits.device.type):
        kinds.add(torch.get_autocast_dtype(logits.device.type))
    return max(ROUNDING, *(LAST_PLACES * torch.finfo(kind).eps for kind in kinds))


def _columns(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the batch with an entry for every token."""
    shape = batch["attention_mask"].shape
    return {key: value for key, value in batch.items() if value.shape[:2] == shape}


def _first_columns(batch: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    return batch | {key: value[:, :count] for key, value in _columns(batch).items()}


def _row(batch: dict[str, Tensor], i: int) -> dict[str, Tensor]:
    count = len(batch["attention_mask"])
    return {k: v[i : i + 1] if v.shape[:1] == (count,) else v for k, v in batch.items()}


def _masked(batch: dict[str, Tensor], starts: list[int], sizes: list[int]) -> dict[str, Tensor]:
    """The first tokens of every row, shifted to a start column; the mask leaves out the rest.

    The masked ids are text, to show that they have no effect.
    """
    moved = {key: value.clone() for key, value in _columns(batch).items()}
    for i, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        for value in moved.values():
            value[i] = value[i].roll(start, 0)
        moved["attention_mask"][i, :start] = 0
        moved["attention_mask"][i, start + size :] = 0
        if "position_ids" in moved:
            row = moved["position_ids"][i]
            row[:start], row[start + size :] = int(row[start]), int(row[start + size - 1])
    return batch | moved


def _logits(model: Any, batch: dict[str, Tensor]) -> Float[Tensor, "b t v"]:
    accepted = forward_arguments(model)
    device = next(model.parameters()).device
    arguments: dict[str, Any] = {k: v.to(device) for k, v in batch.items() if k in accepted}
    if "use_cache" in accepted:
        arguments["use_cache"] = False
    output = model(**arguments)
    logits = output if isinstance(output, Tensor) else output.logits
    return logits[..., :ENTRIES].to(torch.promote_types(logits.dtype, torch.float32))


@contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """Run the model without hooks, dropout or gradients, and restore the random state."""
    modules = list(model.modules())
    hooks = [(m, m._forward_hooks, m._forward_pre_hooks) for m in modules]
    training = [m for m in modules if m.training]
    device = next(model.parameters()).device
    try:
        for module, *_ in hooks:
            module._forward_hooks, module._forward_pre_hooks = OrderedDict(), OrderedDict()
        for module in training:
            module.training = False
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        ):
            yield
    finally:
        for module, after, before in hooks:
            module._forward_hooks, module._forward_pre_hooks = after, before
        for module in training:
            module.training = True
