"""Bases around a recovery: dimension, orthonormality, and what they are by definition."""

import pytest
import torch

import oracles
from frenet.geometry.linalg import principal_angles
from frenet.measure.bases import Sampling, bases_at_damage, bases_at_start
from frenet.measure.gradients import gradient, gradient_matrix
from frenet.measure.trajectory import Training, train_and_record
from frenet.network.space import ParamSpace
from frenet.network.synthetic.model import SyntheticTask
from measure.quadratic import quadratic, spectrum_matrix

SAMPLING = Sampling(k=4, n=9, batch_size=2, seed=3)
TRAINING = Training("adam:1e-3", batch_size=8, steps=3)
COPY = SyntheticTask("copy")
OTHERS = (SyntheticTask("reverse"), SyntheticTask("sort"))


def start_of(model, others=OTHERS):
    space = ParamSpace.select(model)
    return bases_at_start(model, COPY, others, sampling=SAMPLING, space=space, training=TRAINING)


def test_the_bases_are_orthonormal_know_their_space_and_leave_the_network_alone(learned):
    space = ParamSpace.select(learned)
    before = {name: p.detach().clone() for name, p in learned.named_parameters()}
    found = start_of(learned)
    assert list(found) == ["random", "gradients at start", "other tasks", "task vectors"]
    found |= bases_at_damage(learned, COPY, sampling=SAMPLING, space=space)
    assert list(found)[4:] == ["gradients at damage", "Adam-scaled gradients", "Krylov", "Hessian"]
    for name, basis in found.items():
        assert basis.space is space or basis.space == space
        assert basis.k == (2 if name == "task vectors" else 4), name
        assert basis.d == space.dim
        U = basis.U.double()
        assert (U.T @ U - torch.eye(basis.k)).abs().max() < 1e-5, name
    for name, parameter in learned.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_the_bases_are_fixed_by_the_seed(learned):
    first, again = start_of(learned), start_of(learned)
    for name in first:
        assert torch.equal(first[name].U, again[name].U), name


def test_without_other_tasks_there_are_no_bases_of_them(learned):
    assert list(start_of(learned, others=())) == ["random", "gradients at start"]


def test_gradient_bases_are_the_leading_directions_of_unit_gradients(learned):
    space = ParamSpace.select(learned)
    own = gradient_matrix(learned, COPY, space=space, n=9, batch_size=2, seed=3)
    # Nine gradients in all: five of each of two other tasks, rounded up.
    other = torch.cat(
        [gradient_matrix(learned, t, space=space, n=5, batch_size=2, seed=3) for t in OTHERS]
    )
    scaled = own / (own.square().mean(0).sqrt() + 1e-8)
    found = start_of(learned) | bases_at_damage(
        learned, COPY, sampling=SAMPLING, space=space, second_order=()
    )
    rows = {
        "gradients at start": own,
        "gradients at damage": own,
        "other tasks": other,
        "Adam-scaled gradients": scaled,
    }
    for name, matrix in rows.items():
        expected = oracles.top_basis(torch.nn.functional.normalize(matrix.double()), 4)
        assert float(principal_angles(found[name].U, expected)[-1]) < 1e-3, name


def test_task_vectors_are_the_displacements_of_training_on_the_other_tasks(learned):
    space = ParamSpace.select(learned)
    vectors = []
    for task in OTHERS:
        with space.restored(learned):
            vectors.append(train_and_record(learned, task, TRAINING, space=space).displacement())
    basis = start_of(learned)["task vectors"]
    assert basis.captured_fraction(torch.stack(vectors)).tolist() == pytest.approx([1, 1])
    torch.testing.assert_close(basis.U[:, 0], vectors[0] / vectors[0].norm(), rtol=0, atol=1e-6)


def test_adam_scaling_is_what_holds_an_adam_step():
    """The first Adam step is the sign of the gradient; with equal batches so is the scaled one."""
    curvatures = torch.logspace(-2, 2, 30)
    model, task, space = quadratic(curvatures, noise=1e-5)
    sampling = Sampling(k=1, n=4, batch_size=1, seed=0)
    found = bases_at_damage(model, task, sampling=sampling, space=space, second_order=())
    with space.restored(model):
        training = Training("adam:1e-3", batch_size=1, steps=1, clip=None)
        step = train_and_record(model, task, training, space=space).displacement()
    slope = task.gradient(space.read(model)).float()
    assert float(found["Adam-scaled gradients"].captured_fraction(step)) > 0.999
    assert float(found["gradients at damage"].captured_fraction(slope)) > 0.999
    assert float(found["gradients at damage"].captured_fraction(step)) < 0.9


def test_gradients_as_small_as_adams_epsilon_are_scaled_as_adam_would():
    """g / (rms(g) + 1e-8), the mean square over the batches."""
    curvatures = 1e-8 * torch.logspace(-1, 1, 12)
    model, task, space = quadratic(curvatures, noise=1e-8)
    sampling = Sampling(k=2, n=6, batch_size=1, seed=0)
    found = bases_at_damage(model, task, sampling=sampling, space=space, second_order=())
    rows = gradient_matrix(model, task, space=space, n=6, batch_size=1, seed=0).double()
    scaled = rows / (rows.square().mean(0).sqrt() + 1e-8)
    expected = oracles.top_basis(torch.nn.functional.normalize(scaled), 2)
    assert float(principal_angles(found["Adam-scaled gradients"].U, expected)[-1]) < 1e-5


def test_curvature_is_of_a_train_batch_twice_as_large_as_those_of_the_gradients(learned):
    space = ParamSpace.select(learned)
    batch = next(COPY.batches("train", 4, 3))
    slope = gradient(learned, COPY, batch, space=space)
    found = bases_at_damage(
        learned, COPY, sampling=SAMPLING, space=space, second_order=("Krylov",)
    )["Krylov"]
    torch.testing.assert_close(found.U[:, 0], slope / slope.norm(), rtol=0, atol=1e-6)


def test_second_order_bases_of_a_quadratic_are_known():
    curvatures = torch.cat([torch.tensor([9.0, -7.0, 5.0]), torch.linspace(0.1, 1, 27)])
    model, task, space = quadratic(curvatures)
    # Equal batches give gradients of rank one.
    sampling = Sampling(k=1, n=3, batch_size=1, seed=0)
    found = bases_at_damage(model, task, sampling=sampling, space=space)
    _, vectors = spectrum_matrix(curvatures, torch.Generator().manual_seed(0))
    assert float(principal_angles(found["Hessian"].U, vectors[:, :1])[-1]) < 1e-3

    noisy, task, space = quadratic(curvatures, noise=1.0)
    sampling = Sampling(k=3, n=12, batch_size=1, seed=0)
    found = bases_at_damage(noisy, task, sampling=sampling, space=space)
    assert float(principal_angles(found["Hessian"].U, vectors[:, :3])[-1]) < 1e-3
    batch = next(task.batches("train", 2, 0))
    slope = gradient(noisy, task, batch, space=space)
    expected = oracles.krylov(task.H, slope, 3)
    assert float(principal_angles(found["Krylov"].U, expected)[-1]) < 1e-3
    torch.testing.assert_close(found["Krylov"].U[:, 0].abs(), (slope / slope.norm()).abs())


def test_an_unknown_second_order_basis_is_refused(learned):
    space = ParamSpace.select(learned)
    with pytest.raises(ValueError, match="no basis 'Hesse' in second_order"):
        bases_at_damage(learned, COPY, sampling=SAMPLING, space=space, second_order=("Hesse",))
