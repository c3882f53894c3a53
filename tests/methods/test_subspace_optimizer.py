"""The optimiser inside a basis: closed forms on a quadratic, and its place in a training loop."""

import copy
import io
from pathlib import Path

import pytest
import torch
from torch import nn

from frenet.geometry.basis import prefix_basis, random_basis, span_basis
from frenet.geometry.rng import generator
from frenet.measure.trajectory import Training, train_and_record
from frenet.methods.moving_basis import MovingBasis, moving_prefix
from frenet.methods.subspace_optimizer import SubspaceOptimizer
from frenet.network.space import ParamSpace
from measure.quadratic import quadratic
from network.models import tiny_gpt2

CURVATURES = torch.linspace(0.5, 3, 12)
INNER = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
}
each_inner = pytest.mark.parametrize("inner", INNER)


def problem(dtype=torch.float32):
    model, task, space = quadratic(CURVATURES)
    return model.to(dtype), task, space


def descend(model, task, optimizer, *, steps, start=0):
    """Steps on the slopes of batch ``start``, ``start + 1``, ..."""
    slopes = 0.3 * torch.randn(64, len(CURVATURES), generator=generator(7, "slopes"))
    for slope in slopes[start : start + steps]:
        optimizer.zero_grad()
        task.loss(model, {"slope": slope[None]}).backward()
        optimizer.step()


def exact(model):
    """The parameters as one vector in their dtype."""
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def inside(model, space, basis, inner, **options):
    return SubspaceOptimizer(model, space, basis, make=INNER[inner], **options)


def some_basis(space, k=4, seed=0):
    return random_basis(space.dim, k, generator(seed, "basis"), space=space)


def test_gradient_descent_inside_is_the_projected_iteration():
    """theta <- theta - lr U U^T g, with the gradient of the quadratic by hand in float64."""
    model, task, space = problem(torch.float64)
    basis = some_basis(space)
    U, x = basis.U.double(), space.read(model).double()
    batch = {"slope": torch.zeros(1, 12)}
    optimizer = inside(model, space, basis, "sgd")
    for _ in range(25):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()
        x = x - 0.05 * U @ (U.T @ task.gradient(x))
    torch.testing.assert_close(exact(model), x, rtol=0, atol=1e-12)


@each_inner
@pytest.mark.parametrize("basis", ["identity", "none"])
def test_in_all_coordinates_it_is_the_inner_optimiser(inner, basis):
    model, task, space = problem(torch.float64)
    plain = copy.deepcopy(model)
    every = span_basis(torch.eye(12), space=space) if basis == "identity" else None
    descend(model, task, inside(model, space, every, inner), steps=20)
    descend(plain, task, INNER[inner](plain.parameters()), steps=20)
    for found, expected in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@each_inner
def test_the_displacement_stays_in_the_span(inner):
    model, task, space = problem()
    start, basis = space.read(model), some_basis(space)
    optimizer = inside(model, space, basis, inner)
    descend(model, task, optimizer, steps=40)
    moved = space.read(model) - start
    assert float(moved.norm()) > 0.1
    assert float((moved - basis.project(moved)).norm() / moved.norm()) < 1e-6
    assert torch.equal(space.read(model), start + optimizer.displacement())
    torch.testing.assert_close(
        basis.expand(optimizer.coordinates), optimizer.displacement(), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_scale_multiplies_the_rate_inside(scale):
    """The first step of Adam moves each of k coordinates by its rate."""
    model, task, space = problem()
    optimizer = inside(model, space, some_basis(space), "adam", scale=scale)
    descend(model, task, optimizer, steps=1)
    torch.testing.assert_close(
        optimizer.coordinates.abs(), torch.full((4,), 0.01 * scale).double(), rtol=1e-4, atol=0
    )


def test_half_precision_adds_steps_up_that_are_below_its_rounding():
    """1,000 steps of 1e-5 from 1; the rounding of bf16 is 4e-3."""
    model = nn.Linear(8, 1, bias=False).bfloat16()
    nn.init.ones_(model.weight)
    plain, space = copy.deepcopy(model), ParamSpace.select(model)
    diagonal = span_basis(torch.ones(1, 8), space=space)

    def make(parameters):
        return torch.optim.SGD(parameters, lr=1e-5)

    for net, optimizer in (
        (model, SubspaceOptimizer(model, space, diagonal, make=make)),
        (plain, make(plain.parameters())),
    ):
        for _ in range(1000):
            optimizer.zero_grad()
            net(torch.ones(1, 8, dtype=torch.bfloat16)).backward()
            optimizer.step()
    assert torch.equal(plain.weight, torch.ones_like(plain.weight))
    torch.testing.assert_close(model.weight.float(), torch.full((1, 8), 0.99), rtol=0, atol=2e-3)


def test_parameters_of_several_dtypes_move_together():
    model, task, space = problem(torch.float64)
    mixed = copy.deepcopy(model)
    mixed.second.data = mixed.second.data.to(torch.bfloat16)
    mixed_loss = mixed.forward
    mixed.forward = lambda: mixed_loss().double()
    basis = some_basis(space)
    for net in (model, mixed):
        descend(net, task, inside(net, space, basis, "adam"), steps=10)
    assert mixed.second.dtype == torch.bfloat16
    torch.testing.assert_close(
        space.read(mixed), space.read(model), rtol=2**-8, atol=float(2**-7) * 0.1
    )


def by_hand(model, task, inner, *, k, inside_steps, cycles):
    """Full steps recorded, orthonormalised, left for their span, again; fresh optimisers."""
    at = 0
    for _ in range(cycles):
        rows, full = [], INNER[inner](model.parameters())
        for _ in range(k):
            before = exact(model)
            descend(model, task, full, steps=1, start=at)
            rows.append(exact(model) - before)
            at += 1
        U = prefix_basis(torch.stack(rows), k).U.double()
        anchor = exact(model)
        c = torch.zeros(k, dtype=torch.float64)
        moving = INNER[inner]([c])
        for _ in range(inside_steps):
            probe = torch.optim.SGD(model.parameters(), lr=0.0)
            descend(model, task, probe, steps=1, start=at)
            slope = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
            c.grad = U.T @ slope
            moving.step()
            point = anchor + U @ c
            with torch.no_grad():
                for p, part in zip(model.parameters(), point.split(6), strict=True):
                    p.copy_(part.reshape(p.shape))
            at += 1


@each_inner
def test_a_moving_prefix_is_the_loop_by_hand(inner):
    model, task, space = problem(torch.float64)
    other = copy.deepcopy(model)
    moving = moving_prefix(3, inside=5, space=space)
    optimizer = inside(model, space, moving, inner)
    descend(model, task, optimizer, steps=16)
    by_hand(other, task, inner, k=3, inside_steps=5, cycles=2)
    # Rows and directions are float32.
    torch.testing.assert_close(space.read(model), space.read(other), rtol=0, atol=2e-6)
    assert (optimizer.taken, optimizer.full_taken) == (16, 6)


def test_a_moving_prefix_starts_as_full_training_and_says_where_it_is():
    model, task, space = problem()
    plain = copy.deepcopy(model)
    optimizer = inside(model, space, moving_prefix(4, inside=None, space=space), "adam")
    assert optimizer.basis is None
    descend(model, task, optimizer, steps=4)
    descend(plain, task, INNER["adam"](plain.parameters()), steps=4)
    torch.testing.assert_close(space.read(model), space.read(plain), rtol=0, atol=1e-6)
    held, before = optimizer.basis, space.read(model)
    assert held.k == 4
    descend(model, task, optimizer, steps=30, start=4)
    assert optimizer.basis is held
    assert optimizer.full_taken == 4
    moved = space.read(model) - before
    assert float((moved - held.project(moved)).norm()) < 1e-6


def test_the_prefix_is_that_of_a_recorded_run():
    model, task, space = quadratic(CURVATURES, noise=0.3)
    training = Training("adam:0.01", batch_size=1, steps=4, clip=None)
    path = train_and_record(copy.deepcopy(model), task, training, space=space)
    optimizer = inside(model, space, moving_prefix(4, inside=None, space=space), "adam")
    for _, batch in zip(range(4), task.batches("train", 1, 0), strict=False):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()
    torch.testing.assert_close(optimizer.basis.U, path.prefix(4).U, rtol=0, atol=1e-5)


@pytest.mark.parametrize("inner", ["momentum", "adam"])
def test_momentum_is_dropped_where_the_basis_changes(inner):
    """After a change of basis a zero gradient gives no step; without a change momentum does."""
    for change in (False, True):
        model, task, space = problem()
        optimizer = inside(model, space, some_basis(space), inner)
        descend(model, task, optimizer, steps=5)
        if change:
            optimizer.rebase(some_basis(space, seed=1))
        before = space.read(model)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        assert torch.equal(space.read(model), before) == change


def test_a_basis_given_by_hand_goes_on_from_the_present_point():
    model, task, space = problem(torch.float64)
    first, second = some_basis(space), some_basis(space, seed=1)
    optimizer = inside(model, space, first, "sgd")
    descend(model, task, optimizer, steps=3)
    middle = optimizer.displacement().clone()
    optimizer.rebase(second)
    descend(model, task, optimizer, steps=3, start=3)
    start = space.read(problem()[0]).double()
    torch.testing.assert_close(exact(model), start + middle + optimizer.displacement())
    assert float(second.captured_fraction(optimizer.displacement())) == pytest.approx(1)


def saved(optimizer, model):
    """Model and optimiser through a file, as a training script keeps them."""
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@each_inner
@pytest.mark.parametrize("stop", [2, 3, 6, 8])
def test_a_saved_state_goes_on_to_the_same_weights(inner, stop):
    """Stopped among the full steps, between the two phases, inside, and at a refresh."""
    model, task, space = problem()
    moving = moving_prefix(3, inside=5, space=space)
    optimizer = inside(model, space, moving, inner)
    descend(model, task, optimizer, steps=stop)
    optimizer.param_groups[0]["lr"] *= 0.5
    kept = saved(optimizer, model)
    descend(model, task, optimizer, steps=9, start=stop)

    again, _, _ = problem()
    resumed = inside(again, space, moving, inner)
    again.load_state_dict(kept["model"])
    resumed.load_state_dict(kept["optimizer"])
    descend(again, task, resumed, steps=9, start=stop)
    assert torch.equal(space.read(again), space.read(model))
    assert resumed.full_taken == optimizer.full_taken
    assert resumed.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


def test_a_schedule_drives_the_rate_inside():
    model, task, space = problem(torch.float64)
    other = copy.deepcopy(model)
    basis = some_basis(space)
    optimizer = inside(model, space, basis, "sgd", scale=2.0)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for t in range(4):
        descend(model, task, optimizer, steps=1, start=t)
        schedule.step()
        fixed = SubspaceOptimizer(
            other, space, basis, make=lambda p, t=t: torch.optim.SGD(p, lr=0.1 * 0.5**t)
        )
        descend(other, task, fixed, steps=1, start=t)
    assert optimizer.param_groups[0]["lr"] == 0.05 / 16
    torch.testing.assert_close(space.read(model), space.read(other), rtol=0, atol=1e-6)


def test_weight_decay_pulls_to_the_anchor():
    model, _, space = problem()
    start = space.read(model)
    optimizer = SubspaceOptimizer(
        model, space, some_basis(space), make=lambda p: torch.optim.AdamW(p, 0.1, weight_decay=1.0)
    )
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    away = float((space.read(model) - start).norm())
    for _ in range(400):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    assert float((space.read(model) - start).norm()) < 1e-3 * away


def test_clipping_limits_the_gradient_inside():
    model, task, space = problem()
    optimizer = inside(model, space, some_basis(space), "sgd", clip=0.2)
    descend(model, task, optimizer, steps=1)
    assert float(optimizer.displacement().norm()) == pytest.approx(0.05 * 0.2, rel=1e-5)


def test_a_closure_gives_its_loss_and_its_gradients():
    model, task, space = problem()
    optimizer = inside(model, space, some_basis(space), "sgd")

    def closure():
        optimizer.zero_grad()
        loss = task.loss(model, {"slope": torch.zeros(1, 12)})
        loss.backward()
        return loss

    first, second = optimizer.step(closure), optimizer.step(closure)
    assert second.item() < first.item()


def test_only_the_selected_parameters_move():
    model, task, _ = problem()
    space, second = ParamSpace.select(model, "first"), model.second.detach().clone()
    optimizer = inside(model, space, some_basis(space, k=2), "adam")
    descend(model, task, optimizer, steps=3)
    assert torch.equal(model.second.detach(), second)


def test_a_change_from_outside_is_not_undone_silently():
    model, task, space = problem()
    optimizer = inside(model, space, some_basis(space), "sgd")
    descend(model, task, optimizer, steps=2)
    model.second.data += 1
    moved = space.read(model)
    with pytest.raises(ValueError, match="parameter second has changed since the last step"):
        descend(model, task, optimizer, steps=1)
    assert torch.equal(space.read(model), moved)
    optimizer.rebase(some_basis(space))
    assert not optimizer.displacement().any()
    descend(model, task, optimizer, steps=1)
    assert float((space.read(model) - moved).norm()) < 1


def test_no_gradient_and_no_finite_gradient_are_refused():
    model, _, space = problem()
    optimizer = inside(model, space, some_basis(space), "sgd")
    before = space.read(model)
    with pytest.raises(ValueError, match="none of the 2 selected parameters has a gradient"):
        optimizer.step()
    model.second.grad = torch.full_like(model.second, float("nan"))
    with pytest.raises(FloatingPointError, match="step 1 is not finite in parameter second"):
        optimizer.step()
    model.second.grad = torch.zeros_like(model.second)
    optimizer.step()
    assert torch.equal(space.read(model), before)


def test_what_cannot_be_is_refused(unchecked):
    model, _, space = problem()
    with pytest.raises(ValueError, match="12 coordinates, the basis has d = 10"):
        inside(model, space, random_basis(10, 2, generator(0, "basis")), "sgd")
    foreign = random_basis(
        12, 2, generator(0, "basis"), space=ParamSpace(("first", "third"), space.shapes)
    )
    with pytest.raises(ValueError, match="spaces differ first at entry 1: second"):
        inside(model, space, foreign, "sgd")
    with pytest.raises(ValueError, match="a cycle of 0 full steps and 3 inside is too short"):
        MovingBasis(0, 3, lambda rows, _: prefix_basis(rows, 1))
    with pytest.raises(ValueError, match="a cycle of 2 full steps and 0 inside is too short"):
        moving_prefix(2, inside=0, space=space)
    with pytest.raises(ValueError, match="2 parameter groups"):
        SubspaceOptimizer(
            model,
            space,
            some_basis(space),
            make=lambda p: torch.optim.SGD([{"params": p}, {"params": [torch.zeros(1)]}], lr=0.1),
        )
    optimizer = inside(model, space, some_basis(space), "sgd")
    state = optimizer.state_dict()
    state["state"]["point"] = torch.zeros(3)
    with pytest.raises(ValueError, match="the state has 3 coordinates, the space has 12"):
        optimizer.load_state_dict(state)


def test_the_example_of_the_documentation_runs(capsys):
    page = (Path(__file__).parents[2] / "docs" / "subspace.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    with torch.random.fork_rng():
        exec(compile(code, "docs/subspace.md", "exec"), {})
    loss, full = capsys.readouterr().out.split()
    assert float(loss) < 0.9
    assert full == "30"


def in_a_trainer(folder, *, resume=None):
    """Ten steps of the Trainer of transformers, saved after five: the weights at the end."""
    from transformers import Trainer, TrainingArguments

    model = tiny_gpt2().eval()
    space = ParamSpace.select(model)
    moving = moving_prefix(3, inside=4, space=space)
    optimizer = inside(model, space, moving, "adam", scale=5.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t))
    settings = TrainingArguments(
        str(folder),
        max_steps=10,
        save_steps=5,
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
    )
    rows = [{"input_ids": torch.arange(6) + i, "labels": torch.arange(6) + i} for i in range(16)]
    trainer = Trainer(model, settings, train_dataset=rows, optimizers=(optimizer, schedule))
    with torch.random.fork_rng():
        trainer.train(resume_from_checkpoint=resume)
    assert (optimizer.taken, optimizer.full_taken) == (10, 6)
    return space.read(model)


def test_the_trainer_of_transformers_runs_and_resumes_it(tmp_path, unchecked):
    whole = in_a_trainer(tmp_path)
    resumed = in_a_trainer(tmp_path, resume=str(tmp_path / "checkpoint-5"))
    assert torch.equal(resumed, whole)
    assert float((whole - ParamSpace.select(start := tiny_gpt2()).read(start)).norm()) > 0.1
