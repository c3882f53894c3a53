"""Optimising inside a basis: closed forms on a quadratic, and what must not change anything."""

import copy

import pytest
import torch

import oracles
from frenet.geometry.basis import random_basis, span_basis
from frenet.geometry.rng import generator
from frenet.measure.trajectory import Training, train_and_record
from frenet.methods.subspace import equal_steps, train_in_basis, train_with
from frenet.methods.subspace_optimizer import SubspaceOptimizer
from frenet.network.space import ParamSpace
from frenet.network.synthetic.model import SyntheticConfig, SyntheticTask, SyntheticTransformer
from measure.quadratic import quadratic, spectrum_matrix

CURVATURES = torch.linspace(0.5, 3, 12)


def basis_of(columns, space):
    return span_basis(columns.T.float(), space=space, origin="by hand")


def inside(model, task, basis, *, space, optimizer, steps=1, clip=None):
    """Displacement of training a copy in the basis."""
    training = Training(optimizer, batch_size=1, steps=steps, clip=clip)
    return train_in_basis(copy.deepcopy(model), task, basis, space=space, training=training)


def test_in_an_eigenbasis_every_coordinate_decays_by_itself():
    """c_t = (1 - (1 - lr lambda)^t) u^T (m - x_0), and no other coordinate moves."""
    model, task, space = quadratic(CURVATURES)
    _, vectors = spectrum_matrix(CURVATURES, torch.Generator().manual_seed(0))
    U = vectors[:, [1, 4, 9]]
    away = task.minimum.double() - space.read(model).double()
    for steps in (1, 5, 40):
        found = inside(
            model, task, basis_of(U, space), space=space, optimizer="sgd:0.1", steps=steps
        )
        decay = 1 - (1 - 0.1 * CURVATURES[[1, 4, 9]].double()) ** steps
        expected = U @ (decay * (U.T @ away))
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_turning_the_basis_leaves_gradient_descent_unchanged(clip):
    model, task, space = quadratic(CURVATURES, noise=0.3)
    U = torch.linalg.qr(torch.randn(12, 4, generator=generator(0, "U"), dtype=torch.float64))[0]
    turned = U @ oracles.random_rotation(4, generator(1, "U"))
    first, second = (
        inside(
            model, task, basis_of(V, space), space=space, optimizer="sgd:0.1", steps=15, clip=clip
        )
        for V in (U, turned)
    )
    torch.testing.assert_close(first, second, rtol=0, atol=1e-5)
    assert float(first.norm()) > 0.1


@pytest.mark.parametrize("optimizer", ["sgd:0.05", "adam:0.01", "adamw:0.01"])
def test_with_all_axes_as_basis_it_is_full_training(optimizer):
    model, task, space = quadratic(CURVATURES, noise=0.3)
    # Weight decay pulls the displacement to zero inside a basis, the parameters in full training.
    if optimizer.startswith("adamw"):
        space.write(model, torch.zeros(12))
    training = Training(optimizer, batch_size=1, steps=20)
    full = train_and_record(copy.deepcopy(model), task, training, space=space).displacement()
    found = inside(
        model,
        task,
        basis_of(torch.eye(12), space),
        space=space,
        optimizer=optimizer,
        steps=20,
        clip=1.0,
    )
    torch.testing.assert_close(found, full, rtol=1e-4, atol=1e-5)


def test_the_axes_of_a_single_parameter_train_it_and_no_other():
    model, task, _ = quadratic(CURVATURES, noise=0.3)
    space, rest = ParamSpace.select(model, "first"), model.second.detach().clone()
    training = Training("sgd:0.05", batch_size=1, steps=5)
    full = train_and_record(copy.deepcopy(model), task, training, space=space).displacement()
    found = train_in_basis(
        model, task, basis_of(torch.eye(6), space), space=space, training=training
    )
    torch.testing.assert_close(found, full, rtol=1e-4, atol=1e-5)
    assert torch.equal(model.second, rest)


@pytest.mark.parametrize("k", [1, 3, 12])
def test_the_rate_of_adam_gives_steps_of_equal_norm_in_every_basis(k):
    """Adam moves each of k coordinates by its rate: lr sqrt(d / k) sqrt(k) = lr sqrt(d)."""
    model, task, space = quadratic(CURVATURES)
    basis = random_basis(12, k, generator(0, "basis"), space=space)
    found = inside(model, task, basis, space=space, optimizer="adam:0.01")
    assert float(found.norm()) == pytest.approx(0.01 * 12**0.5, rel=1e-4)
    descent = inside(model, task, basis, space=space, optimizer="sgd:0.01")
    slope = basis.project(task.gradient(space.read(model)).float())
    torch.testing.assert_close(descent, -0.01 * slope, rtol=1e-5, atol=1e-7)


def test_clipping_is_of_the_gradient_inside():
    model, task, space = quadratic(CURVATURES)
    basis = random_basis(12, 3, generator(0, "basis"), space=space)
    slope = basis.project(task.gradient(space.read(model)).float())
    found = inside(model, task, basis, space=space, optimizer="sgd:1", clip=0.1)
    torch.testing.assert_close(found, -0.1 * slope / slope.norm())


def test_nothing_leaves_the_basis_and_the_model_is_where_it_says():
    model = SyntheticTransformer(SyntheticConfig(width=8, layers=1, heads=2))
    task, space = SyntheticTask("maximum"), ParamSpace.select(model)
    basis = random_basis(space.dim, 20, generator(0, "basis"), space=space)
    start = space.read(model)
    training = Training("adam:3e-3", batch_size=32, steps=15)
    batch = next(task.batches("select", 256, 0))
    before = float(task.loss(model, batch).detach())
    found = train_in_basis(model, task, basis, space=space, training=training)
    assert float(basis.captured_fraction(found)) == pytest.approx(1, abs=1e-6)
    assert torch.equal(space.read(model), start + found)
    assert float(task.loss(model, batch).detach()) < before - 0.1


def test_no_steps_are_no_displacement():
    model, task, space = quadratic(CURVATURES)
    basis = random_basis(12, 2, generator(0, "basis"), space=space)
    assert not inside(model, task, basis, space=space, optimizer="sgd:1", steps=0).any()


def test_a_basis_of_another_space_is_refused(unchecked):
    model, task, space = quadratic(CURVATURES)
    basis = random_basis(10, 2, generator(0, "basis"))
    with pytest.raises(ValueError, match="12 coordinates, the basis has d = 10"):
        inside(model, task, basis, space=space, optimizer="sgd:1")


def test_a_basis_of_other_parameters_of_equal_size_is_refused():
    model, task, space = quadratic(CURVATURES)
    other = ParamSpace(("first", "third"), space.shapes)
    basis = random_basis(12, 2, generator(0, "basis"), space=other)
    with pytest.raises(ValueError, match="spaces differ first at entry 1: second"):
        inside(model, task, basis, space=space, optimizer="sgd:1")


def test_the_losses_are_those_before_each_step_and_every_step_is_told():
    """On the first eigenvector the loss above its floor falls by (1 - lr lambda)^2 a step."""
    model, task, space = quadratic(CURVATURES)
    _, vectors = spectrum_matrix(CURVATURES, torch.Generator().manual_seed(0))
    training, seen = Training("sgd:0.1", batch_size=1, steps=6), []
    optimizer = SubspaceOptimizer(
        model, space, basis_of(vectors[:, [3]], space), make=training.make
    )
    losses = train_with(model, task, optimizer, training=training, watch=seen.append)
    assert seen == [1, 2, 3, 4, 5, 6]
    falls = losses.double().diff()
    factor = (1 - 0.1 * CURVATURES[3].double()) ** 2
    torch.testing.assert_close(falls[1:] / falls[:-1], factor.expand(4), rtol=1e-3, atol=0)


def test_a_loss_that_is_not_finite_is_told_with_its_step():
    model, task, space = quadratic(CURVATURES)
    basis = random_basis(12, 2, generator(0, "basis"), space=space)
    with pytest.raises(FloatingPointError, match="the loss of task quadratic is nan before step 2"):
        inside(model, task, basis, space=space, optimizer="sgd:1e25", steps=4)


def test_steps_are_of_equal_norm_for_adaptive_optimisers_only():
    assert equal_steps(Training("adamw:1e-3"), 900, 9) == 10
    assert equal_steps(Training("sgd:1e-3"), 900, 9) == 1
