"""What a random search will bring, before it is run."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from frenet._errors import UsageError
from frenet._notebook import Fact, Shown
from frenet.geometry.theory import Best
from frenet.methods.local_model import LocalModel

# Shares of the largest sigma among which the advised one is looked for.
STEPS = np.linspace(0.05, 1.0, 39)


class Setting(NamedTuple):
    """One setting of a search with the gains predicted for it, in nats per token."""

    sigma: float
    candidates: int
    selected: float
    held_out: float


@dataclass(frozen=True, repr=False)
class Plan(Shown):
    """Settings with their predicted gains.

    Attributes:
        survey: what the predictions are made from.
        table: settings over sigma, up to the advised one, and N.
        best: the setting within the budget with the largest gain on held-out data; None where none
            has a gain.
        sigma_star: the best sigma for the whole budget on the selection data; None where
            ``LocalModel.best`` is.
        linear_up_to: sigma up to which curvature is a small part of the change.
        advice: in one sentence.
    """

    survey: LocalModel
    table: tuple[Setting, ...]
    best: Setting | None
    sigma_star: float | None
    linear_up_to: float
    advice: str

    def _summary(self) -> str:
        return self.advice

    def _entries(self) -> Iterator[Fact]:
        for row in self.table:
            name = f"gain at sigma {row.sigma:.3g} with {row.candidates} candidates, held-out data"
            yield name, row.held_out, f"{row.selected:.4g} on the selection batch"


def plan(found: LocalModel, *, budget: int, counts: tuple[int, ...] = (4, 16, 64, 256)) -> Plan:
    """Predicted gains over sigma and N, and the setting to take.

    Args:
        found: from ``survey``.
        budget: most candidates, each one forward pass over the selection batch; at least 1.
        counts: numbers of candidates for the table; those above the budget are left out.

    Raises:
        ValueError: a budget below one candidate.
    """
    if budget < 1:
        raise UsageError(f"budget={budget} is below one candidate; pass at least 1")
    star = found.best(budget)
    # Beyond it gains hang on curvature, of which the quadratic model knows too little.
    most = max(star.sigma, found.best_sigma_held_out(budget)) if star else found.trusted(budget)
    sigma = max(most * STEPS, key=lambda s: _setting(found, float(s), budget).held_out)
    sigmas = [float(sigma) / 2.0**power for power in (3, 2, 1, 0)]
    table = tuple(
        _setting(found, sigma, n)
        for n in sorted({*(c for c in counts if c <= budget), budget})
        for sigma in sigmas
    )
    advised = _setting(found, float(sigma), budget)
    chosen = advised if budget > 1 and advised.held_out > 0 else None
    return Plan(
        found,
        table,
        chosen,
        star.sigma if star else None,
        found.local.linear_range(),
        _advice(found, chosen, star),
    )


def _setting(found: LocalModel, sigma: float, n: int) -> Setting:
    gains = (found.local.gain(sigma, n), found.held_out_gain(sigma, n))
    return Setting(sigma, n, *(min(gain, found.loss) for gain in gains))


def _advice(found: LocalModel, chosen: Setting | None, best: Best | None) -> str:
    if found.local.gradient == 0:
        return (
            "no gain is to be expected: the gradient on the selection batch is zero in all "
            f"{found.local.dim:,} coordinates; search in others, for a LoRA that has not been "
            "trained in its B factors"
        )
    if found.loss == 0:
        return "no gain is to be expected: the loss on the selection batch is zero already"
    if chosen is None:
        return (
            f"no gain on held-out data is to be expected: {found.transfer:.2f} of what selection "
            "sees would be there; use a larger selection batch, or another method"
        )
    limit = (
        ""
        if best
        else " The trace of the Hessian is not clearly positive, or too small for the loss that "
        "there is to gain, so no best sigma follows: the plan stays where it is to be trusted."
    )
    return (
        f"sigma {chosen.sigma:.3g} with {chosen.candidates} candidates should gain "
        f"{chosen.held_out:.3g} nats per token on held-out data ({chosen.selected:.3g} on the "
        f"selection batch).{limit}"
    )
