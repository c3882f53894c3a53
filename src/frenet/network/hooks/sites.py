"""Sites in the residual stream, and their hooks."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from frenet._errors import UsageError
from frenet.network.blocks import residual_blocks
from frenet.network.eager import uncompiled
from frenet.network.hooks.positions import Pass, Position
from frenet.network.hooks.watch import Finish, Watch, generation_known
from frenet.network.padding import rows_in_order
from frenet.network.tasks import base_model

# Gets a site, the stream (b, t, h), the chosen columns (b, t) and the pass; may return a stream.
Act = Callable[["Site", Tensor, Tensor, Pass], Tensor | None]


@dataclass(frozen=True)
class Site:
    """A place in the residual stream: after a block, at some positions.

    The prompts are the inputs of ``generate``, however it runs them: in one pass, in chunks,
    together with the candidates of an assistant, or from the keys and values of an earlier pass.
    Outside ``generate`` every pass is a prompt, unless it continues from the cache of a pass in the
    same context: then its tokens are new. Tokens that were computed before the context cannot be
    reached, and a position among them is refused.

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
    finish: Finish | None = None,
) -> Iterator[Watch]:
    """Call ``act`` with stream and chosen columns at every site; it may return a new stream.

    Compiled models run eagerly. If the block of a site does not run in a pass, it is an error.

    Args:
        finish: called with the number of columns that each ``generate`` has computed.
    """
    if getattr(getattr(base_model(model), "config", None), "is_encoder_decoder", False):
        raise UsageError(
            f"{type(base_model(model)).__name__} has an encoder and a decoder; pass a model that "
            "is only a decoder"
        )
    parent, blocks = residual_blocks(model, path)
    for site in sites:
        if not 0 <= site.block < len(blocks):
            raise UsageError(
                f"there is no block {site.block}; this model has blocks 0 to {len(blocks) - 1}"
            )
    watch = Watch(model, frozenset(site.block for site in sites))
    with ExitStack() as stack:
        stack.enter_context(rows_in_order(model))
        stack.enter_context(uncompiled())
        # A PEFT wrapper calls the forward of its model without hooks, and generation calls the
        # model inside the wrapper: the hooks of at least one of these modules run.
        for module in {id(m): m for m in (model, base_model(model), parent)}.values():
            for handle in (
                module.register_forward_pre_hook(watch.enter, with_kwargs=True),
                module.register_forward_hook(watch.leave, with_kwargs=True, always_call=True),
            ):
                stack.callback(handle.remove)
        # In training blocks may be left out at random, and any other that runs shows that the model
        # ran. Otherwise hooks on the other blocks would only take time, in every pass.
        for i, block in enumerate(blocks if model.training else ()):
            stack.callback(block.register_forward_hook(partial(_noted, watch, i)).remove)
        for site in sites:
            hook = _block_hook(watch, site, act)
            stack.callback(blocks[site.block].register_forward_hook(hook).remove)
        stack.enter_context(generation_known(watch, finish or (lambda _: None)))
        yield watch


def _noted(watch: Watch, block: int, *_: Any) -> None:
    watch.ran(block)


def _block_hook(watch: Watch, site: Site, act: Act) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        watch.ran(site.block)
        now = watch.at_block()
        if now is None:
            return None
        stream = output[0] if isinstance(output, tuple | list) else output
        if stream.dim() != 3:
            raise UsageError(
                f"block {site.block} of {type(module).__name__} has a stream of shape "
                f"{tuple(stream.shape)}; frenet reads streams of shape (rows, tokens, width)"
            )
        rows, t = stream.shape[:2]
        # One row may stand for several copies that are made later, in ``act``, too.
        if t != now.shape[1] or now.shape[0] not in (1, rows):
            raise UsageError(
                f"block {site.block} runs on a stream of {rows} rows of {t} tokens in a pass over "
                f"{now.shape[0]} of {now.shape[1]}, so its positions are not known; pass the path "
                "of the blocks that text runs through, and rows that are not packed"
            )
        chosen = now.chosen(site.position, stream.device)
        if len(chosen) != rows:
            chosen = chosen.expand(rows, t)
        changed = act(site, stream, chosen, now)
        if changed is None:
            return None
        if isinstance(output, tuple | list):
            return type(output)((changed, *output[1:]))
        return changed

    return hook
