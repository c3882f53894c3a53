"""Predicts what a random search gains, before it runs."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from frenet._errors import UsageError
from frenet._notebook import Fact, Shown
from frenet.geometry.theory import Best
from frenet.methods.local_model import LocalModel

# The advised sigma is one of these shares of the largest.
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
        survey: the local model behind the predictions.
        table: settings over N and sigma, up to the advised sigma.
        best: the setting within the budget with the largest gain on held-out data; None if no
            setting gains.
        sigma_star: the best sigma for the whole budget on the selection data; None if
            ``LocalModel.best`` is.
        linear_up_to: sigma up to which curvature is a small part of the change.
        advice: the setting to use, or why there is none.
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


def plan(
    local_model: LocalModel, *, budget: int, counts: tuple[int, ...] = (4, 16, 64, 256)
) -> Plan:
    """Predicted gains over sigma and N, and the setting to use.

    Args:
        local_model: from ``survey``.
        budget: most candidates, each one forward pass over the selection batch; at least 1.
        counts: numbers of candidates for the table; those above the budget are left out.

    Raises:
        ValueError: a budget below one candidate.
    """
    if budget < 1:
        raise UsageError(f"budget={budget} is below one candidate; pass at least 1")
    star = local_model.best(budget)
    # Beyond it gains depend on curvature, which the quadratic model does not describe well enough.
    most = local_model.trusted(budget)
    if star:
        most = max(star.sigma, local_model.best_sigma_held_out(budget))
    sigma = max(most * STEPS, key=lambda s: _setting(local_model, float(s), budget).held_out)
    sigmas = [float(sigma) / 2.0**power for power in (3, 2, 1, 0)]
    table = tuple(
        _setting(local_model, sigma, n)
        for n in sorted({*(c for c in counts if c <= budget), budget})
        for sigma in sigmas
    )
    advised = _setting(local_model, float(sigma), budget)
    chosen = advised if budget > 1 and advised.held_out > 0 else None
    return Plan(
        local_model,
        table,
        chosen,
        star.sigma if star else None,
        local_model.local.linear_range(),
        _advice(local_model, chosen, star),
    )


def _setting(local_model: LocalModel, sigma: float, n: int) -> Setting:
    gains = (local_model.local.gain(sigma, n), local_model.held_out_gain(sigma, n))
    return Setting(sigma, n, *(min(gain, local_model.loss) for gain in gains))


def _advice(local_model: LocalModel, chosen: Setting | None, best: Best | None) -> str:
    if local_model.local.gradient == 0:
        return (
            "no gain is expected: the gradient on the selection batch is zero in all "
            f"{local_model.local.dim:,} coordinates; search in others, for an untrained LoRA in "
            "its B factors"
        )
    if local_model.loss == 0:
        return "no gain is expected: the loss on the selection batch is already zero"
    if chosen is None:
        return (
            f"no gain is expected on held-out data: {local_model.transfer:.2f} of the gain on the "
            "selection batch carries over; use a larger selection batch, or another method"
        )
    limit = (
        ""
        if best
        else " There is no best sigma, because the trace of the Hessian is not clearly positive, "
        "or too small for this loss: the plan stays within the range that can be trusted."
    )
    return (
        f"sigma {chosen.sigma:.3g} with {chosen.candidates} candidates should gain "
        f"{chosen.held_out:.3g} nats per token on held-out data ({chosen.selected:.3g} on the "
        f"selection batch).{limit}"
    )
