"""How long a thing may be kept: closed forms, oscillations, noise, and what depends on nothing."""

import itertools
import math

import numpy as np
import pytest

from frenet._errors import UsageError
from frenet.measure.drift import half_life
from frenet.measure.renewal import renewal_gap

LOOKS = (0, 1, 5, 10, 20, 50, 60)
STEPS = tuple(range(61))


def gap(ratio, steps=STEPS, level=0.75):
    """Of what holds a share of fresh ones that hold 1."""
    return renewal_gap({t: ratio(t) for t in steps}, dict.fromkeys(steps, 1.0), level=level)


@pytest.mark.parametrize("half", [1, 4, 16, 32])
def test_a_share_that_falls_evenly_is_kept_until_it_is_at_a_half(half):
    """The mean of 1, ..., 1/2 is 3/4; with the default looks it is as exact, in a bracket."""
    found = gap(lambda t: 1 - t / (2 * half))
    assert found.steps.high == half + 1
    assert found.held == pytest.approx(1 - 60 / (4 * half))
    low, high, _ = gap(lambda t: 1 - t / (2 * half), LOOKS).steps
    assert (low, high) in itertools.pairwise(LOOKS)
    assert low < half + 1 <= high


@pytest.mark.parametrize("rate", [0.3, 0.9, 0.97, 0.999])
@pytest.mark.parametrize("level", [0.5, 0.75])
def test_a_geometric_decay_is_kept_as_long_as_its_partial_sums_say(rate, level):
    found = gap(lambda t: rate**t, level=level)
    enough = [T for T in range(1, 62) if (1 - rate**T) / (T * (1 - rate)) >= level]
    assert found.held == pytest.approx((1 - rate**61) / (61 * (1 - rate)))
    assert found.steps.high == (None if len(enough) == 61 else len(enough))
    assert found.longest == 60


def test_an_oscillation_counts_with_its_mean():
    """Its first crossing is at step 1, whatever it holds on average."""
    for low, held in ((0.55, True), (0.25, False)):
        ratio = dict(enumerate(itertools.islice(itertools.cycle((1.0, low)), 61)))
        found = gap(ratio.get)
        assert found.steps.high == (None if held else 1)
        assert found.held == pytest.approx((31 + 30 * low) / 61)
    assert half_life(ratio).high == 1


def below(standard_deviations):
    """Probability of a normal number."""
    return math.erfc(standard_deviations / 2**0.5) / 2


def test_more_looks_at_noise_make_a_gap_surer_and_a_first_crossing_less():
    """Shares of mean 0.9 and standard deviation 0.2 are held on average at every level below."""
    drawn = np.random.default_rng(0).normal(0.9, 0.2, (400, 61))
    drawn[:, 0] = 1.0
    gaps, lives = {}, {}
    for steps in (LOOKS, STEPS):
        ratios = [{t: row[t] for t in steps} for row in drawn]
        gaps[steps] = np.mean([gap(ratio.get, steps).steps.found for ratio in ratios])
        lives[steps] = np.mean([half_life(ratio).found for ratio in ratios])
        expected = 1 - (1 - below(0.4 / 0.2)) ** (len(steps) - 1)
        error = (expected * (1 - expected) / 400) ** 0.5
        assert lives[steps] == pytest.approx(expected, abs=3 * error)
    assert gaps[STEPS] < gaps[LOOKS]
    # At most the sum over T: 1 and T such numbers sum up to less than 3/4 of T + 1.
    assert gaps[STEPS] < sum(below((0.15 * T + 0.25) / (0.2 * T**0.5)) for T in STEPS[1:])


def test_a_dip_ends_a_gap_and_what_is_held_to_the_end_shows_that_it_came_back():
    found = gap(lambda t: 0.2 if 1 <= t <= 4 else 1.0)
    assert found.steps.high == 1
    assert found.held == pytest.approx(1 - 4 * 0.8 / 61)


def test_steps_count_by_what_fresh_ones_hold():
    """A step at which a fresh one holds nothing has nothing to lose."""
    fresh = {0: 1.0, 1: 1.0, 2: 0.0, 3: 1.0}
    found = renewal_gap({0: 1.0, 1: 0.5, 2: 0.0, 3: 0.75}, fresh, level=0.75)
    assert (found.steps.high, found.held) == (None, 0.75)
    assert renewal_gap({0: 1.0, 1: 0.5, 2: -0.5, 3: 0.75}, fresh, level=0.75).steps.high == 2


def test_neither_scale_nor_looks_on_the_line_between_two_others_count():
    kept, fresh = {0: 0.5, 10: 0.3, 50: 0.1}, {0: 0.5, 10: 0.4, 50: 0.45}
    found = renewal_gap(kept, fresh, level=0.75)
    doubled = ({t: 2 * e for t, e in energies.items()} for energies in (kept, fresh))
    assert renewal_gap(*doubled, level=0.75) == found
    between = ({**energies, 5: (energies[0] + energies[10]) / 2} for energies in (kept, fresh))
    assert renewal_gap(*between, level=0.75) == found


@pytest.mark.parametrize(
    ("kept", "fresh", "why"),
    [
        ({0: 1.0, 2: 1.0}, {0: 1.0, 1: 1.0}, r"kept has steps \[0, 2\], fresh \[0, 1\]"),
        ({1: 1.0}, {1: 1.0}, r"kept has steps \[1\]"),
        ({}, {}, r"kept has steps \[\]"),
        ({0: 0.0}, {0: 0.0}, "above it at step 0"),
        ({0: 1.0, 1: 1.0}, {0: 1.0, 1: -1.0}, "at least 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(kept, fresh, why):
    with pytest.raises(UsageError, match=why):
        renewal_gap(kept, fresh, level=0.75)
