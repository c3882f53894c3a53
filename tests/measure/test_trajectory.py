"""Recorded training, compared with closed forms and with torch's optimisers in float64."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

import oracles
from frenet.geometry.linalg import principal_angles
from frenet.measure import trajectory
from frenet.measure.gradients import gradient
from frenet.measure.trajectory import Training, Trajectory, train_and_record
from frenet.network import memory
from frenet.network.space import ParamSpace
from frenet.network.synthetic.model import SyntheticTask
from frenet.network.tasks import collate
from measure.conftest import build
from measure.quadratic import ROWS, Point, Quadratic, RowsTask, quadratic, spectrum_matrix
from network.models import tiny_gpt2

CURVATURES = torch.linspace(0.5, 3, 8)


def same_point(x, y):
    """Equal to the last bit or two of float32: the steps are stored in float32."""
    torch.testing.assert_close(x, y, rtol=2**-22, atol=1e-9)


def test_gradient_descent_on_a_quadratic_follows_the_closed_form():
    """x_t - m = (I - lr H)^t (x_0 - m)."""
    model, task, space = quadratic(CURVATURES)
    start = space.read(model).double()
    path = train_and_record(
        model, task, Training("sgd:0.1", batch_size=1, steps=20, clip=None), space=space
    )
    decay = torch.eye(8).double() - 0.1 * task.H
    for t in (0, 1, 7, 20):
        away = torch.linalg.matrix_power(decay, t) @ (start - task.minimum.double())
        expected = (task.minimum.double() + away).float()
        torch.testing.assert_close(path.theta(t), expected, rtol=0, atol=1e-6)
        if t < 20:
            loss = float(away @ task.H @ away / 2)
            assert float(path.losses[t]) == pytest.approx(loss, rel=1e-5, abs=1e-7)
    expected = oracles.gradient_descent_steps(task.gradient, start, rate=0.1, steps=20)
    torch.testing.assert_close(path.steps.double(), expected, rtol=1e-5, atol=1e-7)
    same_point(space.read(model), path.theta(20))


def reference_path(model, task, training, *, factory, space):
    """Plain training in float64 with torch's optimiser; theta after every step."""
    model = copy.deepcopy(model).double()
    parameters = space.parameters(model)
    optimizer = factory(parameters)
    stream = task.batches("train", training.batch_size, training.seed)
    thetas = [torch.cat([p.detach().flatten() for p in parameters])]
    for _ in range(training.steps):
        optimizer.zero_grad()
        task.loss(model, next(stream)).backward()
        if training.clip is not None:
            nn.utils.clip_grad_norm_(parameters, training.clip)
        optimizer.step()
        thetas.append(torch.cat([p.detach().flatten() for p in parameters]))
    return torch.stack(thetas)


OPTIMIZERS = {
    "adam:1e-2": lambda p: torch.optim.Adam(p, lr=1e-2),
    "adamw:1e-2": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "sgd:0.05": lambda p: torch.optim.SGD(p, lr=0.05),
}


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_steps_are_those_of_torch_in_float64(optimizer, clip):
    model, task, space = quadratic(CURVATURES, noise=0.3)
    training = Training(optimizer, batch_size=1, steps=30, clip=clip, seed=5)
    thetas = reference_path(model, task, training, factory=OPTIMIZERS[optimizer], space=space)
    path = train_and_record(model, task, training, space=space)
    # The gradients are taken at float32 points: 1e-7 of the parameters.
    torch.testing.assert_close(path.steps.double(), thetas.diff(dim=0), rtol=1e-4, atol=3e-7)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_language_model_is_trained_as_torch_would(optimizer):
    model, task = tiny_gpt2(), RowsTask()
    space = ParamSpace.select(model)
    training = Training(optimizer, batch_size=2, steps=5)
    thetas = reference_path(model, task, training, factory=OPTIMIZERS[optimizer], space=space)
    path = train_and_record(model, task, training, space=space)
    error = (path.steps.double() - thetas.diff(dim=0)).norm(dim=1)
    # Adam's first steps are signs of gradients; some are only rounding.
    assert (error < (2e-2 if "adam" in optimizer else 1e-4) * path.steps.norm(dim=1)).all()
    assert (error[0] if "sgd" in optimizer else error[-1]) < 1e-2


def test_recorded_steps_are_exact_where_differences_of_parameters_are_not():
    """At a rate of 1e-6 float32 parameters near 1 move in units of 6e-8: several percent wrong."""
    _, task, _ = quadratic(CURVATURES)
    model = Point(torch.full((8,), 1.0) + torch.rand(8, generator=torch.Generator().manual_seed(0)))
    space = ParamSpace.select(model)
    training = Training("adam:1e-6", batch_size=1, steps=10)
    exact = reference_path(
        model, task, training, factory=lambda p: torch.optim.Adam(p, lr=1e-6), space=space
    ).diff(dim=0)
    points = [space.read(model)]
    path = train_and_record(
        model,
        task,
        training,
        space=space,
        watch=lambda _: points.append(space.read(model)),
    )
    differences = torch.stack(points).diff(dim=0)

    def error(steps):
        return float((steps.double() - exact).norm() / exact.norm())

    assert error(differences) > 1e-2
    assert error(path.steps) < 1e-5
    assert (path.displacement().double() - exact.sum(0)).norm() < 1e-5 * exact.sum(0).norm()


def test_a_bf16_model_moves_although_no_single_step_is_large_enough():
    """bf16 near 1 has a spacing of 0.0078: steps of 1e-4 would all be rounded away."""
    H, _ = spectrum_matrix(CURVATURES, torch.Generator().manual_seed(0))
    task = Quadratic(H, torch.full((8,), -1.0))
    model = Point(torch.ones(8)).bfloat16()
    space = ParamSpace.select(model)
    plain = copy.deepcopy(model)
    path = train_and_record(
        model, task, Training("adam:1e-4", batch_size=1, steps=100), space=space
    )
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-4)
    for _ in range(100):
        optimizer.zero_grad()
        task.loss(plain, next(task.batches("train", 1, 0))).backward()
        optimizer.step()
    assert torch.equal(space.read(plain), torch.ones(8))
    assert (path.steps.norm(dim=1) > 0.9e-4 * 8**0.5).all()
    # Up to rounding, the recorded steps lead to the model's parameters.
    assert (space.read(model) - path.theta(100)).abs().max() <= 2**-8
    assert (space.read(model) != 1).any()


def test_the_prefix_of_gradient_descent_spans_the_krylov_space():
    model, task, space = quadratic(torch.linspace(0.2, 3, 12))
    slope = task.gradient(space.read(model))
    path = train_and_record(
        model, task, Training("sgd:0.3", batch_size=1, steps=6, clip=None), space=space
    )
    for k in (1, 2, 4):
        krylov = oracles.krylov(task.H, slope, k)
        assert path.prefix(k).k == k
        assert float(principal_angles(path.prefix(k).U, krylov)[-1]) < 1e-3
    assert path.prefix(4).space is space


@pytest.mark.parametrize(("steps", "d"), [(0, 5), (3, 1), (40, 333), (9, 4096)])
def test_a_displacement_is_the_sum_of_the_steps_however_much_fits(monkeypatch, steps, d):
    """Bit for bit, some columns at a time, without a copy of all."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(steps, d, generator=draw)
    path = Trajectory(torch.ones(d), rows, torch.zeros(steps), None, ParamSpace(("w",), ((d,),)))
    plain, summed = torch.Tensor.sum, []

    def watched(part, *args, **kwargs):
        summed.append(part.numel())
        return plain(part, *args, **kwargs)

    whole = rows.sum(0, dtype=torch.float64)
    monkeypatch.setattr(trajectory, "ROOM", 64 * max(1, steps))
    monkeypatch.setattr(torch.Tensor, "sum", watched)
    assert torch.equal(path.displacement(), whole.float())
    assert torch.equal(path.theta(steps), (1 + whole).float())
    assert max(summed) <= trajectory.ROOM


def test_points_and_displacements_sum_up():
    model, task, space = quadratic(CURVATURES, noise=0.3)
    points = [space.read(model)]
    path = train_and_record(
        model,
        task,
        Training("adam:0.01", batch_size=1, steps=12),
        space=space,
        watch=lambda _: points.append(space.read(model)),
    )
    assert len(path) == 12
    for t, point in enumerate(points):
        same_point(path.theta(t), point)
    torch.testing.assert_close(path.displacement(3, 9), path.theta(9) - path.theta(3))
    total = path.displacement(0, 5) + path.displacement(5)
    torch.testing.assert_close(path.displacement(), total)
    short = path.truncated(5)
    assert len(short) == len(short.losses) == 5
    assert torch.equal(short.theta(5), path.theta(5))


def test_kept_gradients_are_the_clipped_ones():
    model, task, space = quadratic(CURVATURES, noise=0.3)
    twin = copy.deepcopy(model)
    training = Training("sgd:0.01", batch_size=1, steps=4, clip=0.5)
    path = train_and_record(model, task, training, space=space, keep_gradients=True)
    stream = task.batches("train", 1, 0)
    for t, kept in enumerate(path.gradients):
        space.write(twin, path.theta(t))
        raw = gradient(twin, task, next(stream), space=space)
        assert float(raw.norm()) > 0.5
        torch.testing.assert_close(kept, raw * 0.5 / raw.norm())
        torch.testing.assert_close(path.steps[t], -0.01 * kept)
    assert path.truncated(2).gradients.shape == (2, 8)


@pytest.mark.parametrize(("clip", "factor"), [(None, 1.0), (1e6, 1.0), (0.25, 0.25)])
def test_clipping_limits_the_norm_and_only_that(clip, factor):
    model, task, space = quadratic(CURVATURES)
    slope = task.gradient(space.read(model))
    path = train_and_record(
        model, task, Training("sgd:1", batch_size=1, steps=1, clip=clip), space=space
    )
    expected = -slope * (factor / slope.norm() if factor < 1 else 1)
    torch.testing.assert_close(path.steps[0].double(), expected, rtol=1e-5, atol=1e-7)


def test_a_zero_gradient_is_not_divided_by():
    _, task, space = quadratic(CURVATURES)
    model = Point(task.minimum)
    path = train_and_record(model, task, Training("sgd:1", batch_size=1, steps=2), space=space)
    assert not path.steps.any()


def test_watching_stops_the_training_and_keeps_what_was_done():
    model, task, space = quadratic(CURVATURES)
    seen = []
    path = train_and_record(
        model,
        task,
        Training("sgd:0.1", batch_size=1, steps=50),
        space=space,
        watch=lambda step: seen.append(step) or step == 7,
        keep_gradients=True,
    )
    assert seen == [1, 2, 3, 4, 5, 6, 7]
    assert (len(path), len(path.losses), len(path.gradients)) == (7, 7, 7)
    same_point(space.read(model), path.theta(7))


def test_minibatches_are_fixed_by_the_seed():
    def steps(seed):
        model, task, space = quadratic(CURVATURES, noise=0.3)
        training = Training("adam:0.01", batch_size=1, steps=5, seed=seed)
        return train_and_record(model, task, training, space=space).steps

    assert torch.equal(steps(1), steps(1))
    assert not torch.allclose(steps(1), steps(2))


def test_only_the_space_moves():
    model = build("synthetic")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    space = ParamSpace.select(model, "v_proj")
    train_and_record(
        model, SyntheticTask("copy"), Training("adam:1e-2", batch_size=4, steps=2), space=space
    )
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in space.names), name


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_parameter_without_a_gradient_stays_as_with_torch(optimizer):
    """Weight decay would move it."""

    class Spare(Point):
        def __init__(self, start):
            super().__init__(start)
            self.spare = nn.Parameter(torch.ones(3))

    _, task, _ = quadratic(CURVATURES)
    model = Spare(torch.ones(8))
    space = ParamSpace.select(model)
    path = train_and_record(model, task, Training(optimizer, batch_size=1, steps=3), space=space)
    assert not path.steps[:, 8:].any()
    assert torch.equal(model.spare, torch.ones(3))
    assert path.steps[:, :8].all()


def test_a_loss_that_is_not_finite_names_step_and_task():
    model, task, space = quadratic(CURVATURES)
    training = Training("sgd:1e30", batch_size=1, steps=50, clip=None)
    message = r"loss of task quadratic is \w+ before step 2 \(sgd:1e30\); lower the learning rate"
    with pytest.raises(FloatingPointError, match=message):
        train_and_record(model, task, training, space=space)


def test_a_gradient_that_is_not_finite_names_step_task_and_parameter():
    class Rooted(Quadratic):
        def loss(self, model, batch):
            return super().loss(model, batch) + (model.second - model.second.detach()).sqrt().sum()

    model, task, space = quadratic(CURVATURES)
    rooted = Rooted(**vars(task))
    message = "gradient of task quadratic at step 1 is not finite in parameter second"
    with pytest.raises(FloatingPointError, match=message):
        train_and_record(model, rooted, Training("sgd:1", batch_size=1, steps=3), space=space)


def test_a_path_that_does_not_fit_is_refused_before_anything_is_allocated(monkeypatch):
    model, task, space = quadratic(CURVATURES)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2**20)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: pytest.fail("allocated"))
    training = Training("sgd:1", batch_size=1, steps=10**6)
    message = r"a trajectory of 1000000 steps of 8 parameters needs 0.03 GiB and 0.00 GiB are free"
    with pytest.raises(MemoryError, match=message):
        train_and_record(model, task, training, space=space)


@pytest.mark.parametrize(
    "optimizer", ["adam", "lion:1e-3", "adam:", ":1e-3", "adam:x", "adam:nan", "adam:inf", "sgd:-1"]
)
def test_an_optimizer_that_does_not_exist_is_refused(optimizer):
    with pytest.raises(ValueError, match=r"is not NAME:RATE with NAME one of adam, adamw, sgd"):
        Training(optimizer).make([torch.zeros(1)])


def test_a_trajectory_is_frozen_and_ends_where_the_model_does():
    model, task = tiny_gpt2().train(), RowsTask()
    space = ParamSpace.select(model, "attn")
    path = train_and_record(model, task, Training("adam:1e-3", batch_size=3, steps=2), space=space)
    same_point(space.read(model), path.theta(2))
    assert float(path.losses[0]) == pytest.approx(
        float(task.loss(tiny_gpt2(), collate(ROWS)).detach()), rel=1e-5
    )
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'steps'"):
        path.steps = path.steps[:1]
    assert isinstance(path, Trajectory)
