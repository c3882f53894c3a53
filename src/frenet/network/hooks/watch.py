"""Watching the forward passes of a model, and the prompts that they belong to."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet.network.hooks.positions import Pass, Prompt
from frenet.network.tasks import base_model

# Names of the key-value cache in newer and older versions of transformers.
CACHES = ("cache", "past_key_values", "cache_params")
# Last columns of the passes of a model that come after its prompts.
_AFTER: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


class Prepared(NamedTuple):
    """What ``generate`` has prepared for its next pass.

    Attributes:
        width: tokens of the text so far; of the chunk while a prompt runs in chunks.
        mask: (b, past + t), before the model expands it; None if nothing is padded.
    """

    width: int
    mask: Tensor | None


@dataclass
class Generation:
    """One call of ``generate``: the caller's prompts, and the progress.

    Attributes:
        rows: number of the caller's prompts.
        tokens: columns of the prompts, including those in a cache.
        given: columns of the caller's ids, which ``generate`` counts from.
        mask: (rows, tokens) of the caller, or None.
        kept: columns in the cache at the start; None if the cache does not say.
        cache: the cache, or None.
    """

    rows: int
    tokens: int
    given: int
    mask: Tensor | None
    kept: int | None
    cache: Any
    prepared: Prepared | None = None
    end: int = 0
    prompt: Prompt | None = None

    @classmethod
    def called(cls, call: dict[str, Any]) -> "Generation":
        """From the arguments of ``generate``."""
        named: Any = call.get("input_ids")
        ids: Any = call.get("inputs") if named is None else named
        embeds: Any = call.get("inputs_embeds")
        given = ids if embeds is None else embeds
        mask: Any = call.get("attention_mask")
        cache = _cache_of(call)
        # Without any prompt there is the one token that starts a text.
        rows, tokens = (1, 1) if given is None else given.shape[:2]
        width = (1 if embeds is None else 0) if ids is None else ids.shape[1]
        # With a cache the ids are all tokens, or only those that are not in the cache.
        usable = isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] >= tokens
        tokens = mask.shape[1] if usable else tokens
        kept = _held(cache)
        if kept is None and tokens > width:
            kept = tokens - width
        return cls(rows, tokens, width, mask if usable else None, kept, cache, end=kept or 0)

    def text_end(self, width: int) -> int:
        """Columns of the whole text when ``generate`` counts ``width`` tokens."""
        return width + self.tokens - self.given


@dataclass
class Watch:
    """Follows the forward passes of a model: their columns, and the blocks that run.

    Attributes:
        model: the model.
        sites: the blocks that have to run in every pass.
        now: the current pass.
        generation: the current call of ``generate``.
        drafting: whether the model runs as its own assistant.
        passes: number of passes that have begun.
    """

    model: nn.Module
    sites: frozenset[int]
    now: Pass | None = None
    generation: Generation | None = None
    drafting: bool = False
    passes: int = 0
    _stack: list[int] = field(default_factory=list)
    _owner: int = 0
    _ran: set[int] = field(default_factory=set)
    # For each cache of this context: the prompt, and the number of its columns.
    _held: WeakKeyDictionary[Any, tuple[Prompt, int]] = field(default_factory=WeakKeyDictionary)
    # Passes with blocks that a backward pass may run again (gradient checkpointing).
    _again: list[Pass] = field(default_factory=list)
    _backward: bool = False

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook: the outermost module gets the caller's arguments."""
        self._stack.append(id(module))
        if self.drafting or self.now is not None:
            return
        given = _arguments(module, args, kwargs)
        tokens = given.get("input_ids", args[0] if args else None)
        tokens = given.get("inputs_embeds") if tokens is None else tokens
        if not isinstance(tokens, Tensor) or tokens.dim() < 2:
            return
        self._ran, self._owner = set(), id(module)
        self.passes += 1
        single = self.generation is None
        self.now = self._single(tokens, given) if single else self._generated(tokens, given)
        if torch.is_grad_enabled():
            if self._backward:
                self._again, self._backward = [], False
            self._again.append(self.now)

    def ran(self, block: int) -> None:
        """A block has run."""
        self._ran.add(block)

    def leave(self, module: nn.Module, _args: Any, kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook that always runs: ends a pass, in which every block of a site must have run.

        After an exception there is no output, and only the pass ends.

        Raises:
            ValueError: a block has not run.
        """
        if self._stack and self._stack[-1] == id(module):
            self._stack.pop()
        now, outermost = self.now, self._owner == id(module)
        if not self._stack or outermost:
            self.now = None
        if now is not None and outermost and output is not None:
            self._check(module)
            cache = _cache_of(output)
            cache = _cache_of(kwargs) if cache is None else cache
            if cache is not None and not isinstance(cache, tuple) and now.prompt is not None:
                self._held[cache] = (now.prompt, now.past + now.shape[1])

    def _check(self, module: nn.Module) -> None:
        """Every block of a site has run."""
        # In training, a model may leave out blocks at random.
        missing = self.sites - self._ran if not (module.training and self._ran) else set()
        if missing:
            raise UsageError(
                f"block {min(missing)} did not run in a forward pass of "
                f"{type(base_model(self.model)).__name__}, so nothing was read or added "
                "there: the model skips it, or a compiled or captured copy of it ran; choose "
                "another block or path=, or use the model without that copy"
            )

    def at_block(self) -> Pass | None:
        """The pass that runs a block; None for a pass of an assistant.

        Raises:
            ValueError: the block runs outside a pass of the model, or again for several passes.
        """
        if self.drafting:
            return None
        if self.now is not None:
            return self.now
        if torch._C._current_graph_task_id() >= 0 and self._again:
            self._backward = True
            if any(p is not self._again[0] for p in self._again):
                raise UsageError(
                    "a backward pass runs the blocks of several forward passes again; switch off "
                    "gradient checkpointing, or run backward after every pass"
                )
            return replace(self._again[0], again=True)
        if self.generation is not None:  # an assistant that shares blocks with the model
            return None
        raise UsageError("the blocks ran outside a forward pass of the model")

    def _single(self, tokens: Tensor, given: dict[str, Any]) -> Pass:
        """A pass outside ``generate``: a prompt, or tokens after a prompt of this context."""
        rows, t = tokens.shape[:2]
        cache, mask = _cache_of(given), given.get("attention_mask")
        flat = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        known = self._held.get(cache) if cache is not None else None
        past = _held(cache)
        if past is None:
            past = known[1] if known else 0 if flat is None else flat.shape[1] - t
            if not known and past == 0:
                raise UsageError(
                    "the state that this pass continues from does not say how many tokens it "
                    "holds; pass an attention_mask over all of them"
                )
        end = past + t
        if flat is not None and flat.shape[1] < end:
            raise UsageError(
                f"the attention mask has {flat.shape[1]} columns, and the {past} tokens in the "
                f"cache and the {t} new ones make {end}; pass a mask over all of them"
            )
        whole = None if flat is None and mask is not None else _real(flat, tokens, end)
        real = None if whole is None else whole[:, past:]
        if known and past >= known[0].shape[1] and known[0].shape[0] == rows:
            prompt = known[0]
        else:
            width = end - _AFTER.get(base_model(self.model), 0)
            own = None if whole is None else whole[:, :width]
            prompt = Prompt(own, (rows, width), past, known is not None and known[1] >= past)
        return Pass(prompt, (rows, t), past, real)

    def _generated(self, tokens: Tensor, given: dict[str, Any]) -> Pass:
        """A pass of ``generate``, with the prompt of the call."""
        generation = self.generation
        assert generation is not None
        prepared, generation.prepared = generation.prepared, None
        rows, t = tokens.shape[:2]
        if prepared is None or rows % generation.rows:
            raise UsageError(
                f"generate runs a forward pass over {rows} rows that it has not prepared for its "
                f"{generation.rows} prompts, as for guidance_scale; generate without it"
            )
        # A chunk of a prompt has fewer tokens than the caller's ids; later passes have more.
        chunk = prepared.width < generation.given
        end = generation.end + t if chunk else generation.text_end(prepared.width)
        held = _held(_cache_of(given))
        past = end - t if held is None else held
        if generation.kept is None:
            raise UsageError(
                "the state that generate continues from does not say how many tokens it holds; "
                "pass the whole prompt to generate, without the state"
            )
        if past + t != end:
            raise UsageError(
                f"generate was given prompts of {generation.tokens} tokens, and its pass ends with "
                f"token {past + t} instead of {end}, so its positions are not known; pass the "
                "whole prompt to generate, without past_key_values"
            )
        generation.end = end
        if generation.prompt is None:
            generation.prompt = self._prompt(generation, prepared, tokens)
        copies = rows // generation.rows
        real = _real(prepared.mask, tokens, end, start=past)
        return Pass(generation.prompt, (rows, t), past, real, copies, generation=True)

    def _prompt(self, generation: Generation, prepared: Prepared, tokens: Tensor) -> Prompt:
        """The prompts of a call, with a row for each row of its passes."""
        rows, p, kept = tokens.shape[0], generation.tokens, generation.kept or 0
        real: Tensor | None = None
        if generation.mask is not None:
            real = (generation.mask != 0).repeat_interleave(rows // generation.rows, 0)
        elif prepared.mask is None or prepared.mask.shape[1] >= p:
            real = _real(prepared.mask, tokens, p)
        # Otherwise the first of several chunks does not show the padding of the others.
        known = self._held.get(generation.cache) if generation.cache is not None else None
        return Prompt(real, (rows, p), kept, known is not None and known[1] >= kept)


Finish = Callable[[int | None], None]


@contextmanager
def generation_known(watch: Watch, finish: Finish) -> Iterator[None]:
    """Let the watch follow the calls of ``generate``, their prompts and their passes.

    Args:
        finish: called after each ``generate`` with the number of columns of its text that were
            computed; None if the result does not say.
    """
    model: Any = base_model(watch.model)
    if not hasattr(model, "generate"):
        yield
        return
    generate, prepare = model.generate, getattr(model, "prepare_inputs_for_generation", None)

    @wraps(generate)
    def called(*args: Any, **kwargs: Any) -> Any:
        call = _bound(generate, args, kwargs)
        _require_followed(model, call)
        before = watch.generation, watch.drafting
        # The model is its own assistant: the drafts are not part of the text.
        draft = getattr(call.get("generation_config"), "is_assistant", False)
        watch.drafting = before[1] or (before[0] is not None and draft)
        if not watch.drafting:
            watch.generation = Generation.called(call)
        result = None
        try:
            result = generate(*args, **kwargs)
            return result
        finally:
            generation = watch.generation
            watch.generation, watch.drafting = before
            if generation is not None and generation is not before[0]:
                finish(_computed(generation, result))

    @wraps(prepare or generate)
    def prepared(input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        assert prepare is not None
        if watch.generation is None:
            raise UsageError(
                f"{type(model).__name__} prepares a pass outside generate, so the prompt is not "
                "known; call generate on the model itself"
            )
        if not watch.drafting:
            width, mask = input_ids.shape[1], kwargs.get("attention_mask")
            flat = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
            watch.generation.prepared = Prepared(width, flat)
        return prepare(input_ids, *args, **kwargs)

    with _replaced(model, "generate", called):
        if prepare is None:
            yield
            return
        with _replaced(model, "prepare_inputs_for_generation", prepared):
            yield


@contextmanager
def continued(model: nn.Module, columns: int) -> Iterator[None]:
    """Say that the last columns of every pass in this context come after the prompts.

    They are the same as tokens that ``generate`` has made: "last" is the token before them, and
    "generated" includes them.
    """
    inner = base_model(model)
    before = _AFTER.get(inner, 0)
    _AFTER[inner] = columns
    try:
        yield
    finally:
        _AFTER[inner] = before


@contextmanager
def _replaced(model: Any, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """Replace a method on this instance."""
    before = model.__dict__.get(name)
    model.__dict__[name] = method
    try:
        yield
    finally:
        del model.__dict__[name]
        if before is not None:
            model.__dict__[name] = before


def _require_followed(model: Any, call: dict[str, Any]) -> None:
    """Raise ValueError for ways of generating that change the prompt of the call."""
    configs = [call.get("generation_config"), getattr(model, "generation_config", None)]
    settings = {name: call.get(name) for name in ("token_healing", "cache_implementation")}
    for name, value in settings.items():
        settings[name] = value or next((v for c in configs if (v := getattr(c, name, None))), None)
    if settings["token_healing"]:
        raise UsageError("token_healing changes the prompt; generate without it")
    if settings["cache_implementation"] == "paged":
        raise UsageError(
            "continuous batching packs several prompts into one row, so their positions are not "
            "known; generate with another cache_implementation"
        )


def _bound(function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a call by name."""
    bound = inspect.signature(function).bind(*args, **kwargs).arguments
    return {**bound.pop("kwargs", {}), **bound}


def _arguments(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a forward pass by name."""
    if len(args) < 2:
        return kwargs
    # The arguments of wrappers have no names.
    names = inspect.signature(base_model(module).forward).parameters
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _cache_of(given: Any) -> Any:
    """The cache among the arguments or in the output of a pass."""
    if isinstance(given, dict):
        return next((given[name] for name in CACHES if given.get(name) is not None), None)
    return next((c for name in CACHES if (c := getattr(given, name, None)) is not None), None)


def _held(cache: Any) -> int | None:
    """Number of columns in a cache; None for a state of fixed size, which does not say."""
    if cache is None:
        return 0
    try:
        return int(cache.get_seq_length())
    except (AttributeError, ValueError):
        return 0 if _empty(cache) else None


def _empty(cache: Any) -> bool:
    """Whether no pass has left a state in the cache."""
    return hasattr(cache, "has_previous_state") and not cache.has_previous_state()


def _real(mask: Tensor | None, tokens: Tensor, end: int, *, start: int = 0) -> Bool[Tensor, "b e"]:
    """False at padding, over some columns of the rows of a pass; no mask: no padding."""
    if mask is None:
        return torch.ones(tokens.shape[0], end - start, dtype=torch.bool, device=tokens.device)
    return mask[:, start:end] != 0


def _computed(generation: Generation, result: Any) -> int | None:
    """Number of columns of the final text that were computed: all but the last."""
    text = getattr(result, "sequences", result)
    if not isinstance(text, Tensor) or text.dim() != 2:
        return None
    return generation.text_end(text.shape[1]) - 1
