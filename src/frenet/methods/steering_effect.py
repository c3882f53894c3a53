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
from frenet.network.hooks.watch import continued
from frenet.network.measuring import measuring
from frenet.network.tasks import Batch, collate, forward_arguments

# By block, m vectors to add at the last token: one row per variant of the prompt.
Variants = Mapping[int, Float[Tensor, "m h"]]
# Variants of one prompt in one forward pass.
TOGETHER = 64


class Prompted(NamedTuple):
    """A prompt, with the tokens of its positive and its negative answer, of which the first differ.

    The log-odds of the answers are log p(positive | prompt) - log p(negative | prompt), in nats.
    The log probability of an answer is the sum over its tokens, each after the prompt and the
    answer's tokens before it. For answers of one token the log-odds are the difference of their
    logits.
    """

    context: list[int]
    answers: tuple[list[int], list[int]]


def prompted(items: Sequence[Item]) -> list[Prompted]:
    """The prompts of a contrast with their answers.

    Raises:
        ValueError: an item without answers.
        UnansweredError: one answer is the beginning of the other.
    """
    return [Prompted(item.context, item.both_answers()) for item in items]


def answer_differences(
    model: nn.Module, prompts: Sequence[Prompted], *, tokens: int = TOKENS
) -> Float[Tensor, " n"]:
    """Log-odds of the answers after every prompt.

    If both answers to a prompt are several tokens, it runs twice; otherwise once.

    Args:
        model: a decoder, with its current weights and hooks. To a site of an ``add``, the tokens of
            an answer are new ones: it reaches them with the position "all" or "generated".
        prompts: n prompts.
        tokens: most tokens in one forward pass; a k-th of it, if answers are k tokens.
    """
    differences = torch.zeros(len(prompts))
    rows = [(i, side) for i, prompt in enumerate(prompts) for side in _sides(prompt.answers)]
    with measuring(model), torch.no_grad(), _answered(model, prompts) as columns:
        for count in sorted({len(prompts[i].answers[side]) for i, side in rows}):
            alike = [(i, side) for i, side in rows if len(prompts[i].answers[side]) == count]
            texts = [_read(prompts[i], side) for i, side in alike]
            for group in fitting_groups(model, texts, tokens // count):
                batch = collate([(texts[j], []) for j in group], padding_side="left")
                with continued(model, count - 1):
                    logits = run_blocks(model, batch, keep=count).logits[:, -count:]
                chosen = [alike[j] for j in group]
                terms = [
                    _term(columns[i], side, row[None])
                    for (i, side), row in zip(chosen, logits, strict=True)
                ]
                which = torch.tensor([i for i, _ in chosen])
                differences.index_add_(0, which, torch.cat(terms).cpu())
    return differences


@contextmanager
def _answered(
    model: nn.Module, prompts: Sequence[Prompted]
) -> Iterator[list[tuple[list[int], list[int]]]]:
    """Reduces the output head to the answers; yields their columns, prompt by prompt.

    The log probability of a later token of an answer needs all logits.
    """
    answers = [prompt.answers for prompt in prompts]
    if any(len(answer) > 1 for both in answers for answer in both):
        yield answers
        return
    with few_logits(model, [answer[0] for both in answers for answer in both]) as column:
        yield [([column[first[0]]], [column[second[0]]]) for first, second in answers]


def _sides(answers: tuple[list[int], list[int]]) -> list[int]:
    """The sides of which a row runs: answers of several tokens, or a single row for both."""
    return [side for side in (0, 1) if len(answers[side]) > 1] or [0]


def _read(prompt: Prompted, side: int) -> list[int]:
    """The tokens after which the tokens of an answer are predicted; its last predicts nothing."""
    return prompt.context + prompt.answers[side][:-1]


def _term(
    answers: tuple[list[int], list[int]], side: int, logits: Float[Tensor, "m k v"]
) -> Float[Tensor, " m"]:
    """What a row adds to the log-odds: its later tokens and, for the first row, the first tokens.

    The same logits predict both first tokens, and their normalisation cancels.
    """
    logits = logits.float()
    term = torch.zeros(len(logits), device=logits.device)
    if side == _sides(answers)[0]:
        term = logits[:, 0, answers[0][0]] - logits[:, 0, answers[1][0]]
    if later := answers[side][1:]:
        tokens = torch.tensor(later, device=logits.device).expand(len(logits), -1)[..., None]
        found = logits[:, 1:].log_softmax(-1).gather(-1, tokens).sum((1, 2))
        term = term - found if side else term + found
    return term


def log_odds(
    answers: tuple[list[int], list[int]], logits: Mapping[int, Float[Tensor, "m _ v"]]
) -> Float[Tensor, " m"]:
    """Log-odds of the answers from the result of ``full_logits``.

    Args:
        answers: columns of the tokens of both answers.
        logits: by side.
    """
    return torch.stack([_term(answers, side, each) for side, each in logits.items()]).sum(0)


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
    cached = [prompt for prompt in prompts if len(prompt.context) > 1]
    if not cached or cache_name(model) is None:
        return None
    prompt = max(cached, key=lambda prompt: sum(map(len, prompt.answers)))
    context = prompt.context
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
        found = _from_cache(model, prompt, copy.deepcopy(prefix), trial, path, layout)
    except Exception as error:  # a model may fail in any way with its cache
        problem = f"it fails with {type(error).__name__}: {error}"
    else:
        dtype = next(model.parameters()).dtype
        full = full_logits(model, prompt, trial, path=path)
        fast, slow = (torch.cat(list(each.values()), 1).float() for each in (found, full))
        agreement = Agreement.of(fast, slow, dtype)
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

    The tokens of the answers follow it; nothing is added to them. The earlier tokens do not depend
    on the vectors, nor do the blocks before the first vector. With a cache these run once per
    prompt, and the rest runs as one batch of all variants, followed by one for each answer of
    several tokens. Inside an ``add``, or with any other hook on the model, full prompts run.

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
        for i, (prompt, answers) in enumerate(zip(prompts, columns, strict=True)):
            prefix = None
            if layout is not None:
                prefix = kept.caches[i] if kept is not None else _prefix(model, prompt.context)
            size = max(1, TOGETHER // max(map(len, answers)))
            for start in range(0, count, size):
                part = {block: v[start : start + size] for block, v in variants.items()}
                logits = _logits(model, prompt, prefix, part, path, layout)
                differences[i, start : start + size] = log_odds(answers, logits).cpu()
    return differences


def _logits(
    model: nn.Module,
    prompt: Prompted,
    prefix: Any,
    variants: Variants,
    path: str | None,
    layout: Layout | None,
) -> dict[int, Float[Tensor, "m _ v"]]:
    """``full_logits``, from the cache if possible."""
    if prefix is not None and layout is not None:
        # The last token is added to the cache. If the prompt fills a sliding window, for example,
        # blocks are called differently from the layout.
        with suppress(LayoutError):
            return _from_cache(model, prompt, copy.deepcopy(prefix), variants, path, layout)
    return full_logits(model, prompt, variants, path=path)


def full_logits(
    model: nn.Module, prompt: Prompted, variants: Variants, *, path: str | None = None
) -> dict[int, Float[Tensor, "m _ v"]]:
    """Logits that predict the tokens of the answers, by full passes over a copy for each variant.

    Args:
        model: a decoder; left unchanged.
        prompt: the prompt with its answers.
        variants: by block, m vectors to add at the last token of the prompt.
        path: dotted name of the list of blocks; None: frenet looks for it.

    Returns:
        By side, for answers of several tokens; if there is none, for one side, which has the first
        token of both. Differentiable in the vectors.
    """
    copies = len(next(iter(variants.values())))
    added = {Site(block): v for block, v in variants.items()}
    logits = {}
    for side in _sides(prompt.answers):
        count = len(prompt.answers[side])
        row = collate([(_read(prompt, side), [])])
        batch = {key: value.repeat(copies, 1) for key, value in row.items()}
        with add(model, added, path=path), continued(model, count - 1):
            logits[side] = run_blocks(model, batch, keep=count).logits[:, -count:]
    return logits


def _from_cache(
    model: nn.Module,
    prompt: Prompted,
    cache: Any,
    variants: Variants,
    path: str | None,
    layout: Layout,
) -> dict[int, Float[Tensor, "m _ v"]]:
    """The same from the last token on, with one row in the blocks before the first vector."""
    copies = len(next(iter(variants.values())))
    blocks = residual_blocks(model, path)[1]
    # Up to the first vector all variants are one row; adding the vectors makes the copies.
    first = min((b for b, v in variants.items() if bool(v.any())), default=len(blocks))
    for layer in cache.layers[first + 1 :]:
        layer.batch_repeat_interleave(copies)
    added = {Site(block): v for block, v in variants.items() if block >= first}
    later = named(model, blocks[first + 1 :])
    with add(model, added, path=path), copied(later, copies, layout):
        last = run_blocks(model, _last(prompt.context), cache=cache).logits[:, -1:]
    logits = {}
    for side in _sides(prompt.answers):
        parts, answer = [last], prompt.answers[side]
        own = copy.deepcopy(cache) if answer[1:] else cache
        for end in range(1, len(answer)):
            with copied(later, copies, layout):
                row = run_blocks(model, _last(prompt.context + answer[:end]), cache=own)
            parts.append(row.logits[:, -1:])
        logits[side] = torch.cat([part.expand(copies, -1, -1) for part in parts], 1)
    return logits


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
            base, targets = log_probabilities(model, batch, nullcontext())
            before -= float(base.gather(1, targets[:, None]).sum())
            count += len(targets)
            for sums, change in zip(total, changes, strict=True):
                steered, _ = log_probabilities(model, batch, change())
                sums[0] += float((base.exp() * (base - steered)).sum())
                sums[1] -= float(steered.gather(1, targets[:, None]).sum())
    start = float(torch.tensor(before / count).exp())
    return [Cost(kl / count, float(torch.tensor(nats / count).exp()), start) for kl, nats in total]


def log_probabilities(
    model: nn.Module, batch: Batch, change: AbstractContextManager[Any]
) -> tuple[Float[Tensor, "n v"], Tensor]:
    """Next-token log-probabilities at all targets, and the targets.

    Args:
        model: a decoder.
        batch: see ``collate``.
        change: in which the model runs.
    """
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

    This is the row of the output head of the answer's first token, through the last norm: the
    direction that only writes this token. The later tokens of an answer do not depend on h there.

    Args:
        model: a decoder; left unchanged.
        prompts: with answers; a token that begins several answers gets their mean direction.
        path: dotted name of the list of blocks; None: frenet looks for it.
        most: number of prompts, evenly spread so that both classes occur.

    Returns:
        One row for each of the a first tokens, sorted by token.
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
            for token, *_ in prompt.answers:
                row = torch.autograd.grad(logits[token], probe, retain_graph=True)[0]
                rows.setdefault(token, []).append(row.float().cpu())
    return torch.stack([torch.stack(rows[token]).mean(0) for token in sorted(rows)])
