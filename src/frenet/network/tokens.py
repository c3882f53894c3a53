"""Prompt and completion as token ids, with the scored span kept through joins and truncation."""

from collections.abc import Sequence
from typing import Any, NamedTuple


class Encoded(NamedTuple):
    """Token ids of one example; the loss falls on ``target``.

    ``cut`` counts the tokens that did not fit; ``spans_join`` says that the first target token
    also holds the end of the prompt.
    """

    context: list[int]
    target: list[int]
    cut: int = 0
    spans_join: bool = False


class _Tokens(NamedTuple):
    """Ids of a whole text, and where each token ends in it (None: an added special token)."""

    ids: list[int]
    starts: list[int]
    ends: list[int | None]


def join(prompt: str, completion: str) -> str:
    """The text that the model reads: one space between the parts where neither has one.

    >>> join("Answer:", "yes"), join("Answer:", " yes"), join("", "Once")
    ('Answer: yes', 'Answer: yes', 'Once')
    """
    if not prompt or prompt[-1].isspace() or completion[:1].isspace():
        return prompt + completion
    return f"{prompt} {completion}"


def encode(
    tokenizer: Any, pairs: Sequence[tuple[str, str]], *, max_length: int
) -> list[Encoded | str]:
    """Token ids of prompt and completion pairs; a string says why a pair cannot be used.

    The joined text is tokenised as a whole, with the special tokens that the tokenizer adds by
    default (a second beginning-of-sequence token is removed). The target starts at the first token
    that holds a character of the completion, so that a token across the join is scored rather
    than lost. Tokens that do not fit ``max_length`` are cut from the left of the prompt, after the
    beginning-of-sequence token; plain text (an empty prompt) is cut at its end.
    """
    if not pairs:
        return []
    texts = [join(prompt, completion) for prompt, completion in pairs]
    if getattr(tokenizer, "is_fast", False):
        tokenised = _tokenise(tokenizer, texts)
    else:
        prompts = [prompt for prompt, _ in pairs]
        tokenised = _tokenise_slowly(tokenizer, prompts, texts)
    bos = getattr(tokenizer, "bos_token_id", None)
    found: list[Encoded | str] = []
    for (prompt, _), tokens in zip(pairs, tokenised, strict=True):
        tokens = _one_bos(tokens, bos)
        whole = _split(tokens, len(prompt))
        found.append(_fit(whole, max_length, bos=bos, plain=not prompt))
    return found


def whole_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of whole texts, with the special tokens that the tokenizer adds, one at the start.

    Args:
        tokenizer: used, never changed.
        texts: of any length, at least one character each.
    """
    bos = getattr(tokenizer, "bos_token_id", None)
    if getattr(tokenizer, "is_fast", False):
        return [_one_bos(tokens, bos).ids for tokens in _tokenise(tokenizer, texts)]
    tokenised = _tokenise_slowly(tokenizer, ["" for _ in texts], texts)
    return [_one_bos(tokens, bos).ids for tokens in tokenised]


def _tokenise(tokenizer: Any, texts: Sequence[str]) -> list[_Tokens]:
    batch = tokenizer(
        list(texts),
        add_special_tokens=True,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        verbose=False,
    )
    return [
        _Tokens(
            list(ids),
            [start for start, _ in offsets],
            [None if special else end for (_, end), special in zip(offsets, mask, strict=True)],
        )
        for ids, offsets, mask in zip(
            batch["input_ids"], batch["offset_mapping"], batch["special_tokens_mask"], strict=True
        )
    ]


def _tokenise_slowly(tokenizer: Any, prompts: Sequence[str], texts: Sequence[str]) -> list[_Tokens]:
    """Without offsets: the prompt reaches as far as its own ids agree with those of the whole."""
    found = []
    for prompt, text in zip(prompts, texts, strict=True):
        ids = list(tokenizer(text, add_special_tokens=True, verbose=False)["input_ids"])
        alone = list(tokenizer(prompt, add_special_tokens=True, verbose=False)["input_ids"])
        agree = 0
        while agree < min(len(ids), len(alone)) and ids[agree] == alone[agree]:
            agree += 1
        bos = getattr(tokenizer, "bos_token_id", None)
        special = [position == 0 and ids[0] == bos for position in range(len(ids))]
        ends = [len(prompt) if i < agree else len(text) for i in range(len(ids))]
        # Ids of the prompt that are not in the whole were merged with the completion.
        starts = [len(prompt) if agree == len(alone) else 0] * len(ids)
        found.append(
            _Tokens(ids, starts, [None if s else e for s, e in zip(special, ends, strict=True)])
        )
    return found


def _one_bos(tokens: _Tokens, bos: int | None) -> _Tokens:
    """A template that writes the token itself must not get the tokenizer's as well."""
    if bos is not None and tokens.ids[:2] == [bos, bos]:
        return _Tokens(tokens.ids[1:], tokens.starts[1:], [None, *tokens.ends[2:]])
    return tokens


def _split(tokens: _Tokens, boundary: int) -> Encoded:
    """Everything from the first token that reaches beyond ``boundary`` characters is target."""
    reach = (i for i, end in enumerate(tokens.ends) if end is not None and end > boundary)
    first = next(reach, len(tokens.ids))
    across = first < len(tokens.ids) and tokens.starts[first] < boundary
    return Encoded(tokens.ids[:first], tokens.ids[first:], spans_join=across)


def _fit(whole: Encoded, max_length: int, *, bos: int | None, plain: bool) -> Encoded | str:
    context, target = whole.context, whole.target
    if plain:
        ids = (context + target)[:max_length]
        if len(ids) < 2:
            return "the text is a single token, so that there is nothing to predict it from"
        return Encoded(ids[:1], ids[1:], cut=len(context) + len(target) - len(ids))
    if not target:
        return "the tokenizer makes no token of the completion"
    if not context:
        return "the prompt and the completion are one token, so that there is nothing to predict"
    lead = 1 if bos is not None and context[0] == bos else 0
    room = max_length - len(target)
    if room < lead + 1 and room < len(context):
        return (
            f"the completion has {len(target)} tokens, which leaves no room for a prompt in a "
            f"context of {max_length}; shorten it or raise max_length"
        )
    cut = max(0, len(context) - room)
    kept = context[:lead] + context[lead + cut :]
    return whole._replace(context=kept, cut=cut)
