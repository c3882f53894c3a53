"""Cosines and their nulls: by hand, against other implementations, and under the null itself."""

import numpy as np
import pytest
import torch
from scipy import stats

from frenet.geometry.alignment import (
    Contrasted,
    adjusted,
    cosine,
    cosines,
    matched_cosines,
    matched_vectors,
    shrinkage,
    shrunk_covariance,
    shuffled_cosines,
    shuffled_differences,
    significance,
    whitened_cosines,
    without,
)
from frenet.geometry.rng import generator


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, "alignment"), dtype=torch.float64)


def streams(p=12, n=12, h=6, *, seed=0, paired=False):
    """Anisotropic streams without any difference between the sides."""
    rows = randn(p + n, h, seed=seed) * torch.tensor([9.0, 3, 1, 1, 0.3, 0.1])[:h] + 5
    return Contrasted(rows[:p], rows[p:], paired)


def test_the_difference_is_that_of_the_means():
    found = Contrasted(torch.tensor([[1.0, 2], [3, 4]]), torch.tensor([[1.0, 1]]))
    assert found.difference().tolist() == [1.0, 2.0]


def test_cosines_of_zero_vectors_are_zero():
    rows = torch.tensor([[0.0, 0], [3, 4]])
    assert cosines(rows, torch.tensor([1.0, 0])).tolist() == pytest.approx([0, 0.6])
    assert cosine(rows[1], torch.zeros(2)) == 0


@pytest.mark.parametrize("paired", [False, True])
def test_shuffled_differences_are_those_of_shuffled_labels(paired):
    """Exactly the labellings of 2 + 2 rows occur; pairs only swap their sides."""
    found = streams(2, 2, paired=paired)
    rows = found.rows
    seen = {
        tuple(v.round(decimals=9).tolist())
        for v in shuffled_differences(found, 300, generator(0, "s"))
    }
    labellings = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    if paired:  # rows 0 and 2 are a pair, and 1 and 3
        labellings = [(0, 1), (0, 3), (2, 1), (2, 3)]
    wanted = set()
    for first in labellings:
        rest = [i for i in range(4) if i not in first]
        v = rows[list(first)].mean(0) - rows[rest].mean(0)
        wanted.add(tuple(v.round(decimals=9).tolist()))
    assert seen == wanted


def test_pairs_need_equal_sides():
    with pytest.raises(ValueError, match="3 positive and 2 negative rows cannot be pairs"):
        shuffled_differences(streams(3, 2, paired=True), 4, generator(0, "s"))


@pytest.mark.parametrize("paired", [False, True])
def test_p_values_are_uniform_where_labels_mean_nothing(paired):
    """300 data sets: the share below 0.05, 0.25 and 0.5 within 4 standard errors, never beyond."""
    direction = randn(6, seed=99) * torch.tensor([9.0, 3, 1, 1, 0.3, 0.1])
    found = []
    for seed in range(300):
        sides = streams(seed=seed, paired=paired)
        null = shuffled_cosines(sides, direction, shuffles=99, generator=generator(seed, "n"))
        found.append(significance(cosine(sides.difference(), direction), null).p)
    for level in (0.05, 0.25, 0.5):
        share = np.mean([p <= level + 1e-9 for p in found])
        assert abs(share - level) < 4 * (level * (1 - level) / 300) ** 0.5


def test_a_planted_direction_is_found():
    """h = noise + label * v with |v| at 10 times the noise of the mean."""
    v = randn(40, seed=5)
    rows = randn(200, 40, seed=1)
    sides = Contrasted(rows[:100] + v, rows[100:])
    difference = sides.difference()
    assert cosine(difference, v) > 0.97
    null = shuffled_cosines(sides, v, shuffles=200, generator=generator(0, "n"))
    found = significance(cosine(difference, v), null)
    assert found.p == pytest.approx(1 / 201)
    assert found.z > 2


def test_matched_vectors_have_the_covariance_of_the_streams():
    rows, draws = streams(40, 40).rows, 4000
    drawn = matched_vectors(rows, draws, generator(0, "m"))
    wanted = torch.cov(rows.T, correction=0) * len(rows)
    error = (wanted.diag()[:, None] * wanted.diag() * 2 / draws) ** 0.5
    assert ((drawn.T @ drawn / draws - wanted).abs() < 4.5 * error).all()
    direction = rows[0]
    got = matched_cosines(rows, direction, draws=draws, generator=generator(0, "m"))
    torch.testing.assert_close(got, cosines(drawn, direction))


def test_the_isotropic_null_is_too_low_for_anisotropic_streams():
    rows = streams(40, 40).rows
    along = torch.eye(6, dtype=torch.float64)[0]
    null = matched_cosines(rows, along, draws=500, generator=generator(0, "m")).abs()
    assert float(null.median()) > 2 * 6**-0.5


def test_the_shrunk_covariance_is_that_of_scikit_learn():
    covariance = pytest.importorskip("sklearn.covariance")
    for n, seed in ((8, 0), (40, 1), (400, 2)):
        rows = randn(n, 12, seed=seed) * torch.linspace(0.2, 3, 12)
        wanted, _ = covariance.ledoit_wolf(rows.numpy(), assume_centered=True)
        np.testing.assert_allclose(shrunk_covariance(rows).numpy(), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("unit", [0.1, 10.0])
def test_the_shrunk_covariance_knows_no_unit(unit):
    """S(c X) = c^2 S(X): how much is shrunk depends on shapes, not on the unit of the streams."""
    rows = randn(20, 12) * torch.linspace(0.2, 3, 12)
    torch.testing.assert_close(
        shrunk_covariance(unit * rows), unit**2 * shrunk_covariance(rows), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("paired", [False, True])
def test_whitened_cosines_are_those_within_the_sides(paired):
    """For every labelling, against the covariance within its own sides, formed in full."""
    sides = streams(30, 30, paired=paired)
    rows, s = sides.rows, randn(6, seed=3)
    centred = rows - rows.mean(0)
    rho, mu = shrinkage(centred), float(centred.square().sum(1).mean()) / 6
    shuffled = shuffled_differences(sides, 5, generator(0, "s"))
    found = whitened_cosines(sides, torch.cat([sides.difference()[None], shuffled]), s)
    for v, value in zip((sides.difference(), *shuffled), found, strict=True):
        within = torch.cov(rows.T, correction=0) - torch.outer(v, v) / 4
        M = torch.linalg.inv((1 - rho) * within + rho * mu * torch.eye(6).double())
        wanted = v @ M @ s / ((v @ M @ v) * (s @ M @ s)).sqrt()
        assert float(value) == pytest.approx(float(wanted), rel=1e-9)
    torch.testing.assert_close(
        torch.cov(sides.positive.T, correction=0) + torch.cov(sides.negative.T, correction=0),
        2 * (torch.cov(rows.T, correction=0) - torch.outer(*[sides.difference()] * 2) / 4),
    )


def test_whitening_undoes_a_change_of_basis():
    """With many streams, x -> M x of streams, v -> M v of vectors leaves the whitened cosine."""
    sides = Contrasted(randn(4000, 5) + randn(5, seed=2), randn(4000, 5, seed=1))
    b = randn(5, seed=3)
    M = torch.diag(torch.tensor([3.0, 1, 1, 1, 0.5], dtype=torch.float64))
    moved = Contrasted(sides.positive @ M.T, sides.negative @ M.T)
    here = float(whitened_cosines(sides, sides.difference()[None], b))
    there = float(whitened_cosines(moved, moved.difference()[None], M @ b))
    assert here == pytest.approx(cosine(sides.difference(), b), abs=0.05)
    assert there == pytest.approx(here, abs=0.05)
    assert float(whitened_cosines(sides, torch.zeros(1, 5), b)) == 0.0


def test_what_is_removed_is_gone_and_nothing_else():
    removed, v = randn(2, 7), randn(7, seed=1)
    left = without(v, removed)
    assert (removed @ left).abs().max() < 1e-12
    assert torch.linalg.matrix_rank(torch.cat([removed, (v - left)[None]])) == 2
    torch.testing.assert_close(without(v, torch.zeros(2, 7)), v)
    torch.testing.assert_close(without(v, removed[[0, 0, 1]]), left)


def test_adjusted_p_values_are_those_of_benjamini_and_hochberg():
    """By hand: p_(i) m / i, made monotone from the largest on."""
    p = [0.04, 0.01, 0.5, 0.03]
    assert adjusted(p) == pytest.approx([0.16 / 3, 0.04, 0.5, 0.16 / 3])
    assert adjusted(p) == pytest.approx(list(stats.false_discovery_control(p)))
