"""Attention that looks back over a window only."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

FULL, SLIDING = "full_attention", "sliding_attention"
# Kinds of layers that look at all of the past, or have no attention.
BOUNDLESS = {FULL, "linear_attention", "conv"}


def windowed_mask(
    config: Any, mask: Float[Tensor, "b 1 t t"]
) -> Float[Tensor, "b 1 t t"] | dict[str, Float[Tensor, "b 1 t t"]]:
    """The finished causal mask in the form that the model itself would have made of it.

    transformers takes a finished mask as it is, so that the layers with a window of w tokens would
    look at all of the past: a query q may look at the keys k > q - w. No value is looked at, which
    ``torch.func`` would refuse.

    Args:
        config: the model's; None where it has none.
        mask: additive, over all of the past.

    Returns:
        The mask as it is where no row is longer than the window; with the window, where all layers
        have it; else one mask for each kind of layers.

    Raises:
        ValueError: rows are longer than the window of a kind of attention that is not known here.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    kinds = set(getattr(text, "layer_types", None) or ())
    sliding = getattr(text, "sliding_window", None)
    window = sliding or getattr(text, "attention_chunk_size", None)
    tokens = mask.shape[-1]
    if not window or tokens <= window or (kinds and kinds <= BOUNDLESS):
        return mask
    if not sliding or not kinds <= {FULL, SLIDING}:
        raise ValueError(
            f"the rows have {tokens} tokens, and the attention of this {text.model_type} model a "
            f"window of {window} that cannot be differentiated here; cut the rows to {window} "
            "tokens"
        )
    outside = torch.ones(tokens, tokens, dtype=torch.bool, device=mask.device).tril(-sliding)
    near = mask.masked_fill(outside, torch.finfo(mask.dtype).min)
    return {FULL: mask, SLIDING: near} if kinds else near
