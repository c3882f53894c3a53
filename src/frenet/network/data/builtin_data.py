"""Small built-in data sets, so that a model can be tried without a file."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from frenet._errors import UsageError
from frenet.geometry import rng
from frenet.network.data.files import Rows

PREFIX = "frenet:"
_ROWS = 600


def _listed(words: str) -> tuple[str, ...]:
    return tuple(words.split())


_NOUNS = _listed(
    """
    apple river stone table garden window bottle candle letter mountain village bridge forest
    castle doctor teacher farmer sailor painter writer pencil basket blanket pillow mirror
    ladder hammer needle button pocket jacket ticket market kitchen engine signal planet rocket
    island harbour valley desert meadow orchard cloud storm winter summer morning evening shadow
    song drum horn bell clock lamp chair floor roof wall door gate path road field hill lake
    beach wave boat sail rope knot net hook nail plate spoon cup bowl pan oven stove box fox bus
    glass dress class brush dish bench branch church watch match lunch inch coach wish city baby
    lady berry story party family country army diary body enemy hobby copy county child man
    woman foot tooth goose mouse sheep deer ox knife leaf wolf half shelf thief
    """
)
_IRREGULAR = {
    "child": "children", "man": "men", "woman": "women", "foot": "feet", "tooth": "teeth",
    "goose": "geese", "mouse": "mice", "sheep": "sheep", "deer": "deer", "ox": "oxen",
    "knife": "knives", "leaf": "leaves", "wolf": "wolves", "half": "halves", "shelf": "shelves",
    "thief": "thieves",
}  # fmt: skip
_REGULAR_VERBS = _listed(
    """
    walk talk jump play call ask help look open start paint plant count cook clean climb wash
    push pull turn want need learn listen answer visit travel enter offer order follow laugh
    rain smile dance bake move close live love like hope use share save place change arrive
    decide carry study hurry marry worry copy try cry dry fry stop plan drop grab rob beg clap
    chat jog
    """
)
_DOUBLING = _listed("stop plan drop grab rob beg clap chat jog")
_PAST = {
    "go": "went", "see": "saw", "eat": "ate", "run": "ran", "sing": "sang", "swim": "swam",
    "write": "wrote", "drive": "drove", "speak": "spoke", "break": "broke", "take": "took",
    "give": "gave", "come": "came", "know": "knew", "grow": "grew", "throw": "threw",
    "fly": "flew", "draw": "drew", "buy": "bought", "bring": "brought", "think": "thought",
    "catch": "caught", "teach": "taught", "find": "found", "hold": "held", "sleep": "slept",
    "keep": "kept", "leave": "left", "send": "sent", "build": "built",
}  # fmt: skip
_ADJECTIVES = _listed("red blue green small large old new long short dark light wet dry soft")
_SUBJECTS = _listed("I you we they he she")
_UNITS = _listed(
    """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
    fifteen sixteen seventeen eighteen nineteen
    """
)
_TENS = _listed("twenty thirty forty fifty sixty seventy eighty ninety")


def is_made(source: object) -> bool:
    """Whether ``source`` names something built into frenet.

    >>> is_made("frenet:words"), is_made("words.jsonl")
    (True, False)
    """
    return str(source).startswith(PREFIX)


def made_rows(source: str) -> Rows:
    """The rows of a built-in data set; always the same.

    ``frenet:words``: five word tasks (plural, past, reverse, sort, next-number), rows of ``task``,
    ``input`` and ``output``. ``frenet:comparisons``: statements about two numbers, half of them
    true, rows of ``statement`` and ``label``.

    Raises:
        ValueError: there is no built-in data set of that name.

    >>> made_rows("frenet:words").values[0]
    {'task': 'plural', 'input': 'wet bottle', 'output': 'wet bottles'}
    """
    makers: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "words": _words,
        "comparisons": _comparisons,
    }
    name = source.removeprefix(PREFIX)
    if name not in makers:
        names = " and ".join(PREFIX + each for each in makers)
        raise UsageError(f"frenet makes no data set {source!r}; there are {names}")
    values = tuple(makers[name]())
    return Rows(name, values, tuple(range(1, len(values) + 1)))


def plural(noun: str) -> str:
    """The plural of an English noun of the list.

    >>> [plural(noun) for noun in ("river", "box", "city", "day", "ox")]
    ['rivers', 'boxes', 'cities', 'days', 'oxen']
    """
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    if noun.endswith(("s", "x", "sh", "ch")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def past(verb: str) -> str:
    """The past tense of an English verb of the lists.

    >>> [past(verb) for verb in ("walk", "bake", "carry", "play", "stop", "go")]
    ['walked', 'baked', 'carried', 'played', 'stopped', 'went']
    """
    if verb in _PAST:
        return _PAST[verb]
    if verb.endswith("e"):
        return verb + "d"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ied"
    return verb + (verb[-1] if verb in _DOUBLING else "") + "ed"


def spelled(number: int) -> str:
    """A number from 0 to 999 in words.

    >>> spelled(7), spelled(40), spelled(263)
    ('seven', 'forty', 'two hundred sixty-three')
    """
    if number >= 100:
        hundreds = f"{_UNITS[number // 100]} hundred"
        return hundreds if number % 100 == 0 else f"{hundreds} {spelled(number % 100)}"
    if number < len(_UNITS):
        return _UNITS[number]
    tens = _TENS[number // 10 - 2]
    return tens if number % 10 == 0 else f"{tens}-{_UNITS[number % 10]}"


def _words() -> list[dict[str, Any]]:
    verbs = (*_REGULAR_VERBS, *_PAST)
    pairs = {
        "plural": [(f"{a} {n}", f"{a} {plural(n)}") for a, n in _crossed(_ADJECTIVES, _NOUNS)],
        "past": [(f"{who} {v}", f"{who} {past(v)}") for who, v in _crossed(_SUBJECTS, verbs)],
        "reverse": [(" ".join(three), " ".join(reversed(three))) for three in _threes("reverse")],
        "sort": [(" ".join(three), " ".join(sorted(three))) for three in _threes("sort")],
        "next-number": [(spelled(n), spelled(n + 1)) for n in _numbers()],
    }
    return [
        {"task": task, "input": question, "output": answer}
        for task, rows in pairs.items()
        for question, answer in rows
    ]


def _crossed(first: Sequence[str], second: Sequence[str]) -> list[tuple[str, str]]:
    """Random pairs of a word of each list; every word of a held-out pair occurs in training."""
    draw = rng.generator(0, "made", *first)
    every = [(a, b) for a in first for b in second]
    return [every[i] for i in torch.randperm(len(every), generator=draw)[:_ROWS].tolist()]


def _numbers() -> list[int]:
    draw = rng.generator(0, "made", "numbers")
    return torch.randperm(999, generator=draw)[:_ROWS].tolist()


def _threes(task: str) -> Iterator[list[str]]:
    """Many lists of three different short nouns; no list twice."""
    short = [noun for noun in _NOUNS if len(noun) <= 5]
    draw = rng.generator(0, "made", task)
    seen: set[tuple[str, ...]] = set()
    while len(seen) < _ROWS:
        three = [short[i] for i in torch.randperm(len(short), generator=draw)[:3].tolist()]
        if tuple(three) not in seen:
            seen.add(tuple(three))
            yield three


def _comparisons() -> list[dict[str, Any]]:
    """Comparisons of two-digit numbers with different first digits, true and false in turn."""
    draw = rng.generator(0, "made", "comparisons")
    seen: dict[tuple[int, int], dict[str, Any]] = {}
    while len(seen) < _ROWS:
        high, low = sorted(torch.randint(10, 100, (2,), generator=draw).tolist(), reverse=True)
        label = 1 - len(seen) % 2
        pair = (high, low) if label else (low, high)
        if high // 10 != low // 10 and pair not in seen:
            seen[pair] = {"statement": f"{pair[0]} is larger than {pair[1]}.", "label": label}
    return list(seen.values())
