"""The survey of a quadratic is its gradient and curvature; the plan follows from them."""

import dataclasses
from pathlib import Path

import pytest
import torch

from frenet.geometry.basis import span_basis
from frenet.geometry.rng import generator
from frenet.geometry.theory import QuadraticModel, expected_maximum
from frenet.methods.candidates import Candidates, Noise
from frenet.methods.local_model import Effort, LocalModel, survey
from frenet.methods.plan import plan, plan_search
from frenet.methods.search import equal_step, random_search
from frenet.methods.search_result_files import load_winner
from frenet.methods.selection import Selection
from frenet.network.adapters import attach_lora
from frenet.network.space import ParamSpace
from frenet.network.synthetic.model import SyntheticTask
from measure.quadratic import Point, Quadratic, quadratic
from network.models import tiny_gpt2

CURVATURES = torch.linspace(-0.5, 3, 12)


@pytest.mark.parametrize("inside", [False, True])
def test_the_survey_of_a_quadratic(inside):
    """Of a diagonal Hessian, in the axes or in some of them, every probe gives the exact traces."""
    model, task, space = quadratic(CURVATURES)
    task = dataclasses.replace(task, H=torch.diag(CURVATURES))
    H, g = task.H.double(), task.gradient(space.read(model))
    where = space
    if inside:
        where = span_basis(torch.eye(space.dim)[[1, 4, 9]], space=space)
        U = where.U.double()
        H, g = U.T @ H @ U, U.T @ g
    found = survey(model, task, where, effort=Effort(2))
    assert found.local.dim == len(g)
    assert found.local.gradient == pytest.approx(float(g.norm()), rel=1e-5)
    assert found.local.along == pytest.approx(float(g @ H @ g), rel=1e-4)
    assert found.trace_error == pytest.approx(0, abs=1e-4)
    for value, power in (
        (found.local.trace, 1),
        (found.local.trace_square, 2),
        (found.local.trace_cube, 3),
    ):
        exact = float(torch.linalg.matrix_power(H, power).trace())
        assert value == pytest.approx(exact, rel=1e-4)
    assert found.transfer == pytest.approx(1.0, rel=1e-5)
    assert found.bend == pytest.approx(1.0, rel=1e-5)
    assert found.elsewhere is not None
    assert found.elsewhere.trace == pytest.approx(found.local.trace, rel=1e-5)


@dataclasses.dataclass(frozen=True)
class Quartic(Quadratic):
    """The quadratic, and c sum_i x_i^4."""

    c: float = 0.7

    def loss(self, model, batch):
        return super().loss(model, batch) + self.c * (model() ** 4).sum()


def test_fourth_order_terms_are_measured_beside_the_curvature():
    """At x = 0 each of d coordinates adds 3 c sigma^4, Var(z^4) = 96: within 4 standard errors.

    There are half as many pairs as probes.
    """
    d, probes = 200, 16
    model = Point(torch.zeros(d))
    task = Quartic(
        torch.diag(torch.linspace(-1, 3, d)), torch.randn(d, generator=generator(0, "m"))
    )
    found = survey(model, task, ParamSpace.select(model), effort=Effort(probes))
    error = 0.7 * (96 * d / (probes / 2)) ** 0.5
    assert found.local.quartic == pytest.approx(3 * 0.7 * d, abs=4 * error)
    plain = survey(
        model, Quadratic(task.H, task.minimum), ParamSpace.select(model), effort=Effort(probes)
    )
    assert abs(plain.local.quartic) < 1e-3 * found.local.quartic


def test_unlike_batches_transfer_less():
    """Random slopes add ||noise||^2 to the gradient's square and 0 to the product."""
    model, task, space = quadratic(CURVATURES, noise=1.0)
    shares = [survey(model, task, space, effort=Effort(2), seed=s).transfer for s in range(12)]
    assert 0 < sum(shares) / 12 < 0.95


SURVEY = LocalModel(QuadraticModel(dim=1000, gradient=2.0, trace=300.0), 5.0, 1.0, 1.0)


def test_the_plan_takes_sigma_star_where_everything_transfers():
    found = plan(SURVEY, budget=64)
    m = expected_maximum(64)
    assert found.sigma_star == pytest.approx(2 * m / 300, rel=1e-4)
    assert found.best is not None
    assert found.best.candidates == 64
    assert found.best.held_out == pytest.approx(4 * m**2 / 600, rel=1e-6)
    assert found.best.held_out == max(setting.held_out for setting in found.table)
    assert {setting.candidates for setting in found.table} == {4, 16, 64}


def test_with_less_transfer_the_plan_takes_a_smaller_sigma():
    half = plan(dataclasses.replace(SURVEY, transfer=0.5), budget=64)
    assert half.best is not None
    assert half.sigma_star is not None
    assert half.best.sigma == pytest.approx(half.sigma_star / 2, rel=1e-4)
    assert half.best.held_out < half.best.selected


@pytest.mark.parametrize("transfer", [0.0, -0.3])
def test_where_nothing_transfers_the_plan_says_so(transfer):
    found = plan(dataclasses.replace(SURVEY, transfer=transfer), budget=64)
    assert found.best is None
    assert "no gain is expected on held-out data" in found.advice


def test_the_table_has_four_counts_and_four_halvings_of_sigma():
    found = plan(SURVEY, budget=1000)
    assert found.best is not None
    assert {row.candidates for row in found.table} == {4, 16, 64, 256, 1000}
    shares = sorted({round(row.sigma / found.best.sigma, 6) for row in found.table})
    assert shares == [0.125, 0.25, 0.5, 1.0]


def test_the_advised_sigma_is_one_of_39_shares_of_the_largest():
    """From 0.05 in steps of 0.025: the nearest to the one that is best on other data."""
    for wanted in (0.05, 0.075, 0.4, 0.975):
        # If a share t of the slope transfers, the best sigma is t times sigma*.
        made = plan(dataclasses.replace(SURVEY, transfer=wanted), budget=64)
        assert made.best is not None
        assert made.sigma_star is not None
        assert made.best.sigma / made.sigma_star == pytest.approx(wanted, rel=1e-6)


def test_one_candidate_is_no_search():
    assert plan(SURVEY, budget=1).best is None
    two = plan(SURVEY, budget=2).best
    assert two is not None
    assert two.held_out == pytest.approx(4 / torch.pi / 600, rel=1e-6)  # m_2 = 1 / sqrt(pi)
    with pytest.raises(ValueError, match="budget=0 is below one candidate"):
        plan(SURVEY, budget=0)


@pytest.mark.parametrize(("trace", "error"), [(-300.0, 1.0), (10.0, 6.0)])
def test_without_a_clearly_positive_trace_the_linear_range_is_the_limit(trace, error):
    local = QuadraticModel(dim=1000, gradient=2.0, trace=trace, trace_square=900.0)
    found = plan(LocalModel(local, 5.0, 1.0, error), budget=64)
    assert found.sigma_star is None
    assert found.best is not None
    assert found.best.sigma == pytest.approx(local.linear_range())
    assert "the trace of the Hessian is not clearly positive" in found.advice


def test_a_best_sigma_beyond_the_quadratic_model_is_none() -> None:
    """At sigma* = m ||g|| / tr(H) the spread by curvature may not exceed that by slope."""
    star = 2 * expected_maximum(64) / 300
    limit = 2 * (2 / star) ** 2  # tr(H^2) at which sigma* sqrt(tr(H^2) / 2) = ||g||
    for share, there in ((0.98, True), (1.02, False)):
        local = dataclasses.replace(SURVEY.local, trace_square=share * limit)
        found = plan(dataclasses.replace(SURVEY, local=local), budget=64)
        assert (found.sigma_star is not None) is there


def test_winners_pay_for_the_curvature_of_other_data() -> None:
    """Twice the trace elsewhere: the best sigma and its gain are half as large."""
    elsewhere = dataclasses.replace(SURVEY.local, trace=600.0)
    found = plan(dataclasses.replace(SURVEY, elsewhere=elsewhere), budget=64)
    m = expected_maximum(64)
    assert found.best is not None
    assert found.best.sigma == pytest.approx(2 * m / 600, rel=0.03)
    assert found.best.held_out == pytest.approx(4 * m**2 / 1200, rel=1e-2)
    assert found.best.selected == pytest.approx(SURVEY.local.gain(found.best.sigma, 64))


def test_where_other_data_are_flatter_the_plan_goes_beyond_sigma_star() -> None:
    """Half the trace elsewhere: the luck of the slope pays up to twice the sigma."""
    elsewhere = dataclasses.replace(SURVEY.local, trace=150.0)
    found = plan(dataclasses.replace(SURVEY, elsewhere=elsewhere), budget=64)
    m = expected_maximum(64)
    assert found.best is not None
    assert found.sigma_star == pytest.approx(2 * m / 300, rel=1e-4)
    assert found.best.sigma == pytest.approx(2 * m / 150, rel=1e-3)
    assert found.best.held_out == pytest.approx(4 * m**2 / 300, rel=1e-5)


def test_a_best_sigma_may_gain_all_the_loss_and_no_more():
    star = SURVEY.best(64)
    assert star is not None
    assert dataclasses.replace(SURVEY, loss=star.gain).best(64) == star
    assert dataclasses.replace(SURVEY, loss=star.gain * (1 - 1e-9)).best(64) is None


@pytest.mark.parametrize(("transfer", "share"), [(2.0, 1.0), (0.5, 0.5), (0.0, 0.0), (-1.0, 0.0)])
def test_what_does_not_transfer_does_not_count_elsewhere(transfer: float, share: float):
    """sigma* = share m ||g|| / tr(H) with the trace of the other data."""
    elsewhere = dataclasses.replace(SURVEY.local, trace=600.0)
    found = dataclasses.replace(SURVEY, elsewhere=elsewhere, transfer=transfer)
    star = share * 2 * expected_maximum(64) / 600
    assert found.best_sigma_held_out(64) == pytest.approx(star, rel=1e-4, abs=1e-12)
    assert dataclasses.replace(SURVEY, transfer=transfer).best_sigma_held_out(64) == 0.0


def test_no_more_is_promised_than_there_is_to_gain():
    found = plan(dataclasses.replace(SURVEY, loss=0.01), budget=64)
    assert 0 < max(setting.held_out for setting in found.table) <= 0.01
    assert found.sigma_star is None  # at m ||g|| / tr(H) the model would gain 0.17
    assert found.best is not None
    assert found.best.sigma == pytest.approx(0.01 / (2 * expected_maximum(64)))


def test_a_zero_gradient_predicts_no_gain_and_says_why():
    """lora_A of a new adapter: B is zero, so that the loss does not depend on A."""
    model = attach_lora(tiny_gpt2(), rank=2, seed=0)
    task = SyntheticTask("reverse")
    found = survey(
        model, task, ParamSpace.select(model, "lora_A"), effort=Effort(2),
        selection=Selection(select_size=4, test_size=4),
    )  # fmt: skip
    assert (found.local.gradient, found.transfer, found.trusted(64)) == (0.0, 0.0, 0.0)
    made = plan(found, budget=64)
    assert made.best is None
    assert all(row.held_out == row.selected == 0.0 for row in made.table)
    assert "gradient on the selection batch is zero in all 96 coordinates" in made.advice


def test_a_linear_loss_without_curvature_is_planned_as_far_as_there_is_loss():
    found = LocalModel(QuadraticModel(dim=4, gradient=2.0, trace=0.0), 1.0, 1.0, 0.0)
    made = plan(found, budget=64)
    assert made.linear_up_to == float("inf")
    assert made.best.sigma == pytest.approx(1.0 / (expected_maximum(64) * 2.0))
    assert made.best.held_out == pytest.approx(1.0)


def test_no_loss_left_is_no_gain():
    found = LocalModel(
        QuadraticModel(dim=4, gradient=1e-9, trace=1.0, trace_square=1.0), 0.0, 1.0, 0.0
    )
    made = plan(found, budget=64)
    assert made.best is None
    assert "loss on the selection batch is already zero" in made.advice


@pytest.mark.parametrize("worth", [0.003, 0.01, 0.05, 0.15])
def test_a_worthwhile_search_ends_where_the_gain_minus_its_price_is_largest(worth: float) -> None:
    """Within 3% of the best of all numbers of candidates, each at its best sigma.

    N candidates gain 4 m^2 / 600, and cost W N / 100.
    """
    gains = {n: 4 * expected_maximum(n) ** 2 / 600 for n in range(2, 513)}
    net = {n: gain - worth * n / 100 for n, gain in gains.items()}
    found = plan(SURVEY, budget=512, worth=worth)
    assert found.best is not None
    assert found.worth is not None
    assert net[found.best.candidates] >= 0.97 * max(net.values())
    assert found.worth.candidates == found.best.candidates
    assert found.worth.further < worth
    assert found.worth.low < found.best.held_out < found.worth.high
    assert found.worth.single == pytest.approx(-300 * found.best.sigma**2 / 2, rel=1e-6)
    assert found.advice.startswith(f"worth it up to {found.best.candidates} candidates")


def test_a_search_may_be_worth_nothing_or_all_of_the_budget() -> None:
    """Five candidates gain the most for each, 4 m^2 / 3000 with m = 1.163."""
    most = 100 * 4 * expected_maximum(5) ** 2 / 3000
    assert plan(SURVEY, budget=64, worth=0.95 * most).best is not None
    nothing = plan(SURVEY, budget=64, worth=1.05 * most)
    assert nothing.best is None
    assert nothing.worth is not None
    assert nothing.worth.candidates == 0
    assert nothing.advice.startswith("not worth it: ")
    for never in (dataclasses.replace(SURVEY, transfer=0.0), dataclasses.replace(SURVEY, loss=0.0)):
        found = plan(never, budget=64, worth=1e-9)
        assert found.best is None
        assert found.advice.startswith("not worth it: no gain is expected")
    whole = plan(SURVEY, budget=64, worth=1e-6)
    assert whole.best == plan(SURVEY, budget=64).best
    assert "for all 64 candidates of the budget" in whole.advice
    for worth in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="pass a finite number above 0"):
            plan(SURVEY, budget=64, worth=worth)


def test_more_candidates_never_gain_less_within_a_plan() -> None:
    """Also if only that of the few has a best sigma inside the quadratic model."""
    star = 2 * expected_maximum(512) / 300
    limit = 2 * (2 / star) ** 2
    local = dataclasses.replace(SURVEY.local, trace_square=1.5 * limit)
    bent = dataclasses.replace(SURVEY, local=local)
    assert bent.best(8) is not None
    assert bent.best(512) is None
    whole = plan(bent, budget=512, worth=1e-9)
    assert whole.best is not None
    assert whole.best.candidates == 512


def test_further_candidates_improve_on_the_best_so_far() -> None:
    """The mean of max(best - lowest of n, 0), from a million draws."""
    change = QuadraticModel(1000, 2.0, 30.0, 90.0, along=50.0).change(0.05)
    draws = change.quantile(torch.rand(10_000, 100, generator=generator(0, "m")).double().numpy())
    lowest = torch.from_numpy(draws).min(1).values
    for best in (0.0, float(lowest.mean()), float(lowest.mean()) - change.std):
        gains = (best - lowest).clamp(min=0)
        error = float(gains.std()) / 100
        assert change.improvement(best, 100) == pytest.approx(float(gains.mean()), abs=4 * error)
    assert change.improvement(10.0, 100) == pytest.approx(10.0 - change.best_of(100))


def test_a_plan_goes_into_a_search_as_it_is(tmp_path: Path) -> None:
    model = tiny_gpt2()
    task = SyntheticTask("copy")
    space = ParamSpace.select(model, "ln_f")
    chosen = Selection(select_size=8, test_size=16, seed=3)
    made = plan_search(model, task, space, budget=8, selection=chosen, kind="signs")
    assert made.best is not None
    found = random_search(model, task, space, made)
    assert found.noise == Noise(made.best.sigma, seed=3, kind="signs")
    assert len(found.scores) == 8
    again = random_search(model, task, space, noise=found.noise, num_candidates=8, selection=chosen)
    assert torch.equal(found.scores, again.scores)
    assert len(random_search(model, task, space, made, num_candidates=3).scores) == 3
    folder = found.save(tmp_path / "winner")
    with Candidates(model, space, found.noise) as candidates:
        assert torch.equal(load_winner(model, space, folder), candidates.delta(found.winner))


def test_a_search_without_settings_or_gain_is_refused() -> None:
    model = tiny_gpt2()
    space = ParamSpace.select(model, "ln_f")
    with pytest.raises(ValueError, match="needs a plan from plan_search, or noise="):
        random_search(model, SyntheticTask("copy"), space, noise=Noise(0.1))
    nothing = plan(dataclasses.replace(SURVEY, transfer=0.0), budget=64)
    with pytest.raises(ValueError, match="pass noise= and num_candidates= to search anyway"):
        random_search(model, SyntheticTask("copy"), space, nothing)
    with pytest.raises(ValueError, match="names no model"):
        dataclasses.replace(
            random_search(
                model, SyntheticTask("copy"), space, noise=Noise(0.1), num_candidates=1,
                selection=Selection(select_size=4, test_size=4),
            ),
            place=None,
        ).save("anywhere")  # fmt: skip


@pytest.mark.parametrize("inside", [False, True])
def test_a_gradient_step_as_long_as_the_winner(inside: bool) -> None:
    """Of a quadratic: r ||g|| - r^2 g.Hg / (2 ||g||^2), with g inside the basis."""
    model, task, space = quadratic(CURVATURES)
    g = task.gradient(space.read(model))
    where = space
    if inside:
        where = span_basis(torch.eye(space.dim)[[1, 4, 9]], space=space)
        g = where.U.double() @ (where.U.double().T @ g)
    noise, chosen = Noise(0.05), Selection(_quadratic_score, select_size=1, test_size=1)
    with Candidates(model, where, noise) as candidates:
        r = float(candidates.delta(2).norm())
    found = equal_step(model, task, where, noise=noise, index=2, selection=chosen)
    assert found is not None
    unit = g / g.norm()
    full = task.gradient(space.read(model))
    expected = r * float(unit @ full) - r**2 * float(unit @ task.H.double() @ unit) / 2
    assert found.gain.value == pytest.approx(expected, rel=1e-4)


def _quadratic_score(model, batch):
    _, task, _ = quadratic(CURVATURES)
    return -float(task.loss(model, {"slope": torch.zeros(1, len(CURVATURES))}))
