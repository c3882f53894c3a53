"""Prefixes and bases of a LoRA recovery in the weights, against dense changes of every step."""

import pytest
import torch

from frenet.geometry.linalg import norms
from frenet.geometry.nulls import random_walk_share
from frenet.geometry.rng import generator
from frenet.measure.recovery import prefix_capture
from frenet.measure.recovery_in_weights import PathInWeights
from frenet.measure.trajectory import Trajectory
from frenet.network.checkpoints.low_rank_changes import LowRankChanges
from network.adapted import adapted, dense_changes, factors, gauged

T = 12


@pytest.fixture(scope="module")
def network():
    model = adapted("gpt2", trained=True)
    return model, factors(model)


def walk(space, *, seed=4, drift=0.5, size=0.02):
    """Steps around a common direction."""
    draw = generator(seed, "walk")
    common = torch.randn(space.dim, generator=draw)
    return size * (drift * common + torch.randn(T, space.dim, generator=draw))


def trajectory(model, space, steps, start=None):
    start = space.read(model) if start is None else start
    return Trajectory(start, steps, torch.zeros(len(steps)), None, space)


def share(rows, x):
    """Of x in the span of the rows."""
    return float((torch.linalg.pinv(rows) @ (rows @ x)).norm() ** 2 / x.norm() ** 2)


def test_the_prefix_is_that_of_the_dense_updates(network):
    model, space = network
    steps = walk(space)
    path = PathInWeights.of(model, trajectory(model, space, steps))
    dense = dense_changes(model, space, space.read(model), steps, "path")
    for k in (1, 3, 6):
        found = path.prefix_capture(k)
        assert found["captured"] == pytest.approx(share(dense[:k], dense.sum(0)), rel=1e-6)
        assert found["rest"] == pytest.approx(share(dense[:k], dense[k:].sum(0)), rel=1e-6)
        walked = random_walk_share(norms(dense), k)
        assert found["walk_share"] == pytest.approx(walked, rel=1e-9)
        assert found["lift"] == pytest.approx(found["captured"] / walked, rel=1e-6)
    assert path.prefix_capture(T)["captured"] == pytest.approx(1.0, abs=1e-6)
    assert path.prefix_capture(T)["rest"] is None


def test_leading_directions_are_those_of_the_dense_changes(network):
    """Of another path with its lengths, and of gradients scaled to unit norm."""
    model, space = network
    start, steps, other = space.read(model), walk(space), walk(space, seed=5)
    path = PathInWeights.of(model, trajectory(model, space, steps))
    twin = PathInWeights.of(model, trajectory(model, space, other))
    whole = dense_changes(model, space, start, steps, "path").sum(0)
    of_twin = dense_changes(model, space, start, other, "path")
    Vh = torch.linalg.svd(of_twin, full_matrices=False).Vh
    led = path.led_by(twin.updates, (1, 4), K=twin.K)
    assert led == pytest.approx([share(Vh[:k], whole) for k in (1, 4)], rel=1e-6)
    gradients = torch.logspace(0, 3, T)[:, None] * other
    images = LowRankChanges.of(model, space, gradients, start=start, kind="first order")
    dense = dense_changes(model, space, start, gradients, "first order")
    Vh = torch.linalg.svd(dense / dense.norm(dim=1, keepdim=True), full_matrices=False).Vh
    led = path.led_by(images, (1, 4))
    assert led == pytest.approx([share(Vh[:k], whole) for k in (1, 4)], rel=1e-6)


def test_captures_in_the_weights_do_not_depend_on_the_gauge_of_the_factors(network):
    """Those in the factors do: the same networks, passed in the same order."""
    model, space = network
    steps, start = walk(space), space.read(model)
    moved, at = gauged(model, space, steps).float(), gauged(model, space, start).float()
    one, other = trajectory(model, space, steps), trajectory(model, space, moved, at)
    in_weights = [PathInWeights.of(model, path).prefix_capture(4) for path in (one, other)]
    assert in_weights[0] == pytest.approx(in_weights[1], rel=1e-4)
    captured = [prefix_capture(path, 4)["captured"] for path in (one, other)]
    assert abs(captured[0] - captured[1]) > 0.02


def test_the_cut_changes_no_digit_that_is_given(network):
    """Steps of unlike length that nearly repeat each other, as those of an optimiser."""
    model, space = network
    steps = walk(space, drift=20.0, size=1e-3) * torch.logspace(0, -1, T)[:, None]
    path = PathInWeights.of(model, trajectory(model, space, steps))
    dense = dense_changes(model, space, space.read(model), steps, "path")
    (found,) = path.spanned_by(path.updates, [6], K=path.K)
    assert found == pytest.approx(share(dense[:6], dense.sum(0)), abs=1e-5)


def test_a_share_that_depends_on_the_cut_is_not_given(network):
    """A second direction at 5e-5 of the first, so its eigenvalue is between both cuts."""
    model, space = network
    moved = trajectory(model, space, walk(space, drift=0.0))
    path = PathInWeights.of(model, moved)
    start, first = space.read(model), torch.randn(space.dim, generator=generator(0, "first"))
    second = moved.displacement()
    rows = torch.stack([first, first + 1e-4 * second * first.norm() / second.norm()])
    pair = LowRankChanges.of(model, space, rows, start=start, kind="first order")
    alone, both = path.spanned_by(pair, (1, 2))
    assert alone is not None
    assert both is None


def test_a_first_step_of_zero_has_no_lift(network):
    model, space = network
    steps = walk(space)
    steps[0] = 0
    found = PathInWeights.of(model, trajectory(model, space, steps)).prefix_capture(1)
    assert (found["captured"], found["walk_share"], found["lift"]) == (0.0, 0.0, None)
