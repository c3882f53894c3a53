"""What a task is, and the loss and accuracy that every task shares."""

import inspect
from collections.abc import Iterator
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

Split = Literal["train", "select", "test"]
Batch = dict[str, Tensor]
IGNORE = -100


@runtime_checkable
class Task(Protocol):
    """A task: named, with a loss, and with disjoint train, select and test examples.

    A batch is a dict of ``(b, t)`` int64 tensors: ``input_ids``, ``attention_mask``,
    ``position_ids`` and ``labels`` (the input ids where a token is to be predicted from the tokens
    before it, -100 everywhere else).
    """

    name: str

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean loss in nats per target token, a scalar."""
        ...

    def batches(self, split: Split, batch_size: int, seed: int) -> Iterator[Batch]:
        """Batches of one split, without end, in an order that ``seed`` fixes."""
        ...

    def score(self, model: nn.Module, split: Split) -> dict[str, float]:
        """``token_accuracy`` and ``exact_match`` in [0, 1] on a fixed sample of the split."""
        ...


def collate(
    rows: list[tuple[list[int], list[int]]], *, padding_side: str = "left", pad_id: int = 0
) -> Batch:
    """Batch of rows ``(context ids, target ids)``; the loss falls on the target ids only.

    Position ids come from the attention mask, so that models with absolute positions give the same
    logits wherever the padding stands. The id that fills the padding is never looked at.
    """
    width = max(len(context) + len(target) for context, target in rows)
    batch = {
        key: torch.full((len(rows), width), fill, dtype=torch.int64)
        for key, fill in (("input_ids", pad_id), ("attention_mask", 0), ("labels", IGNORE))
    }
    for i, (context, target) in enumerate(rows):
        ids = torch.tensor(context + target, dtype=torch.int64)
        span = slice(width - len(ids), width) if padding_side == "left" else slice(0, len(ids))
        batch["input_ids"][i, span] = ids
        batch["attention_mask"][i, span] = 1
        batch["labels"][i, span] = ids.masked_fill(torch.arange(len(ids)) < len(context), IGNORE)
    batch["position_ids"] = position_ids(batch["attention_mask"])
    return batch


def position_ids(attention_mask: Int[Tensor, "b t"]) -> Int[Tensor, "b t"]:
    """0-based positions counted over the real tokens only."""
    return (attention_mask.cumsum(1) - 1).clamp(min=0)


def target_logits(
    model: nn.Module, batch: Batch
) -> tuple[Float[Tensor, "b s v"], Int[Tensor, "b s"]]:
    """Logits that predict the target columns, and the targets (-100 where there is none).

    Columns before the first target of any row are not sent through the output head where the
    model can leave them out: with a vocabulary of 50,000 the head is a fifth of a small model.
    """
    labels = batch["labels"]
    first = int((labels != IGNORE).any(0).nonzero()[0]) if "keep" not in batch else 0
    keep = int(batch["keep"]) if "keep" in batch else labels.shape[1] - first + 1
    extra = {key: value for key, value in batch.items() if key not in ("labels", "keep")}
    accepted = forward_arguments(model)
    extra = {key: value for key, value in extra.items() if key in accepted}
    if "use_cache" in accepted:
        extra["use_cache"] = False
    if "logits_to_keep" in accepted:
        extra["logits_to_keep"] = keep
    logits = model(**extra).logits[:, -keep:]
    return logits[:, :-1].float(), labels[:, -keep:][:, 1:]


def forward_arguments(model: nn.Module) -> frozenset[str]:
    """Names that the forward pass of the model, or of the model inside a PEFT wrapper, accepts."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return frozenset(inspect.signature(inner.forward).parameters)


def example_losses(model: nn.Module, batch: Batch) -> tuple[Float[Tensor, " b"], Int[Tensor, " b"]]:
    """Summed loss in nats, and number of target tokens, of every row."""
    logits, labels = target_logits(model, batch)
    losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORE)
    return losses.sum(1), (labels != IGNORE).sum(1)


def token_loss(model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
    """Mean loss in nats per target token over the whole batch."""
    losses, counts = example_losses(model, batch)
    return losses.sum() / counts.sum()


def accuracy(model: nn.Module, batch: Batch) -> dict[str, float]:
    """Share of target tokens, and of whole rows, that the model's first choice gets right."""
    with torch.no_grad():
        logits, labels = target_logits(model, batch)
    wanted = labels != IGNORE
    right = (logits.argmax(-1) == labels) & wanted
    return {
        "token_accuracy": float(right.sum() / wanted.sum()),
        "exact_match": float((right.sum(1) == wanted.sum(1)).float().mean()),
    }
