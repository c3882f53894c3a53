"""What `frenet steer recommend` measures: a model, a contrast in three parts, neutral texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from frenet._errors import UsageError
from frenet.experiments.experiment import Scalar, integer, number
from frenet.experiments.setup.contrasts import FEW, contrasts_of
from frenet.experiments.steer_command import Config, Settings, cells
from frenet.methods.steering import Streams, caa, contrast_streams, from_streams
from frenet.methods.steering_vector import Advised, SteeringVector
from frenet.network.blocks import residual_blocks
from frenet.network.data.contrast import Contrast, UnansweredError
from frenet.network.data.neutral_texts import NEUTRAL, neutral_tokens
from frenet.network.limits import context_length

Texts = list[tuple[list[int], list[int]]]


@dataclass(frozen=True, eq=False)
class Subject:
    """A model and a contrast.

    Attributes:
        model: in evaluation mode.
        select: the prompts to choose on.
        test: the prompts to report on.
        vector: the contrast vector of the other prompts, at every block.
        streams: of these prompts, after every block.
        others: by name, the vectors of other contrasts.
        neutral: neutral texts to choose on.
        held_out: neutral texts to report on.
        blocks: that may be tried.
        settings: how to choose.
        path: dotted name of the list of blocks; None: frenet looks for it.
        notes: caveats for the report.
    """

    model: nn.Module
    select: Contrast
    test: Contrast
    vector: SteeringVector
    streams: Streams
    others: Mapping[str, SteeringVector]
    neutral: Texts
    held_out: Texts
    blocks: tuple[int, ...]
    settings: Settings
    path: str | None
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the contrast."""
        return self.test.name

    @property
    def answer(self) -> str:
        """What the vector makes likelier, in words."""
        if self.test.kind == "choices":
            return "the matching answer"
        return repr(self.test.words[0])

    def added(self, block: int, dose: float) -> Tensor:
        """What is added at a dose."""
        return self.vector.scale(block, dose) * self.vector.at(block)


def subject_of(
    model: nn.Module,
    contrast: Contrast,
    tokenizer: Any,
    *,
    settings: Settings,
    others: Sequence[Contrast] = (),
    fingerprint: str = "",
    path: str | None = None,
    notes: Sequence[str] = (),
) -> Subject:
    """A contrast, divided, with its vector.

    Raises:
        ValueError: it has no answers, too few prompts, or a vector that is zero after every block;
            or there is no such block.
    """
    require_answers(contrast)
    fit, select, test = contrast.divided(3, seed=settings.seed, rows=settings.rows)
    count = len(residual_blocks(model, path)[1])
    if beyond := [block for block in settings.blocks if not 0 <= block < count]:
        raise UsageError(f"there is no block {beyond[0]}; this model has blocks 0 to {count - 1}")
    every = range(count)
    streams = contrast_streams(model, fit, every, path=path)
    vector = from_streams(streams, fit, every, fingerprint=fingerprint)
    usable = [block for block in every if bool(vector.at(block).any())]
    blocks = tuple(block for block in settings.blocks or usable if block in usable)
    if not blocks:
        raise UsageError(
            f"the vector of {contrast.name} is zero after block {settings.blocks[0]}; pass a later "
            "one as --blocks"
        )
    texts = neutral_tokens(tokenizer, NEUTRAL, longest=context_length(model))
    return Subject(
        model.eval(), select, test, vector, streams,
        _other_vectors(model, others, settings, path), texts[0::2], texts[1::2], blocks, settings,
        path, (*notes, *_notes(contrast, (fit, select, test))),
    )  # fmt: skip


def require_answers(contrast: Contrast) -> None:
    """Raise ValueError for a contrast on which no effect can be measured."""
    if contrast.kind == "pairs":
        raise UsageError(
            f"the pairs of contrast {contrast.name!r} have no answers, so that the effect of a "
            "dose cannot be measured; pass statements or A/B questions (frenet steer extract makes "
            "a vector of pairs)"
        )
    try:
        contrast.require_answers()
    except UnansweredError as error:
        raise UsageError(f"{error}; pass two other words as --words") from None


def _other_vectors(
    model: nn.Module, others: Sequence[Contrast], settings: Settings, path: str | None
) -> dict[str, SteeringVector]:
    """Vectors of other contrasts that have enough prompts for one."""
    found = {}
    for other in others[: settings.draws]:
        try:
            (part,) = other.divided(1, seed=settings.seed, rows=settings.rows)
            found[other.name] = caa(model, part, path=path)
        except UsageError:  # too few prompts, or no difference: no vector
            continue
    return found


def _notes(contrast: Contrast, parts: Sequence[Contrast]) -> list[str]:
    """Caveats about the prompts."""
    sizes = [len(part.items) for part in parts]
    notes = [*contrast.notes, *contrast.answer_notes]
    notes.append(
        f"{contrast.name}: {contrast.kind}; {sizes[0]} prompts make the vector, {sizes[1]} choose "
        f"block and dose, {sizes[2]} test them"
    )
    if sizes[2] < FEW:
        notes.append(
            f"{contrast.name}: fewer than {FEW} tested prompts, so that intervals are wide"
        )
    return notes


@lru_cache(maxsize=1)
def load_subject(config: Config) -> Subject:
    """Load the model and the contrast of a configuration; the last one is kept."""
    name = cells(config)[0]["contrast"]
    loaded = config.load(config.model)
    contrasts = contrasts_of(config, loaded)
    return subject_of(
        loaded.model, contrasts[name], loaded.tokenizer, settings=config,
        others=[other for key, other in contrasts.items() if key != name],
        fingerprint=loaded.fingerprint, path=config.path or None, notes=loaded.notes,
    )  # fmt: skip


def advised_vector(subject: Subject, row: Mapping[str, Scalar]) -> SteeringVector:
    """The vector with the advice of a row of the table advice."""
    return replace(subject.vector, advised=Advised(integer(row, "block"), number(row, "dose")))
