"""Parameter spaces of small modules: order, selection, restoring to the last bit."""

import pytest
import torch
from torch import nn

from frenet.geometry import rng
from frenet.geometry.basis import Space
from frenet.geometry.subspace import require_same_space
from frenet.network.space import ParamSpace


class Net(nn.Module):
    """Two layers of unlike size, a tied matrix and a frozen vector."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first = nn.Linear(3, 2)
            self.embed = nn.Embedding(5, 4)
            self.head = nn.Linear(4, 5, bias=False)
            self.frozen = nn.Parameter(torch.ones(7), requires_grad=False)
        self.head.weight = self.embed.weight


def test_the_space_is_in_the_models_order_with_tied_weights_once():
    space = ParamSpace.select(Net())
    assert space.names == ("first.weight", "first.bias", "embed.weight")
    assert space.shapes == ((2, 3), (2,), (5, 4))
    assert space.sizes == (6, 2, 20)
    assert space.dim == 28
    assert isinstance(space, Space)


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("weight", ("first.weight", "embed.weight")),
        ("^first", ("first.weight", "first.bias")),
        ("bias|frozen", ("frozen", "first.bias")),
        (lambda name, p: p.dim() == 1, ("frozen", "first.bias")),
        (lambda name, p: not p.requires_grad, ("frozen",)),
    ],
)
def test_an_expression_or_a_predicate_chooses_whatever_requires_a_gradient(where, names):
    """A parameter of the module itself comes before those of its layers."""
    assert ParamSpace.select(Net(), where).names == names


def test_the_head_of_a_tied_pair_goes_by_the_first_name():
    with pytest.raises(ValueError, match=r"no parameter matches 'head'; the nearest names are"):
        ParamSpace.select(Net(), "head")


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("frist", r"no parameter matches 'frist'; the nearest names are .*first"),
        (lambda name, p: False, "the predicate matches none of the 4 parameters"),
    ],
)
def test_nothing_chosen_is_an_error_with_the_nearest_names(where, message):
    with pytest.raises(ValueError, match=message):
        ParamSpace.select(Net(), where)


def test_nothing_trainable_is_an_error_with_the_remedy():
    model = Net().requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter requires a gradient; pass where="):
        ParamSpace.select(model)


def test_quantised_parameters_are_refused_by_name():
    model = Net()
    model.codes = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"parameter codes has dtype torch.int8, .* quantisation"):
        ParamSpace.select(model, "codes")
    assert "codes" not in ParamSpace.select(model).names


def test_two_parameters_on_one_storage_but_other_places_both_count():
    model = nn.Module()
    whole = torch.zeros(6)
    model.a, model.b = (nn.Parameter(whole[i : i + 3]) for i in (0, 3))
    assert ParamSpace.select(model).names == ("a", "b")


@pytest.mark.parametrize("where", [None, "embed", "head"])
@pytest.mark.parametrize("transposed", [False, True])
def test_two_parameters_in_one_place_are_refused(where, transposed):
    """Autograd gives each the slope of its own use, and moving one moves both."""
    model = Net()
    weight = model.embed.weight.data
    model.head.weight = nn.Parameter(weight.T if transposed else weight)
    with pytest.raises(ValueError, match=r"embed.weight and head.weight are two .*; tie the param"):
        ParamSpace.select(model, where)
    assert ParamSpace.select(model, "first").dim == 8


def test_flatten_and_unflatten_undo_each_other():
    model, space = Net(), ParamSpace.select(Net())
    vector = space.read(model)
    assert torch.equal(vector[:6], model.first.weight.detach().flatten())
    parts = space.unflatten(vector)
    assert [tuple(part.shape) for part in parts.values()] == list(space.shapes)
    assert torch.equal(space.flatten(parts), vector)
    shuffled = dict(reversed(parts.items())) | {"more": torch.zeros(1)}
    assert torch.equal(space.flatten(shuffled), vector)


def test_leading_axes_are_kept_and_the_parts_are_views():
    space = ParamSpace.select(Net())
    stack = torch.arange(2 * 3 * 28.0).reshape(2, 3, 28)
    parts = space.unflatten(stack)
    assert parts["embed.weight"].shape == (2, 3, 5, 4)
    assert torch.equal(parts["first.bias"][1, 2], stack[1, 2, 6:8])
    row = torch.zeros(28)
    space.unflatten(row)["first.bias"][1] = 5
    assert row[7] == 5


def test_what_does_not_fit_is_refused(unchecked):
    model, space = Net(), ParamSpace.select(Net())
    with pytest.raises(ValueError, match="the vector has 27 coordinates, the space 28"):
        space.unflatten(torch.zeros(27))
    with pytest.raises(ValueError, match=r"no tensor for first.bias \(2 of them missing\)"):
        space.flatten({"first.weight": torch.zeros(2, 3)})
    other = nn.Module()
    other.first = nn.Linear(4, 2)
    message = (
        r"first.weight should have shape \(2, 3\), but has shape \(2, 4\); select the space on"
    )
    with pytest.raises(ValueError, match=message):
        space.read(other)
    with pytest.raises(ValueError, match=r"first.weight should .*, but does not exist"):
        space.write(nn.Module(), torch.zeros(28))
    assert torch.equal(space.read(model), space.read(Net()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("error", [None, OSError, KeyboardInterrupt])
def test_everything_comes_back_bit_for_bit(dtype, error):
    """Adding and subtracting would not: 20 displacements in a row."""
    model = Net().to(dtype)
    space = ParamSpace.select(model)
    model.first.weight.data[0, 0] = -0.0
    before = [p.detach().clone() for p in space.parameters(model)]
    addresses = [p.data_ptr() for p in model.parameters()]
    for i in range(20):
        delta = 0.01 * torch.randn(28, generator=rng.generator(i, "delta"))
        try:
            with space.displaced(model, delta):
                assert not torch.equal(space.read(model), before[0])
                assert model.head.weight is model.embed.weight
                if error:
                    raise error("stop here")
        except (OSError, KeyboardInterrupt):
            assert error
    for parameter, copy in zip(space.parameters(model), before, strict=True):
        assert parameter.dtype == dtype
        assert torch.equal(parameter, copy)
        assert torch.equal(parameter.signbit(), copy.signbit())
    assert [p.data_ptr() for p in model.parameters()] == addresses


def test_adding_and_subtracting_would_not_bring_the_weights_back():
    """The reason for saved copies: a tenth of float32 weights would differ."""
    weight = 0.02 * torch.randn(10_000, generator=rng.generator(0, "w"))
    noise = 1e-3 * torch.randn(10_000, generator=rng.generator(1, "w"))
    changed = float(((weight + noise) - noise != weight).float().mean())
    assert 0.02 < changed < 0.2


def test_a_displacement_is_added_in_float32_and_rounded_once():
    model = Net().bfloat16()
    space = ParamSpace.select(model)
    before = space.read(model)
    delta = 0.01 * torch.randn(28, generator=rng.generator(0, "delta"))
    with space.displaced(model, delta):
        expected = (before + delta).bfloat16().float()
        assert torch.equal(space.read(model), expected)
    assert not torch.equal(expected - before, delta)


def test_noise_is_independent_between_tensors_of_one_shape():
    """Case S2: one draw over the flattened vector."""
    model = nn.Sequential(*(nn.Linear(32, 32, bias=False) for _ in range(3)))
    space = ParamSpace.select(model)
    noise = torch.randn(space.dim, generator=rng.generator(7, "search"))
    before = [p.detach().clone() for p in model.parameters()]
    with space.displaced(model, 0.01 * noise):
        moved = torch.stack(
            [(p - b).detach().flatten() for p, b in zip(model.parameters(), before, strict=True)]
        )
    assert float(moved.std()) == pytest.approx(0.01, rel=0.05)
    correlations = torch.corrcoef(moved) - torch.eye(3)
    assert correlations.abs().max() < 5 / 1024**0.5


def test_writing_to_one_name_of_a_tied_pair_moves_both():
    model, space = Net(), ParamSpace.select(Net())
    space.write(model, torch.arange(28.0))
    assert torch.equal(model.head.weight, torch.arange(8.0, 28.0).reshape(5, 4))
    assert model.head.weight is model.embed.weight
    assert torch.equal(model.frozen, torch.ones(7))


def test_a_coordinate_has_the_name_of_its_parameter():
    space = ParamSpace.select(Net())
    names = [space.locate(i) for i in range(28)]
    expected = [
        name for name, size in zip(space.names, space.sizes, strict=True) for _ in range(size)
    ]
    assert names == expected
    with pytest.raises(ValueError, match="coordinate beyond the 28 of this space"):
        space.locate(28)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("shape", [(28,), (3, 28)])
def test_a_number_that_is_not_finite_names_its_parameter(bad, shape):
    space = ParamSpace.select(Net())
    vector = torch.zeros(shape)
    space.check_finite(vector, "the step")
    vector[..., 7] = bad
    with pytest.raises(FloatingPointError, match=r"the step is not finite in .* first\.bias"):
        space.check_finite(vector, "the step")
    # Finite numbers whose sum is not.
    space.check_finite(torch.full_like(vector, 3e38), "the step")


def test_the_first_difference_of_two_spaces_is_named():
    a, b = ParamSpace.select(Net()), ParamSpace.select(Net(), "weight")
    require_same_space(a, ParamSpace.select(Net()))
    message = r"first at entry 1: first.bias \(2,\) against embed.weight \(5, 4\); select both"
    with pytest.raises(ValueError, match=message):
        require_same_space(a, b)
    shorter = ParamSpace(a.names[:2], a.shapes[:2])
    with pytest.raises(ValueError, match=r"at entry 2: nothing \(\) against embed.weight \(5, 4\)"):
        require_same_space(shorter, a)
    other = ParamSpace(a.names, ((3, 2), *a.shapes[1:]))
    with pytest.raises(ValueError, match=r"entry 0: first.weight \(2, 3\) against first.weight"):
        require_same_space(a, other)


def test_parameters_without_values_are_named():
    """On the meta device torch's own errors say nothing of a model."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    space = ParamSpace.select(model, "1")
    for call in (
        lambda: space.read(model),
        lambda: space.write(model, torch.zeros(space.dim)),
        lambda: space.parameters(model),
    ):
        with pytest.raises(ValueError, match=r"1\.weight is on the meta device and has no values"):
            call()
