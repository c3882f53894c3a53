"""Text generated with and without a vector."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet.measure.activations import add, last_activations
from frenet.measure.forward_passes import run_blocks
from frenet.network.hooks.sites import Site
from frenet.network.limits import context_length
from frenet.network.measuring import measuring
from frenet.network.padding import rounding
from frenet.network.tasks import base_model

# Tokens of a prompt on which generation with a cache is tested.
TRIED = 8
# Whether a model may cache keys and values while it generates.
_KEEPS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def stream_norm(
    model: nn.Module, rows: Sequence[Sequence[int]], block: int, *, path: str | None = None
) -> float:
    """Root mean square norm of the stream after a block, at the last tokens of some prompts.

    A dose of a vector is its length in this unit.
    """
    norms = last_activations(model, rows, [block], path=path)[:, 0].norm(dim=1)
    return float(norms.square().mean().sqrt())


def generate_steered(
    model: nn.Module,
    prompt: Sequence[int],
    added: Float[Tensor, "m h"],
    *,
    block: int,
    position: Literal["last", "all", "generated"] = "generated",
    new_tokens: int = 48,
    path: str | None = None,
) -> list[list[int]]:
    """Greedy continuations of one prompt with each of m vectors added, in one batch.

    Each token has the largest logit: sampling and penalties in the model's generation settings are
    ignored. The model's end-of-sequence tokens end a text.

    Args:
        model: a decoder of transformers; left unchanged.
        prompt: token ids.
        added: one vector per continuation, in the units of the stream; a zero row adds nothing.
        block: 0-based; the vectors are added to its output.
        position: see ``Site``.
        new_tokens: the maximum; lower, with a warning, if the model's context is full.
        path: dotted name of the list of blocks; None: frenet looks for it.

    Returns:
        The new tokens of each continuation, up to the end-of-sequence token.

    Raises:
        ValueError: the prompt is empty or leaves no room for new tokens, or the logits of
            ``generate`` differ from those of the forward pass.

    Warns:
        RuntimeWarning: fewer new tokens are generated, or no cache is used.
    """
    from transformers import GenerationConfig

    inner: Any = model
    if not prompt:
        raise UsageError("the prompt has no tokens; pass some text")
    room = context_length(model)
    if room is not None and len(prompt) >= room:
        raise UsageError(f"the prompt has {len(prompt)} tokens, the model reads {room}; shorten it")
    if room is not None and len(prompt) + new_tokens > room:
        warnings.warn(
            f"the prompt has {len(prompt)} of the {room} tokens that the model reads: at most "
            f"{room - len(prompt)} new tokens are generated, not {new_tokens}",
            RuntimeWarning,
            stacklevel=2,
        )
    ends = _ends(inner)
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=new_tokens if room is None else min(new_tokens, room - len(prompt)),
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
    )
    with measuring(model), torch.no_grad(), _without_settings(inner):
        settings.use_cache = _keeps(inner, list(prompt[: min(TRIED, (room or TRIED + 2) - 2)]))
        with add(model, {Site(block, position): added}, path=path):
            whole = _generated(inner, [list(prompt)] * len(added), settings)
    return [_until(row, ends) for row in whole[:, len(prompt) :].tolist()]


def _generated(model: Any, prompts: list[list[int]], settings: Any) -> Any:
    ids = torch.tensor(prompts, device=next(model.parameters()).device)
    return model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings
    )


def _keeps(model: Any, prompt: list[int]) -> bool:
    """Whether to cache keys and values: if two new tokens get the logits of full passes.

    Raises:
        ValueError: the logits differ both with the cache and without.
    """
    from transformers import GenerationConfig

    inner, name = base_model(model), type(base_model(model)).__name__
    if inner in _KEEPS or not prompt:
        return _KEEPS.get(inner, True)
    for cached in (True, False):
        settings = GenerationConfig(
            do_sample=False, max_new_tokens=2, pad_token_id=0, use_cache=cached,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        try:
            made = _generated(model, [prompt], settings)
        except Exception:  # a model may fail in any way with its cache
            if not cached:
                raise
            continue
        text = made.sequences[0].tolist()
        whole = [
            run_blocks(model, {"input_ids": torch.tensor([text[: len(prompt) + i]])}).logits[0, -1]
            for i in range(len(made.logits))
        ]
        logits, expected = torch.cat(made.logits).float(), torch.stack(whole).float()
        spread = (expected - expected.mean(1, keepdim=True)).norm()
        if (logits - expected).norm() <= rounding(model, expected) * spread:
            _KEEPS[inner] = cached
            if not cached:
                warnings.warn(
                    f"{name} has other logits with cached keys and values: texts are generated "
                    "without the cache, more slowly",
                    RuntimeWarning,
                    stacklevel=3,
                )
            return cached
    raise UsageError(
        f"the logits of {name} in generate differ from those of its forward pass, so a generated "
        "text does not show what a vector does; use add with your own forward passes"
    )


@contextmanager
def _without_settings(model: Any) -> Iterator[None]:
    """Removes the model's generation settings, which would fill in what a request leaves open.

    Some, such as suppressed tokens, cannot be switched off by a value.
    """
    from transformers import GenerationConfig

    inner = base_model(model)
    before = inner.generation_config
    inner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        inner.generation_config = before


def _ends(model: Any) -> list[int]:
    """The model's end-of-sequence tokens."""
    settings = getattr(model, "generation_config", None)
    ends = getattr(settings, "eos_token_id", None)
    text = base_model(model).config.get_text_config()
    ends = getattr(text, "eos_token_id", None) if ends is None else ends
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def _until(ids: list[int], ends: Sequence[int]) -> list[int]:
    first = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    return ids[:first]
