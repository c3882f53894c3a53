"""`frenet.steering_advice`: the advice of `frenet steer recommend`, from Python."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from frenet._notebook import Fact, Shown
from frenet.experiments.experiment import Answer, Rows
from frenet.experiments.steer_command import Settings, require_settings
from frenet.experiments.steer_command.answers import advised, sentences
from frenet.experiments.steer_command.measure import rows_of
from frenet.experiments.steer_command.subject import advised_vector, subject_of
from frenet.methods.steering_vector import SteeringVector
from frenet.network.data.contrast import Contrast


@dataclass(frozen=True, repr=False)
class SteeringAdvice(Shown):
    """At which block, and how strongly, a contrast's vector should be added.

    Attributes:
        rows: all numbers, as the command stores them; ``table`` names the table of a row.
        vector: the contrast vector; its ``advised`` is the block and the dose, or None if no dose
            is advised.
    """

    rows: Rows
    vector: SteeringVector

    @property
    def answers(self) -> list[Answer]:
        """The advice in sentences, or why there is none."""
        return sentences(self.rows)

    def _summary(self) -> str:
        return str(self.answers[0])

    def _entries(self) -> Iterator[Fact]:
        for answer in self.answers:
            yield answer.subject, answer.sentence, ""


def steering_advice(
    model: nn.Module,
    contrast: Contrast,
    tokenizer: Any,
    *,
    others: Sequence[Contrast] = (),
    fingerprint: str = "",
    path: str | None = None,
    say: Callable[[str], None] | None = None,
    **settings: Any,
) -> SteeringAdvice:
    """The block and dose at which a contrast's vector steers more than every null vector.

    One third of the prompts makes the vector, one chooses block and dose within a limit of the cost
    on neutral text, one tests them. Null vectors of equal length have shuffled labels, the stream's
    covariance, or come from other contrasts.

    Args:
        model: a decoder; left unchanged.
        contrast: statements or choices, with at least 12 prompts.
        tokenizer: of the model, for the neutral texts.
        others: further contrasts, whose vectors are nulls.
        fingerprint: of the model; stored with the vector.
        path: dotted name of the list of blocks; None: frenet looks for it.
        say: takes a line before each long step.
        settings: as the options of ``frenet steer recommend``: ``max_cost`` (nats per token),
            ``rows``, ``doses``, ``blocks``, ``draws``, ``seed``.

    Raises:
        ValueError: the contrast has no answers or too few prompts, or a setting is out of range.
    """
    chosen = Settings(**settings)
    require_settings(chosen)
    subject = subject_of(
        model, contrast, tokenizer, settings=chosen, others=others, fingerprint=fingerprint,
        path=path,
    )  # fmt: skip
    rows = list(rows_of(subject, say or (lambda _: None)))
    row = advised(rows)
    return SteeringAdvice(rows, advised_vector(subject, row) if row else subject.vector)
