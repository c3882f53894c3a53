"""The output head of a model, restricted to a few tokens."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from frenet.network.measuring import patched
from frenet.network.tasks import base_model


@contextmanager
def few_logits(model: nn.Module, tokens: Iterable[int]) -> Iterator[dict[int, int]]:
    """Restrict the model to the logits of these tokens, if its head is a plain layer.

    The head of a small model with a large vocabulary is a fifth of its work. If a model reads the
    weight of its head without calling the layer, the other logits are computed and dropped.

    Args:
        model: the model, which does not change; a head of another kind still gives all logits.
        tokens: ids.

    Yields:
        The column of each token in the logits.

    >>> model = nn.Module(); model.head = nn.Linear(2, 9)
    >>> model.get_output_embeddings = lambda: model.head
    >>> with few_logits(model, [7, 3]) as columns:
    ...     columns, model.head(nn.Embedding(1, 2).weight).shape
    ({3: 0, 7: 1}, torch.Size([1, 2]))
    """
    chosen = sorted(set(tokens))
    find = getattr(base_model(model), "get_output_embeddings", None)
    head = find() if find else None
    # A subclass may be quantised or adapted; a replaced forward or a hook does more than multiply.
    if type(head) is not nn.Linear or "forward" in head.__dict__ or head._forward_hooks:
        yield {token: token for token in chosen}
        return
    weight = head.weight[chosen]
    bias = None if head.bias is None else head.bias[chosen]

    def forward(x: Tensor) -> Tensor:
        return F.linear(x, weight, bias)

    with patched(head, forward) as calls, ExitStack() as stack:
        seen = 0

        def cut(_module: nn.Module, _args: Any, output: Any) -> None:
            nonlocal seen
            if calls.count == seen:
                output.logits = output.logits[..., chosen]
            seen = calls.count

        # A PEFT wrapper calls the forward of its model without the hooks.
        stack.callback(model.register_forward_hook(cut).remove)
        yield {token: i for i, token in enumerate(chosen)}
