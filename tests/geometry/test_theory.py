"""Predictions of random search: closed forms, and Monte Carlo on linear and quadratic losses."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from frenet.geometry.rng import generator
from frenet.geometry.theory import (
    LossChange,
    QuadraticModel,
    best_sigma,
    candidates_for,
    expected_maximum,
    shrinkage,
    transfer,
)


@pytest.mark.parametrize(
    ("n", "exact"),
    [
        (1, 0.0),
        (2, 1 / math.pi**0.5),
        (3, 1.5 / math.pi**0.5),
        # From here on as tabulated by Harter (1961), Expected values of normal order statistics.
        (4, 1.0293753730),
        (5, 1.1629644736),
        (100, 2.5075936364),
    ],
)
def test_expected_maxima_of_normals(n: int, exact: float) -> None:
    assert expected_maximum(n) == pytest.approx(exact, abs=1e-9)


def test_the_asymptote_is_approached_slowly_and_from_below() -> None:
    ratios = [expected_maximum(n) / math.sqrt(2 * math.log(n)) for n in (1e2, 1e6, 1e12)]
    assert ratios == sorted(ratios)
    assert 0.8 < ratios[0] < ratios[-1] < 1


@pytest.mark.parametrize("n", [1, 2, 7, 300])
def test_exponential_changes_have_harmonic_minima(n: int) -> None:
    """Skew 2 is the exponential distribution: the lowest of n has mean 1 / n; the highest H_n."""
    assert LossChange(1.0, 1.0, 2.0).best_of(n) == pytest.approx(1 / n, rel=1e-9)
    harmonic = sum(1 / i for i in range(1, n + 1))
    assert LossChange(-1.0, 1.0, -2.0).best_of(n) == pytest.approx(-harmonic, rel=1e-9)


@pytest.mark.parametrize("skew", [-2.0, -0.3, 0.0, 0.3, 2.0])
def test_the_distribution_is_pearsons_third_type(skew: float) -> None:
    change, p = LossChange(1.0, 2.0, skew), np.array([0.001, 0.2, 0.5, 0.97])
    other = stats.pearson3(skew, loc=1.0, scale=2.0)
    assert change.quantile(p) == pytest.approx(other.ppf(p), rel=1e-9)
    assert change.cdf(change.quantile(p)) == pytest.approx(p, rel=1e-9)
    assert change.cdf(other.ppf(p)) == pytest.approx(p, rel=1e-6)


def test_skew_goes_over_into_the_normal_distribution_smoothly() -> None:
    p = np.array([0.01, 0.5, 0.99])
    normal = LossChange(0.0, 1.0, 0.0).quantile(p)
    for skew in (1e-3, 2e-5, 0.9e-5):
        assert LossChange(0.0, 1.0, skew).quantile(p) == pytest.approx(normal, abs=2 * skew + 1e-6)


@pytest.mark.parametrize("skew", [0.0, 0.8])
def test_bands_hold_the_best_as_often_as_they_say(skew: float) -> None:
    change, n, repeats = LossChange(0.5, 2.0, skew), 20, 4000
    draws = stats.pearson3(skew, loc=0.5, scale=2.0).rvs(
        (repeats, n), random_state=np.random.default_rng(0)
    )
    best = draws.min(1)
    low, high = change.best_band(n)
    inside = float(((best > low) & (best < high)).mean())
    assert abs(inside - 0.95) < 4 * (0.95 * 0.05 / repeats) ** 0.5
    assert abs(best.mean() - change.best_of(n)) < 4 * best.std() / repeats**0.5


def quadratic(d: int = 12) -> tuple[torch.Tensor, torch.Tensor, QuadraticModel]:
    """An indefinite Hessian, a gradient, and their scalars."""
    draw = generator(0, "theory")
    A = torch.randn(d, d, generator=draw, dtype=torch.float64) / d**0.5
    H, g = (A + A.T) / 2 + 0.2 * torch.eye(d), torch.randn(d, generator=draw, dtype=torch.float64)
    local = QuadraticModel(
        dim=d,
        gradient=float(g.norm()),
        trace=float(H.trace()),
        trace_square=float((H @ H).trace()),
        along=float(g @ H @ g),
        trace_cube=float((H @ H @ H).trace()),
    )
    return H, g, local


@pytest.mark.parametrize("sigma", [0.05, 0.5, 1.5])
def test_three_moments_of_a_quadratic(sigma: float) -> None:
    """Mean, variance and third central moment from 200,000 draws, within 4 standard errors."""
    H, g, local = quadratic()
    z = torch.randn(200_000, len(g), generator=generator(1, "draws"), dtype=torch.float64)
    changes = (sigma * z @ g + sigma**2 * ((z @ H) * z).sum(1) / 2).numpy()
    predicted, n = local.change(sigma), len(changes)
    assert abs(changes.mean() - predicted.mean) < 4 * predicted.std / n**0.5
    centred = changes - predicted.mean
    for power, expected in ((2, predicted.std**2), (3, predicted.skew * predicted.std**3)):
        values = centred**power
        assert abs(values.mean() - expected) < 4 * values.std() / n**0.5


def test_skew_brings_the_prediction_closer_where_curvature_matters() -> None:
    """H = I, ||g|| = 4, sigma = 0.5, d = 30: exactly a noncentral chi-square distribution."""
    d, sigma, n = 30, 0.5, 200
    local = QuadraticModel(d, 4.0, float(d), float(d), 16.0, float(d))
    exact = stats.ncx2(d, (4.0 / sigma) ** 2)
    scale, shift = sigma**2 / 2, -(4.0**2) / 2
    p = (np.arange(200_000) + 0.5) / 200_000
    lowest = float((scale * exact.ppf(1 - (1 - p) ** (1 / n)) + shift).mean())
    change = local.change(sigma)
    skewed = abs(change.best_of(n) - lowest)
    normal = abs(LossChange(change.mean, change.std).best_of(n) - lowest)
    assert skewed < 0.1 * normal


def test_a_linear_loss_gains_m_n_sigma_gradient() -> None:
    linear = QuadraticModel(dim=50, gradient=3.0, trace=0.0)
    for n in (2, 64, 4096):
        assert linear.gain(0.1, n) == pytest.approx(expected_maximum(n) * 0.3, rel=1e-9)
    assert linear.linear_range() == math.inf
    assert best_sigma(linear, 64) is None


def test_sigma_star_is_the_closed_form_and_is_a_maximum() -> None:
    local = QuadraticModel(dim=1000, gradient=2.0, trace=300.0)
    for n in (2, 16, 512):
        found, m = best_sigma(local, n), expected_maximum(n)
        assert found is not None
        assert found.sigma == pytest.approx(m * 2 / 300, rel=1e-4)
        assert found.gain == pytest.approx(m**2 * 4 / 600, rel=1e-6)
        for factor in (0.9, 1.1):
            assert local.gain(found.sigma * factor, n) < found.gain
    half = best_sigma(local, 16, transfer=0.5)
    whole = best_sigma(local, 16)
    assert half is not None
    assert whole is not None
    assert half.sigma == pytest.approx(whole.sigma / 2, rel=1e-4)
    assert half.gain == pytest.approx(whole.gain / 4, rel=1e-6)


@pytest.mark.parametrize("trace", [1e5, 1e6, 1e9])
@pytest.mark.parametrize("quartic", [0.0, 0.1])
def test_a_small_sigma_star_is_as_exact_as_a_large_one(trace: float, quartic: float) -> None:
    """In units of m / t the loss is u^2 / 2 + c u^4 - u, whatever the trace."""
    m = expected_maximum(50)
    found = best_sigma(QuadraticModel(1, 1.0, trace, quartic=quartic * trace**3 / m**2), 50)
    assert found is not None
    u = found.sigma * trace / m
    assert u + 4 * quartic * u**3 == pytest.approx(1, rel=1e-2)
    assert found.gain * trace / m**2 == pytest.approx(u - u**2 / 2 - quartic * u**4, rel=1e-9)


@pytest.mark.parametrize("trace", [0.0, -5.0])
def test_without_positive_trace_there_is_no_sigma_star(trace: float) -> None:
    local = QuadraticModel(dim=10, gradient=1.0, trace=trace, trace_square=4.0)
    assert best_sigma(local, 64) is None
    assert local.density_over_curvature() is None
    assert 0 < local.linear_range() < math.inf
    assert math.isfinite(local.gain(0.1, 64))


def test_no_more_is_gained_than_there_is_and_one_candidate_gains_nothing() -> None:
    local = QuadraticModel(dim=10, gradient=1.0, trace=0.01)
    found = best_sigma(local, 64, to_gain=0.7)
    assert found is not None
    assert found.gain == 0.7
    assert best_sigma(local, 1) is None


def test_a_noisy_score_keeps_s_over_its_root_sum_of_squares() -> None:
    """Select the best of 50 by score + noise, 20,000 times: the true gain of the winner."""
    local, noise, n = QuadraticModel(dim=5, gradient=1.0, trace=0.0), 1.5, 50
    draw = np.random.default_rng(0)
    changes = draw.normal(0, 1, (20_000, n))
    chosen = (changes + draw.normal(0, noise, changes.shape)).argmin(1)
    gains = -changes[np.arange(len(changes)), chosen]
    expected = local.gain(1.0, n, noise=noise)
    assert abs(gains.mean() - expected) < 4 * gains.std() / len(gains) ** 0.5
    assert expected == pytest.approx(expected_maximum(n) * shrinkage(1.0, noise))


def test_what_transfers_is_the_regression_of_one_change_on_the_other() -> None:
    draw = generator(3, "transfer")
    g, other = (torch.randn(8, generator=draw, dtype=torch.float64) for _ in range(2))
    z = torch.randn(20_000, 50, 8, generator=draw, dtype=torch.float64)
    winner = z[torch.arange(20_000), (z @ g).argmin(1)]
    gains = -(winner @ other)
    share = transfer(float(g @ other), float(g.norm()))
    expected = QuadraticModel(8, float(g.norm()), 0.0).gain(1.0, 50, transfer=share)
    assert abs(float(gains.mean()) - expected) < 4 * float(gains.std()) / 20_000**0.5


def test_signal_densities() -> None:
    local = QuadraticModel(dim=4, gradient=2.0, trace=8.0, trace_square=16.0, along=8.0)
    assert local.signal_density() == 1.0
    assert local.density_over_curvature() == 0.5


def test_the_linear_range_is_where_the_second_order_spread_is_a_fifth() -> None:
    local = QuadraticModel(dim=4, gradient=2.0, trace=8.0, trace_square=18.0)
    sigma = local.linear_range()
    assert sigma**2 * 3 == pytest.approx(0.2 * sigma * 2)


def test_how_many_candidates_a_gain_takes() -> None:
    local = QuadraticModel(dim=4, gradient=2.0, trace=8.0)
    wanted = local.gain(0.1, 37)
    assert candidates_for(local, 0.1, wanted) == pytest.approx(37, rel=1e-6)
    assert candidates_for(local, 0.1, local.gain(0.1, 1.4)) == pytest.approx(1.4, rel=1e-6)
    assert candidates_for(local, 0.1, -1.0) == 1.0
    assert candidates_for(local, 0.1, 100.0) is None
    linear = QuadraticModel(dim=1, gradient=1.0, trace=0.0)
    most = 1e12
    assert candidates_for(linear, 1.0, expected_maximum(0.99 * most)) == pytest.approx(0.99 * most)
    assert candidates_for(linear, 1.0, expected_maximum(1.01 * most)) is None


def test_moments_by_hand_of_small_and_of_flat_losses() -> None:
    """sigma = 0.1: variance 0.01 * 0.25 + 1e-4 * 8 / 2 = 0.0029, third 3e-4 * 0.5 + 1e-6 * 4."""
    change = QuadraticModel(9, 0.5, 0.6, 8.0, along=0.5, trace_cube=4.0, quartic=2.0).change(0.1)
    assert change.mean == pytest.approx(0.01 * 0.3 + 1e-4 * 2, rel=1e-12)
    assert change.std**2 == pytest.approx(0.0029, rel=1e-12)
    assert change.skew * change.std**3 == pytest.approx(1.54e-4, rel=1e-12)
    assert QuadraticModel(9, 0.0, 2.0).change(1.0) == LossChange(1.0, 0.0, 0.0)


def test_losses_of_small_slope_and_curvature_have_the_closed_forms() -> None:
    local = QuadraticModel(dim=4, gradient=0.25, trace=0.5, trace_square=0.005)
    m = expected_maximum(2)
    assert local.curved(2.0) == pytest.approx(2 * 0.05 / 0.25)
    assert local.linear_range() == pytest.approx(0.2 / (0.05 / 0.25))
    assert local.density_over_curvature() == pytest.approx(0.125)
    assert transfer(0.01, 0.25) == pytest.approx(0.16)
    found = best_sigma(local, 2)
    assert found is not None
    assert found.sigma == pytest.approx(m * 0.25 / 0.5, rel=1e-4)
    assert found.gain == pytest.approx(m**2 * 0.0625 / 1, rel=1e-6)


def test_by_default_other_data_see_the_whole_slope_no_curvature_and_no_noise() -> None:
    """Of slope and curvature 1 : 3 in the variance, a fourth of the luck is of the slope."""
    local = QuadraticModel(dim=4, gradient=1.0, trace=2.0, trace_square=6.0)
    change = local.change(1.0)
    luck = change.mean - change.best_of(16)
    assert local.held_out_gain(1.0, 16) == pytest.approx(luck / 4 - 1, rel=1e-12)
    # Noise of the score with the deviation sqrt(12): 1 of 4 + 12 in the root of the variances.
    noisy = local.held_out_gain(1.0, 16, noise=12**0.5, bend=1.0, mean=0.0)
    assert noisy == pytest.approx(luck * 4 / (2 * 4), rel=1e-12)


def test_less_than_one_candidate_is_refused() -> None:
    with pytest.raises(ValueError, match="n=0 candidates; pass 1 or more"):
        LossChange(0.0, 1.0).best_of(0)
    with pytest.raises(ValueError, match="n=nan candidates"):
        expected_maximum(math.nan)


def test_fourth_order_terms_pull_the_best_sigma_in():
    """m g = t sigma + 4 q sigma^3 at the maximum; a negative q counts as none."""
    m, g, t, q = expected_maximum(64), 2.0, 100.0, 3e4
    plain = best_sigma(QuadraticModel(dim=1000, gradient=g, trace=t), 64)
    found = best_sigma(QuadraticModel(dim=1000, gradient=g, trace=t, quartic=q), 64)
    assert plain is not None
    assert found is not None
    assert t * found.sigma + 4 * q * found.sigma**3 == pytest.approx(m * g, rel=1e-3)
    gain = m * g * found.sigma - t * found.sigma**2 / 2 - q * found.sigma**4
    assert found.gain == pytest.approx(gain, rel=1e-6)
    flat = best_sigma(QuadraticModel(dim=1000, gradient=g, trace=t, quartic=-q), 64)
    assert flat == plain


def test_on_other_data_the_winner_keeps_its_share_of_slope_and_curvature():
    """Simulated: the other data have 0.6 of the slope and 0.3 of the curvature of the first."""
    d, n, sigma = 40, 16, 0.3
    stream = np.random.default_rng(0)
    g, h = stream.normal(size=d), stream.normal(size=d)
    z = stream.normal(size=(4000, n, d))
    slope, curve = sigma * (z @ g), sigma**2 * (z**2 - 1) @ h / 2
    winner = (slope + curve).argmin(1)[:, None]
    other = 0.6 * np.take_along_axis(slope, winner, 1) + 0.3 * np.take_along_axis(curve, winner, 1)
    local = QuadraticModel(d, float(np.linalg.norm(g)), 0.0, float(h @ h), float(g @ (h * g)))
    expected = local.held_out_gain(sigma, n, transfer=0.6, bend=0.3)
    assert -other.mean() == pytest.approx(expected, abs=4 * other.std() / 4000**0.5)


def test_without_a_slope_or_spread_there_is_an_answer():
    """No division by zero: the luck of a flat loss is 0, its distribution a step."""
    flat = QuadraticModel(dim=4, gradient=0.0, trace=0.0)
    assert transfer(0.0, 0.0) == 0.0
    assert flat.gain(0.1, 64) == flat.held_out_gain(0.1, 64) == 0.0
    assert best_sigma(flat, 64) is None
    assert flat.linear_range() == 0.0
    change = QuadraticModel(dim=4, gradient=0.0, trace=2.0).change(1.0)
    assert change.cdf(np.array([0.9, 1.0, 1.1])).tolist() == [0.0, 1.0, 1.0]
    assert change.best_of(8) == pytest.approx(1.0)


def test_under_signs_the_moments_are_those_of_all_signs():
    draw = np.random.default_rng(0)
    g, H, sigma = draw.normal(size=7), draw.normal(size=(7, 7)), 0.3
    H = H + H.T
    z = np.array(list(itertools.product((-1.0, 1.0), repeat=7)))
    changes = sigma * z @ g + sigma**2 / 2 * np.einsum("ni,ij,nj->n", z, H, z)
    diagonal = np.diag(H)
    model = QuadraticModel(
        7,
        float(np.linalg.norm(g)),
        float(np.trace(H)),
        float(np.trace(H @ H)),
        float(g @ H @ g),
        trace_cube=float(np.trace(H @ H @ H)),
        diagonal_square=float(diagonal @ diagonal),
        along_diagonal=float(g**2 @ diagonal),
    )
    predicted = model.under_signs().change(sigma)
    assert predicted.mean == pytest.approx(changes.mean())
    assert predicted.std == pytest.approx(changes.std())
    rest = H - np.diag(diagonal)
    beyond = sigma**6 * np.trace(rest @ rest @ rest)
    third = np.mean((changes - changes.mean()) ** 3)
    assert predicted.skew * predicted.std**3 + beyond == pytest.approx(third)
    assert model.change(sigma).std > 1.1 * predicted.std
