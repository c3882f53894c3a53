"""What a task is, and the loss and accuracy that every task shares."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from frenet._errors import UsageError
from frenet.network.limits import require_room
from frenet.network.padding import IGNORE as IGNORE
from frenet.network.padding import arranged, is_padded, placed
from frenet.network.padding import base_model as base_model
from frenet.network.padding import forward_arguments as forward_arguments

Split = Literal["train", "select", "test"]
Batch = dict[str, Tensor]


@runtime_checkable
class Task(Protocol):
    """A task: named, with a loss, and with disjoint train, select and test examples.

    A batch is a dict of ``(b, t)`` int64 tensors: ``input_ids``, ``attention_mask``,
    ``position_ids`` and ``labels`` (the input ids where a token is to be predicted from the tokens
    before it, -100 everywhere else). Mask and positions may be absent where no row is padded.
    """

    @property
    def name(self) -> str:
        """What the task is called in rows and reports."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean loss in nats per target token, a scalar."""
        ...

    def batches(self, split: Split, batch_size: int, seed: int) -> Iterator[Batch]:
        """Batches of one split, without end, in an order that ``seed`` fixes."""
        ...

    def score(self, model: nn.Module, split: Split) -> dict[str, float]:
        """``token_accuracy`` and ``exact_match`` in [0, 1] on a fixed sample of the split."""
        ...

    def shuffled(self, seed: int) -> "Task":
        """The label-shuffled control: the same inputs, each with some other input's answer."""
        ...


def repeatable(task: Task, split: Split, batch_size: int, seed: int) -> Iterator[Batch]:
    """The task's batches, once it has shown that asking again gives the same.

    Raises:
        ValueError: the first batch is another one when it is asked for again.
    """
    batches = task.batches(split, batch_size, seed)
    first, again = next(batches, None), next(task.batches(split, batch_size, seed), None)
    if first is None or again is None:
        return
    if first.keys() != again.keys() or not all(torch.equal(first[k], again[k]) for k in first):
        raise UsageError(
            f"task {task.name} gives another batch of its {split} split each time, so nothing "
            "measured on it can be repeated; draw its order from the seed that batches() is given"
        )
    yield first
    yield from batches


def collate(
    rows: list[tuple[list[int], list[int]]],
    *,
    padding_side: str = "left",
    pad_id: int | None = None,
) -> Batch:
    """Batch of rows ``(context ids, target ids)``; the loss falls on the target ids only.

    Position ids come from the attention mask, so that models with absolute positions give the same
    logits wherever the padding stands. The id that fills the padding is never looked at. The first
    token of a row is no target, since nothing comes before it.

    Args:
        rows: of ids.
        padding_side: "left" or "right".
        pad_id: fills the padding; None: the first token of the row. The embedding of a padding
            token may be zero, where the norms of some models (Gemma 3n) have no derivative.

    Raises:
        ValueError: a row without tokens.
    """
    require_tokens([context or target for context, target in rows])
    width = max(len(context) + len(target) for context, target in rows)
    batch = {
        key: torch.full((len(rows), width), fill, dtype=torch.int64)
        for key, fill in (("input_ids", 0), ("attention_mask", 0), ("labels", IGNORE))
    }
    for i, (context, target) in enumerate(rows):
        ids = torch.tensor(context + target, dtype=torch.int64)
        span = slice(width - len(ids), width) if padding_side == "left" else slice(0, len(ids))
        batch["input_ids"][i] = ids[0] if pad_id is None else pad_id
        batch["input_ids"][i, span] = ids
        batch["attention_mask"][i, span] = 1
        known = torch.arange(len(ids)) < max(1, len(context))
        batch["labels"][i, span] = ids.masked_fill(known, IGNORE)
    batch["position_ids"] = position_ids(batch["attention_mask"])
    return batch


def require_tokens(rows: Sequence[Sequence[int]]) -> None:
    """Raise ValueError where a row has no tokens; it is named by its place among all of them.

    For callers that put rows of like length together before they run.
    """
    for i, row in enumerate(rows):
        if not len(row):
            raise UsageError(f"row {i} of {len(rows)} (counted from 0) has no tokens; leave it out")


def position_ids(attention_mask: Int[Tensor, "b t"]) -> Int[Tensor, "b t"]:
    """0-based positions counted over the real tokens only."""
    return (attention_mask.cumsum(1) - 1).clamp(min=0)


def causal_mask(attention_mask: Int[Tensor, "b t"]) -> Bool[Tensor, "b 1 t t"]:
    """True where a query may look at a key: real tokens, not in the future.

    A padded position may look at itself: a row that attends to nothing is NaN in some kernels, and
    the NaN spreads to every position of the next layer.
    """
    t = attention_mask.shape[1]
    causal = torch.ones(t, t, dtype=torch.bool, device=attention_mask.device).tril()
    itself = torch.eye(t, dtype=torch.bool, device=attention_mask.device)
    return (causal & attention_mask.bool()[:, None, None, :]) | itself


def columns_to_keep(batch: Batch) -> int:
    """How many trailing columns hold every target and the column that predicts the first one."""
    columns = (batch["labels"] != IGNORE).any(0)
    if not columns.any():
        raise UsageError("the batch has no target token: every label is -100")
    return columns.shape[0] - int(columns.nonzero()[0]) + 1


def target_logits(
    model: nn.Module, batch: Batch
) -> tuple[Float[Tensor, "n s v"], Int[Tensor, "b s"]]:
    """Logits that predict the target columns, and the targets (-100 where there is none).

    Columns before the first target of any row are not sent through the output head where the
    model can leave them out: with a vocabulary of 50,000 the head is a fifth of a small model.
    Rows whose padding would change the logits run as ``padding.arranged`` has them.

    Raises:
        ValueError: no target token, or rows that are longer than the model reads.
    """
    require_room(model, batch["labels"].shape[-1])
    keep = getattr(model, "keep", None) or columns_to_keep(batch)
    ready = getattr(model, "ready", False)
    parts = None if ready else arranged(model, batch)
    if parts is None:
        logits = _last_logits(model, batch, keep)
    else:
        sizes = [_columns_of_part(part.batch) for part in parts]
        pieces = [_last_logits(model, p.batch, k) for p, k in zip(parts, sizes, strict=True)]
        logits = placed(pieces, parts, batch, keep)
    labels = batch["labels"].to(logits.device)
    if not ready and is_padded(batch):
        # The first token of a row is predicted from nothing, also where padding stands before it.
        first = batch["attention_mask"].bool().int().argmax(1, keepdim=True).to(labels.device)
        labels = labels.scatter(1, first, IGNORE)
    return logits[:, :-1], labels[:, -keep:][:, 1:]


def _columns_of_part(batch: Batch) -> int:
    """``columns_to_keep``, or one column where no row has a target."""
    return columns_to_keep(batch) if bool((batch["labels"] != IGNORE).any()) else 1


def _last_logits(model: nn.Module, batch: Batch, keep: int) -> Float[Tensor, "n s v"]:
    """Logits of the last columns of a batch that runs as it is, in float32 at least."""
    device = next(model.parameters()).device
    accepted = forward_arguments(model)
    arguments: dict[str, Any] = {
        key: value.to(device) for key, value in batch.items() if key in accepted and key != "labels"
    }
    if "use_cache" in accepted:
        arguments["use_cache"] = False
    if "logits_to_keep" in accepted:
        arguments["logits_to_keep"] = keep
    logits = model(**arguments).logits[:, -keep:]
    # Half precision would lose the loss; a float64 model keeps its own.
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class Functional(nn.Module):
    """A model whose parameters are arguments, callable wherever a model is.

    ``Functional(model, tensors)`` runs ``model`` with the named tensors in place of its own (tied
    names follow), so that ``torch.func`` can differentiate a task's loss in them. ``keep`` is
    ``columns_to_keep`` of the batch, which cannot be read off inside a ``vmap``; ``ready`` says
    that the batch runs as it is, which cannot be looked up there either. A task may read the
    model's settings on it, as ``device`` and ``config``, but not its layers: their parameters would
    stand outside the derivative.
    """

    inner: nn.Module
    tensors: dict[str, Tensor]

    def __init__(
        self,
        model: nn.Module,
        tensors: dict[str, Tensor],
        *,
        keep: int | None = None,
        ready: bool = False,
    ) -> None:
        super().__init__()
        self.keep, self.ready = keep, ready
        # Not registered as a submodule: the wrapper owns nothing and is made anew for every call.
        self.__dict__["inner"] = model
        self.__dict__["tensors"] = tensors

    def __getattr__(self, name: str) -> Any:
        """A setting of the inner model.

        Raises:
            AttributeError: it has none of that name, or it is a layer, a parameter or a method.
        """
        found = getattr(self.__dict__["inner"], name)
        if isinstance(found, Tensor) or callable(found):
            raise AttributeError(
                f"the loss of a task is differentiated through the model's output only; {name} of "
                "the model cannot be reached there"
            )
        return found

    def forward(self, **arguments: Any) -> Any:
        """The inner model's own output."""
        return torch.func.functional_call(self.inner, self.tensors, kwargs=arguments)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The inner model's parameters (for its device)."""
        return self.inner.parameters(recurse)


def example_losses(model: nn.Module, batch: Batch) -> tuple[Float[Tensor, " b"], Int[Tensor, " b"]]:
    """Summed loss in nats, and number of target tokens, of every row."""
    logits, labels = target_logits(model, batch)
    # Flat, because the softmax along any axis but the last takes twice the time.
    losses = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=IGNORE
    )
    return losses.view(labels.shape).sum(1), (labels != IGNORE).sum(1)


def token_loss(model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
    """Mean loss in nats per target token over the whole batch."""
    losses, counts = example_losses(model, batch)
    return losses.sum() / counts.sum()


class Evaluation(NamedTuple):
    """Loss in nats per target token; shares of target tokens and of whole rows that are right."""

    loss: float
    token_accuracy: float
    exact_match: float


def evaluate(model: nn.Module, batch: Batch) -> Evaluation:
    """Loss and accuracy of one batch from one forward pass, the model in the mode it is in."""
    with torch.no_grad():
        logits, labels = target_logits(model, batch)
        losses = F.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), reduction="sum", ignore_index=IGNORE
        )
    wanted = labels != IGNORE
    right = (logits.argmax(-1) == labels) & wanted
    return Evaluation(
        float(losses / wanted.sum()),
        float(right.sum() / wanted.sum()),
        float((right.sum(1) == wanted.sum(1)).float().mean()),
    )
