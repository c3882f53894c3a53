"""Shares of the gradient along directions, and when they are halved."""

from dataclasses import replace

import pytest
import torch

from frenet.geometry.basis import random_basis, span_basis
from frenet.geometry.rng import generator
from frenet.measure.lifetime import follow, gradient_shares, lifetime, watch_training
from frenet.measure.trajectory import Training, Trajectory
from frenet.network.space import ParamSpace
from measure.quadratic import Point, Quadratic


def quadratic(*, d=40, noise=0.0):
    """L = x.Hx / 2 with eigenvalues 1 and 0.01 in equal parts, and the point x = 1."""
    eigenvalues = torch.ones(d)
    eigenvalues[d // 2 :] = 0.01
    model = Point(torch.ones(d))
    task = Quadratic(torch.diag(eigenvalues), torch.zeros(d), noise)
    return model, task, ParamSpace.select(model)


def shares(model, task, space, bases, *, n=1):
    return gradient_shares(model, task, bases, space=space, n=n, batch_size=1, seed=0)


def test_shares_are_squared_cosines():
    """g = H x = (1, ..., 1, 0.01, ...): known against any direction."""
    model, task, space = quadratic()
    g = task.gradient(torch.ones(40)).float()
    first = torch.zeros(40)
    first[0] = 5.0
    bases = {
        "itself": span_basis(g[None], space=space),
        "first": span_basis(first[None], space=space),
        "both": span_basis(torch.stack([first, g]), space=space),
    }
    found = shares(model, task, space, bases)
    assert found["itself"] == pytest.approx(1, abs=1e-6)
    assert found["first"] == pytest.approx(float(1 / g.square().sum()), rel=1e-5)
    assert found["both"] == pytest.approx(1, abs=1e-6)


def test_a_random_basis_has_its_share_by_chance():
    """k / d, over many gradients of pure noise."""
    model, task, space = quadratic(noise=100.0)
    basis = random_basis(40, 10, generator(0, "basis"), space=space)
    assert shares(model, task, space, {"random": basis}, n=400)["random"] == pytest.approx(
        10 / 40, rel=0.1
    )


def test_short_gradients_count_as_long_ones_and_a_gradient_of_zero_has_no_share():
    """A squared norm of 1.2e-30 is still a gradient."""
    model, task, space = quadratic()
    basis = {"axes": span_basis(torch.eye(40)[:7], space=space)}
    slope = task.gradient(torch.ones(40)).norm()
    short = replace(task, H=task.H * (1.2e-30**0.5 / float(slope)))
    expected = shares(model, task, space, basis)["axes"]
    assert shares(model, short, space, basis)["axes"] == pytest.approx(expected, rel=1e-5)
    assert shares(model, replace(task, H=0 * task.H), space, basis)["axes"] == 0


def test_the_lifetime_of_a_steep_direction_is_the_closed_form():
    """SGD shrinks x_i by 1 - lr lambda_i per step, so g_1^2 / |g|^2 is known at every step."""
    model, task, space = quadratic()
    lr, lags = 0.1, tuple(range(1, 61))
    basis = span_basis(torch.eye(40)[:1], space=space)
    training = Training(f"sgd:{lr}", 1, 60, clip=None)
    path, values = watch_training(
        model, task, training, space=space, lags=lags,
        look=lambda _: shares(model, task, space, {"first": basis}),
    )  # fmt: skip
    t = torch.arange(61, dtype=torch.float64)
    steep, flat = (1 - lr) ** t, 0.01 * (1 - 0.01 * lr) ** t
    known = steep**2 / (20 * steep**2 + 20 * flat**2)
    assert [values["first"][lag] for lag in range(61)] == pytest.approx(known.tolist(), rel=1e-3)
    found = lifetime(values["first"], path.distances(60))
    exact = next(s for s in range(61) if known[s] < known[0] / 2)
    assert (found.steps.low, found.steps.high) == (exact - 1, exact)
    assert exact - 1 < found.steps.value <= exact
    travelled = [float(path.displacement(0, s).norm()) for s in (exact - 1, exact)]
    assert (found.distance.low, found.distance.high) == pytest.approx(travelled)
    assert found.longest == 60


def test_a_path_that_turns_back_was_at_all_the_distances_between_two_looks():
    """Out to 3 at step 10, back to 1 at step 20."""
    steps = torch.cat([torch.full((10, 1), 0.3), torch.full((10, 1), -0.2)])
    path = Trajectory(torch.zeros(1), steps, torch.zeros(20), None, ParamSpace(("w",), ((1,),)))
    found = lifetime({0: 2.0, 5: 1.8, 10: 1.6, 20: 0.6}, path.distances(20))
    assert found.steps == (10, 20, None)
    assert found.distance == (pytest.approx(1.0), pytest.approx(3.0), None)
    assert (found.longest, found.farthest) == (20, pytest.approx(3.0))
    # Between steps 5 and 15 it went from 1.5 to 3 and back to 2.
    found = lifetime({0: 2.0, 5: 1.8, 15: 0.6}, path.distances(20))
    assert found.distance == (pytest.approx(1.5), pytest.approx(3.0), None)
    # What comes after the last look does not count.
    assert lifetime({0: 2.0, 5: 1.8}, path.distances(20)).farthest == pytest.approx(1.5)


def test_between_the_start_and_the_first_step_nothing_is_measured():
    found = lifetime({0: 1.0, 1: 0.01}, [0.0, 1.0])
    assert found.steps == found.distance == (0.0, 1.0, None)
    assert str(found.steps) == "at most 1"


@pytest.mark.parametrize(
    "values", [{}, {0: 1.0}, {1: 1.0, 2: 0.5}, {0: 0.0, 1: 1.0}, {0: -1.0, 1: 1.0}]
)
def test_what_is_not_there_at_the_start_cannot_be_halved(values):
    with pytest.raises(ValueError, match="pass the value at lag 0, which must be above 0"):
        lifetime(values, [0.0, 1.0, 2.0])


def test_what_does_not_halve_has_no_lifetime():
    model, task, space = quadratic()
    basis = span_basis(task.gradient(torch.ones(40)).float()[None], space=space)
    training = Training("sgd:0.001", 1, 3)
    path, values = watch_training(
        model, task, training, space=space, lags=(1, 3),
        look=lambda _: shares(model, task, space, {"g": basis}),
    )  # fmt: skip
    found = lifetime(values["g"], path.distances(3))
    farthest = float(path.displacement().norm())
    assert found.steps == (3, None, None)
    assert found.distance == (pytest.approx(farthest), None, None)
    assert found.farthest == pytest.approx(farthest)


def test_following_a_recorded_path_sees_what_watching_the_training_saw():
    model, task, space = quadratic()
    basis = span_basis(torch.eye(40)[:1], space=space)

    def look(step):
        return shares(model, task, space, {"first": basis}) | {"step": float(step)}

    training, lags = Training("adam:1e-2", 1, 12), (1, 5, 12)
    with space.restored(model):
        path, watched = watch_training(model, task, training, space=space, lags=lags, look=look)
    before = space.read(model)
    followed = follow(model, path, space=space, lags=lags, look=look)
    assert followed.keys() == watched.keys()
    for name, values in watched.items():
        assert followed[name] == pytest.approx(values, rel=1e-5)
    assert torch.equal(space.read(model), before)
    late = follow(model, path, space=space, lags=(5,), look=look)
    assert late == {name: {lag: at[lag] for lag in (0, 5)} for name, at in followed.items()}
    for wrong in ((13,), (1, 13), ()):
        with pytest.raises(ValueError, match="has 12 steps; pass at least one lag"):
            follow(model, path, space=space, lags=wrong, look=look)
    other = ParamSpace.select(model, "first")
    with pytest.raises(ValueError, match="parameter spaces differ first at entry 1"):
        follow(model, path, space=other, lags=lags, look=look)
