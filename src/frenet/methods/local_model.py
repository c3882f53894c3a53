"""The loss around a point: the quantities that decide what a random search gains."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from frenet.measure.gradients import gradient
from frenet.methods.candidates import Candidates, Kind, Noise, Where, placed, space_of
from frenet.methods.search import Selection, drop_duplicates
from frenet.network.measuring import measuring
from frenet.network.space import ParamSpace
from frenet.network.tasks import IGNORE, Batch, Split, Task, in_parts, repeatable

# Selection uses the first split, the transfer to other data the second; the test split stays
# untouched. The Hessian's trace on one batch is easily half or twice that on all data, and winners
# pay for the latter, so the other data are OTHERS times the selection batch.
PLANNED: tuple[Split, Split] = ("select", "train")
OTHERS = 4
# Fourth-order terms are measured at the best sigma for this many candidates.
PROBED = 50


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
    """

    local: QuadraticModel
    loss: float
    transfer: float
    trace_error: float
    bend: float = 0.0
    elsewhere: QuadraticModel | None = None

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
        shares = {
            "transfer": min(1.0, max(0.0, self.transfer)),
            "bend": min(1.0, max(0.0, self.bend)),
        }
        mean = None if self.elsewhere is None else self.elsewhere.mean(sigma)
        return self.local.held_out_gain(sigma, n, **shares, mean=mean)

    def best(self, n: int) -> Best | None:
        """sigma* and its gain for n candidates; None if the quadratic model cannot be trusted.

        That is so if the trace is not two standard errors above 0, or if the model does not hold
        at its optimum: curvature would spread the change more than the slope does, or the gain
        would exceed the loss.
        """
        if self.local.trace <= 2 * self.trace_error:
            return None
        optimum = theory.best_sigma(self.local, n)
        if optimum is None or self.local.curved(optimum.sigma) > 1 or optimum.gain > self.loss:
            return None
        return optimum

    def best_sigma_held_out(self, n: int) -> float:
        """sigma* with the curvature of other data; 0 if that sets no limit."""
        if self.elsewhere is None:
            return 0.0
        beyond = replace(self.elsewhere, gradient=self.local.gradient)
        optimum = theory.best_sigma(beyond, n, transfer=min(1.0, max(0.0, self.transfer)))
        return optimum.sigma if optimum else 0.0

    def trusted(self, n: int) -> float:
        """Largest sigma for n candidates when there is no best one.

        Up to it, curvature spreads the change less than a fifth as much as the slope does, and a
        linear loss gains at most the loss. 0 if the gradient or the loss is zero.
        """
        if self.local.gradient == 0:
            return 0.0
        bound = self.loss / (theory.expected_maximum(max(n, 2)) * self.local.gradient)
        return min(self.local.linear_range(), bound)


class Effort(NamedTuple):
    """How much a survey looks at.

    Attributes:
        probes: of Hutchinson's estimator, at least 2.
        share: of the examples of a batch on which curvature is measured, in (0, 1].
        others: batches of other examples.
    """

    probes: int
    share: float = 1.0
    others: int = OTHERS

    @property
    def pairs(self) -> int:
        """Antithetic pairs for the fourth-order terms."""
        return max(2, self.probes // 2)

    @property
    def batches(self) -> int:
        """The selection batch and the others."""
        return 1 + self.others

    def cost(self) -> float:
        """In forward passes of a selection batch."""
        products = 1 + self.probes * (2 + self.others) + self.pairs * self.batches
        losses = (2 * self.pairs + 1) * self.batches
        return GRADIENT * self.batches + self.share * (PRODUCT * products + losses)

    @classmethod
    def within(cls, budget: int) -> "Effort":
        """The most of some efforts that takes at most ``budget`` forward passes, or the least.

        >>> Effort.within(64), Effort.within(10_000)
        (Effort(probes=4, share=0.5, others=4), Effort(probes=8, share=1.0, others=4))
        """
        return next((effort for effort in EFFORTS if effort.cost() <= budget), EFFORTS[-1])


# The time of a gradient and of a Hessian product, in forward passes.
GRADIENT, PRODUCT = 3, 8
# From most to least. A cheaper plan loses more than it saves: on three networks, searches planned
# with these gained 0.90 and 0.88 of what the best sigma does, and 0.72 with four probes on a
# quarter of the examples of two batches.
EFFORTS = (Effort(8), Effort(4, 0.5))
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
    probes: int = 8,
    seed: int = 0,
    effort: Effort | None = None,
    kind: Kind = "normal",
    say: Callable[[str], None] = lambda _: None,
) -> LocalModel:
    """Gradient, curvature and transfer at the current parameters.

    Takes the time of about 75 ``probes`` forward passes of a selection batch, or ``effort.cost()``.
    In up to twice as many dimensions as probes the traces are exact.

    Args:
        model: the network; left unchanged.
        task: selection is on its select split.
        where: the parameters that move, or a basis.
        selection: the search that is planned.
        probes: of Hutchinson's estimator on whole batches, at least 2.
        seed: of the probes.
        effort: in place of ``probes``; ``Effort.within(budget)`` costs at most about as much as a
            search of as many candidates, if there are at least 170 of them.
        kind: of the noise that is planned; for signs see ``QuadraticModel.under_signs``.
        say: takes lines of progress.

    Raises:
        ValueError: the model's gradient is not the derivative of its loss.
    """
    chosen, where = selection or Selection(), placed(where, model)
    effort = effort or Effort(probes)
    batch = next(repeatable(task, PLANNED[0], chosen.select_size, chosen.seed))
    check_slope(model, task, _first(batch, CHECKED), space=space_of(where))
    here, other = (
        _Seen.of(
            model, task, where, split=split, selection=chosen, batches=batches, share=effort.share
        )
        for split, batches in zip(PLANNED, (1, effort.others), strict=True)
    )
    say("gradients measured")
    local, elsewhere, error, bend = _quadratic(here, other, effort, seed=seed, kind=kind)
    say(f"trace of the Hessian measured: {local.trace:.4g} +- {error:.2g}")
    share = theory.transfer(dot(here.slope, other.slope), local.gradient)
    loss = _loss(model, task, [drop_duplicates(batch)])
    measured = LocalModel(local, loss, share, error, bend, elsewhere)
    star = measured.best(PROBED)
    sigma = star.sigma if star else measured.trusted(PROBED)
    if sigma == 0:  # no gain is expected at any distance
        return measured
    noise = Noise(sigma, seed=seed, antithetic=True, kind=kind)
    with Candidates(model, where, noise) as candidates:
        quartics = [_quartic(candidates, seen, pairs=effort.pairs) for seen in (here, other)]
    return replace(
        measured,
        local=replace(local, quartic=quartics[0]),
        elsewhere=replace(elsewhere, quartic=quartics[1]),
    )


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
    def of(
        cls,
        model: nn.Module,
        task: Task,
        where: Where,
        *,
        split: Split,
        selection: Selection,
        batches: int,
        share: float,
    ) -> "_Seen":
        """``share``: of the examples, for products and losses; all give the slope."""
        space = space_of(where)
        drawn = repeatable(task, split, selection.select_size, selection.seed)
        rows = [drop_duplicates(batch) for batch in itertools.islice(drawn, batches)]
        slope = _mean(gradient(model, task, batch, space=space) for batch in rows)
        few = [_first(batch, max(1, round(share * len(batch["labels"])))) for batch in rows]
        products = [_product_inside(where, _product(model, task, batch, space)) for batch in few]
        return cls(
            _inside(where, slope),
            lambda v: _mean(apply(v) for apply in products),
            lambda: _loss(model, task, few),
        )


def _mean(vectors: Iterator[Float[Tensor, "*m d"]]) -> Float[Tensor, "*m d"]:
    """One at a time: many vectors over all weights of a model do not fit into memory."""
    total, count = next(vectors), 1
    for vector in vectors:
        total, count = total + vector, count + 1
    return total / count


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


def _quadratic(
    here: _Seen, other: _Seen, effort: Effort, *, seed: int, kind: Kind
) -> tuple[QuadraticModel, QuadraticModel, float, float]:
    """The models here and on other examples, the error of the trace, and the bend."""
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
    elsewhere = QuadraticModel(dim, norm(other.slope), trace_elsewhere)
    return local, elsewhere, traces.trace_error, bend


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
