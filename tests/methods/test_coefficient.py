"""Which coefficient is advised, on losses whose answer is known in closed form."""

import math

import pytest
import torch

from frenet.geometry.rng import generator
from frenet.measure.displaced import LossCurve
from frenet.methods.coefficient import best_coefficient, judged

SCALES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)


def curve(losses, *, noise=0.0, seed=0, n=40):
    """n examples of one token with these losses, and noise that grows with the scale."""
    draws = generator(seed, "noise")
    shared, own = (torch.randn(n, generator=draws, dtype=torch.float64) for _ in range(2))

    def at(scale):
        return losses(scale) + noise * (shared + scale * own) + torch.zeros(n, dtype=torch.float64)

    return LossCurve(at, torch.ones(n, dtype=torch.float64))


def bowl(place, depth=1.0):
    """A parabola that is lower than at 0 by ``depth`` at its lowest place, and again 0 at twice."""
    return lambda scale: 3 + depth * ((scale / place - 1) ** 2 - 1)


def advise(losses, **how):
    return best_coefficient(
        curve(losses, **how), curve(losses, **{**how, "seed": 1}), scales=SCALES
    )


@pytest.mark.parametrize("place", [0.4, 0.6, 1.37, 1.7, 2.6])
def test_the_lowest_place_of_a_parabola_is_found_between_the_coefficients(place):
    found = advise(bowl(place))
    assert found.scale == pytest.approx(place, abs=0.005)
    assert found.best == found.advised
    assert found.best.gain.value == pytest.approx(1.0, abs=1e-4)
    assert found.over_usual.value == pytest.approx((1 / place - 1) ** 2, abs=1e-3)
    assert not found.edge
    assert found.reach.low <= 2 * place <= (found.reach.high or math.inf)
    assert found.least == 0.25
    assert found.rows == (40, 40)


def test_one_is_kept_if_the_best_is_not_shown_to_be_better():
    found = advise(bowl(1.1), noise=0.3)
    assert found.best.scale != 1
    assert found.over_usual.low <= 0
    assert found.scale == 1.0
    assert found.advised == found.usual


def test_the_upper_end_of_what_helps_is_bisected_twice():
    found = advise(bowl(1.0))
    # At 2 the loss is that at 0: not lower.
    assert (found.reach.low, found.reach.high) == (1.875, 2.0)


@pytest.mark.parametrize(("slope", "end"), [(-0.1, 4.0), (0.1, 0.25)])
def test_a_straight_line_is_best_at_the_edge_or_has_no_advice(slope, end):
    found = advise(lambda scale: 3 + slope * scale)
    assert found.edge
    assert found.best.scale == end
    if slope < 0:
        assert (found.scale, found.reach.high) == (4.0, None)
    else:
        assert (found.scale, found.reach, found.least, found.advised) == (None, None, None, None)
        assert "no coefficient that was tried lowers the loss" in repr(found)


def test_a_gain_within_the_noise_of_the_examples_is_no_advice():
    """The select rows see a gain; the rows that judge do not."""
    select = curve(bowl(1.0, depth=0.05))
    found = best_coefficient(select, curve(bowl(1.0, depth=0.05), noise=1.0), scales=SCALES)
    assert found.best.gain.low <= 0
    assert found.scale is None
    assert "no coefficient is shown to be better than nothing" in found.why


def test_the_best_is_advised_if_one_does_harm():
    found = advise(bowl(0.3))
    assert not found.usual.helps
    assert found.scale == pytest.approx(0.3, abs=0.005)


def test_coefficients_at_which_the_loss_overflows_are_bad_and_no_error():
    def losses(scale):
        return math.inf if scale > 1.4 else bowl(1.0)(scale)

    found = advise(losses)
    assert found.scale == 1.0
    assert found.reach.high <= 1.5
    assert found.curve[-1].loss.value == math.inf
    with pytest.raises(FloatingPointError, match="without the change is not finite"):
        advise(lambda scale: math.nan)


def test_every_coefficient_is_evaluated_once_on_each_part():
    seen = {"select": [], "test": []}

    def watched(part):
        plain = curve(bowl(1.37))

        def at(scale):
            seen[part].append(scale)
            return plain.at(scale)

        return LossCurve(at, plain.counts)

    best_coefficient(watched("select"), watched("test"), scales=SCALES)
    assert len(seen["select"]) == len(set(seen["select"])) == len(SCALES) + 2
    assert len(seen["test"]) == len(set(seen["test"])) == len(SCALES) + 2 + 2


def test_the_interval_of_a_gain_is_that_of_paired_differences():
    one = curve(lambda scale: 3 - scale, noise=0.5)
    (found,) = judged(one, [2.0], generator=generator(0, "judged"), resamples=2000)
    differences = one.at(0.0) - one.at(2.0)
    error = float(differences.std()) / len(differences) ** 0.5
    assert found.gain.value == pytest.approx(float(differences.mean()))
    assert found.gain.high - found.gain.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert found.without == pytest.approx(float(one.at(0.0).mean()))


@pytest.mark.parametrize("scales", [(0.5, 2.0), (0.0, 1.0), (-1.0, 1.0), (1.0, math.inf)])
def test_coefficients_without_one_or_not_above_0_are_refused(scales):
    with pytest.raises(ValueError, match="pass coefficients above 0 with 1 among them"):
        best_coefficient(curve(bowl(1.0)), curve(bowl(1.0)), scales=scales)
