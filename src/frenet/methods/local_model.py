"""The loss around a point, measured as far as a random search depends on it."""

import itertools
from collections.abc import Callable, Iterator
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
from frenet.methods.candidates import Candidates, Noise, Where, placed, space_of
from frenet.methods.search import Selection, drop_duplicates
from frenet.network.measuring import measuring
from frenet.network.tasks import Split, Task, repeatable

# Selection is on the first; what carries over is estimated on the second, and so the test split
# stays untouched. The trace of one batch's Hessian is easily half or twice that of all data, and
# winners pay the latter: other data are so many times the selection batch.
PLANNED: tuple[Split, Split] = ("select", "train")
OTHERS = 4
# Fourth-order terms are measured at the best sigma for so many candidates.
PROBED = 50


@dataclass(frozen=True, repr=False)
class LocalModel(Shown):
    """The loss around a point, as far as a search depends on it.

    Attributes:
        local: gradient and curvature on the selection batch, inside the basis where there is one.
        loss: there, in nats per token: no search gains more.
        transfer: share of the slope's luck that other examples see, <g_other, g> / ||g||^2 with
            the train split.
        trace_error: standard error of the trace.
        bend: the same of the curvature's luck, tr(H_other H) / tr(H^2).
        elsewhere: gradient and curvature on the other examples; None: as on the selection batch.
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
        yield "share of the slope that other data see", self.transfer, "1: all, 0: none"
        linear = f"linear up to {self.local.linear_range():.4g}"
        star = self.best(PROBED)
        yield f"best sigma of {PROBED} candidates", star.sigma if star else None, linear

    def held_out_gain(self, sigma: float, n: int) -> float:
        """Gain on other data; shares outside [0, 1] are errors of their estimates."""
        shares = {
            "transfer": min(1.0, max(0.0, self.transfer)),
            "bend": min(1.0, max(0.0, self.bend)),
        }
        mean = None if self.elsewhere is None else self.elsewhere.mean(sigma)
        return self.local.held_out_gain(sigma, n, **shares, mean=mean)

    def best(self, n: int) -> Best | None:
        """sigma* and its gain for n candidates; None where the quadratic model has none to trust.

        That is where the trace is not above 0 by two standard errors, and where the model does not
        hold as far out as its own optimum: curvature would spread the change more than the slope
        does, or there would be more to gain than the loss there is.
        """
        if self.local.trace <= 2 * self.trace_error:
            return None
        found = theory.best_sigma(self.local, n)
        if found is None or self.local.curved(found.sigma) > 1 or found.gain > self.loss:
            return None
        return found

    def best_sigma_held_out(self, n: int) -> float:
        """sigma* with the curvature of other data; 0 where that sets no limit."""
        if self.elsewhere is None:
            return 0.0
        beyond = replace(self.elsewhere, gradient=self.local.gradient)
        found = theory.best_sigma(beyond, n, transfer=min(1.0, max(0.0, self.transfer)))
        return found.sigma if found else 0.0

    def trusted(self, n: int) -> float:
        """Sigma to which n candidates may go where there is no best one.

        Curvature spreads less than a fifth of what the slope does, and a linear loss would not
        gain more than there is. 0 for a zero gradient, or where there is no loss left to gain.
        """
        if self.local.gradient == 0:
            return 0.0
        bound = self.loss / (theory.expected_maximum(max(n, 2)) * self.local.gradient)
        return min(self.local.linear_range(), bound)


def survey(
    model: nn.Module,
    task: Task,
    where: Where,
    *,
    selection: Selection | None = None,
    probes: int = 8,
    seed: int = 0,
) -> LocalModel:
    """Gradient, curvature and transfer at the present point.

    Takes 8 to 9 ``probes`` Hessian products and 5 ``probes`` losses of a selection batch, about as
    much as 32 ``probes`` forward passes; in up to 2 ``probes`` dimensions the traces are exact.

    Args:
        model: the network; left as it is.
        task: selection is on its select split.
        where: the parameters that move, or a basis.
        selection: the search that is planned.
        probes: of Hutchinson's estimator, at least 2.
        seed: of the probes.

    Raises:
        ValueError: the model's gradient is not the derivative of its loss.
    """
    chosen, where = selection or Selection(), placed(where, model)
    batch = next(repeatable(task, PLANNED[0], chosen.select_size, chosen.seed))
    check_slope(model, task, batch, space=space_of(where))
    here, other = (
        _Seen.of(model, task, where, split=split, selection=chosen, batches=batches)
        for split, batches in zip(PLANNED, (1, OTHERS), strict=True)
    )
    dim = len(here.slope)
    found, trace_elsewhere, bend = _curvature(
        here.product, other.product, dim, probes=probes, seed=seed
    )
    local = QuadraticModel(
        dim=dim,
        gradient=norm(here.slope),
        trace=found.trace,
        trace_square=found.trace_of_square,
        along=dot(here.slope, here.product(here.slope)),
        trace_cube=found.trace_of_cube or 0.0,
    )
    elsewhere = QuadraticModel(dim, norm(other.slope), trace_elsewhere)
    share = theory.transfer(dot(here.slope, other.slope), local.gradient)
    loss = here.loss()
    made = LocalModel(local, loss, share, found.trace_error, bend, elsewhere)
    star = made.best(PROBED)
    sigma = star.sigma if star else made.trusted(PROBED)
    if sigma == 0:  # no distance at which anything is to be expected
        return made
    noise = Noise(sigma, seed=seed, antithetic=True)
    with Candidates(model, where, noise) as candidates:
        pairs = max(2, probes // 2)
        quartics = [_quartic(candidates, seen, pairs=pairs) for seen in (here, other)]
    return replace(
        made,
        local=replace(local, quartic=quartics[0]),
        elsewhere=replace(elsewhere, quartic=quartics[1]),
    )


class _Seen(NamedTuple):
    """The mean loss of some batches around the present point, inside the basis if there is one."""

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
    ) -> "_Seen":
        space = space_of(where)
        drawn = repeatable(task, split, selection.select_size, selection.seed)
        rows = [drop_duplicates(batch) for batch in itertools.islice(drawn, batches)]
        slope = _mean(gradient(model, task, batch, space=space) for batch in rows)
        products = [
            _product_inside(where, hessian_product(model, task, batch, space=space))
            for batch in rows
        ]

        def loss() -> float:
            with measuring(model), torch.no_grad():
                return sum(float(task.loss(model, batch)) for batch in rows) / len(rows)

        return cls(_inside(where, slope), lambda v: _mean(apply(v) for apply in products), loss)


def _mean(vectors: Iterator[Float[Tensor, "*m d"]]) -> Float[Tensor, "*m d"]:
    """One at a time: of all weights of a model there is no room for many vectors."""
    total, count = next(vectors), 1
    for vector in vectors:
        total, count = total + vector, count + 1
    return total / count


def _quartic(candidates: Candidates, seen: _Seen, *, pairs: int) -> float:
    """q, from what antithetic pairs of losses have beyond the curvature along their own line.

    (L(theta + d) + L(theta - d)) / 2 - L(theta) - d.Hd / 2 for d = sigma z has the mean sigma^4 q,
    and the error of the trace does not come in. Terms of still higher order are in it.
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


def _curvature(
    matvec: Matvec, other: Matvec, dim: int, *, probes: int, seed: int
) -> tuple[Trace, float, float]:
    """Traces of H, tr(H_other), and tr(H_other H) / tr(H^2); exact in few dimensions."""
    probed: list[tuple[Tensor, Tensor]] = []

    def recorded(V: Float[Tensor, "m k"]) -> Float[Tensor, "m k"]:
        probed.append((V, matvec(V)))
        return probed[-1][1]

    if dim <= 2 * probes:
        found = _exact(recorded(torch.eye(dim)).double().cpu())
    else:
        probing = rng.generator(seed, "plan")
        found = hutchinson(recorded, dim, probes=probes, generator=probing, cubes=True)
        probed = probed[::2]  # every second product is of a product, for the cubes
    pairs = [(z, image, other(z).to(image)) for z, image in probed]
    shared = sum(dot(image, beyond) for _, image, beyond in pairs)
    bend = shared / (sum(dot(image, image) for _, image in probed) or 1.0)
    trace = sum(dot(beyond, z) for z, _, beyond in pairs)
    return found, trace if dim <= 2 * probes else trace / probes, bend


def _exact(H: Float[Tensor, "k k"]) -> Trace:
    """The traces of a matrix that is there as a whole."""
    square = H @ H
    traces = (float(matrix.trace()) for matrix in (H, square, square @ H))
    first, second, third = traces
    return Trace(first, 0.0, second, 0.0, len(H), third)


def _product_inside(where: Where, matvec: Matvec) -> Matvec:
    """Hessian products in the coordinates of the basis, where there is one."""
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
