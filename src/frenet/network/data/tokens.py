"""Prompt and completion as token ids: the one place that turns text into tokens."""

from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any, NamedTuple


class Encoded(NamedTuple):
    """Token ids of one example; ``target`` is scored.

    ``cut`` counts the tokens that did not fit. ``spans_join`` says that the joined text does not
    start with the prompt's tokens, so the first target token also contains the end of the prompt.
    ``special`` is the first special token that the text spells out.
    """

    context: list[int]
    target: list[int]
    cut: int = 0
    spans_join: bool = False
    special: int | None = None


class _Text(NamedTuple):
    """A tokenised text: the ids that the tokenizer prepends, the text's own, and those it appends.

    ``ends`` are the characters where the own tokens end; None if the tokenizer does not say.
    """

    lead: list[int]
    own: list[int]
    tail: list[int]
    ends: list[int] | None


def join(prompt: str, completion: str) -> str:
    """The joined text, with one space between the parts if neither has one.

    >>> join("Answer:", "yes"), join("Answer:", " yes"), join("", "Once"), join("Once", "")
    ('Answer: yes', 'Answer: yes', 'Once', 'Once')
    """
    if not prompt or not completion or prompt[-1].isspace() or completion[0].isspace():
        return prompt + completion
    return f"{prompt} {completion}"


def encode(
    tokenizer: Any,
    pairs: Sequence[tuple[str, str]],
    *,
    max_length: int,
    end: bool = True,
    chat: bool = False,
) -> list[Encoded | str]:
    """Token ids of prompt and completion pairs; a string says why a pair cannot be used.

    The joined text is tokenised as a whole, like a training text, with the tokenizer's beginning
    once, and with its end if it has one. The context has the tokens of ``text_ids`` for the
    prompt. If the joined text does not start with them, because a token spans the join, the target
    starts at the first token with a character of the completion, so that this token is scored.
    Tokens that do not fit ``max_length`` are cut from the left of the prompt, after the
    tokenizer's beginning; plain text (an empty prompt) is cut at its end.

    Args:
        tokenizer: the tokenizer; it does not change.
        pairs: prompts and completions.
        max_length: most tokens of an example.
        end: include the tokenizer's end; False for answers that are read at their last token.
        chat: whether a chat template wrote the texts: then nothing is added to them, and their
            special tokens are intended.
    """
    if not pairs:
        return []
    texts = [a + b if chat else join(a, b) for a, b in pairs]
    wholes = _tokenised(tokenizer, texts, bare=chat)
    prompts = list(dict.fromkeys(prompt for prompt, _ in pairs if prompt))
    alone = dict(zip(prompts, _tokenised(tokenizer, prompts, bare=chat), strict=True))
    special = frozenset() if chat else special_ids(tokenizer)
    encoded: list[Encoded | str] = []
    for (prompt, _), text in zip(pairs, wholes, strict=True):
        spelled = next((token for token in text.own if token in special), None)
        tail = text.tail if end and text.own[-len(text.tail) :] != text.tail else []
        if prompt:
            border, across = _border(text, alone[prompt].own, len(prompt))
            whole = Encoded(text.own[:border], text.own[border:], 0, across, spelled)
            encoded.append(_fit(text.lead, whole, tail, max_length))
        else:
            encoded.append(_plain(text.lead, text.own + tail, spelled, max_length))
    return encoded


def text_ids(tokenizer: Any, texts: Sequence[str], *, chat: bool = False) -> list[list[int]]:
    """Token ids of texts that continue, or that are read at their last token, such as prompts.

    They have the tokenizer's beginning, once, and no end.

    Args:
        tokenizer: the tokenizer; it does not change.
        texts: texts of any length.
        chat: whether a chat template wrote them: then nothing is added.
    """
    return [text.lead + text.own for text in _tokenised(tokenizer, texts, bare=chat)]


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of special tokens, which occur only in a text that spells them out."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    ids = {i for i, token in added.items() if token.special}
    ids |= set(getattr(tokenizer, "all_special_ids", ()))
    return frozenset(ids - {getattr(tokenizer, "unk_token_id", None)})


def token_notes(
    tokenizer: Any, items: Sequence[Encoded], lines: Sequence[int], rows: str = "rows"
) -> list[str]:
    """Notes about unexpected tokens of some examples, each with the first case.

    Args:
        tokenizer: the tokenizer of the examples.
        items: the examples.
        lines: the line of each example in the source.
        rows: the word for examples in the notes.
    """
    notes = []
    across = [i for i, item in enumerate(items) if item.spans_join]
    if across:
        token = tokenizer.convert_ids_to_tokens(items[across[0]].target[:1])[0]
        notes.append(
            f"in {len(across)} of {len(items)} {rows} a token spans the end of the prompt and the "
            f"start of the completion, such as {token!r} in line {lines[across[0]]}; it is scored"
        )
    spelled = [i for i, item in enumerate(items) if item.special is not None]
    if spelled:
        token = tokenizer.convert_ids_to_tokens([items[spelled[0]].special])[0]
        notes.append(
            f"in {len(spelled)} of {len(items)} {rows} the text spells out special tokens, such as "
            f"{token!r} in line {lines[spelled[0]]}; they are read as special tokens"
        )
    return notes


def of_one_prompt(items: Sequence[Encoded]) -> list[Encoded]:
    """Completions of one prompt, with the prompt cut as the longest of them needs."""
    shortest = min((item.context for item in items), key=len)
    # If a token spans the join, contexts may differ: all but their beginning must agree.
    tail = len(shortest) - 1
    whole = {len(item.context) + item.cut for item in items}
    plain = len(whole) == 1 and not any(item.spans_join for item in items)
    if not plain and (tail < 1 or any(i.context[-tail:] != shortest[-tail:] for i in items)):
        return list(items)
    return [
        item._replace(context=shortest, cut=item.cut + len(item.context) - len(shortest))
        for item in items
    ]


def _tokenised(tokenizer: Any, texts: Sequence[str], *, bare: bool = False) -> list[_Text]:
    """The tokenised texts, with the tokenizer's beginning once; ``bare``: with nothing added."""
    if not texts:
        return []
    fast = getattr(tokenizer, "is_fast", False)
    read = _with_offsets if fast else _by_comparison
    tokenised = read(tokenizer, texts, bare=bare)
    bos = getattr(tokenizer, "bos_token_id", None)
    return [_begun_once(text, bos) for text in tokenised]


def _with_offsets(tokenizer: Any, texts: Sequence[str], *, bare: bool) -> Iterator[_Text]:
    """Separate the added tokens by the tokenizer's mask of special tokens."""
    batch = tokenizer(
        list(texts),
        add_special_tokens=not bare,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        verbose=False,
    )
    columns = (batch["input_ids"], batch["offset_mapping"], batch["special_tokens_mask"])
    for ids, offsets, mask in zip(*columns, strict=True):
        start = len(list(takewhile(bool, mask)))
        stop = max(start, len(mask) - len(list(takewhile(bool, reversed(mask)))))
        ends = [end for _, end in offsets[start:stop]]
        yield _Text(ids[:start], ids[start:stop], ids[stop:], ends)


def _by_comparison(tokenizer: Any, texts: Sequence[str], *, bare: bool) -> Iterator[_Text]:
    """Separate the added tokens by tokenising the text with and without them."""
    for text in texts:
        ids, own = (
            list(tokenizer(text, add_special_tokens=add, verbose=False)["input_ids"])
            for add in (True, False)
        )
        if bare:
            ids = own
        places = range(len(ids) - len(own) + 1)
        start = next((i for i in places if ids[i : i + len(own)] == own), None)
        if start is None:
            yield _Text([], ids, [], None)
        else:
            yield _Text(ids[:start], own, ids[start + len(own) :], None)


def _begun_once(text: _Text, bos: int | None) -> _Text:
    """Drop the tokenizer's beginning if a template spells it out."""
    lead, own, ends = text.lead, text.own, text.ends
    if not lead and bos is not None and own[:1] == [bos]:
        lead = [bos]
    while again := next((k for k in range(len(lead), 0, -1) if own[:k] == lead[-k:]), 0):
        own, ends = own[again:], ends and ends[again:]
    return _Text(lead, own, text.tail, ends)


def _border(text: _Text, prompt: list[int], boundary: int) -> tuple[int, bool]:
    """Number of the text's tokens that belong to the prompt, and whether one spans its end."""
    if text.own[: len(prompt)] == prompt:
        return len(prompt), False
    if text.ends is not None:
        return next((i for i, end in enumerate(text.ends) if end > boundary), len(text.own)), True
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(text.own, prompt, strict=False))
    return len(list(pairs)), True


def _plain(lead: list[int], own: list[int], special: int | None, max_length: int) -> Encoded | str:
    ids = (lead + own)[:max_length]
    first = max(1, len(lead))
    if len(ids) <= first:
        return "the text is a single token, so nothing comes before it to predict it from"
    return Encoded(ids[:first], ids[first:], len(lead) + len(own) - len(ids), special=special)


def _fit(lead: list[int], whole: Encoded, tail: list[int], max_length: int) -> Encoded | str:
    context, target = whole.context, whole.target
    if not target:
        return "the completion has no tokens"
    if not lead and not context:
        return "the prompt and the completion form one token, so there is nothing to predict"
    target = target + tail
    room = max_length - len(lead) - len(target)
    if room < 1 and room < len(context):
        return (
            f"the completion has {len(target)} tokens and leaves no room for a prompt in a "
            f"context of {max_length}; shorten it or raise max_length"
        )
    cut = max(0, len(context) - room)
    return whole._replace(context=lead + context[cut:], target=target, cut=cut)
