"""Drift of LoRA's gradients and updates in the weights, against dense images."""

import pytest
import torch

from frenet.geometry.rng import generator
from frenet.measure import drift, drift_in_weights
from frenet.network.checkpoints.low_rank_changes import LowRankChanges
from network.adapted import adapted, dense_changes, factors


@pytest.fixture(scope="module")
def network():
    model = adapted("gpt2", trained=True)
    return model, factors(model)


def unit(rows):
    return (rows / rows.norm(dim=1, keepdim=True)).float()


def gradients_at(space, seed, n=6):
    """Three sets around a common direction."""
    draw = generator(seed, "gradients")
    rows = torch.randn(space.dim, generator=draw) + torch.randn(3 * n, space.dim, generator=draw)
    return tuple(rows.split(n))


def test_gradients_are_compared_by_their_images_at_their_own_points(network):
    """The factors move in between, and with them the images."""
    model, space = network
    seen = drift_in_weights.GradientDrift(model, space, k=3)
    images = []
    with space.restored(model):
        for step, seed in ((0, 1), (5, 2)):
            space.write(model, space.read(model) + 0.1 * step)
            rows = gradients_at(space, seed)
            seen(step, rows)
            dense = dense_changes(model, space, space.read(model), torch.cat(rows), "first order")
            images.append(tuple(unit(dense).split(6)))
    assert list(seen.by_lag) == [5]
    assert seen.dim == images[0][0].shape[1]
    assert seen.by_lag[5] == pytest.approx(drift.basis_drift(*images, 3), rel=1e-4)


def test_updates_are_compared_by_their_exact_changes(network):
    model, space = network
    draw, start = generator(3, "updates"), space.read(model)
    steps = 0.02 * torch.randn(27, space.dim, generator=draw)
    steps += 0.02 * torch.randn(space.dim, generator=draw)
    K = LowRankChanges.of(model, space, steps, start=start, kind="path").gram()
    dense = dense_changes(model, space, start, steps, "path")
    found = drift_in_weights.update_drift(K, window=9, k=2)
    wanted = drift.update_drift(dense.float(), window=9, k=2)
    assert list(found) == list(wanted) == [9, 18]
    for lag in found:
        assert found[lag] == pytest.approx(wanted[lag], rel=1e-4)
    far = [0.0, *dense.cumsum(0).norm(dim=1).tolist()]
    assert drift_in_weights.distances(K) == pytest.approx(far)
