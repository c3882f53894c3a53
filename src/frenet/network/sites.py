"""Sites in the residual stream, and the hooks that find them in every forward pass."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from frenet.network.blocks import residual_blocks
from frenet.network.padding import rows_in_order
from frenet.network.tasks import base_model

Position = Literal["last", "all", "generated"] | tuple[int, ...] | Bool[Tensor, "b t"]
# What the key-value cache is called, in newer and older versions of transformers.
CACHES = ("cache", "past_key_values")
# Gets a site, the stream (b, t, h) and the chosen columns (b, t); may return another stream.
Act = Callable[["Site", Tensor, Tensor], Tensor | None]


@dataclass(frozen=True)
class Site:
    """A place in the residual stream: after a block, at some positions.

    Attributes:
        block: 0-based index; the site is the output of that block.
        position: "last", the last token of each prompt; "all", every token; "generated", the last
            token of the prompt, which predicts the first new one, and all new ones; a tuple of
            positions counted over the prompt's own tokens (-1 is the last one); or a mask (b, t)
            over the columns of the prompts. Padding is never part of a site.
    """

    block: int
    position: Position = "last"


@contextmanager
def hooked(
    model: nn.Module,
    sites: Sequence[Site],
    act: Act,
    *,
    path: str | None,
) -> Iterator[None]:
    """Inside, ``act`` gets stream and chosen columns at every site, and may return a new stream."""
    parent, blocks = residual_blocks(model, path)
    for site in sites:
        if not 0 <= site.block < len(blocks):
            raise ValueError(
                f"there is no block {site.block}; this model has blocks 0 to {len(blocks) - 1}"
            )
    watch = _Watch()
    with ExitStack() as stack:
        stack.enter_context(rows_in_order(model))
        # A PEFT wrapper calls the forward of its model past all hooks, and generation calls the
        # model inside it: one of these is always called properly.
        for module in {id(m): m for m in (model, base_model(model), parent)}.values():
            handle = module.register_forward_pre_hook(watch.see, with_kwargs=True)
            stack.callback(handle.remove)
        for site in sites:
            hook = _block_hook(watch, site, act)
            stack.callback(blocks[site.block].register_forward_hook(hook).remove)
        stack.enter_context(_generation_known(base_model(model), watch))
        yield


@dataclass
class _Watch:
    """Follows the forward passes: which columns are real, where a prompt ends, what is new."""

    generating: bool = False
    prompt: Tensor | None = None
    real: Tensor | None = None
    past: int = 0
    shape: tuple[int, int] = (0, 0)
    opaque: bool = False

    def see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of whatever is called with the mask."""
        given = kwargs.get("input_ids", args[0] if args else None)
        given = kwargs.get("inputs_embeds") if given is None else given
        if not isinstance(given, Tensor):
            return
        mask = kwargs.get("attention_mask")
        cache = next((kwargs[name] for name in CACHES if kwargs.get(name) is not None), None)
        self.shape = (given.shape[0], given.shape[1])
        self.past = int(cache.get_seq_length()) if cache is not None else 0
        self.opaque = mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2)
        if mask is None or self.opaque:
            self.real = torch.ones(self.shape, dtype=torch.bool, device=given.device)
        else:
            end = self.past + self.shape[1]
            self.real = mask[:, self.past : end].bool()
        if self.past == 0 and not (self.generating and self.prompt is not None):
            self.prompt = self.real

    def chosen(self, position: Position) -> Bool[Tensor, "b t"]:
        """The columns of the present forward pass that belong to a position.

        Raises:
            ValueError: a position that a prompt does not have, or a mask that cannot be read.
        """
        if self.real is None:
            raise ValueError("the blocks ran outside a forward pass of the model")
        if self.prompt is None:  # its prompt ran before: all that this pass has is new
            new = position in ("all", "generated") if isinstance(position, str) else False
            return self.real if new else torch.zeros_like(self.real)
        if isinstance(position, Tensor):
            if position.shape != self.prompt.shape:
                raise ValueError(
                    f"the mask of a site has shape {tuple(position.shape)}, the prompts "
                    f"{tuple(self.prompt.shape)}"
                )
            return self._window(position.to(self.real.device).bool())
        if self.opaque:
            raise ValueError(
                "the attention mask is no (batch, tokens) mask, so the padding is not known; pass "
                "one, or a mask as the position of the site"
            )
        if position == "all":
            return self.real
        if isinstance(position, tuple):
            return self._window(_counted(self.prompt, position))
        last = _counted(self.prompt, (-1,))
        if position == "last":
            return self._window(last)
        if position != "generated":
            raise ValueError(
                f"no position {position!r}; there are last, all, generated, a tuple of positions "
                "and a mask"
            )
        columns = self.past + torch.arange(self.shape[1], device=self.real.device)
        from_last = columns[None] >= last.int().argmax(1, keepdim=True)
        return from_last & self.real

    def _window(self, prompt: Bool[Tensor, "b p"]) -> Bool[Tensor, "b t"]:
        """A mask over the prompt's columns, as far as the present pass has them."""
        whole = torch.zeros(self.shape, dtype=torch.bool, device=prompt.device)
        if self.past == 0:
            whole[:, : prompt.shape[1]] = prompt
        return whole


def _counted(real: Bool[Tensor, "b t"], positions: tuple[int, ...]) -> Bool[Tensor, "b t"]:
    """True at the given positions, counted over the real tokens of each row."""
    counts = real.sum(1, keepdim=True)
    order = real.long().cumsum(1) - 1
    chosen = torch.zeros_like(real)
    for position in positions:
        wanted = counts + position if position < 0 else torch.full_like(counts, position)
        outside = ((wanted < 0) | (wanted >= counts)).flatten()
        if outside.any():
            row = int(outside.nonzero()[0])
            raise ValueError(
                f"row {row} has {int(counts[row])} tokens, so there is no position {position}"
            )
        chosen |= real & (order == wanted)
    return chosen


def _block_hook(watch: _Watch, site: Site, act: Act) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        stream = output[0] if isinstance(output, tuple) else output
        changed = act(site, stream, watch.chosen(site.position))
        if changed is None:
            return None
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return hook


@contextmanager
def _generation_known(model: Any, watch: _Watch) -> Iterator[None]:
    """Inside, the watch knows that a pass without a cache goes on with the prompt before it."""
    if not hasattr(model, "generate"):
        yield
        return
    before = model.__dict__.get("generate")
    original = model.generate

    def generate(*args: Any, **kwargs: Any) -> Any:
        watch.generating, watch.prompt = True, None
        try:
            return original(*args, **kwargs)
        finally:
            watch.generating = False

    model.__dict__["generate"] = generate
    try:
        yield
    finally:
        del model.__dict__["generate"]
        if before is not None:
            model.__dict__["generate"] = before
