"""Effect of a steering vector on the answers of prompts, and its cost on other text."""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet.geometry.rng import generator
from frenet.measure.activations import add, last_activations
from frenet.measure.forward_passes import TOKENS, cache_name, fitting_groups, run_blocks
from frenet.network.blocks import residual_blocks
from frenet.network.data.contrast import Item
from frenet.network.hooks.answer_logits import few_logits
from frenet.network.hooks.batched_weights import (
    Agreement,
    Layout,
    LayoutError,
    copied,
    named,
    watched,
)
from frenet.network.hooks.sites import Site
from frenet.network.measuring import measuring
from frenet.network.tasks import Batch, collate, forward_arguments

# By block, m vectors to add at the last token: one row per variant of the prompt.
Variants = Mapping[int, Float[Tensor, "m h"]]
# Variants of one prompt in one forward pass.
TOGETHER = 64


class Prompted(NamedTuple):
    """A prompt, with the tokens of its positive and its negative answer."""

    context: list[int]
    answers: tuple[int, int]


def prompted(items: Sequence[Item]) -> list[Prompted]:
    """The prompts of a contrast with their answers.

    Raises:
        ValueError: an item without answers of one token each.
    """
    return [Prompted(item.context, item.both_answers()) for item in items]


def answer_differences(
    model: nn.Module, prompts: Sequence[Prompted], *, tokens: int = TOKENS
) -> Float[Tensor, " n"]:
    """logit(positive answer) - logit(negative answer) after every prompt, in nats.

    Args:
        model: a decoder, with its current weights and hooks.
        prompts: n prompts.
        tokens: most tokens in one forward pass.
    """
    differences = torch.empty(len(prompts))
    with measuring(model), torch.no_grad(), _answered(model, prompts) as columns:
        for group in fitting_groups(model, [p.context for p in prompts], tokens):
            batch = collate([(prompts[i].context, []) for i in group], padding_side="left")
            logits = run_blocks(model, batch).logits[:, -1].float().cpu()
            for i, row in zip(group, logits, strict=True):
                first, second = columns[i]
                differences[i] = row[first] - row[second]
    return differences


@contextmanager
def _answered(model: nn.Module, prompts: Sequence[Prompted]) -> Iterator[list[tuple[int, int]]]:
    """Reduces the output head to the answers; yields their columns, prompt by prompt."""
    with few_logits(model, [token for p in prompts for token in p.answers]) as column:
        yield [(column[p.answers[0]], column[p.answers[1]]) for p in prompts]


class Prefixes(NamedTuple):
    """Cached prompts, and how their last tokens run as one batch of variants.

    Attributes:
        caches: keys and values of all but the last token of every prompt; None for a prompt of one
            token.
        layout: of the blocks; None: full prompts run.
    """

    caches: list[Any]
    layout: Layout | None


def prefixes(model: nn.Module, prompts: Sequence[Prompted], *, path: str | None = None) -> Prefixes:
    """Keys and values of all but the last token of every prompt.

    Full prompts run if the model has no cache or has a hook, or if two variants of the first prompt
    give other logits with the cache.

    Warns:
        RuntimeWarning: the cache gives other logits.
    """
    bare = _is_bare(model)
    with measuring(model), torch.no_grad(), _answered(model, prompts):
        layout = _layout(model, prompts, path) if bare else None
        if layout is None:
            return Prefixes([None] * len(prompts), None)
        return Prefixes([_prefix(model, prompt.context) for prompt in prompts], layout)


def _layout(model: nn.Module, prompts: Sequence[Prompted], path: str | None) -> Layout | None:
    """How blocks see the rows of a last token, if two variants agree with full passes."""
    context = next((p.context for p in prompts if len(p.context) > 1), None)
    if context is None or cache_name(model) is None:
        return None
    blocks = named(model, residual_blocks(model, path)[1])
    prefix, shapes = _prefix(model, context), []
    for rows in (1, 2):
        cache = copy.deepcopy(prefix)
        for layer in cache.layers:
            layer.batch_repeat_interleave(rows)
        with watched(blocks) as seen:
            run_blocks(model, _last(context, rows), cache=cache)
        shapes.append(seen)
    stream = last_activations(model, [context], [0], path=path)[0, 0]
    draws = torch.randn(2, len(stream), generator=generator(0, "check"))
    # As long as the stream, so that the logits change by more than rounding.
    trial = {0: draws * (stream.norm() / draws.norm(dim=1, keepdim=True))}
    try:
        layout = Layout.of(1, *shapes)
        fast = _from_cache(model, context, copy.deepcopy(prefix), trial, path, layout)
    except Exception as error:  # a model may fail in any way with its cache
        problem = f"it fails with {type(error).__name__}: {error}"
    else:
        dtype = next(model.parameters()).dtype
        agreement = Agreement.of(fast.float(), _whole(model, context, trial, path).float(), dtype)
        if agreement:
            return layout
        problem = (
            f"the logits differ by {agreement.error:.2g}, "
            f"rounding explains {agreement.rounding:.2g}"
        )
    warnings.warn(
        f"full prompts run for every variant, because cached keys and values give wrong results "
        f"with this model: {problem}",
        RuntimeWarning,
        stacklevel=4,
    )
    return None


def _last(context: list[int], rows: int = 1) -> Batch:
    """The last token of a prompt, at its position."""
    return {
        "input_ids": torch.tensor([context[-1:]] * rows),
        "position_ids": torch.full((rows, 1), len(context) - 1),
    }


def _is_bare(model: nn.Module) -> bool:
    """Whether the model has no hooks: an ``add`` at the last token must see the full prompt."""
    return not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def _prefix(model: nn.Module, context: list[int]) -> Any:
    name = cache_name(model)
    if name is None or len(context) == 1:
        return None
    return run_blocks(model, {"input_ids": torch.tensor([context[:-1]])}, cache=True)[name]


def steered_differences(
    model: nn.Module,
    prompts: Sequence[Prompted],
    variants: Variants,
    *,
    path: str | None = None,
    kept: Prefixes | None = None,
) -> Float[Tensor, "n m"]:
    """``answer_differences`` with each of m vectors added at the last token of each prompt.

    The earlier tokens do not depend on the vectors, nor do the blocks before the first vector. With
    a cache these run once per prompt, and the rest runs as one batch of all variants. Inside an
    ``add``, or with any other hook on the model, full prompts run.

    Args:
        model: a decoder; left unchanged.
        prompts: n prompts.
        variants: by block, (m, h); all blocks have the same m.
        path: dotted name of the list of blocks; None: frenet looks for it.
        kept: the ``prefixes`` of the prompts, if they exist already.

    Warns:
        RuntimeWarning: as ``prefixes``.
    """
    count = len(next(iter(variants.values())))
    differences = torch.empty(len(prompts), count)
    bare = _is_bare(model)
    with measuring(model), torch.no_grad(), _answered(model, prompts) as columns:
        layout = None
        if bare:
            layout = kept.layout if kept is not None else _layout(model, prompts, path)
        for i, (prompt, (first, second)) in enumerate(zip(prompts, columns, strict=True)):
            prefix = None
            if layout is not None:
                prefix = kept.caches[i] if kept is not None else _prefix(model, prompt.context)
            for start in range(0, count, TOGETHER):
                part = {block: v[start : start + TOGETHER] for block, v in variants.items()}
                logits = _last_logits(model, prompt.context, prefix, part, path, layout)
                logits = logits.float().cpu()
                differences[i, start : start + TOGETHER] = logits[:, first] - logits[:, second]
    return differences


def _last_logits(
    model: nn.Module,
    context: list[int],
    prefix: Any,
    variants: Variants,
    path: str | None,
    layout: Layout | None,
) -> Float[Tensor, "m v"]:
    """Last logits of the variants, from the cache or by full passes."""
    if prefix is not None and layout is not None:
        # The last token is added to the cache. If the prompt fills a sliding window, for example,
        # blocks are called differently from the layout.
        with suppress(LayoutError):
            return _from_cache(model, context, copy.deepcopy(prefix), variants, path, layout)
    return _whole(model, context, variants, path)


def _whole(
    model: nn.Module, context: list[int], variants: Variants, path: str | None
) -> Float[Tensor, "m v"]:
    """Last logits of one copy of the prompt for each variant."""
    copies = len(next(iter(variants.values())))
    batch = {key: row.repeat(copies, 1) for key, row in collate([(context, [])]).items()}
    with add(model, {Site(block): v for block, v in variants.items()}, path=path):
        return run_blocks(model, batch).logits[:, -1]


def _from_cache(
    model: nn.Module,
    context: list[int],
    cache: Any,
    variants: Variants,
    path: str | None,
    layout: Layout,
) -> Float[Tensor, "m v"]:
    """The same from the last token alone, with one row in the blocks before the first vector."""
    copies = len(next(iter(variants.values())))
    blocks = residual_blocks(model, path)[1]
    # Up to the first vector all variants are one row; adding the vectors makes the copies.
    first = min((b for b, v in variants.items() if bool(v.any())), default=len(blocks))
    for layer in cache.layers[first + 1 :]:
        layer.batch_repeat_interleave(copies)
    added = {Site(block): v for block, v in variants.items() if block >= first}
    later = named(model, blocks[first + 1 :])
    with add(model, added, path=path), copied(later, copies, layout):
        logits = run_blocks(model, _last(context), cache=cache).logits[:, -1]
    return logits.expand(copies, -1)


class Cost(NamedTuple):
    """Effect of a change of the model on neutral text.

    Attributes:
        kl: mean KL divergence from the unchanged model's next-token distribution, nats per token.
        perplexity: of the text under the changed model.
        before: of the text under the unchanged one.
    """

    kl: float
    perplexity: float
    before: float


def neutral_cost(
    model: nn.Module,
    rows: Sequence[tuple[list[int], list[int]]],
    changes: Sequence[Callable[[], AbstractContextManager[Any]]],
    *,
    tokens: int = TOKENS // 4,
) -> list[Cost]:
    """Cost of each change on neutral text.

    Args:
        model: a decoder; left unchanged.
        rows: for every text the token ids of the context, and those to predict.
        changes: functions that return a context manager which changes the model, such as ``add``
            or ``ParamSpace.displaced``.
        tokens: most tokens in one forward pass, which holds all their logits.
    """
    total = [[0.0, 0.0] for _ in changes]
    before, count = 0.0, 0
    with measuring(model), torch.no_grad():
        texts = [given + predicted for given, predicted in rows]
        for group in fitting_groups(model, texts, tokens):
            batch = collate([rows[i] for i in group])
            base, targets = _log_probabilities(model, batch, nullcontext())
            before -= float(base.gather(1, targets[:, None]).sum())
            count += len(targets)
            for sums, change in zip(total, changes, strict=True):
                steered, _ = _log_probabilities(model, batch, change())
                sums[0] += float((base.exp() * (base - steered)).sum())
                sums[1] -= float(steered.gather(1, targets[:, None]).sum())
    start = float(torch.tensor(before / count).exp())
    return [Cost(kl / count, float(torch.tensor(nats / count).exp()), start) for kl, nats in total]


def _log_probabilities(
    model: nn.Module, batch: Batch, change: AbstractContextManager[Any]
) -> tuple[Float[Tensor, "n v"], Tensor]:
    """Next-token log-probabilities at all targets, and the targets."""
    accepted = forward_arguments(model)
    device = next(model.parameters()).device
    given: dict[str, Any] = {k: v.to(device) for k, v in batch.items() if k in accepted}
    # With labels transformers would compute a loss that is not needed.
    given.pop("labels", None)
    if "use_cache" in accepted:
        given["use_cache"] = False
    call: Any = model
    with change:
        logits = call(**given).logits[:, :-1]
    labels = batch["labels"].to(device)[:, 1:]
    is_target = labels >= 0
    return logits[is_target].float().log_softmax(-1), labels[is_target]


def answer_directions(
    model: nn.Module, prompts: Sequence[Prompted], *, path: str | None = None, most: int = 8
) -> Float[Tensor, "a h"]:
    """d logit / d h of each answer, at the last token after the last block, over some prompts.

    This is the answer's row of the output head, through the last norm: the direction that only
    writes the answer's token.

    Args:
        model: a decoder; left unchanged.
        prompts: with answers; a token that answers several prompts gets their mean direction.
        path: dotted name of the list of blocks; None: frenet looks for it.
        most: number of prompts, evenly spread so that both classes occur.

    Returns:
        One row for each of the a answer tokens, sorted by token.
    """
    last = len(residual_blocks(model, path)[1]) - 1
    chosen = prompts[:: -(-len(prompts) // most)]
    width = last_activations(model, [chosen[0].context], [last], path=path).shape[-1]
    rows: dict[int, list[Tensor]] = {}
    with measuring(model), torch.enable_grad():
        for prompt in chosen:
            probe = torch.zeros(width, requires_grad=True)
            with add(model, {Site(last): probe}, path=path):
                logits = run_blocks(model, collate([(prompt.context, [])])).logits[0, -1]
            for answer in prompt.answers:
                row = torch.autograd.grad(logits[answer], probe, retain_graph=True)[0]
                rows.setdefault(answer, []).append(row.float().cpu())
    return torch.stack([torch.stack(rows[answer]).mean(0) for answer in sorted(rows)])
