"""The survey, compared with dense references, on losses with random terms in every batch."""

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from frenet.geometry import rng
from frenet.geometry.basis import random_basis
from frenet.geometry.theory import QuadraticModel, expected_maximum
from frenet.methods.candidates import Candidates, Noise
from frenet.methods.local_model import EFFORTS, Effort, LocalModel, _under_signs, survey
from frenet.methods.search import Selection
from frenet.network.space import ParamSpace
from frenet.network.tasks import Batch
from measure.quadratic import Point

CHOSEN = Selection(select_size=3, seed=5)


@dataclass(frozen=True)
class Terms:
    """L = (x - m).H(x - m) / 2 + <s, x> + e.x^2 / 2 + sum_i (t x_i^3 + c x_i^4 + f x_i^6).

    s, e, t and c are random for every batch. At x = 0 the slope is s - Hm and the Hessian
    H + diag(e), and a pair at +z and -z leaves the even powers.
    """

    H: Tensor
    minimum: Tensor
    slope: float = 0.2
    bent: float = 0.3
    quartic: float = 1.0
    sixth: float = 0.0
    floor: float = 0.0
    lies: str = ""
    name: str = "terms"

    def batches(self, split: str, batch_size: int, seed: int) -> Iterator[Batch]:
        draw = rng.generator(seed, "terms", split, batch_size)
        while True:
            s, e, t, c = torch.randn(4, 1, len(self.minimum), generator=draw, dtype=torch.float64)
            yield {
                "slope": self.slope * s,
                "bent": self.bent * e,
                "cubic": t,
                "quartic": self.quartic * (1 + c[:, :1] ** 2),
                "lies": torch.full((1, 1), float(split == self.lies)),
                "labels": torch.zeros(1, 1, dtype=torch.int64),
            }

    def loss(self, model, batch: Batch) -> Tensor:
        x = model()
        away = x - self.minimum
        hidden = batch["lies"][0, 0] * (3 * x.detach() - x) @ batch["slope"][0]
        powers = batch["bent"][0] / 2 * x**2 + batch["cubic"][0] * x**3
        powers = powers + batch["quartic"][0] * x**4 + self.sixth * x**6
        square = away @ self.H @ away / 2 + self.floor
        return square + batch["slope"][0] @ x + powers.sum() + hidden

    def score(self, model, split: str) -> dict[str, float]:
        return {}

    def shuffled(self, seed: int) -> "Terms":
        return self

    def mean(self, split: str, count: int) -> tuple[Tensor, Tensor, float]:
        """Gradient, Hessian and c of the mean of some batches at x = 0."""
        stream = self.batches(split, CHOSEN.select_size, CHOSEN.seed)
        rows = [next(stream) for _ in range(count)]
        s, e, c = (
            torch.cat([row[k] for row in rows]).mean(0) for k in ("slope", "bent", "quartic")
        )
        return s - self.H @ self.minimum, self.H + torch.diag(e), float(c)


def at_zero(d: int, *, diagonal: bool = False, **terms: float) -> tuple[Point, Terms, ParamSpace]:
    draw = rng.generator(d, "at zero")
    A = torch.randn(d, d, generator=draw, dtype=torch.float64) / d**0.5
    H = A @ A.T + torch.eye(d)
    H = torch.diag(H.diagonal()) if diagonal else H
    model = Point(torch.zeros(d, dtype=torch.float64))
    task = Terms(H, torch.randn(d, generator=draw, dtype=torch.float64) / d**0.5, **terms)
    return model, task, ParamSpace.select(model)


def mean_power(model, where, *, pairs: int, power: int, seed: int = 0) -> float:
    """Mean of sum_i z_i^power over the draws of some antithetic pairs."""
    with Candidates(model, where, Noise(1.0, seed=seed, antithetic=True)) as candidates:
        z = torch.stack([candidates.delta(2 * j) for j in range(pairs)]).double()
    return float((z**power).sum(1).mean())


@pytest.mark.parametrize(
    ("d", "k", "probes", "pairs"),
    [
        (12, None, 6, 3),  # dim = 2 probes: the Hessian column by column
        (30, 12, 6, 3),  # the same inside a basis, of more columns than go through one pass
        (60, None, 20, 10),  # probes in three groups
        (30, None, 2, 2),  # two pairs at least
    ],
)
def test_every_number_is_that_of_the_dense_gradients_and_hessians(d, k, probes, pairs):
    """Selection sees the first select batch, the others are the mean of four train batches."""
    # Of a diagonal Hessian every probe gives the exact traces.
    model, task, space = at_zero(d, diagonal=d > 2 * probes and k is None)
    where = space if k is None else random_basis(d, k, rng.generator(1, "basis"), space=space)
    found = survey(model, task, where, selection=CHOSEN, effort=Effort(probes), seed=4)
    U = torch.eye(d).double() if k is None else where.U.double()
    (g, H, c), (g_other, H_other, c_other) = task.mean("select", 1), task.mean("train", 4)
    g, g_other, H, H_other = U.T @ g, U.T @ g_other, U.T @ H @ U, U.T @ H_other @ U
    fourth = mean_power(model, where, pairs=pairs, power=4, seed=4)
    local, other = found.local, found.elsewhere
    assert other is not None
    expected = [
        (local.dim, k or d),
        (other.dim, k or d),
        (local.gradient, g.norm()),
        (other.gradient, g_other.norm()),
        (found.transfer, g @ g_other / (g @ g)),
        (local.trace, H.trace()),
        (local.trace_square, (H @ H).trace()),
        (local.trace_cube, (H @ H @ H).trace()),
        (local.along, g @ H @ g),
        (other.trace, H_other.trace()),
        (found.bend, (H * H_other).sum() / (H * H).sum()),
        (found.loss, task.minimum @ task.H @ task.minimum / 2),
    ]
    for i, (value, exact) in enumerate(expected):
        assert value == pytest.approx(float(exact), rel=1e-5), i
    assert local.quartic == pytest.approx(c * fourth, rel=1e-3)
    assert other.quartic == pytest.approx(c_other * fourth, rel=1e-3)
    assert found.trace_error == pytest.approx(0, abs=1e-4)
    assert not model().any()


@pytest.mark.parametrize(("d", "probes", "diagonal"), [(12, 6, False), (60, 20, True)])
def test_for_signs_the_diagonal_of_the_hessian_has_no_spread(d, probes, diagonal):
    model, task, space = at_zero(d, diagonal=diagonal)
    found = survey(model, task, space, selection=CHOSEN, effort=Effort(probes), kind="signs").local
    g, H, c = task.mean("select", 1)
    rest = H - torch.diag(H.diagonal())
    size = float((H @ H).trace())
    assert found.trace == pytest.approx(float(H.trace()), rel=1e-5)
    assert found.trace_square == pytest.approx(float((rest @ rest).trace()), abs=1e-5 * size)
    assert found.along == pytest.approx(float(g @ rest @ g), abs=1e-5 * float(g @ H @ g))
    # z_i^4 = 1.
    assert found.quartic == pytest.approx(c * d, rel=1e-3)


def test_the_square_of_the_diagonal_comes_from_products_of_different_probes():
    """Of all n signs, without each one's own square: D - (tr(H^2) - D) / (n - 1)."""
    H = torch.randn(6, 6, generator=rng.generator(0, "H"))
    H, g = H + H.T, torch.arange(6.0)
    z = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=6)))
    square, along = float((H @ H).trace()), float(g @ H @ g)
    local = QuadraticModel(6, 1.0, float(H.trace()), square, along)
    found = _under_signs(local, g, [(z[:40], z[:40] @ H), (z[40:], z[40:] @ H)], exact=False)
    own = float(H.diagonal().square().sum())
    expected = own - (square - own) / (len(z) - 1)
    assert found.trace_square == pytest.approx(square - expected, rel=1e-5)
    assert found.along == pytest.approx(along - float(g**2 @ H.diagonal()), rel=1e-5)


def test_in_more_than_two_dimensions_a_probe_the_trace_is_an_estimate():
    model, task, space = at_zero(13)
    assert survey(model, task, space, effort=Effort(7)).trace_error == 0
    assert survey(model, task, space, effort=Effort(6)).trace_error > 0.01


@pytest.mark.parametrize("budget", [1, 45, 47, 64, 99, 101, 512])
def test_the_effort_of_a_plan_is_at_most_that_of_its_search(budget):
    """Down to the least effort, which is that of 46 candidates."""
    chosen, least = Effort.within(budget), EFFORTS[-1]
    assert chosen.cost() <= max(budget, least.cost())
    better = EFFORTS[: EFFORTS.index(chosen)]
    assert all(effort.cost() > budget for effort in better)
    assert [e.cost() for e in EFFORTS] == sorted((e.cost() for e in EFFORTS), reverse=True)


def test_by_default_eight_pairs_of_seed_zero_on_the_batches_of_a_search():
    model, task, space = at_zero(20)
    expected = survey(model, task, space, selection=Selection(), effort=Effort(8, False), seed=0)
    assert survey(model, task, space) == expected


@pytest.mark.parametrize("flat", [False, True])
def test_fourth_order_terms_are_measured_at_the_best_sigma_of_fifty_candidates(flat):
    """A sixth power adds f sigma^2 sum z^6, which shows the sigma of the measurement.

    Without curvature it is the sigma at which a linear loss would gain the whole loss.
    """
    m = expected_maximum(50)
    model, task, space = at_zero(16, diagonal=True, bent=0.0, quartic=0.0, sixth=1.0)
    if flat:
        task = dataclasses.replace(task, H=torch.zeros_like(task.H), floor=0.8)
    g, H, _ = task.mean("select", 1)
    found = survey(model, task, space, selection=CHOSEN, effort=Effort(8))
    slope = float(g.norm())
    sigma = 0.8 / (m * slope) if flat else m * slope / float(H.trace())
    expected = sigma**2 * mean_power(model, space, pairs=4, power=6)
    assert found.local.quartic == pytest.approx(expected, rel=1e-3)
    if flat:
        assert (found.local.trace, found.local.trace_square, found.local.trace_cube) == (0, 0, 0)
        assert (found.trace_error, found.bend) == (0, 0)


def test_a_gradient_that_is_wrong_on_the_selection_batch_is_refused():
    model, task, space = at_zero(8, slope=2.0)
    for split, refused in (("train", False), ("select", True)):
        lying = dataclasses.replace(task, lies=split, name=split)
        if refused:
            with pytest.raises(
                ValueError, match="is not the derivative of its loss on task select"
            ):
                survey(model, lying, space, effort=Effort(2))
        else:
            assert survey(model, lying, space, effort=Effort(2)).local.gradient > 0


LOCAL = QuadraticModel(dim=100, gradient=2.0, trace=300.0, trace_square=5000.0, along=40.0)
SURVEY = LocalModel(LOCAL, 5.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("share", "counted"), [(-0.5, 0.0), (0.0, 0.0), (0.4, 0.4), (1.0, 1.0), (2.0, 1.0)]
)
def test_what_lasts_is_a_share_of_slope_and_curvature_between_none_and_all(share, counted):
    """Without a bend none of the curvature's luck lasts; the price is that of the other data."""

    def lasting(**terms: float) -> float:
        return LOCAL.held_out_gain(0.02, 64, **terms)

    slope = dataclasses.replace(SURVEY, transfer=share)
    assert slope.held_out_gain(0.02, 64) == lasting(transfer=counted)
    both = dataclasses.replace(SURVEY, transfer=0.3, bend=share)
    assert both.held_out_gain(0.02, 64) == lasting(transfer=0.3, bend=counted)
    other = dataclasses.replace(slope, elsewhere=QuadraticModel(100, 1.0, 500.0, quartic=7.0))
    price = 0.02**2 * 250 + 0.02**4 * 7
    assert other.held_out_gain(0.02, 64) == pytest.approx(lasting(transfer=counted, mean=price))


@pytest.mark.parametrize(("trace", "there"), [(2.0, False), (2.01, True), (2.9, True)])
def test_a_trace_is_positive_above_two_standard_errors(trace, there):
    local = dataclasses.replace(LOCAL, trace=300.0, trace_square=0.0)
    found = dataclasses.replace(SURVEY, local=local, trace_error=300.0 / trace)
    assert (found.best(64) is not None) is there


def test_curvature_may_spread_as_much_as_the_slope_at_the_best_sigma_and_no_more():
    star = SURVEY.best(64)
    assert star is not None
    square = 2 * (LOCAL.gradient / star.sigma) ** 2
    near = [dataclasses.replace(LOCAL, trace_square=square * (1 + i * 2e-16)) for i in range(-9, 9)]
    equal = next(local for local in near if local.curved(star.sigma) == 1)
    more = dataclasses.replace(LOCAL, trace_square=square * (1 + 1e-9))
    assert dataclasses.replace(SURVEY, local=equal).best(64) == star
    assert dataclasses.replace(SURVEY, local=more).best(64) is None


def test_what_is_trusted_is_bounded_by_the_loss_and_by_curvature():
    """m_1 is 0, which would give no bound: one candidate counts as two."""
    linear = dataclasses.replace(SURVEY, local=QuadraticModel(dim=4, gradient=2.0, trace=0.0))
    for n, counted in ((1, 2), (2, 2), (3, 3), (64, 64)):
        assert linear.trusted(n) == pytest.approx(5.0 / (2 * expected_maximum(counted)))
    assert SURVEY.trusted(64) == LOCAL.linear_range() < linear.trusted(64)
