"""Losses and streams at sums of displacements: exact sums, nothing left behind, refusals."""

import pytest
import torch
from torch import nn

from frenet.geometry.rng import generator
from frenet.measure.additivity import Shift, additivity
from frenet.measure.curvature import hessian_product
from frenet.measure.displaced import DisplacedLosses, DisplacedStreams, moving
from frenet.measure.interaction import second_order
from frenet.network.blocks import OUTSIDE, parameter_blocks
from frenet.network.space import ParamSpace
from frenet.network.tasks import collate, example_losses
from measure.quadratic import ROWS, RowsTask, quadratic
from network.models import tiny_gpt2

BATCH = collate(ROWS)


def reads(space, *names, scale=0.01):
    """Random displacements, by name."""
    found = {}
    for name in names:
        draw = generator(0, "displacement", name)
        parts = space.unflatten(scale * torch.randn(space.dim, generator=draw))
        found[name] = parts.__getitem__
    return found


def dense(read, space):
    return space.flatten({name: read(name) for name in space.names})


def bits(model):
    return [p.detach().clone().view(torch.int32) for p in model.parameters()]


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_losses_are_those_of_the_summed_weights_and_each_place_is_measured_once():
    model = tiny_gpt2().eval()
    space = ParamSpace.select(model)
    found = reads(space, "a", "b")
    with moving(model, found, space=space) as mover:
        losses = DisplacedLosses(mover, {"rows": BATCH})
        plane = losses.plane("rows", "a", "b")
        here = plane.at(0.5, -2.0)
        assert plane.mean(0.5, -2.0) == pytest.approx(float(here.sum()) / 6)
        assert plane.counts.tolist() == [2, 3, 1]
        assert losses.plane("rows", "b", "a").at(-2.0, 0.5).equal(here)
        places = (mover.writes, losses.passes)
        plane.at(0.5, -2.0)
        assert (mover.writes, losses.passes) == places == (1, 2)
    delta = 0.5 * dense(found["a"], space) - 2 * dense(found["b"], space)
    with space.displaced(model, delta), torch.no_grad():
        direct = example_losses(model, BATCH)[0]
    torch.testing.assert_close(here.float(), direct, rtol=1e-5, atol=1e-5)


def test_one_and_the_same_displacement_is_added_to_itself():
    model = tiny_gpt2().eval()
    space = ParamSpace.select(model)
    with moving(model, reads(space, "a"), space=space) as mover:
        losses = DisplacedLosses(mover, {"rows": BATCH})
        twice = losses.plane("rows", "a", "a").at(0.5, 0.25)
        assert twice.equal(losses.at("rows", {"a": 0.75}))


@pytest.mark.parametrize("fails", [False, True])
def test_weights_come_back_bit_for_bit(fails):
    model = tiny_gpt2().train()
    space = ParamSpace.select(model, "attn")
    before = bits(model)
    try:
        with moving(model, reads(space, "a", "b"), space=space) as mover:
            DisplacedLosses(mover, {"rows": BATCH}).at("rows", {"a": 0.3, "b": 7.0})
            assert not equal(bits(model), before)
            mover.to({})
            assert equal(bits(model), before)
            mover.to({"b": 1.0})
            if fails:
                raise OSError("stop here")
    except OSError:
        assert fails
    assert equal(bits(model), before)
    assert model.training


def test_refusals():
    model = tiny_gpt2().eval()
    space = ParamSpace.select(model)
    zeros = {
        name: torch.zeros(shape) for name, shape in zip(space.names, space.shapes, strict=True)
    }
    nothing = {"nothing": zeros.__getitem__}
    with pytest.raises(ValueError, match="'nothing' is zero"), moving(model, nothing, space=space):
        pass
    broken = {"broken": lambda name: zeros[name] + torch.nan}
    with pytest.raises(ValueError, match="'broken' is not fin"), moving(model, broken, space=space):
        pass
    with (
        pytest.raises(ValueError, match="float32"),
        moving(model.bfloat16(), reads(space, "a"), space=space),
    ):
        pass


def test_unknown_displacements_and_tasks_without_targets_are_refused():
    model = tiny_gpt2().eval()
    space = ParamSpace.select(model)
    with moving(model, reads(space, "a"), space=space) as mover:
        with pytest.raises(ValueError, match="no displacement 'c'; there are a"):
            mover.to({"c": 1.0})
        empty = {**BATCH, "labels": torch.full_like(BATCH["labels"], -100)}
        with pytest.raises(ValueError, match="task 'rows' has no test rows"):
            DisplacedLosses(mover, {"rows": empty})


def test_second_order_is_the_dense_form_on_a_quadratic():
    model, task, space = quadratic(torch.tensor([3.0, -1.0, 0.5, 2.0]))
    batch = next(task.batches("test", 1, 0))
    found = reads(space, "a", "b", scale=1.0)
    a, b = (dense(found[name], space).double() for name in ("a", "b"))
    got = second_order(model, task, batch, found["a"], found["b"], space=space)
    assert got.total == pytest.approx(float(a @ task.H @ b), rel=1e-5)
    assert dict(got.by_block) == {OUTSIDE: got.total}


def test_second_order_by_block_is_that_of_the_parts_and_they_sum_to_the_total():
    model, task = tiny_gpt2().eval(), RowsTask()
    space = ParamSpace.select(model)
    found = reads(space, "a", "b")
    got = second_order(model, task, BATCH, found["a"], found["b"], space=space)
    assert list(got.by_block) == ["block 0", "block 1", "block 2", OUTSIDE]
    assert sum(got.by_block.values()) == pytest.approx(got.total)
    blocks = parameter_blocks(model, space.names)
    b, a = dense(found["b"], space), dense(found["a"], space)
    parts = {
        name: torch.zeros(shape) for name, shape in zip(space.names, space.shapes, strict=True)
    }
    inside = {n: found["b"](n) if blocks[n] == "block 1" else parts[n] for n in space.names}
    product = hessian_product(model, task, BATCH, space=space)
    expected = float(a.double() @ product(space.flatten(inside)).double())
    assert got.by_block["block 1"] == pytest.approx(expected, rel=1e-3, abs=1e-7)
    swapped = second_order(model, task, BATCH, found["b"], found["a"], space=space)
    assert swapped.total == pytest.approx(got.total, rel=1e-3)
    assert float(a.double() @ product(b).double()) == pytest.approx(got.total, rel=1e-3)


def test_the_interaction_converges_to_second_order_as_the_scale_falls():
    """In float64, where a mixed difference of four losses keeps its digits."""
    model, task = tiny_gpt2().double().eval(), RowsTask()
    space = ParamSpace.select(model)
    found = reads(space, "a", "b", scale=0.1)
    predicted = second_order(model, task, BATCH, found["a"], found["b"], space=space).total
    errors = []
    with moving(model, found, space=space) as mover:
        plane = DisplacedLosses(mover, {"rows": BATCH}).plane("rows", "a", "b")
        for s in (3e-4, 1e-4):
            mixed = (
                plane.mean(s, s) - plane.mean(s, 0.0) - plane.mean(0.0, s) + plane.mean(0.0, 0.0)
            )
            errors.append(abs(mixed / (s**2 * predicted) - 1))
    assert errors[1] < 1e-3
    # The remainder is of third order.
    assert errors[0] / errors[1] == pytest.approx(3, rel=0.1)


def linear_network():
    """Two linear layers in turn, whose streams are W1 x and W2 W1 x."""
    draw = generator(0, "linear network")
    model = nn.Module()
    model.embed = nn.Embedding(8, 3)
    model.layers = nn.ModuleList([nn.Linear(3, 3, bias=False) for _ in range(2)])
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draw)

    def forward(input_ids):
        stream = model.embed(input_ids)
        for layer in model.layers:
            stream = layer(stream)
        return stream

    model.forward = forward
    return model


def shifts(model, space, found, scales):
    with moving(model, found, space=space) as mover:
        streams = DisplacedStreams(mover, [[1, 2], [3], [5, 6, 7]], [0, 1])
        return [streams.shift(each) for each in scales]


def test_of_a_linear_network_shifts_in_one_layer_add_up():
    model = linear_network()
    space = ParamSpace.select(model, "layers.0")
    scales = ({"a": 1.0}, {"b": 1.0}, {"a": 1.0, "b": 1.0})
    first, second, both = shifts(model, space, reads(space, "a", "b", scale=1.0), scales)
    for block in (0, 1):
        got = additivity(
            first[:, block], second[:, block], both[:, block], generator=generator(0, "draw")
        )
        assert got.error == pytest.approx(0, abs=1e-6)
        assert got.each == pytest.approx(0, abs=1e-6)


def test_of_two_layers_the_error_is_the_product_of_both_changes():
    """W2 W1 x changes by B W1 x, by W2 A x, and by both, with B A x more."""
    model = linear_network()
    space = ParamSpace.select(model, "layers")
    found = reads(space, "a", "b", scale=0.5)
    one, two = space.names
    zero = torch.zeros(3, 3)
    split = {
        "a": lambda name: found["a"](name) if name == one else zero,
        "b": lambda name: found["b"](name) if name == two else zero,
    }
    scales = ({"a": 2.0}, {"b": 2.0}, {"a": 2.0, "b": 2.0})
    first, second, both = (each[:, 1] for each in shifts(model, space, split, scales))
    x = model.embed.weight.detach()[[2, 3, 7]].double()
    W1, W2 = (layer.weight.detach().double() for layer in model.layers)
    A, B = 2 * found["a"](one).double(), 2 * found["b"](two).double()
    away, along = x @ A.T @ B.T, x @ W1.T @ B.T + x @ A.T @ W2.T
    got = additivity(first, second, both, generator=generator(0, "draw"))
    assert got.error == pytest.approx(float(away.mean(0).norm() / along.mean(0).norm()), rel=1e-4)
    assert got.each == pytest.approx(float(away.norm() / along.norm()), rel=1e-4)
    assert got.low <= got.error <= got.high


def test_additivity_does_not_depend_on_order_or_unit():
    draw = generator(0, "shifts")
    first, second, both = torch.randn(3, 20, 5, generator=draw).double()
    one = additivity(first, second, both, generator=generator(0, "draw"))
    other = additivity(3 * second, 3 * first, 3 * both, generator=generator(0, "draw"))
    assert tuple(one) == pytest.approx(tuple(other))


def test_shifts_that_cancel_have_no_error():
    shift = torch.ones(3, 2)
    with pytest.raises(ValueError, match="cancel"):
        additivity(shift, -shift, shift, generator=generator(0, "draw"))


def test_the_noise_of_a_shift_is_that_of_random_halves():
    """Half the difference of the means of two halves has the standard error as its size."""
    draw = generator(0, "halves")
    rows = torch.randn(40, 3, generator=draw).double() + 0.1
    got = Shift.of(rows)
    squares = []
    for _ in range(4000):
        one, other = rows[torch.randperm(40, generator=draw)].chunk(2)
        squares.append(float((one.mean(0) - other.mean(0)).square().sum()) / 4)
    assert got.noise**2 == pytest.approx(sum(squares) / len(squares), rel=0.05)
    assert got.norm == pytest.approx(float(rows.mean(0).norm()))
    assert got.ratio == pytest.approx(got.norm / got.noise)
    assert got.noise_share == pytest.approx(1 / (1 + got.ratio))


def test_a_shift_of_nothing_is_all_noise_and_one_prompt_has_none():
    assert Shift.of(torch.zeros(3, 2)).noise_share == 1
    with pytest.raises(ValueError, match="1 prompts have no noise"):
        Shift.of(torch.ones(1, 2))
