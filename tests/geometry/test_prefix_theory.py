"""The statements of docs/theory.md about prefixes, Krylov spaces and steps, in numbers."""

import math

import numpy as np
import pytest
import torch

from frenet.geometry.alignment import cosine
from frenet.geometry.basis import krylov_basis, overlap, prefix_basis
from frenet.geometry.nulls import random_walk_share
from frenet.geometry.rng import generator


def test_what_a_prefix_holds_of_a_random_walk():
    d, k, draws = 30, 4, 1500
    lengths = torch.linspace(2.0, 0.5, 9)
    share, whole = random_walk_share(lengths, k), float(lengths.square().sum())
    draw = generator(0, "walk")
    inside, rest, travelled = [], [], []
    for _ in range(draws):
        steps = torch.nn.functional.normalize(torch.randn(9, d, generator=draw), dim=1)
        steps *= lengths[:, None]
        basis = prefix_basis(steps, k)
        inside.append(float(basis.coordinates(steps.sum(0)).square().sum()))
        travelled.append(float(steps.sum(0).square().sum()))
        rest.append(float(basis.captured_fraction(steps[k:].sum(0))))
    for values, wanted in (
        (travelled, whole),
        (inside, (share + k / d * (1 - share)) * whole),
        (rest, k / d),
    ):
        error = np.std(values) / math.sqrt(draws)
        assert abs(np.mean(values) - wanted) < 4 * error


@pytest.mark.parametrize("a", [0.0, 0.05, 3.0])
def test_what_a_prefix_holds_of_a_drift_in_noise(a):
    T, k, noise = 12, 3, 0.5
    axes = torch.eye(T + 1)
    steps = noise * axes[1:] + math.sqrt(a) * noise * axes[0]
    basis = prefix_basis(steps, k)
    captured = float(basis.captured_fraction(steps.sum(0)))
    lift = (1 + T * a) / (1 + k * a)
    assert captured == pytest.approx(k / T * lift, rel=1e-5)
    assert captured / random_walk_share(steps.norm(dim=1), k) == pytest.approx(lift, rel=1e-5)
    left = T - k
    wanted = k * a / (1 + k * a) * left * a / (1 + left * a)
    assert float(basis.captured_fraction(steps[k:].sum(0))) == pytest.approx(wanted, abs=1e-6)


def descent(H, g, rates):
    """Steps of gradient descent on a quadratic, as rows."""
    delta, steps = torch.zeros_like(g), []
    for rate in rates:
        steps.append(-rate * (g + H @ delta))
        delta = delta + steps[-1]
    return torch.stack(steps)


def test_the_prefix_of_descent_is_a_krylov_space_at_any_rates():
    draw = generator(0, "quadratic")
    H = torch.diag(torch.rand(20, generator=draw, dtype=torch.float64))
    g = torch.randn(20, generator=draw, dtype=torch.float64)
    steps = descent(H, g, [0.9, -0.5, 1.2, 0.7])
    krylov = krylov_basis(lambda v: H @ v, g, 4)
    assert overlap(prefix_basis(steps, 4), krylov) == pytest.approx(1, abs=1e-6)


def missed(values, weights, p, k):
    """Smallest weighted error of a polynomial of degree below k, over that of 0."""
    root = np.sqrt(weights)
    powers = np.vander(values, k, increasing=True) * root[:, None]
    best = powers @ np.linalg.lstsq(powers, root * p, rcond=None)[0]
    return np.sum((root * p - best) ** 2) / np.sum(weights * p**2)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_what_a_krylov_space_misses_of_descent_and_of_gradient_flow(k):
    draw = generator(1, "quadratic")
    drop_duplicates = torch.tensor([0.1, 0.4, 0.5, 1.1, 1.9], dtype=torch.float64)
    values = drop_duplicates.repeat(4)  # equal eigenvalues count once
    g = torch.randn(20, generator=draw, dtype=torch.float64)
    H, T, rate = torch.diag(values), 15, 0.3
    basis = krylov_basis(lambda v: H @ v, g, k)
    x, weights = values.numpy(), g.numpy() ** 2
    by_steps = (1 - (1 - rate * x) ** T) / x
    by_flow = (1 - np.exp(-T * rate * x)) / x
    paths = (
        (descent(H, g, [rate] * T).sum(0), by_steps),
        (-torch.from_numpy(by_flow) * g, by_flow),
    )
    for displacement, p in paths:
        found = 1 - float(basis.captured_fraction(displacement))
        assert found == pytest.approx(missed(x, weights, p, k), abs=1e-6)
        if k == 1:
            assert 0.01 < found <= ((p.max() - p.min()) / (p.max() + p.min())) ** 2
        if k == len(drop_duplicates):
            assert found == pytest.approx(0, abs=1e-6)


def test_a_step_and_the_contrast_of_gaussian_classes():
    spread = torch.tensor([1.0, 3.0, 100.0], dtype=torch.float64)  # eigenvalues, so kappa = 100
    bound = 2 * math.sqrt(100) / (1 + 100)
    draw = generator(0, "classes")
    for v in (
        torch.randn(3, generator=draw, dtype=torch.float64),
        torch.tensor([1.0, 0.0, 10.0], dtype=torch.float64),  # where the bound is reached
    ):
        h = torch.randn(50, 3, generator=draw, dtype=torch.float64, requires_grad=True)
        logits = (h + 1) @ (v / spread)
        torch.nn.functional.softplus(-logits).mean().backward()
        step = -h.grad.mean(0)
        assert cosine(step, v / spread) == pytest.approx(1, abs=1e-12)
        assert cosine(step, v) >= bound - 1e-12
    assert cosine(step, v) == pytest.approx(bound, abs=1e-12)
