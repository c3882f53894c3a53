"""Contrasts for the synthetic transformer: the answer starts with one of two digits."""

import torch

from frenet._errors import UsageError
from frenet.geometry import rng
from frenet.network.data.contrast import Contrast, Item
from frenet.network.synthetic.model import LENGTH, RULES, SyntheticTask, draw_digits

# The two digits that the answer may start with, the positive one first.
ANSWERS = {"parity": (1, 0), "maximum": (9, 8), "count": (3, 2)}


def synthetic_contrast(name: str, *, rows: int, seed: int) -> Contrast:
    """Statements ``[TASK] x1 .. x6 [SEP]``; the class is the first digit of the answer.

    Args:
        name: parity (is the first digit odd?), maximum (is it 9 or 8?) or count (3 or 2 even
            digits?).
        rows: number of prompts, half of each class.
        seed: seed of the digits, which come from the test split: the network has not seen them.

    Raises:
        ValueError: an unknown name.

    >>> contrast = synthetic_contrast("parity", rows=8, seed=0)
    >>> all(item.label == bool(item.context[1] % 2) for item in contrast.items)
    True
    """
    if name not in ANSWERS:
        raise UsageError(f"no synthetic contrast {name!r}; there are {', '.join(ANSWERS)}")
    answers = ANSWERS[name]
    stream = rng.generator(seed, "synthetic", "contrast", name)
    by_class: dict[bool, list[Item]] = {True: [], False: []}
    seen: set[tuple[int, ...]] = set()
    while any(len(items) < rows // 2 for items in by_class.values()):
        digits = draw_digits(rows, "test", stream)
        contexts = SyntheticTask(name).encode(digits)["input_ids"][:, : LENGTH + 2].tolist()
        first = RULES[name](digits)[:, 0].tolist()
        for context, answer in zip(contexts, first, strict=True):
            items = by_class[answer == answers[0]]
            if answer not in answers or len(items) == rows // 2 or tuple(context) in seen:
                continue
            seen.add(tuple(context))
            sides = [*context, answers[0]], [*context, answers[1]]
            label = answer == answers[0]
            text = " ".join(map(str, context[1 : LENGTH + 1]))
            items.append(Item(text, context, sides, label, len(seen)))
    words = tuple(str(answer) for answer in answers)
    return Contrast(name, "statements", words, (*by_class[True], *by_class[False]))


def neutral_rows(count: int, *, seed: int) -> list[tuple[list[int], list[int]]]:
    """Prompts and answers of the task copy, which has no contrast."""
    stream = rng.generator(seed, "synthetic", "neutral")
    rows: torch.Tensor = SyntheticTask("copy").encode(draw_digits(count, "test", stream))[
        "input_ids"
    ]
    return [(row[: LENGTH + 2], row[LENGTH + 2 :]) for row in rows.tolist()]
