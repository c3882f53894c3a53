"""Scoring without gradients: accuracy over batches, and log-probabilities of continuations."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet.network.data.tokens import Encoded
from frenet.network.tasks import IGNORE, Batch, collate, evaluate, example_losses, target_logits

Item = TypeVar("Item")


def weighted_accuracy(model: nn.Module, batches: Sequence[Batch]) -> dict[str, float]:
    """Token accuracy over all target tokens and exact match over all rows of several batches."""
    tokens = rows = right_tokens = right_rows = 0.0
    for batch in batches:
        result = evaluate(model, batch)
        count, size = int((batch["labels"] != IGNORE).sum()), batch["labels"].shape[0]
        right_tokens += result.token_accuracy * count
        right_rows += result.exact_match * size
        tokens, rows = tokens + count, rows + size
    return {"token_accuracy": right_tokens / tokens, "exact_match": right_rows / rows}


def continuation_log_probabilities(
    model: nn.Module, items: Sequence[Encoded], *, batch_size: int = 16
) -> Float[Tensor, " n"]:
    """Log-probability in nats of each target after its context, summed over the target's tokens.

    One-token targets with the same context share one row.
    """
    scores = torch.empty(len(items))
    single: dict[tuple[int, ...], list[int]] = {}
    several: list[int] = []
    for i, item in enumerate(items):
        if len(item.target) == 1:
            single.setdefault(tuple(item.context), []).append(i)
        else:
            several.append(i)
    groups = list(single.values())
    with torch.no_grad():
        for part in _chunks(groups, batch_size):
            rows = [(items[g[0]].context, items[g[0]].target) for g in part]
            logits, _ = target_logits(model, collate(rows))
            log_probabilities = logits[:, -1].log_softmax(-1).cpu()
            for row, group in zip(log_probabilities, part, strict=True):
                scores[group] = row[[items[i].target[0] for i in group]]
        for chunk in _chunks(several, batch_size):
            losses, _ = example_losses(
                model, collate([(items[i].context, items[i].target) for i in chunk])
            )
            scores[chunk] = -losses.cpu()
    return scores


def _chunks(items: list[Item], size: int) -> Iterator[list[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
