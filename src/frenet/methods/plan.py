"""What a random search will bring, before it is run."""

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from frenet.geometry import rng, theory
from frenet.geometry.subspace import Basis
from frenet.geometry.theory import Local
from frenet.measure.curvature import hessian_product, hutchinson
from frenet.measure.damage import fixed_loss
from frenet.measure.gradients import gradient
from frenet.methods.candidates import Where, space_of
from frenet.network.tasks import Task, repeatable


@dataclass(frozen=True)
class Survey:
    """The loss around a point, as far as a search depends on it.

    Attributes:
        local: gradient and curvature on the selection batch, inside the basis where there is one.
        loss: there, in nats per token: no search gains more.
        transfer: share of the luck that other examples see, estimated on the train split.
        trace_error: standard error of the trace.
    """

    local: Local
    loss: float
    transfer: float
    trace_error: float


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
        table: settings over sigma and N.
        best: the setting within the budget with the largest gain on held-out data; None where none
            has a gain.
        sigma_star: the best sigma for the whole budget on the selection data; None for a trace
            that is not positive.
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
    size: int = 64,
    probes: int = 8,
    seed: int = 0,
) -> Survey:
    """Gradient, curvature and transfer at the present point.

    Takes 2 gradients and 2 ``probes`` + 1 Hessian products of ``size`` examples, about as much as
    10 ``probes`` forward passes.

    Args:
        model: the network; left as it is.
        task: selection is on its select split.
        where: the parameters that move, or a basis.
        size: examples of the selection batch, as in ``Selection``.
        probes: of Hutchinson's estimator, at least 2.
        seed: of examples and probes, as in ``Selection``.
    """
    space = space_of(where)
    select, other = (next(repeatable(task, split, size, seed)) for split in ("select", "train"))
    slope, elsewhere = (
        _inside(where, gradient(model, task, batch, space=space)) for batch in (select, other)
    )
    matvec = hessian_product(model, task, select, space=space)

    def product(v: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
        return _inside(where, matvec(where.expand(v) if isinstance(where, Basis) else v))

    dim = len(slope)
    found = hutchinson(
        product, dim, probes=probes, generator=rng.generator(seed, "plan"), cubes=True
    )
    local = Local(
        dim=dim,
        gradient=float(slope.double().norm()),
        trace=found.trace,
        trace_square=found.trace_of_square,
        along=float(slope.double() @ product(slope).double()),
        trace_cube=found.trace_of_cube or 0.0,
    )
    share = theory.transfer(float(slope.double() @ elsewhere.double()), local.gradient)
    return Survey(local, fixed_loss(model, task, size=size), share, found.trace_error)


def plan(found: Survey, *, budget: int, counts: tuple[int, ...] = (1, 4, 16, 64, 256)) -> Plan:
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
    local, share = found.local, max(0.0, found.transfer)
    star = theory.best_sigma(local, budget, to_gain=found.loss)
    best = theory.best_sigma(local, budget, to_gain=found.loss, transfer=share)
    limit = local.linear_range()
    middle = star.sigma if star else limit
    sigmas = [middle * 2.0**power for power in (-3, -2, -1, 0, 1)]
    table = tuple(
        _setting(found, sigma, n)
        for n in sorted({*(c for c in counts if c <= budget), budget})
        for sigma in sigmas
    )
    chosen = None
    if share > 0 and budget > 1:
        # Without a best sigma the quadratic model sets no limit, and the linear range has to.
        candidate = _setting(found, best.sigma if best else limit, budget)
        chosen = candidate if candidate.held_out > 0 else None
    return Plan(
        found, table, chosen, star.sigma if star else None, limit, _advice(found, chosen, best)
    )


def _setting(found: Survey, sigma: float, n: int) -> Setting:
    local, share = found.local, max(0.0, found.transfer)
    gains = (local.gain(sigma, n), local.gain(sigma, n, transfer=share))
    return Setting(sigma, n, *(min(gain, found.loss) for gain in gains))


def _advice(found: Survey, chosen: Setting | None, best: theory.Best | None) -> str:
    if chosen is None:
        return (
            f"no gain on held-out data is to be expected: {found.transfer:.2f} of what selection "
            "sees would be there; use a larger selection batch, or another method"
        )
    limit = (
        ""
        if best
        else " The trace of the Hessian is not positive, so no best sigma follows from it: this is "
        "the largest in the linear range."
    )
    return (
        f"sigma {chosen.sigma:.3g} with {chosen.candidates} candidates should gain "
        f"{chosen.held_out:.3g} nats per token on held-out data ({chosen.selected:.3g} on the "
        f"selection batch).{limit}"
    )


def _inside(where: Where, vector: Float[Tensor, " d"]) -> Float[Tensor, " k"]:
    """A vector, or its coordinates in the basis."""
    return where.coordinates(vector) if isinstance(where, Basis) else vector
