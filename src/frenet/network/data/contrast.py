"""Contrasts: prompts with two sides, and their division into parts."""

import hashlib
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch

from frenet._errors import UsageError
from frenet.geometry import rng
from frenet.network.data.files import shown

Kind = Literal["statements", "choices", "pairs"]


class Item(NamedTuple):
    """One prompt of a contrast.

    Attributes:
        text: the prompt as text, or the positive text of a pair.
        context: token ids of the prompt; empty for a pair of texts.
        sides: token ids of the whole text on the positive and on the negative side.
        answers: the answer tokens of the two sides; None for a pair of texts, and if an answer is
            several tokens.
        label: whether the prompt belongs to the positive class; None if it has no class.
        line: line in the source.
    """

    text: str
    context: list[int]
    sides: tuple[list[int], list[int]]
    answers: tuple[int, int] | None
    label: bool | None
    line: int

    def both_answers(self) -> tuple[int, int]:
        """The answers.

        Raises:
            ValueError: a pair of texts, or answers of several tokens.
        """
        if self.answers is None:
            why = (
                "an answer is several tokens to this tokenizer; pass words of one token each "
                "(Contrast.require_answers names some)"
                if self.context
                else "it is a pair of texts; pass statements or choices"
            )
            raise UsageError(f"{shown(self.text)} (line {self.line}) has no answers: {why}")
        return self.answers


class UnansweredError(UsageError):
    """The tokenizer splits an answer of a contrast, so there is no logit of the answer."""


@dataclass(frozen=True)
class Contrast:
    """A behaviour with two sides.

    Attributes:
        name: name of the behaviour.
        kind: "statements", labelled prompts with the same two answers; "choices", questions for
            which either letter may be the positive answer; "pairs" of texts.
        words: the answers of the positive and the negative side, empty for pairs.
        items: the prompts.
        notes: what was dropped or decided while loading, one sentence each.
        unanswered: why there is no logit of an answer, if an answer is several tokens.
    """

    name: str
    kind: Kind
    words: tuple[str, ...]
    items: tuple[Item, ...] = field(repr=False)
    notes: tuple[str, ...] = ()
    unanswered: str = ""

    @property
    def fingerprint(self) -> str:
        """Hex digits that identify every token of every prompt."""
        digest = hashlib.sha256(repr((self.name, self.kind)).encode())
        for item in self.items:
            digest.update(repr((item.sides, item.label)).encode())
        return digest.hexdigest()[:16]

    @property
    def reading_notes(self) -> tuple[str, ...]:
        """The notes, and the number of prompts, for statements also of each side."""
        count = f"{len(self.items)} {self.kind}"
        if self.kind == "statements":
            sides = [len(self.of_class(label)) for label in (True, False)]
            count += f", positive: {sides[0]}, negative: {sides[1]}"
        return (*self.notes, f"{self.name}: rows: {count}")

    def require_answers(self) -> None:
        """Raise UnansweredError if an answer is several tokens; pairs of texts have no answers."""
        if self.kind != "pairs" and any(item.answers is None for item in self.items):
            why = f"{' or '.join(self.words)} is several tokens to this tokenizer"
            raise UnansweredError(self.unanswered or why)

    def of_class(self, label: bool) -> list[Item]:
        """The prompts of one class."""
        return [item for item in self.items if item.label is label]

    def divided(self, parts: int, *, seed: int, rows: int | None = None) -> list["Contrast"]:
        """Disjoint parts of equal size, with equal numbers of prompts of both classes.

        Args:
            parts: number of parts.
            seed: fixes the order.
            rows: largest number of prompts in a part.

        Raises:
            ValueError: there are too few prompts for this number of parts.
        """
        divided: list[list[Item]] = [[] for _ in range(parts)]
        labels: tuple[bool | None, ...] = (True, False) if self.kind == "statements" else (None,)
        for label in labels:
            items = [item for item in self.items if item.label is label]
            order = rng.generator(seed, "contrast", self.name, str(label))
            mixed = [items[i] for i in torch.randperm(len(items), generator=order).tolist()]
            most = len(mixed) // parts if rows is None else rows // len(labels)
            size = min(len(mixed) // parts, most)
            if size < 2:
                side = "" if label is None else f" with the label {self.words[not label]!r}"
                raise UsageError(
                    f"contrast {self.name!r} has {len(items)} prompts{side}, too few for {parts} "
                    f"parts of at least 2; pass at least {2 * parts}"
                )
            for i, part in enumerate(divided):
                part += mixed[i * size : (i + 1) * size]
        return [replace(self, items=tuple(part)) for part in divided]
