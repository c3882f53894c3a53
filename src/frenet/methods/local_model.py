"""The loss around a point: the quantities that decide what a random search gains."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet._notebook import Fact, Shown
from frenet.geometry import rng, theory
from frenet.geometry.linalg import dot, norm
from frenet.geometry.subspace import Basis
from frenet.geometry.theory import Best, QuadraticModel
from frenet.measure.checked import check_slope
from frenet.measure.curvature import Matvec, Trace, at_once, hessian_product, hutchinson
from frenet.measure.gradients import gradient as slope_at
from frenet.methods.candidates import Candidates, Kind, Noise, Where, placed, space_of
from frenet.methods.loss_pairs import MOVED, PROBED, Curvature, Losses, Place, curvature_from_losses
from frenet.methods.selection import Selection, drop_duplicates
from frenet.network.measuring import measuring
from frenet.network.space import ParamSpace
from frenet.network.tasks import IGNORE, Batch, Split, Task, in_parts, repeatable

# Selection uses the first split, the transfer to other data the second; the test split stays
# untouched. The Hessian's trace on one batch is easily half or twice that on all data, and winners
# pay for the latter, so the other data are OTHERS times the selection batch.
PLANNED: tuple[Split, Split] = ("select", "train")
OTHERS = 4


@dataclass(frozen=True, repr=False)
class LocalModel(Shown):
    """The loss around a point: the quantities that decide what a search gains.

    Attributes:
        local: gradient and curvature on the selection batch, inside the basis if there is one.
        loss: on the selection batch, in nats per token: no search gains more.
        transfer: share of the gain from the slope that carries over to other examples,
            <g_other, g> / ||g||^2 with the train split.
        trace_error: standard error of the trace.
        bend: the same for the curvature, tr(H_other H) / tr(H^2).
        elsewhere: gradient and curvature on other examples; None: as on the selection batch.
        selection: of the search that is planned.
        kind: of its noise.
        followed: sigma beyond which the loss was seen to leave its slope; inf if it was not.
    """

    local: QuadraticModel
    loss: float
    transfer: float
    trace_error: float
    bend: float = 0.0
    elsewhere: QuadraticModel | None = None
    selection: Selection = field(default_factory=Selection)
    kind: Kind = "normal"
    followed: float = math.inf

    def _summary(self) -> str:
        return (
            f"loss {self.loss:.4g}, gradient norm {self.local.gradient:.4g}, d = {self.local.dim}"
        )

    def _entries(self) -> Iterator[Fact]:
        yield "loss (nats per token)", self.loss, "no search gains more"
        yield "gradient norm", self.local.gradient, f"in {self.local.dim:,} coordinates"
        yield "trace of the Hessian", self.local.trace, f"standard error {self.trace_error:.4g}"
        yield "share of the slope on other data", self.transfer, "1: all, 0: none"
        linear = f"linear up to {self.local.linear_range():.4g}"
        star = self.best(PROBED)
        yield f"best sigma of {PROBED} candidates", star.sigma if star else None, linear

    def held_out_gain(self, sigma: float, n: int) -> float:
        """Gain on other data; shares outside [0, 1] are estimation errors and are clipped."""
        mean = None if self.elsewhere is None else self.elsewhere.mean(sigma)
        return self.local.held_out_gain(sigma, n, **self._shares(), mean=mean)

    def carried(self, sigma: float) -> float:
        """Share of a gain by luck on the selection batch that carries over to other data."""
        return self.local.carried(sigma, **self._shares())

    def _shares(self) -> dict[str, float]:
        return {
            "transfer": min(1.0, max(0.0, self.transfer)),
            "bend": min(1.0, max(0.0, self.bend)),
        }

    def best(self, n: int) -> Best | None:
        """sigma* and its gain for n candidates; None if the quadratic model cannot be trusted.

        That is so if the trace is not two standard errors above 0, or if the model does not hold
        at its optimum: curvature would spread the change more than the slope does, the gain would
        exceed the loss, or the loss does not follow its slope that far.
        """
        if self.local.trace <= 2 * self.trace_error:
            return None
        optimum = theory.best_sigma(self.local, n)
        if optimum is None or self.local.curved(optimum.sigma) > 1 or optimum.gain > self.loss:
            return None
        return None if optimum.sigma > self.followed else optimum

    def best_sigma_held_out(self, n: int) -> float:
        """sigma* with the curvature of other data; 0 if that sets no limit."""
        if self.elsewhere is None:
            return 0.0
        beyond = replace(self.elsewhere, gradient=self.local.gradient)
        optimum = theory.best_sigma(beyond, n, transfer=min(1.0, max(0.0, self.transfer)))
        return optimum.sigma if optimum else 0.0

    def trusted(self, n: int) -> float:
        """Largest sigma for n candidates when there is no best one.

        Up to it, curvature spreads the change less than a fifth as much as the slope does, a linear
        loss gains at most the loss, and the loss follows its slope. 0 if the gradient or the loss
        is zero.
        """
        if self.local.gradient == 0:
            return 0.0
        bound = self.loss / (theory.expected_maximum(max(n, 2)) * self.local.gradient)
        return min(self.local.linear_range(), bound, self.followed)


class Effort(NamedTuple):
    """How much a survey looks at.

    Attributes:
        probes: random vectors along which curvature is measured, at least 2.
        products: by Hessian products, of all vectors on all batches, at the current parameters.
            Otherwise by antithetic pairs of losses at the distance of a search, of all vectors on
            the selection batch and of each on one of the others.
        others: batches of other examples.
    """

    probes: int
    products: bool = True
    others: int = OTHERS

    @property
    def pairs(self) -> int:
        """Antithetic pairs for the fourth-order terms, beside Hessian products."""
        return max(2, self.probes // 2)

    @property
    def batches(self) -> int:
        """The selection batch and the others."""
        return 1 + self.others

    def cost(self) -> int:
        """In forward passes of a selection batch."""
        if not self.products:
            pairs = 2 * self.probes + max(1, self.probes // MOVED)
            return (GRADIENT + 1) * self.batches + 2 * pairs + AROUND_PAIRS
        products = 1 + self.probes * (2 + self.others) + self.pairs * self.batches
        losses = (2 * self.pairs + 1) * self.batches
        return GRADIENT * self.batches + PRODUCT * products + losses

    @classmethod
    def within(cls, budget: int) -> "Effort":
        """The most of some efforts that takes at most ``budget`` forward passes, or the least.

        >>> Effort.within(64), Effort.within(10_000)
        (Effort(probes=8, products=False, others=4), Effort(probes=32, products=False, others=4))
        """
        return next((effort for effort in EFFORTS if effort.cost() <= budget), EFFORTS[-1])


# The time of a gradient and of a Hessian product, in forward passes, and that of what pairs take
# beside themselves: the check of passes that candidates share, and the trials of their sigma.
GRADIENT, PRODUCT, AROUND_PAIRS = 3, 8, 8
# From most to least. A search is planned by pairs of losses: they are cheaper than Hessian
# products, and the curvature at its distance varies less between vectors than that at the start.
EFFORTS = tuple(Effort(probes, products=False) for probes in (32, 16, 8, 4))
# Examples on which the derivatives of the model are checked.
CHECKED = 8
# Numbers in memory for each logit of a Hessian product, as measured on SmolLM2.
COPIES = 32


def survey(
    model: nn.Module,
    task: Task,
    where: Where,
    *,
    selection: Selection | None = None,
    effort: Effort = EFFORTS[-2],
    seed: int = 0,
    kind: Kind = "normal",
    say: Callable[[str], None] = lambda _: None,
) -> LocalModel:
    """Gradient, curvature and transfer at the current parameters.

    Takes the time of about ``effort.cost()`` forward passes of a selection batch. By Hessian
    products the traces are exact in up to twice as many dimensions as probes.

    Args:
        model: the network; left unchanged.
        task: selection is on its select split.
        where: the parameters that move, or a basis.
        selection: the search that is planned.
        effort: way and cost of the measurement; ``Effort.within(budget)`` costs at most about as
            much as a search of as many candidates, if there are at least 46 of them.
        seed: of the probes.
        kind: of the noise that is planned; for signs see ``QuadraticModel.under_signs``.
        say: takes lines of progress.

    Returns:
        The local model. Without a gradient or a loss no search gains; pairs of losses then have no
        distance, and the trace is 0 with an infinite error.

    Raises:
        ValueError: the model's gradient is not the derivative of its loss.
    """
    chosen, where = selection or Selection(), placed(where, model)
    (own,), others = (
        _batches(task, split, chosen, count)
        for split, count in zip(PLANNED, (1, effort.others), strict=True)
    )
    check_slope(model, task, _first(own, CHECKED), space=space_of(where))
    here, other = (_Seen.of(model, task, where, rows) for rows in ([own], others))
    say("gradients measured")
    gradient, loss = norm(here.slope), here.loss()
    if effort.products:
        found = _from_products(here, other, effort, seed=seed, kind=kind)
    elif loss > 0 and gradient > 0:
        place = Place(own, loss)
        found = curvature_from_losses(
            Losses(model, task, where, place), place, others, here.slope,
            pairs=effort.probes, seed=seed, kind=kind,
        )  # fmt: skip
    else:
        found = Curvature(QuadraticModel(len(here.slope), gradient, 0.0), math.inf, 0.0, 0.0)
    say(f"trace of the Hessian measured: {found.local.trace:.4g} +- {found.error:.2g}")
    share = theory.transfer(dot(here.slope, other.slope), gradient)
    elsewhere = QuadraticModel(len(other.slope), norm(other.slope), found.elsewhere)
    measured = LocalModel(
        found.local, loss, share, found.error, found.bend, elsewhere, chosen, kind, found.followed
    )
    if not effort.products:
        return measured
    return _with_quartics(measured, model, where, (here, other), effort, seed=seed, kind=kind)


def _batches(task: Task, split: Split, selection: Selection, count: int) -> list[Batch]:
    """The first batches of a split, as large as that of the selection."""
    drawn = repeatable(task, split, selection.select_size, selection.seed)
    return [drop_duplicates(batch) for batch in itertools.islice(drawn, count)]


def _first(batch: Batch, count: int) -> Batch:
    """The first rows of a batch."""
    return {key: value[:count] for key, value in batch.items()}


def _loss(model: nn.Module, task: Task, batches: Sequence[Batch]) -> float:
    """Mean loss of some batches."""
    with measuring(model), torch.no_grad():
        return sum(float(task.loss(model, batch)) for batch in batches) / len(batches)


def _product(model: nn.Module, task: Task, batch: Batch, space: ParamSpace) -> Matvec:
    """Hessian products of a batch, in parts if they would take much memory."""
    parts = in_parts(model, batch, copies=COPIES, graph=True)
    if len(parts) == 1:
        return hessian_product(model, task, batch, space=space)
    targets = [int((part["labels"] != IGNORE).sum()) for part in parts]

    def product(v: Float[Tensor, "*m d"]) -> Float[Tensor, "*m d"]:
        total = torch.zeros_like(v, dtype=torch.float32)
        for part, count in zip(parts, targets, strict=True):
            # Made for each part and dropped, so that nothing of all parts is kept together.
            image = hessian_product(model, task, part, space=space)(v)
            total.add_(image.to(total), alpha=count / sum(targets))
        return total

    return product


class _Seen(NamedTuple):
    """The mean loss of some batches around the current point, inside the basis if there is one."""

    slope: Float[Tensor, " k"]
    product: Matvec
    loss: Callable[[], float]

    @classmethod
    def of(cls, model: nn.Module, task: Task, where: Where, rows: Sequence[Batch]) -> "_Seen":
        space = space_of(where)
        slope = _mean(slope_at(model, task, batch, space=space) for batch in rows)
        products = [_product_inside(where, _product(model, task, batch, space)) for batch in rows]
        return cls(
            _inside(where, slope),
            lambda v: _mean(apply(v) for apply in products),
            lambda: _loss(model, task, rows),
        )


def _mean(vectors: Iterator[Float[Tensor, "*m d"]]) -> Float[Tensor, "*m d"]:
    """One at a time: many vectors over all weights of a model do not fit into memory."""
    total, count = next(vectors), 1
    for vector in vectors:
        total, count = total + vector, count + 1
    return total / count


def _with_quartics(
    measured: LocalModel,
    model: nn.Module,
    where: Where,
    seen: tuple[_Seen, _Seen],
    effort: Effort,
    *,
    seed: int,
    kind: Kind,
) -> LocalModel:
    """The same with the fourth-order terms at the best sigma, here and elsewhere."""
    star = measured.best(PROBED)
    sigma = star.sigma if star else measured.trusted(PROBED)
    if sigma == 0 or measured.elsewhere is None:  # no gain is expected at any distance
        return measured
    noise = Noise(sigma, seed=seed, antithetic=True, kind=kind)
    with Candidates(model, where, noise) as candidates:
        here, other = (_quartic(candidates, side, pairs=effort.pairs) for side in seen)
    return replace(
        measured,
        local=replace(measured.local, quartic=here),
        elsewhere=replace(measured.elsewhere, quartic=other),
    )


def _quartic(candidates: Candidates, seen: _Seen, *, pairs: int) -> float:
    """q, from antithetic pairs of losses minus the curvature along their line.

    (L(theta + d) + L(theta - d)) / 2 - L(theta) - d.Hd / 2 for d = sigma z has the mean sigma^4 q,
    so that the error of the trace does not enter. Terms of higher order are included.
    """
    beyond = []
    candidates.put(None)
    before = seen.loss()
    for group in torch.arange(pairs).split(at_once(len(seen.slope))):
        deltas = torch.stack(
            [_inside(candidates.where, candidates.delta(2 * j)) for j in group.tolist()]
        )
        candidates.put(None)
        curved = [dot(*pair) / 2 for pair in zip(deltas, seen.product(deltas), strict=True)]
        for j, bent in zip(group.tolist(), curved, strict=True):
            for index in (2 * j, 2 * j + 1):
                candidates.put(index)
                beyond.append(seen.loss() - before - bent)
    return sum(beyond) / len(beyond) / candidates.noise.sigma**4


def _from_products(
    here: _Seen, other: _Seen, effort: Effort, *, seed: int, kind: Kind
) -> Curvature:
    """Curvature by Hessian products; exact in few dimensions."""
    dim = len(here.slope)
    traces, trace_elsewhere, bend, probed = _curvature(
        here.product, other.product, dim, probes=effort.probes, seed=seed
    )
    local = QuadraticModel(
        dim=dim,
        gradient=norm(here.slope),
        trace=traces.trace,
        trace_square=traces.trace_of_square,
        along=dot(here.slope, here.product(here.slope)),
        trace_cube=traces.trace_of_cube or 0.0,
    )
    if kind == "signs":
        local = _under_signs(local, here.slope, probed, exact=dim <= 2 * effort.probes)
    return Curvature(local, traces.trace_error, trace_elsewhere, bend)


# Vectors, a stack (m, k) at a time, and their Hessian products.
Probed = list[tuple[Tensor, Tensor]]


def _curvature(
    matvec: Matvec, other: Matvec, dim: int, *, probes: int, seed: int
) -> tuple[Trace, float, float, Probed]:
    """Traces of H, tr(H_other), tr(H_other H) / tr(H^2), products; exact in few dimensions."""
    probed: Probed = []

    def recorded(V: Float[Tensor, "m k"]) -> Float[Tensor, "m k"]:
        probed.append((V, matvec(V)))
        return probed[-1][1]

    if dim <= 2 * probes:
        traces = _exact(recorded(torch.eye(dim)).double().cpu())
    else:
        probing = rng.generator(seed, "plan")
        traces = hutchinson(recorded, dim, probes=probes, generator=probing, cubes=True)
        probed = probed[::2]  # every second product is taken of a product, for the cubes
    pairs = [(z, image, other(z).to(image)) for z, image in probed]
    shared = sum(dot(image, beyond) for _, image, beyond in pairs)
    bend = shared / (sum(dot(image, image) for _, image in probed) or 1.0)
    trace = sum(dot(beyond, z) for z, _, beyond in pairs)
    return traces, trace if dim <= 2 * probes else trace / probes, bend, probed


def _under_signs(
    local: QuadraticModel, slope: Float[Tensor, " k"], probed: Probed, *, exact: bool
) -> QuadraticModel:
    """The model for candidates of signs, with the Hessian's diagonal from products Hz.

    z * Hz, entry by entry, has the diagonal as its mean over signs z, so that products of two
    estimates have its square as their mean. Over all unit vectors z it adds up to the diagonal.
    """
    estimates = [z * image for z, image in probed]
    total = torch.stack([part.sum(0) for part in estimates]).sum(0)
    count, own = sum(map(len, estimates)), sum(dot(part, part) for part in estimates)
    if exact:
        diagonal, square = total, dot(total, total)
    else:
        diagonal = total / count
        square = (dot(total, total) - own) / (count * (count - 1))
    return replace(
        local,
        diagonal_square=max(0.0, square),
        along_diagonal=dot(slope.square(), diagonal),
    ).under_signs()


def _exact(H: Float[Tensor, "k k"]) -> Trace:
    """The traces of a dense matrix."""
    square = H @ H
    traces = (float(matrix.trace()) for matrix in (H, square, square @ H))
    first, second, third = traces
    return Trace(first, 0.0, second, 0.0, len(H), third)


def _product_inside(where: Where, matvec: Matvec) -> Matvec:
    """Hessian products in the coordinates of the basis, if there is one."""
    if not isinstance(where, Basis):
        return matvec

    def inside(c: Float[Tensor, "*m k"]) -> Float[Tensor, "*m k"]:
        groups = c.reshape(-1, where.k).split(at_once(where.d))
        images = [where.coordinates(matvec(where.expand(group))) for group in groups]
        return torch.cat(images).reshape(c.shape)

    return inside


def _inside(where: Where, vector: Float[Tensor, " d"]) -> Float[Tensor, " k"]:
    """A vector, or its coordinates in the basis."""
    return where.coordinates(vector) if isinstance(where, Basis) else vector
