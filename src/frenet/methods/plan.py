"""What a random search will bring, before it is run."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet.geometry import rng, theory
from frenet.geometry.subspace import Basis
from frenet.geometry.theory import Best, Local
from frenet.measure.curvature import Matvec, Trace, hessian_product, hutchinson
from frenet.measure.gradients import gradient
from frenet.methods.candidates import Candidates, Noise, Where, space_of
from frenet.methods.search import Selection, distinct
from frenet.network.context import measuring
from frenet.network.tasks import Batch, Split, Task, repeatable

# Selection is on the first; that winners carry over is estimated on the second, and so the test
# split stays untouched.
PLANNED: tuple[Split, Split] = ("select", "train")
# Fourth-order terms are measured at the best sigma for so many candidates.
PROBED = 50
# Shares of the largest sigma among which the advised one is looked for.
STEPS = np.linspace(0.05, 1.0, 39)


@dataclass(frozen=True)
class Survey:
    """The loss around a point, as far as a search depends on it.

    Attributes:
        local: gradient and curvature on the selection batch, inside the basis where there is one.
        loss: there, in nats per token: no search gains more.
        transfer: share of the slope's luck that other examples see, <g_other, g> / ||g||^2 with
            the train split.
        bend: the same of the curvature's luck, tr(H_other H) / tr(H^2).
        trace_error: standard error of the trace.
    """

    local: Local
    loss: float
    transfer: float
    trace_error: float
    bend: float = 0.0

    def lasting_gain(self, sigma: float, n: int) -> float:
        """Gain on other data; shares outside [0, 1] are errors of their estimates."""
        shares = {
            "transfer": min(1.0, max(0.0, self.transfer)),
            "bend": min(1.0, max(0.0, self.bend)),
        }
        return self.local.lasting_gain(sigma, n, **shares)

    def best(self, n: int) -> Best | None:
        """sigma* and its gain for n candidates; None where the quadratic model has none to trust.

        That is where the trace is not above 0 by two standard errors, and where the model says
        more than the loss there is to gain: it does not hold as far out as its own optimum.
        """
        if self.local.trace <= 2 * self.trace_error:
            return None
        found = theory.best_sigma(self.local, n)
        return found if found is not None and found.gain <= self.loss else None

    def trusted(self, n: int) -> float:
        """Sigma to which n candidates may go where there is no best one.

        Curvature spreads less than a fifth of what the slope does, and a linear loss would not
        gain more than there is.
        """
        bound = self.loss / (theory.expected_maximum(max(n, 2)) * self.local.gradient)
        return min(self.local.linear_range(), bound)


class Setting(NamedTuple):
    """One setting of a search with the gains predicted for it, in nats per token."""

    sigma: float
    candidates: int
    selected: float
    held_out: float


@dataclass(frozen=True)
class Plan:
    """Settings with their predicted gains.

    Attributes:
        survey: what the predictions are made from.
        table: settings over sigma, up to the advised one, and N.
        best: the setting within the budget with the largest gain on held-out data; None where none
            has a gain.
        sigma_star: the best sigma for the whole budget on the selection data; None where
            ``Survey.best`` is.
        linear_up_to: sigma up to which curvature is a small part of the change.
        advice: in one sentence.
    """

    survey: Survey
    table: tuple[Setting, ...]
    best: Setting | None
    sigma_star: float | None
    linear_up_to: float
    advice: str


def survey(
    model: nn.Module,
    task: Task,
    where: Where,
    *,
    selection: Selection | None = None,
    probes: int = 8,
    seed: int = 0,
) -> Survey:
    """Gradient, curvature and transfer at the present point.

    Takes 2 gradients, 4 ``probes`` + 1 Hessian products and 2 ``probes`` losses of the selection
    batch, about as much as 22 ``probes`` forward passes; in up to 2 ``probes`` dimensions the
    traces take k products and are exact.

    Args:
        model: the network; left as it is.
        task: selection is on its select split.
        where: the parameters that move, or a basis.
        selection: the search that is planned.
        probes: of Hutchinson's estimator, at least 2.
        seed: of the probes.
    """
    space, chosen = space_of(where), selection or Selection()
    select, other = (
        distinct(next(repeatable(task, split, chosen.select_size, chosen.seed)))
        for split in PLANNED
    )
    slope, elsewhere = (
        _inside(where, gradient(model, task, batch, space=space)) for batch in (select, other)
    )
    matvec, other_matvec = (
        _product_inside(where, hessian_product(model, task, batch, space=space))
        for batch in (select, other)
    )
    dim = len(slope)
    found, bend = _curvature(matvec, other_matvec, dim, probes=probes, seed=seed)
    local = Local(
        dim=dim,
        gradient=float(slope.double().norm()),
        trace=found.trace,
        trace_square=found.trace_of_square,
        along=float(slope.double() @ matvec(slope).double()),
        trace_cube=found.trace_of_cube or 0.0,
    )
    share = theory.transfer(float(slope.double() @ elsewhere.double()), local.gradient)
    with measuring(model), torch.no_grad():
        loss = float(task.loss(model, select))
    made = Survey(local, loss, share, found.trace_error, bend)
    star = made.best(PROBED)
    noise = Noise(star.sigma if star else made.trusted(PROBED), seed=seed, antithetic=True)
    with Candidates(model, where, noise) as candidates:
        quartic = _quartic(candidates, task, select, matvec, pairs=probes, loss=loss)
    return replace(made, local=replace(local, quartic=quartic))


def _quartic(
    candidates: Candidates, task: Task, batch: Batch, matvec: Matvec, *, pairs: int, loss: float
) -> float:
    """q, from what antithetic pairs of losses have beyond the curvature along their own line.

    (L(theta + d) + L(theta - d)) / 2 - L(theta) - d.Hd / 2 for d = sigma z has the mean sigma^4 q,
    and the error of the trace does not come in. Terms of still higher order are in it.
    """
    model = candidates.model
    beyond = []
    for j in range(pairs):
        delta = _inside(candidates.where, candidates.delta(2 * j))
        candidates.put(None)
        curved = float(delta.double() @ matvec(delta).to(delta).double()) / 2
        with measuring(model), torch.no_grad():
            for index in (2 * j, 2 * j + 1):
                candidates.put(index)
                beyond.append(float(task.loss(model, batch)) - loss - curved)
    return sum(beyond) / len(beyond) / candidates.noise.sigma**4


def _curvature(
    matvec: Matvec, other: Matvec, dim: int, *, probes: int, seed: int
) -> tuple[Trace, float]:
    """Traces of H, exact in few dimensions, and tr(H_other H) / tr(H^2) from the same probes."""
    probed: list[tuple[Tensor, Tensor]] = []

    def recorded(v: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
        probed.append((v, matvec(v)))
        return probed[-1][1]

    if dim <= 2 * probes:
        found = _exact(torch.stack([recorded(row) for row in torch.eye(dim)]).double().cpu())
    else:
        probing = rng.generator(seed, "plan")
        found = hutchinson(recorded, dim, probes=probes, generator=probing, cubes=True)
        probed = probed[::2]  # every second product is of a product, for the cubes
    shared = sum(float(image @ other(z).to(image)) for z, image in probed)
    return found, shared / (sum(float(image @ image) for _, image in probed) or 1.0)


def _exact(H: Float[Tensor, "k k"]) -> Trace:
    """The traces of a matrix that is there as a whole."""
    square = H @ H
    traces = (float(matrix.trace()) for matrix in (H, square, square @ H))
    first, second, third = traces
    return Trace(first, 0.0, second, 0.0, len(H), third)


def plan(found: Survey, *, budget: int, counts: tuple[int, ...] = (4, 16, 64, 256)) -> Plan:
    """Predicted gains over sigma and N, and the setting to take.

    Args:
        found: from ``survey``.
        budget: most candidates, each one forward pass over the selection batch; at least 1.
        counts: numbers of candidates for the table; those above the budget are left out.

    Raises:
        ValueError: a budget below one candidate.
    """
    if budget < 1:
        raise ValueError(f"budget={budget} is below one candidate; pass at least 1")
    star = found.best(budget)
    # Beyond it gains hang on curvature, of which the quadratic model knows too little.
    most = star.sigma if star else found.trusted(budget)
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


def _setting(found: Survey, sigma: float, n: int) -> Setting:
    gains = (found.local.gain(sigma, n), found.lasting_gain(sigma, n))
    return Setting(sigma, n, *(min(gain, found.loss) for gain in gains))


def _advice(found: Survey, chosen: Setting | None, best: Best | None) -> str:
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


def _product_inside(where: Where, matvec: Matvec) -> Matvec:
    """Hessian products in the coordinates of the basis, where there is one."""
    if not isinstance(where, Basis):
        return matvec
    return lambda c: where.coordinates(matvec(where.expand(c)))


def _inside(where: Where, vector: Float[Tensor, " d"]) -> Float[Tensor, " k"]:
    """A vector, or its coordinates in the basis."""
    return where.coordinates(vector) if isinstance(where, Basis) else vector
