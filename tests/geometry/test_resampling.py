"""Halves and random weights of mean vectors: by hand, and how often their intervals cover."""

import numpy as np
import pytest
import torch

from frenet.geometry.alignment import Contrasted, cosine
from frenet.geometry.resampling import (
    MeanDifference,
    MeanShift,
    Splits,
    corrected,
    mean_of,
    resamples,
    row_cosines,
    split_half_cosine,
    weighted,
)
from frenet.geometry.rng import generator
from frenet.statistics.bootstrap import centred_ends


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, "resampling"), dtype=torch.float64)


def difference(p=30, n=20, h=6, *, paired=False, seed=0, shift=0.0):
    rows = randn(p + n, h, seed=seed)
    return MeanDifference(Contrasted(rows[:p] + shift, rows[p:], paired))


def shift(g=5, m=8, h=6, seed=0):
    counts = torch.arange(1, g + 1).double()
    return MeanShift(randn(g, m, h, seed=seed), counts)


def test_equal_weights_give_the_mean():
    found = difference()
    torch.testing.assert_close(mean_of(found), found.sides.difference())
    moved = shift()
    whole = sum(c * s.mean(0) for c, s in zip(moved.counts, moved.shifts, strict=True)) / 15
    torch.testing.assert_close(mean_of(moved), whole)


def test_weights_are_those_of_units():
    """A unit of weight 2 counts like two units; a pair has one weight for both sides."""
    for paired in (False, True):
        found = difference(4, 4, paired=paired)
        counts = [torch.tensor([[2.0, 1.0, 1.0, 3.0]]) for _ in found.sizes]
        repeated = [torch.tensor([0, 0, 1, 2, 3, 3, 3]) for _ in found.sizes]
        torch.testing.assert_close(weighted(found, counts)[0], mean_of(found.part(repeated)))
    moved = shift(3, 4)
    weights = [torch.tensor([[1.0, 2.0, 1.0]]), torch.tensor([[1.0, 1.0, 3.0, 1.0]])]
    units = [torch.tensor([0, 1, 1, 2]), torch.tensor([0, 1, 2, 2, 2, 3])]
    torch.testing.assert_close(weighted(moved, weights)[0], mean_of(moved.part(units)))


def test_many_weights_are_the_same_in_parts():
    found = shift()
    weights = resamples(found, 230, generator(0, "w"))
    torch.testing.assert_close(weighted(found, weights), found.weighted(weights))
    assert [tuple(w.shape) for w in weights] == [(230, 5), (230, 8)]


def test_halves_share_no_unit_and_hold_all():
    found = difference(5, 4)
    for first, second in Splits.of(found, 10, generator(0, "h")).halves:
        for a, b, n in zip(first, second, found.sizes, strict=True):
            assert sorted([*a.tolist(), *b.tolist()]) == list(range(n))
            assert len(a) == (n + 1) // 2


@pytest.mark.parametrize("vector", [difference(), difference(20, 20, paired=True), shift()])
def test_cosines_of_halves_are_those_of_their_means(vector):
    splits = Splits.of(vector, 4, generator(0, "h"))
    wanted = [cosine(*(mean_of(vector.part(half)) for half in both)) for both in splits.halves]
    assert float(splits.cosines(vector)) == pytest.approx(np.mean(wanted))
    ones = [torch.ones(3, n) for n in vector.sizes]
    torch.testing.assert_close(splits.cosines(vector, ones), splits.cosines(vector).expand(3))


def test_rows_of_zeros_have_a_cosine_of_zero():
    a, b = torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert row_cosines(a, b).tolist() == pytest.approx([0.0, 0.6])


def test_the_split_half_cosine_is_that_of_independent_halves():
    """Two independent estimates of v with noise of variance s^2 in d dimensions have the cosine
    |v|^2 / (|v|^2 + d s^2); of 50 + 50 rows in each half s^2 = 2 / 50."""
    d, v = 60, randn(60, seed=5) / 4
    values = []
    for seed in range(20):
        rows = randn(200, d, seed=seed)
        sides = Contrasted(rows[:100] + v, rows[100:])
        draw = generator(seed, "h")
        values.append(split_half_cosine(MeanDifference(sides), repeats=4, generator=draw))
    wanted = float(v @ v) / (float(v @ v) + d * 2 / 50)
    error = np.std(values) / 20**0.5
    assert np.mean(values) == pytest.approx(wanted, abs=4 * error + 0.01)
    # Of whole vectors, 100 + 100 rows, s^2 is half as large: the ceiling that the halves foretell.
    whole = float(v @ v) / (float(v @ v) + d * 2 / 100)
    r = np.mean(values)
    assert corrected(r) == pytest.approx(whole, abs=0.02)
    with pytest.raises(ValueError, match="1 and 3 units have no halves"):
        split_half_cosine(difference(1, 3), repeats=1, generator=generator(0, "h"))


def test_centred_bootstraps_cover_the_mean_cosine_and_the_mean_ceiling():
    """40 data sets of 40 + 40 streams and 10 groups of shifts along a planted direction.

    What is covered is the mean over data sets of the same size, by at least 85%: the bootstrap of
    ten groups is a little narrow. Without the centring, the ends of the ceiling lie too low.
    """
    d, truth = 20, randn(20, seed=9) / 5
    values, ends = [], []
    for seed in range(40):
        draw = generator(seed, "cover")
        noise = torch.randn(80, d, generator=draw, dtype=torch.float64)
        vector = MeanDifference(Contrasted(noise[:40] + truth, noise[40:]))
        steps = torch.randn(10, 20, d, generator=draw, dtype=torch.float64) + truth
        moved = MeanShift(steps, torch.ones(10, dtype=torch.float64))
        splits = Splits.of(vector, 6, draw)
        weights = resamples(vector, 100, draw)
        both = weighted(vector, weights), weighted(moved, resamples(moved, 100, draw))
        found = cosine(mean_of(vector), mean_of(moved)), float(splits.cosines(vector))
        draws = row_cosines(*both), splits.cosines(vector, weights)
        values.append(found)
        ends.append([centred_ends(v, x.tolist()) for v, x in zip(found, draws, strict=True)])
    for mean, each in zip(np.mean(values, 0), zip(*ends, strict=True), strict=True):
        covered = np.mean([low <= mean <= high for low, high in each])
        assert 0.85 <= covered <= 1.0
