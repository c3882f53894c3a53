"""The interface of a task, and the loss and accuracy that all tasks share."""

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

# Most numbers that the logits and activations of one pass take, 512 MiB in float32; more rows go
# through several passes.
ROOM = 2**27
# Numbers in memory for each logit of a forward pass.
WITHOUT_GRAPH = 3

Split = Literal["train", "select", "test"]
Batch = dict[str, Tensor]


@runtime_checkable
class Task(Protocol):
    """A task has a name, a loss, and disjoint train, select and test examples.

    A batch is a dict of ``(b, t)`` int64 tensors: ``input_ids``, ``attention_mask``,
    ``position_ids`` and ``labels`` (the input id of each token to predict from the tokens before
    it, -100 everywhere else). Mask and positions may be absent if no row is padded.
    """

    @property
    def name(self) -> str:
        """Name of the task in rows and reports."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean loss in nats per target token, a scalar."""
        ...

    def batches(self, split: Split, batch_size: int, seed: int) -> Iterator[Batch]:
        """Endless batches of one split, in an order that ``seed`` fixes."""
        ...

    def score(self, model: nn.Module, split: Split) -> dict[str, float]:
        """``token_accuracy`` and ``exact_match`` in [0, 1] on a fixed sample of the split."""
        ...

    def shuffled(self, seed: int) -> "Task":
        """The label-shuffled control: the same inputs, each with the answer of another input."""
        ...


def repeatable(task: Task, split: Split, batch_size: int, seed: int) -> Iterator[Batch]:
    """The task's batches, after a check that a second call gives the same first batch.

    Raises:
        ValueError: a second call gives another first batch.
    """
    batches = task.batches(split, batch_size, seed)
    first, again = next(batches, None), next(task.batches(split, batch_size, seed), None)
    if first is None or again is None:
        return
    if first.keys() != again.keys() or not all(torch.equal(first[k], again[k]) for k in first):
        raise UsageError(
            f"task {task.name} gives another batch of its {split} split each time, so its "
            "measurements cannot be repeated; draw the order from the seed argument of batches()"
        )
    yield first
    yield from batches


def collate(
    rows: list[tuple[list[int], list[int]]],
    *,
    padding_side: str = "left",
    pad_id: int | None = None,
) -> Batch:
    """Batch of rows ``(context ids, target ids)``; only the target ids are scored.

    Position ids come from the attention mask, so that models with absolute positions give the same
    logits on either padding side. The id of the padding has no effect. The first token of a row is
    no target, since no token comes before it.

    Args:
        rows: context ids and target ids of each row.
        padding_side: "left" or "right".
        pad_id: id of the padding; None: the first token of the row. The embedding of a padding
            token may be zero, and the norms of some models (Gemma 3n) have no derivative there.

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
        unscored = torch.arange(len(ids)) < max(1, len(context))
        batch["labels"][i, span] = ids.masked_fill(unscored, IGNORE)
    batch["position_ids"] = position_ids(batch["attention_mask"])
    return batch


def require_tokens(rows: Sequence[Sequence[int]]) -> None:
    """Raise ValueError if a row has no tokens; the message gives its index in ``rows``.

    Callers that sort rows by length check them first, so that the index is the user's.
    """
    for i, row in enumerate(rows):
        if not len(row):
            raise UsageError(f"row {i} of {len(rows)} (counted from 0) has no tokens; leave it out")


def position_ids(attention_mask: Int[Tensor, "b t"]) -> Int[Tensor, "b t"]:
    """0-based positions, counted over real tokens only."""
    return (attention_mask.cumsum(1) - 1).clamp(min=0)


def causal_mask(attention_mask: Int[Tensor, "b t"]) -> Bool[Tensor, "b 1 t t"]:
    """True if a query may attend to a key: real tokens, not in the future.

    A padded position may attend to itself. Otherwise its row is NaN in some kernels, and the NaN
    spreads to every position of the next layer.
    """
    t = attention_mask.shape[1]
    causal = torch.ones(t, t, dtype=torch.bool, device=attention_mask.device).tril()
    itself = torch.eye(t, dtype=torch.bool, device=attention_mask.device)
    return (causal & attention_mask.bool()[:, None, None, :]) | itself


def in_parts(model: nn.Module, batch: Batch, *, copies: int, graph: bool = False) -> list[Batch]:
    """The rows of a batch in parts, each of which needs at most about ``ROOM`` numbers at once.

    With a vocabulary of 50,000 the logits of a few dozen rows outweigh a small model. A model
    without a known output head stays whole.

    Args:
        model: with ``get_output_embeddings``, as in transformers.
        batch: there are logits from the column before the first target on.
        copies: how many numbers are in memory for each logit.
        graph: whether all activations stay in memory, for a backward pass.
    """
    find = getattr(base_model(model), "get_output_embeddings", None)
    head = getattr(find() if find else None, "weight", None)
    # A part without a target has no loss.
    if head is None or not (batch["labels"] != IGNORE).any(1).all():
        return [batch]
    count, width = batch["labels"].shape
    numbers = copies * columns_to_keep(batch) * len(head)
    if graph:
        # Of every product its input and its output.
        outputs = sum(len(p) for p in model.parameters() if p.dim() == 2 and len(p) != len(head))
        numbers += 2 * width * outputs
    size = max(1, ROOM // numbers)
    return [
        {key: value[i : i + size] for key, value in batch.items()} for i in range(0, count, size)
    ]


def columns_to_keep(batch: Batch) -> int:
    """Number of last columns that hold every target and the column that predicts the first."""
    columns = (batch["labels"] != IGNORE).any(0)
    if not columns.any():
        raise UsageError("the batch has no target token: every label is -100")
    return columns.shape[0] - int(columns.nonzero()[0]) + 1


def target_logits(
    model: nn.Module, batch: Batch
) -> tuple[Float[Tensor, "n s v"], Int[Tensor, "b s"]]:
    """Logits that predict the target columns, and the targets (-100: no target).

    If the model supports it, columns before the first target of any row skip the output head: with
    a vocabulary of 50,000 the head is a fifth of a small model. If padding would change the
    logits, the rows run in the parts that ``padding.arranged`` makes.

    Raises:
        ValueError: no target token, or rows longer than the model can read.
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
        # No token comes before the first token of a row; padding does not count.
        first = batch["attention_mask"].bool().int().argmax(1, keepdim=True).to(labels.device)
        labels = labels.scatter(1, first, IGNORE)
    return logits[:, :-1], labels[:, -keep:][:, 1:]


def _columns_of_part(batch: Batch) -> int:
    """``columns_to_keep``, or one column if no row has a target."""
    return columns_to_keep(batch) if bool((batch["labels"] != IGNORE).any()) else 1


def _last_logits(model: nn.Module, batch: Batch, keep: int) -> Float[Tensor, "n s v"]:
    """Logits of the last columns of a batch, in float32 at least."""
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
    # Half precision is too coarse for the loss; a float64 model stays in float64.
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class Functional(nn.Module):
    """A model with its parameters as arguments, callable like a model.

    ``Functional(model, tensors)`` runs ``model`` with the named tensors instead of its parameters
    (tied names follow), so that ``torch.func`` can differentiate a task's loss in them. ``keep``
    is ``columns_to_keep`` of the batch, and ``ready`` says that the batch runs unchanged; neither
    can be computed inside a ``vmap``. A task may read the model's settings from it, such as
    ``device`` and ``config``, but not its layers: their parameters would be outside the derivative.
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
        # Not registered as a submodule: the wrapper owns nothing and exists for one call.
        self.__dict__["inner"] = model
        self.__dict__["tensors"] = tensors

    def __getattr__(self, name: str) -> Any:
        """A setting of the inner model.

        Raises:
            AttributeError: there is no such setting, or it is a layer, a parameter or a method.
        """
        value = getattr(self.__dict__["inner"], name)
        if isinstance(value, Tensor) or callable(value):
            raise AttributeError(
                f"the loss of a task is differentiated through the model's output only; {name} of "
                "the model cannot be reached there"
            )
        return value

    def forward(self, **arguments: Any) -> Any:
        """The output of the inner model."""
        return torch.func.functional_call(self.inner, self.tensors, kwargs=arguments)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The inner model's parameters (for its device)."""
        return self.inner.parameters(recurse)


def example_losses(model: nn.Module, batch: Batch) -> tuple[Float[Tensor, " b"], Int[Tensor, " b"]]:
    """Summed loss in nats and number of target tokens of every row.

    Without a graph, rows whose logits would take much memory go through several passes.
    """
    if not torch.is_grad_enabled() and not isinstance(model, Functional):
        parts = in_parts(model, batch, copies=WITHOUT_GRAPH)
        if len(parts) > 1:
            losses, counts = zip(*(_example_losses(model, part) for part in parts), strict=True)
            return torch.cat(losses), torch.cat(counts)
    return _example_losses(model, batch)


def _example_losses(
    model: nn.Module, batch: Batch
) -> tuple[Float[Tensor, " b"], Int[Tensor, " b"]]:
    logits, labels = target_logits(model, batch)
    # Flat, because a softmax along any other axis than the last takes twice the time.
    losses = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=IGNORE
    )
    return losses.view(labels.shape).sum(1), (labels != IGNORE).sum(1)


def token_loss(model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
    """Mean loss in nats per target token over the whole batch."""
    losses, counts = example_losses(model, batch)
    return losses.sum() / counts.sum()


class Evaluation(NamedTuple):
    """Loss in nats per target token, and the shares of correct target tokens and correct rows."""

    loss: float
    token_accuracy: float
    exact_match: float


def evaluate(model: nn.Module, batch: Batch) -> Evaluation:
    """Loss and accuracy of one batch, in the model's current mode.

    Rows whose logits would take much memory go through several passes, all others through one.
    """
    with torch.no_grad():
        parts = [_sums(model, part) for part in in_parts(model, batch, copies=WITHOUT_GRAPH)]
    losses, right, targets, exact, rows = (sum(column) for column in zip(*parts, strict=True))
    return Evaluation(float(losses / targets), float(right / targets), float(exact / rows))


def _sums(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Loss, correct targets, targets, correct rows and rows."""
    logits, labels = target_logits(model, batch)
    losses = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), reduction="sum", ignore_index=IGNORE
    )
    targets = labels != IGNORE
    right = (logits.argmax(-1) == labels) & targets
    exact = right.sum(1) == targets.sum(1)
    return losses, right.sum(), targets.sum(), exact.sum(), len(exact)
