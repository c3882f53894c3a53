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
        context: token ids of the prompt, and of the beginning that both answers share; empty for a
            pair of texts.
        sides: token ids of the whole text on the positive and on the negative side.
        label: whether the prompt belongs to the positive class; None if it has no class.
        line: line in the source.
    """

    text: str
    context: list[int]
    sides: tuple[list[int], list[int]]
    label: bool | None
    line: int

    def both_answers(self) -> tuple[list[int], list[int]]:
        """The tokens of the positive and of the negative answer, which differ from the first on.

        Raises:
            ValueError: a pair of texts.
            UnansweredError: one answer is the beginning of the other.
        """
        where = f"{shown(self.text)} (line {self.line})"
        if not self.context:
            why = "it is a pair of texts; pass statements or choices"
            raise UsageError(f"{where} has no answers: {why}")
        first, second = (side[len(self.context) :] for side in self.sides)
        if first[: len(second)] == second or second[: len(first)] == first:
            raise UnansweredError(
                f"to this tokenizer one answer to {where} is the beginning of the other, so it is "
                "never the less likely one"
            )
        return first, second


class UnansweredError(UsageError):
    """One answer of a contrast is the beginning of the other: they do not exclude each other."""


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
    """

    name: str
    kind: Kind
    words: tuple[str, ...]
    items: tuple[Item, ...] = field(repr=False)
    notes: tuple[str, ...] = ()

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

    @property
    def answer_notes(self) -> tuple[str, ...]:
        """What to know about the log-odds of the answers, if one is several tokens."""
        sizes = {len(answer) for item in self.items for answer in item.both_answers()}
        if sizes == {1}:
            return ()
        if len(sizes) == 1:
            return (
                f"{self.name}: every answer is {min(sizes)} tokens; its log probability is the "
                "sum over them",
            )
        return (
            f"{self.name}: answers are {min(sizes)} to {max(sizes)} tokens; the log probability of "
            "an answer is the sum over its tokens, so that a longer one tends to be less likely "
            "after every prompt: this moves the accuracy, but neither the separation nor the "
            "effect of a vector",
        )

    def require_answers(self) -> None:
        """Raise UnansweredError if one answer is the beginning of the other; pairs have none."""
        if self.kind != "pairs":
            for item in self.items:
                item.both_answers()

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
