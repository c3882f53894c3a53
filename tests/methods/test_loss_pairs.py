"""A survey from pairs of losses: closed forms with its own draws, rounding, refusals, and cost."""

import dataclasses
import math
from dataclasses import dataclass

import pytest
import torch

from frenet.geometry.rng import generator
from frenet.geometry.theory import expected_maximum
from frenet.methods.candidates import Candidates, Noise
from frenet.methods.local_model import CHECKED, EFFORTS, Effort, survey
from frenet.methods.loss_pairs import TRIAL_PAIRS, Losses, Place
from frenet.methods.plan import plan
from frenet.methods.search import Selection
from frenet.network.adapters import attach_lora
from frenet.network.space import ParamSpace
from frenet.network.tasks import token_loss
from measure.quadratic import Point, Quadratic, RowsTask, quadratic
from methods.test_survey import CHOSEN, at_zero
from network.models import tiny_llama

PAIRS = Effort(24, products=False)


def drawn(model, space, *, pairs, kind="normal", seed=0):
    """The directions z of the pairs, (n, d)."""
    noise = Noise(1.0, seed=seed, antithetic=True, kind=kind)
    with Candidates(model, space, noise) as candidates:
        return torch.stack([candidates.delta(2 * j) for j in range(pairs)]).double()


@dataclass(frozen=True)
class Lifted(Quadratic):
    """A quadratic above a floor."""

    floor: float = 30.0

    def loss(self, model, batch):
        return super().loss(model, batch) + self.floor


@dataclass(frozen=True)
class Levelled(Quadratic):
    """30 + w tanh(<u, x - m> / w), |u| = 1: linear about m, and level farther than w."""

    width: float = 1.0

    def loss(self, model, batch):
        x = model()
        along = (x - self.minimum.to(x.dtype)).sum() / len(x) ** 0.5
        return 30.0 + self.width * torch.tanh(along / self.width)


@pytest.mark.parametrize("width", [0.05, 0.3, 2.0])
def test_no_gain_is_planned_beyond_where_a_loss_levels_off(width):
    """Far off, pairs show no curvature: as if the loss were linear up to a gain of all of it."""
    model, task, space = quadratic(torch.zeros(40))
    task = Levelled(task.H, space.read(model), width=width)
    found = survey(model, task, space, effort=Effort(8, products=False))
    best = plan(found, budget=64).best
    # tanh(a) < a / 2 for a > 1.92, so that no draw of a trial follows its slope farther than that.
    along = drawn(model, space, pairs=TRIAL_PAIRS).sum(1).abs() / 40**0.5
    assert found.followed * float(along.min()) < 1.92 * width
    assert best.sigma <= found.followed
    z = torch.randn(20_000, 64, generator=generator(0, "levelled")).amax(1)
    gained = float(width * torch.tanh(z * best.sigma / width).mean())
    assert gained < best.held_out < 2 * gained


def test_a_loss_that_does_not_level_off_is_followed_at_every_distance():
    model, task, space = quadratic(torch.zeros(40))
    task = Levelled(task.H, space.read(model), width=1000.0)
    found = survey(model, task, space, effort=Effort(8, products=False))
    assert found.followed == math.inf
    assert plan(found, budget=64).best.sigma == pytest.approx(found.trusted(64))


@pytest.mark.parametrize("kind", ["normal", "signs"])
def test_of_a_quadratic_every_number_is_that_of_the_draws(kind):
    model, task, space = quadratic(torch.linspace(-0.5, 3, 40))
    H, g = task.H.double(), task.gradient(space.read(model))
    found = survey(model, task, space, effort=PAIRS, kind=kind, seed=3)
    z = drawn(model, space, pairs=24, kind=kind, seed=3)
    bends = ((z @ H) * z).sum(1)
    local = found.local
    assert local.gradient == pytest.approx(float(g.norm()), rel=1e-5)
    assert local.trace == pytest.approx(float(bends.mean()), rel=1e-3)
    assert local.trace_square == pytest.approx(float(bends.var()) / 2, rel=1e-2)
    assert local.along == pytest.approx(float(g @ H @ g), rel=1e-2)
    assert found.trace_error == pytest.approx(float(bends.std()) / 24**0.5, rel=1e-2)
    assert abs(local.trace - float(H.trace())) < 4 * found.trace_error
    # The other batches have the same Hessian.
    assert found.bend == pytest.approx(1.0, rel=1e-2)
    assert found.elsewhere.trace == pytest.approx(local.trace, rel=1e-2)
    assert found.transfer == pytest.approx(1.0, rel=1e-5)
    assert (local.quartic, local.trace_cube) == (0.0, 0.0)


def test_signs_have_no_spread_from_a_diagonal():
    model, task, space = quadratic(torch.linspace(0.5, 3, 40))
    task = dataclasses.replace(task, H=torch.diag(torch.linspace(0.5, 3, 40)))
    found = survey(model, task, space, effort=PAIRS, kind="signs")
    assert found.local.trace == pytest.approx(70.0, rel=1e-4)
    assert found.local.trace_square < 1e-4 * float(task.H.square().sum())
    assert found.trace_error < 0.05


def test_the_bend_is_the_covariance_on_the_same_draws():
    """Each of four other batches has its own Hessian, and every fourth draw."""
    model, task, space = at_zero(40, quartic=0.0, bent=2.0)
    found = survey(model, task, space, selection=CHOSEN, effort=PAIRS, seed=4)
    z = drawn(model, space, pairs=24, seed=4)
    bends = []
    for split, count in (("select", 1), ("train", 4)):
        stream = task.batches(split, CHOSEN.select_size, CHOSEN.seed)
        extra = torch.cat([next(stream)["bent"] for _ in range(count)])[torch.arange(24) % count]
        bends.append(((z @ task.H) * z).sum(1) + (extra * z**2).sum(1))
    here, other = bends
    assert found.local.trace == pytest.approx(float(here.mean()), rel=1e-3)
    assert found.elsewhere.trace == pytest.approx(float(other.mean()), rel=1e-3)
    expected = float(torch.cov(torch.stack([here, other]))[0, 1] / here.var())
    assert found.bend == pytest.approx(expected, rel=1e-2)


def test_higher_orders_count_as_they_do_at_about_the_best_sigma():
    """A quartic adds 2 c sigma^2 z^4 to the trace: that shows sigma, and the mean change there."""
    model, task, space = at_zero(60, quartic=3.0, bent=0.0)
    found = survey(model, task, space, selection=CHOSEN, effort=PAIRS)
    _, H, c = task.mean("select", 1)
    z = drawn(model, space, pairs=24)
    square = found.local.trace - float(((z @ H) * z).sum(1).mean())
    sigma = (square / (2 * c * float((z**4).sum(1).mean()))) ** 0.5
    # At the best sigma of a quadratic the mean rise is half of the luck.
    luck = expected_maximum(50) * found.local.gradient * sigma
    assert 0.4 < found.local.mean(sigma) / (luck / 2) < 2.5


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 0.05), (torch.bfloat16, 0.3)])
def test_curvature_is_measured_above_the_rounding_of_the_loss(dtype, within):
    """The best sigma of a gradient of 1e-4 raises a loss of 30 by less than its rounding."""
    d = 40
    model = Point(torch.zeros(d, dtype=dtype))
    task = Lifted(torch.diag(torch.linspace(0.5, 3, d)), torch.full((d,), 1e-5))
    found = survey(model, task, ParamSpace.select(model), effort=PAIRS)
    assert found.local.gradient < 2e-4
    assert found.local.trace == pytest.approx(70.0, rel=within + 4 * (2 * 143 / 24) ** 0.5 / 70)
    z = drawn(model, ParamSpace.select(model), pairs=24)
    expected = float((z**2 @ torch.linspace(0.5, 3, d).double()).mean())
    assert found.local.trace == pytest.approx(expected, rel=within)


def test_a_negative_trace_is_planned_within_what_is_trusted():
    model, task, space = at_zero(40, quartic=0.0, floor=50.0)
    task = dataclasses.replace(task, H=-task.H)
    found = survey(model, task, space, selection=CHOSEN, effort=PAIRS)
    assert found.local.trace < -2 * found.trace_error
    made = plan(found, budget=64)
    assert made.sigma_star is None
    assert made.best.sigma <= found.trusted(64)


def test_without_a_gradient_there_is_no_distance_and_no_gain():
    model = attach_lora(tiny_llama(), rank=2, seed=0)
    space = ParamSpace.select(model, "lora_A")
    found = survey(model, RowsTask(), space, selection=Selection(select_size=3), effort=PAIRS)
    assert (found.local.gradient, found.local.trace, found.trusted(64)) == (0.0, 0.0, 0.0)
    assert found.trace_error == math.inf
    assert plan(found, budget=64).best is None


def test_one_candidate_is_planned_with_the_least_effort():
    effort = Effort.within(1)
    assert effort == EFFORTS[-1]
    model, task, space = quadratic(torch.linspace(0.5, 3, 40))
    assert plan(survey(model, task, space, effort=effort), budget=1).best is None


@dataclass(frozen=True)
class Doubled(RowsTask):
    """Twice the loss per token."""

    def loss(self, model, batch):
        return 2 * token_loss(model, batch)


def adapted():
    model = attach_lora(tiny_llama(), rank=2, seed=0)
    space = ParamSpace.select(model)
    space.write(model, 0.2 * torch.randn(space.dim, generator=generator(0, "pairs")))
    return model, space


def test_candidates_share_passes_only_if_the_loss_is_that_per_token():
    model, space = adapted()
    batch = next(RowsTask().batches("select", 3, 0))
    noise = Noise(0.1, antithetic=True)
    rises = []
    for task, shared in ((RowsTask(), True), (Doubled(), False)):
        place = Place(batch, float(task.loss(model, batch).detach()))
        losses = Losses(model, task, space, place)
        assert (losses.evaluator.layout is not None) is shared
        assert losses.at_start(batch).loss == pytest.approx(place.loss, rel=1e-5)
        rises.append(losses.rises(noise, range(5), place))
    torch.testing.assert_close(2 * rises[0], rises[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("probes", [4, 8, 16])
def test_a_survey_takes_about_what_its_effort_says(probes):
    """In rows of forward passes; a gradient takes as long as two more.

    The check of the slope aside: seven losses and a gradient, once for each model.
    """
    model, space = adapted()
    task = RowsTask(tuple(([i, 2, 3, 4], [5, i, 7]) for i in range(16)))
    rows = []
    model.register_forward_hook(lambda *call: rows.append(len(call[-1].logits)))
    effort, chosen = Effort(probes, products=False), Selection(select_size=16)
    survey(model, task, space, selection=chosen, effort=effort)
    taken = sum(rows) / 16 - 8 * CHECKED / 16 + 2 * effort.batches
    # A trial of sigma more or less is one pass.
    assert taken == pytest.approx(effort.cost(), abs=4)
