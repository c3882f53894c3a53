"""How many tokens a model reads at once."""

from typing import Any

from frenet._errors import UsageError
from frenet.network.padding import base_model


def context_length(model: Any) -> int | None:
    """Number of tokens that the model can read at once; None if its configuration omits it."""
    config = getattr(base_model(model), "config", None)
    text = getattr(config, "get_text_config", None)
    config = text() if callable(text) else config
    for name in ("max_position_embeddings", "n_positions"):
        if isinstance(length := getattr(config, name, None), int) and length > 0:
            return length
    return None


def require_room(model: Any, tokens: int) -> None:
    """Refuse rows that are longer than the model can read.

    Raises:
        ValueError: ``tokens`` is more than the model's positions.
    """
    room = context_length(model)
    if room is not None and tokens > room:
        raise UsageError(
            f"a text of {tokens} tokens is longer than the {room} that the model reads; pass "
            f"max_length={room} or less when you read the texts, or shorten the prompt"
        )
