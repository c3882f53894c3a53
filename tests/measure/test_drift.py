"""Drift of a plane that rotates at a known speed, and of a distribution that does not move."""

import math
from dataclasses import replace

import pytest
import torch
from scipy import stats

import oracles
from frenet.geometry.rng import generator
from frenet.measure.damage import fixed_loss
from frenet.measure.drift import (
    Losses,
    UndefinedDriftError,
    basis_drift,
    example_snapshot,
    half_life,
    select_losses,
    snapshot,
    train_and_compare,
    update_drift,
)
from frenet.measure.gradients import gradient, gradient_matrix
from frenet.measure.trajectory import Training
from frenet.network.space import ParamSpace
from frenet.network.synthetic.model import SyntheticConfig, SyntheticTask, SyntheticTransformer
from measure.conftest import build
from measure.quadratic import RowsTask, quadratic

SPEED = 0.02


def unit(rows):
    return rows / rows.norm(dim=1, keepdim=True)


def plane(angle, *, k=2, d=40):
    """k orthonormal rows, each rotated by ``angle`` from its axis towards a new axis."""
    axes = torch.eye(d, dtype=torch.float64)
    return math.cos(angle) * axes[:k] + math.sin(angle) * axes[k : 2 * k]


def vectors(directions, draw, *, n=12, noise=0.0):
    """Three sets of unit vectors in the span of the rows, with noise in all of R^d."""
    d = directions.shape[1]
    rows = torch.randn(3 * n, len(directions), generator=draw).double() @ directions
    rows = unit(rows) + noise * torch.randn(3 * n, d, generator=draw) / d**0.5
    return unit(rows).float().split(n)


@pytest.mark.parametrize("t", [0, 5, 20, 50, 78])
def test_a_rotating_plane_has_the_energy_ratio_cos_squared(t):
    draw = generator(t, "plane")
    found = basis_drift(vectors(plane(0), draw), vectors(plane(SPEED * t), draw), 2)
    expected = math.cos(SPEED * t) ** 2
    assert found.ratio == pytest.approx(expected, abs=1e-5)
    assert found.overlap == pytest.approx(expected, abs=1e-5)
    assert found.control == pytest.approx(1, abs=1e-5)
    assert found.fresh == pytest.approx(1, abs=1e-5)
    assert (found.ceiling_s, found.ceiling_t) == pytest.approx((1, 1), abs=1e-5)


def test_a_rotating_plane_has_the_half_life_of_its_speed():
    """cos^2 is 1/2 at 45 degrees, pi / (4 speed) = 39.27 steps."""
    draw = generator(0, "plane")
    start = vectors(plane(0), draw)
    ratios = {0: 1.0}
    for t in range(4, 80, 4):
        ratios[t] = basis_drift(start, vectors(plane(SPEED * t), draw), 2).ratio
    assert half_life(ratios).value == pytest.approx(math.pi / (4 * SPEED), rel=1e-3)


def test_the_same_examples_at_both_points_have_ratio_one_and_an_overlap_without_luck():
    """Unpaired, gradients of the same few noisy examples overlap more than their ceiling."""
    draw = generator(0, "paired")
    sets = vectors(plane(0, k=3, d=400), draw, n=6, noise=1.0)
    paired, unpaired = (basis_drift(sets, sets, 3, paired=paired) for paired in (True, False))
    assert paired.ratio == pytest.approx(1, abs=1e-12)
    assert paired.overlap == pytest.approx(1, abs=1e-12)
    assert unpaired.overlap == pytest.approx(1 / paired.ceiling_s)
    assert unpaired.overlap > 1.2


def test_snapshots_of_single_examples_are_unit_gradients_in_three_sets():
    model = SyntheticTransformer(SyntheticConfig(width=8, layers=1, heads=2)).eval()
    task, space = SyntheticTask("reverse"), ParamSpace.select(model)
    batch = next(task.batches("train", 6, 0))
    found = torch.cat(example_snapshot(model, task, batch, space=space))
    rows = [{key: value[i : i + 1] for key, value in batch.items()} for i in range(6)]
    expected = torch.stack([gradient(model, task, row, space=space) for row in rows])
    torch.testing.assert_close(found, unit(expected), rtol=0, atol=1e-5)
    assert [len(part) for part in example_snapshot(model, task, batch, space=space)] == [2, 2, 2]


def test_a_noisy_plane_that_does_not_move_has_ratio_and_control_one():
    """80 frozen pairs, half of the energy in three directions of R^60."""
    draw, directions = generator(0, "frozen"), plane(0, k=3, d=60)
    found = [
        basis_drift(*(vectors(directions, draw, n=24, noise=1.0) for _ in range(2)), 3)
        for _ in range(80)
    ]
    for name in ("ratio", "control"):
        values = torch.tensor([getattr(drift, name) for drift in found])
        assert abs(values.mean() - 1) < 4 * values.std() / 80**0.5 + 1e-3, name
        assert values.std() < 0.05
    overlaps = torch.tensor([drift.overlap for drift in found])
    # Overlap and ceilings have the same law; the ratio of one to the mean of two others is near 1.
    assert abs(overlaps.mean() - 1) < 0.02
    assert all(0.5 < drift.ceiling_s < 1 for drift in found)
    assert overlaps.max() > 1  # no clamping


def test_turning_all_vectors_together_changes_nothing():
    draw = generator(0, "turn")
    sets = [*vectors(plane(0), draw, noise=0.7), *vectors(plane(0.6), draw, noise=0.7)]
    Q = oracles.random_rotation(40, draw)
    turned = [(part.double() @ Q).float() for part in sets]
    before = basis_drift(tuple(sets[:3]), tuple(sets[3:]), 2)
    after = basis_drift(tuple(turned[:3]), tuple(turned[3:]), 2)
    assert after == pytest.approx(before, rel=1e-5)


def test_every_number_against_explicit_bases():
    draw = generator(1, "dense")
    then, now = (vectors(plane(a), draw, noise=0.7) for a in (0, 0.6))
    U, U_again, V, V_again = (
        oracles.top_basis(part, 2) for part in (then[0], then[1], now[0], now[1])
    )

    def held(basis, rows):
        return sum(oracles.captured_fraction(basis, row) for row in rows) / len(rows)

    found = basis_drift(then, now, 2)
    assert found.fresh == pytest.approx(held(V, now[2]))
    assert found.ratio == pytest.approx(held(U, now[2]) / held(V, now[2]))
    assert found.control == pytest.approx(held(U_again, then[2]) / held(U, then[2]))
    assert found.ceiling_s == pytest.approx(oracles.overlap(U, U_again))
    assert found.ceiling_t == pytest.approx(oracles.overlap(V, V_again))
    ceiling = (found.ceiling_s * found.ceiling_t) ** 0.5
    assert found.overlap == pytest.approx(oracles.overlap(U, V) / ceiling)


# Updates


def test_windows_of_updates_do_not_overlap():
    """Each window of 9 steps lies in a different plane: the old basis captures none of the next.

    Overlapping windows would share steps, and capture some.
    """
    draw = generator(0, "windows")
    axes = torch.eye(30)
    blocks = [torch.randn(9, 2, generator=draw) @ axes[2 * i : 2 * i + 2] for i in range(4)]
    found = update_drift(torch.cat([*blocks, torch.ones(5, 30)]), window=9, k=2)
    assert list(found) == [9, 18, 27]  # the last 5 steps are no window
    for drift in found.values():
        assert drift.ratio == pytest.approx(0, abs=1e-10)
        assert drift.overlap == pytest.approx(0, abs=1e-10)
        assert drift.control == pytest.approx(1)
        assert drift.fresh == pytest.approx(1)


def test_steps_in_one_plane_do_not_drift():
    steps = torch.randn(36, 2, generator=generator(0, "plane")) @ torch.randn(
        2, 30, generator=generator(1, "plane")
    )
    for drift in update_drift(steps, window=12, k=2).values():
        assert drift == pytest.approx((1, 1, 1, 1, 1, 1), abs=1e-5)


def test_the_first_window_is_compared_with_each_later_one():
    """The plane turns by one angle between windows; the steps' lengths do not matter."""
    draw = generator(0, "turning")
    blocks = [torch.randn(12, 2, generator=draw).double() @ plane(0.2 * i) for i in range(4)]
    steps = torch.cat(blocks).float() * torch.logspace(0, -4, 48)[:, None]
    found = update_drift(steps, window=12, k=2)
    for i, lag in enumerate((12, 24, 36), start=1):
        assert found[lag].ratio == pytest.approx(math.cos(0.2 * i) ** 2, abs=1e-5)


def test_every_third_step_is_held_out_and_the_others_fit_two_bases():
    steps = unit(torch.randn(24, 30, generator=generator(0, "thirds")))
    then, now = (
        tuple(
            steps[[i + start for i in which]]
            for which in ((0, 3, 6, 9), (1, 4, 7, 10), (2, 5, 8, 11))
        )
        for start in (0, 12)
    )
    assert update_drift(steps, window=12, k=2)[12] == pytest.approx(basis_drift(then, now, 2))


def test_steps_and_gradients_of_any_length_count_alike():
    long = unit(torch.randn(24, 30, generator=generator(0, "lengths")))
    short = 1.2e-30 * long
    short[::2] = long[::2]
    (expected,) = update_drift(long, window=12, k=2).values()
    (found,) = update_drift(short, window=12, k=2).values()
    assert found == pytest.approx(expected, rel=1e-5)


def test_gradients_of_any_length_become_unit_vectors():
    model, task, space = quadratic(torch.linspace(1, 3, 12))
    slope = task.gradient(space.read(model)).norm()
    small = replace(task, H=task.H * (1.2e-30 / float(slope)))
    rows = torch.cat(snapshot(model, small, Training("sgd:0"), space=space, n=1, step=0))
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))


def test_a_third_of_a_window_may_hold_k_steps_and_no_more():
    steps = torch.randn(12, 30, generator=generator(0, "short"))
    assert list(update_drift(steps, window=6, k=2)) == [6]
    with pytest.raises(ValueError, match="window=5 is too short for k=2"):
        update_drift(steps, window=5, k=2)


def test_one_window_is_not_compared():
    assert update_drift(torch.ones(12, 4), window=9, k=1) == {}


@pytest.mark.parametrize(("window", "k"), [(5, 2), (30, 0)])
def test_a_short_window_is_refused(window, k):
    with pytest.raises(
        ValueError, match=f"window={window} is too short for k={k}; a third of it must"
    ):
        update_drift(torch.ones(60, 4), window=window, k=k)


# Half-life


@pytest.mark.parametrize(
    ("ratios", "expected", "words"),
    [
        ({0: 1.0, 10: 0.5}, (0, 10, None), "at most 10"),
        ({0: 1.0, 60: 0.016}, (0, 60, None), "at most 60"),
        ({1: 0.3, 2: 0.2}, (0, 1, None), "at most 1"),  # without the start, which is 1
        ({20: 0.25, 0: 1.0, 10: 0.75}, (10, 20, None), "between 10 and 20"),  # in any order
        ({0: 1.0, 10: 0.4, 20: 0.9, 30: 0.1}, (0, 10, None), "at most 10"),  # the first crossing
        ({0: 1.0, 10: 0.9, 20: 0.51}, (20, None, None), "more than 20"),
        ({0.0: 1.0, 0.5: 0.0}, (0, 0.5, None), "at most 0.5"),  # in another unit
        ({0: 1.0}, (0, None, None), "more than 0"),
        ({0: 1.0, 4: 0.75, 5: 0.25}, (4, 5, 4.5), "about 4.5 (between 4 and 5)"),
        ({0: 1.0, 4: 0.75, 5.01: 0.25}, (4, 5.01, None), "between 4 and 5.01"),
        ({0: 1.0, 4: math.nan, 8: 0.6, 9: math.nan, 20: 0.1}, (8, 20, None), "between 8 and 20"),
    ],
)
def test_half_life_is_the_bracket_of_the_first_crossing(ratios, expected, words):
    found = half_life(ratios)
    assert found == expected
    assert str(found) == words


@pytest.mark.parametrize("ratios", [{}, {3: math.nan}])
def test_half_life_of_nothing_that_was_looked_at(ratios):
    with pytest.raises(ValueError, match="no finite ratio"):
        half_life(ratios)


def test_half_life_of_ratios_that_are_not_to_the_start():
    with pytest.raises(ValueError, match=r"ratio at lag 0 is 0\.2, which is not above level=0\.5"):
        half_life({0: 0.2, 1: 0.1})
    with pytest.raises(ValueError, match=r"ratio at lag 0 is 0\.5, which is not above level=0\.5"):
        half_life({0: 0.5})


@pytest.mark.parametrize("life", [0.4, 1.0, 1.5, 17.0, 31.0, 99.0, 250.0])
@pytest.mark.parametrize("level", [0.5, 0.1])
def test_brackets_hold_the_crossing_of_an_exponential_and_those_of_more_looks(life, level):
    """exp(-t / tau) crosses the level at ``life`` on any grid; a coarser one brackets wider."""
    grids = [range(201), (0, 1, 2, 5, 10, 20, 50, 100, 200), (0, 1, 10, 100, 200), (0, 100, 200)]
    finer = None
    for grid in grids:
        ratios = {t: level ** (t / life) for t in grid}
        found = half_life(ratios, level)
        assert found.low < life <= (found.high or math.inf)
        assert found.found == (life <= 200)
        assert found.value is None or found.value == pytest.approx(life, rel=0.05)
        assert (found.value is not None) == (
            found.low > 0 and (found.high or math.inf) / found.low <= 1.25
        )
        if finer is not None:
            assert found.low <= finer.low
            assert (found.high or math.inf) >= (finer.high or math.inf)
        finer = found
        scaled = half_life({3 * t: ratio for t, ratio in ratios.items()}, level)
        assert scaled[:2] == (3 * found.low, found.high and 3 * found.high)


@pytest.mark.parametrize(
    ("moved", "low", "high"),
    [
        ({0: 0.0, 5: 1.5, 10: 3.0, 20: 1.0}, 1.0, 3.0),  # turns back between the measurements
        ({0: 0.0, 5: 4.0, 10: 1.0, 20: 2.0}, 1.0, 2.0),  # and before them
        ({0: 0.0, 5: 1.0, 10: 2.0, 12: 9.0, 15: 0.5, 20: 6.0}, 0.5, 9.0),  # seen at every step
    ],
)
def test_the_distance_at_a_crossing_is_one_of_those_between_its_looks(moved, low, high):
    ratios = {0: 1.0, 5: 0.9, 10: 0.8, 20: 0.3}
    assert half_life(ratios) == (10, 20, None)
    assert half_life(ratios, moved=moved) == (low, high, None)


def test_a_crossing_between_two_close_distances_is_interpolated():
    ratios = {0: 1.0, 8: 0.75, 20: 0.25}
    assert half_life(ratios, moved={0: 0.0, 8: 4.0, 20: 5.0}) == (4.0, 5.0, 4.5)
    never = half_life({0: 1.0, 8: 0.75}, moved={0: 0.0, 5: 6.0, 8: 4.0})
    assert never == (6.0, None, None)


def test_without_a_look_at_the_start_the_distance_there_is_none():
    assert half_life({10: 0.3}, moved={10: 3.0}) == (0.0, 3.0, None)


# On networks


def test_the_batches_of_a_snapshot_follow_from_the_seed_of_training_and_the_step(learned):
    """Other seeds would be as good, but a run that is repeated has to see the same batches."""
    task, space = SyntheticTask("copy"), ParamSpace.select(learned)
    training = Training("sgd:0", batch_size=4, seed=5)
    for step in (0, 2):
        seed = 5 + 1_000_003 * (step + 1)
        rows = gradient_matrix(learned, task, space=space, n=6, batch_size=4, seed=seed)
        found = torch.cat(snapshot(learned, task, training, space=space, n=2, step=step))
        torch.testing.assert_close(found, unit(rows))


def test_a_snapshot_is_unit_gradients_of_other_batches_at_every_step(learned):
    task, space = SyntheticTask("copy"), ParamSpace.select(learned)
    training = Training("sgd:0", batch_size=8)
    sets = snapshot(learned, task, training, space=space, n=3, step=0)
    rows = torch.cat(sets)
    assert [len(part) for part in sets] == [3, 3, 3]
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(9))
    again = torch.cat(snapshot(learned, task, training, space=space, n=3, step=0))
    later = torch.cat(snapshot(learned, task, training, space=space, n=3, step=1))
    assert torch.equal(rows, again)
    cosines = (torch.cat([rows, later]) @ torch.cat([rows, later]).T).fill_diagonal_(0)
    assert cosines.abs().max() < 0.9999  # no batch is seen twice


def test_without_training_nothing_drifts_and_with_training_it_does(learned):
    """The step size is all that differs."""
    task, space = SyntheticTask("reverse"), ParamSpace.select(learned)

    def drift(optimizer):
        with space.restored(learned):
            training = Training(optimizer, batch_size=16, steps=12)
            return train_and_compare(learned, task, training, space=space, lags=[6, 12], n=16, k=3)

    path, frozen, losses = drift("sgd:0")
    assert not path.steps.any()
    assert list(frozen) == [6, 12]
    assert list(losses) == [0, 6, 12]
    assert len({found.mean for found in losses.values()}) == 1
    for step, found in frozen.items():
        training = Training("sgd:0", batch_size=16)
        then, now = (
            snapshot(learned, task, training, space=space, n=16, step=t) for t in (0, step)
        )
        assert found == basis_drift(then, now, 3)
        assert found.ratio == pytest.approx(1, abs=0.1)
        assert found.control == pytest.approx(1, abs=0.1)
    path, moving, losses = drift("adam:1e-2")
    assert losses[12].mean < losses[0].mean
    assert moving[12].ratio < 0.8
    assert moving[12].control == frozen[12].control


def test_losses_of_examples_are_those_of_the_fixed_loss(learned):
    """Also with rows of unlike lengths, which count by their target tokens."""
    for model, task in ((learned, SyntheticTask("count")), (build("gpt2"), RowsTask())):
        found = select_losses(model, task, size=3)
        assert found.mean == pytest.approx(fixed_loss(model, task, size=3), rel=1e-5)
    assert len(set(found.tokens.tolist())) > 1


def test_the_interval_of_a_change_is_that_of_paired_differences():
    """Student's, if all examples have as many tokens."""
    draws = torch.randn(2, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tokens = torch.full((20,), 4)
    before, after = Losses(draws[0], tokens), Losses(draws[0] + 0.3 * draws[1] - 0.5, tokens)
    found = after.change_from(before)
    wanted = stats.ttest_rel(after.rows, before.rows)
    assert found.value == pytest.approx(float((after.rows - before.rows).mean()))
    assert found[1:3] == pytest.approx(tuple(wanted.confidence_interval()))


def test_examples_count_by_their_tokens_in_a_change_and_in_its_interval():
    """The standard error of a ratio of two sums, against a jackknife over the examples."""
    source = torch.Generator().manual_seed(2)
    tokens = torch.randint(1, 9, (200,), generator=source)
    rows = torch.randn(2, 200, generator=source, dtype=torch.float64)
    before, after = Losses(rows[0], tokens), Losses(rows[1] + 1 / tokens, tokens)
    weighted = (tokens * (after.rows - before.rows)).numpy()
    ratio = weighted.sum() / tokens.sum()
    found = after.change_from(before)
    assert found.value == pytest.approx(float(ratio))
    without = (weighted.sum() - weighted) / (tokens.sum() - tokens).numpy()
    error = float(((without - without.mean()) ** 2).sum() * 199 / 200) ** 0.5
    half = float(stats.t.ppf(0.975, 199)) * error
    assert found.high - found.low == pytest.approx(2 * half, rel=0.02)


def test_gradients_that_only_shrink_do_not_drift():
    """With equal curvatures in all directions the gradient keeps its direction."""
    model, task, space = quadratic(torch.ones(30), noise=0.01)
    training = Training("sgd:0.1", batch_size=1, steps=10, clip=None)
    _, found, _ = train_and_compare(model, task, training, space=space, lags=[10], n=8, k=1)
    assert found[10].ratio == pytest.approx(1, abs=1e-2)
    assert found[10].fresh > 0.99


def test_a_step_without_any_gradient_has_a_reason_instead_of_a_drift():
    """A task that is learned to a loss of zero, or parameters that have no gradient."""
    some = tuple(torch.eye(6).split(2))
    none = (torch.zeros(2, 6), some[1], some[2])
    for then, now, which in ((some, none, "now"), (none, some, "then")):
        with pytest.raises(UndefinedDriftError, match=f"those {which} are zero"):
            basis_drift(then, now, 2)


def test_gradients_that_share_nothing_have_a_reason_instead_of_a_drift():
    """Each set has its own coordinates, like embeddings of tokens that occur once."""
    with pytest.raises(UndefinedDriftError, match="use more vectors"):
        basis_drift(tuple(torch.eye(6).split(2)), tuple(torch.eye(6).split(2)), 2)
    # One axis in all sets but one, which then shares no direction with its step.
    for other in (1, 2, 4, 5):
        sets = [torch.eye(2)[[int(i == other)]] for i in range(6)]
        with pytest.raises(UndefinedDriftError, match="use more vectors"):
            basis_drift(tuple(sets[:3]), tuple(sets[3:]), 1)
