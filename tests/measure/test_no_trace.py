"""Measuring leaves no trace: flags, gradients, random states, hooks and weights are restored."""

import random

import numpy as np
import pytest
import torch

from frenet.measure.bases import Sampling, bases_at_damage, bases_at_start
from frenet.measure.curvature import hessian_product, hutchinson
from frenet.measure.damage import fixed_loss
from frenet.measure.drift import train_and_compare
from frenet.measure.gradients import example_gradients, gradient, gradient_matrix
from frenet.measure.recovery import evaluate_at, recover
from frenet.measure.trajectory import Training, train_and_record
from frenet.methods.subspace import train_in_basis
from frenet.network.measuring import measuring
from frenet.network.space import ParamSpace
from frenet.network.tasks import collate
from measure.conftest import build
from measure.quadratic import ROWS, RowsTask
from network.models import tiny_gpt2

# beartype chooses the list entries that it checks by Python's random numbers.
pytestmark = pytest.mark.usefixtures("unchecked")

BATCH = collate(ROWS)
TRAINING = Training("adam:1e-3", batch_size=2, steps=3)
# Three rows give few different batches, so the bases are small.
SAMPLING = Sampling(k=2, n=4, batch_size=2, seed=0)


def product_norm(model, task, space):
    product = hessian_product(model, task, BATCH, space=space)
    return product(torch.ones(space.dim))


def trace(model, task, space):
    product = hessian_product(model, task, BATCH, space=space)
    generator = torch.Generator().manual_seed(0)
    return torch.tensor(hutchinson(product, space.dim, probes=3, generator=generator, cubes=True))


def recorded(model, task, space):
    with space.restored(model):
        return train_and_record(model, task, TRAINING, space=space).steps


def compared(model, task, space):
    with space.restored(model):
        path, *_ = train_and_compare(model, task, TRAINING, space=space, lags=[1], n=2, k=1)
        return path.steps


def recovered(model, task, space):
    with space.restored(model):
        return recover(
            model, task, TRAINING, space=space, threshold=0.0, probe_size=3
        ).trajectory.steps


def bases(model, task, space):
    start = bases_at_start(
        model, task, [task.shuffled(0)], sampling=SAMPLING, space=space, training=TRAINING
    )
    damage = bases_at_damage(model, task, sampling=SAMPLING, space=space, second_order=())
    return torch.cat([basis.U.cpu() for basis in (start | damage).values()], dim=1)


def inside_basis(model, task, space):
    basis = bases_at_damage(model, task, sampling=SAMPLING, space=space, second_order=())
    with space.restored(model):
        return train_in_basis(
            model, task, basis["gradients at damage"], space=space, training=TRAINING
        )


MEASUREMENTS = {
    "gradient": lambda m, t, s: gradient(m, t, BATCH, space=s),
    "gradient matrix": lambda m, t, s: gradient_matrix(m, t, space=s, n=3, batch_size=2),
    "examples": lambda m, t, s: example_gradients(m, t, BATCH, space=s),
    "Hessian product": product_norm,
    "trace": trace,
    "loss": lambda m, t, s: torch.tensor(fixed_loss(m, t, size=3)),
    "evaluation": lambda m, t, s: torch.tensor(
        evaluate_at(m, BATCH, space=s, delta=torch.full((s.dim,), 1e-3))
    ),
    "training": recorded,
    "drift": compared,
    "recovery": recovered,
    "bases": bases,
    "training in a basis": inside_basis,
}


def in_use(name):
    """A model in the middle of its user's training: everything set to something unusual."""
    model = build(name).train()
    parts = list(model.modules())
    parts[len(parts) // 2].eval()
    parameters = list(model.parameters())
    parameters[1].requires_grad_(False)
    for parameter in parameters[::2]:
        parameter.requires_grad_(True)
        parameter.grad = torch.ones_like(parameter)
    model.register_forward_hook(lambda *_: None)
    return model


def state(model):
    """Everything that a measurement could leave behind."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "training": [module.training for module in model.modules()],
        "hooks": [list(getattr(module, hook)) for module in model.modules() for hook in hooks],
        "tensor hooks": [p._backward_hooks for p in model.parameters()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grad": [
            None if p.grad is None else (id(p.grad), p.grad.tolist()) for p in model.parameters()
        ],
        "values": [p.detach().view(torch.int32).tolist() for p in model.parameters()],
        "addresses": [p.data_ptr() for p in model.parameters()],
        "buffers": [b.tolist() for b in model.buffers()],
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": [str(part) for part in np.random.get_state()],
        "grad mode": torch.is_grad_enabled(),
        "kernels": (
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
        ),
    }


@pytest.mark.parametrize("name", ["gpt2", "qwen2-lora"])
@pytest.mark.parametrize("measurement", MEASUREMENTS)
def test_everything_is_as_found_and_a_second_look_sees_the_same(measurement, name):
    """The model is in training mode, with dropout: two measurements agree to the last bit."""
    model, task = in_use(name), RowsTask()
    space = ParamSpace.select(model, "attn|wte" if name == "gpt2" else "lora_")
    before = state(model)
    first = MEASUREMENTS[measurement](model, task, space)
    assert state(model) == before
    assert torch.equal(first, MEASUREMENTS[measurement](model, task, space))
    assert torch.isfinite(first).all()


class Failing(RowsTask):
    """The third look at the loss fails, in the way that the task's name says."""

    looks = 0

    def loss(self, model, batch):
        type(self).looks += 1
        if type(self).looks == 3:
            raise {"error": OSError, "Ctrl-C": KeyboardInterrupt}[self.name]("stop here")
        return super().loss(model, batch)


@pytest.mark.parametrize("name", ["error", "Ctrl-C"])
@pytest.mark.parametrize("measurement", [name for name in MEASUREMENTS if name != "evaluation"])
def test_everything_is_as_found_after_an_exception(measurement, name):
    model = in_use("qwen2-lora")
    task, space = Failing(name=name), ParamSpace.select(model, "lora_")
    before = state(model)
    # The single measurements have one look, all others three and more.
    single = ("gradient", "examples", "loss", "Hessian product", "trace")
    Failing.looks = 2 if measurement in single else 0
    with pytest.raises((OSError, KeyboardInterrupt), match="stop here"):
        MEASUREMENTS[measurement](model, task, space)
    assert state(model) == before


def test_evaluating_is_undone_when_the_model_fails():
    model = in_use("gpt2")
    space = ParamSpace.select(model)
    before = state(model)
    with pytest.raises(IndexError, match="index out of range"):
        evaluate_at(model, collate([([64], [1])]), space=space, delta=torch.ones(space.dim))
    assert state(model) == before


def test_a_backward_pass_inside_adds_to_nothing_outside():
    model = in_use("gpt2")
    space, before = ParamSpace.select(model), state(model)
    with measuring(model, space):
        assert all(p.grad is None for p in model.parameters())
        RowsTask().loss(model, BATCH).backward()
        assert all(p.grad is not None for p in space.parameters(model))
    assert state(model) == before


def test_dropout_is_what_would_have_made_the_difference():
    """Without the evaluation mode the tests above would fail: two plain measurements differ."""
    model = tiny_gpt2().train()
    losses = {RowsTask().loss(model, BATCH).item() for _ in range(4)}
    assert len(losses) > 1
    assert len({fixed_loss(model, RowsTask(), size=3) for _ in range(4)}) == 1


def test_only_the_space_has_gradients_while_measuring():
    model = tiny_gpt2()
    space = ParamSpace.select(model, "c_attn")
    with measuring(model, space):
        wanted = {name for name, p in model.named_parameters() if p.requires_grad}
        assert wanted == set(space.names)
        assert not any(module.training for module in model.modules())
    with measuring(model):
        assert not any(p.requires_grad for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(reentrant):
    """Evaluation mode switches it off, which torch.func needs; it is on again afterwards."""
    plain, task = build("qwen2-lora"), RowsTask()
    space = ParamSpace.select(plain)
    model = build("qwen2-lora").train()
    inner = model.base_model.model
    # The second name is that of transformers before 5.20.
    enable = getattr(inner, "activation_checkpointing_enable", inner.gradient_checkpointing_enable)
    enable({"use_reentrant": reentrant})
    before = state(model)
    for name in ("gradient", "examples", "Hessian product"):
        measure = MEASUREMENTS[name]
        torch.testing.assert_close(measure(model, task, space), measure(plain, task, space))
    # The embeddings' hook, which torch.func refuses, is there again.
    assert state(model) == before
    assert inner.model.gradient_checkpointing
