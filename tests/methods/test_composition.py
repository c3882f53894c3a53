"""Interaction and composition radius: closed forms, invariances, intervals, refusals."""

import math

import pytest
import torch

from frenet.geometry.linalg import norm
from frenet.geometry.rng import generator
from frenet.measure.bracket import NARROW
from frenet.measure.displaced import DisplacedLosses, LossPlane, moving
from frenet.methods.composition import (
    MAP,
    SCALES,
    by_block,
    composition,
    interaction,
    joint,
    loss_map,
    random_twin,
    relation,
    require_few,
    restricted,
)
from frenet.methods.task_vectors import TaskVector
from frenet.network.blocks import OUTSIDE
from frenet.network.space import ParamSpace
from measure.quadratic import quadratic
from network.models import tiny_gpt2

EPS = 0.2


def bilinear(slope_a, slope_b, mixed, *, n=8, spread=0.0, cubic=0.0, offset=1.0, seed=0):
    """n examples with offset + g_a x + g_b y + h x y + c x^2 y."""
    draw = generator(seed, "plane")
    own = mixed * (1 + spread * torch.randn(n, generator=draw, dtype=torch.float64))

    def at(x, y):
        return offset + slope_a * x + slope_b * y + own * x * y + cubic * x**2 * y

    return LossPlane(at, torch.ones(n, dtype=torch.float64))


def found(plane, **more):
    return composition(plane, generator=generator(0, "draw"), **more)


@pytest.mark.parametrize(("a", "b", "h"), [(-1.0, -2.0, 1.7), (0.5, -0.5, -0.4), (3.0, 0.1, 0.9)])
def test_of_a_quadratic_the_radius_is_the_closed_form(a, b, h):
    """|h| s^2 <= eps (|a| + |b|) s up to s = eps (|a| + |b|) / |h|."""
    got, closed = found(bilinear(a, b, h)), EPS * (abs(a) + abs(b)) / abs(h)
    assert got.radius.low <= closed <= got.radius.high <= NARROW * got.radius.low
    assert got.radius.value == pytest.approx(closed, rel=1e-6)
    assert (got.low, got.high) == (got.radius.low, got.radius.high)
    for point in got.points:
        assert point.interaction == pytest.approx(h * point.s**2)
        assert (point.first, point.second) == pytest.approx((a * point.s, b * point.s))
        assert point.both == pytest.approx(point.first + point.second + point.interaction)
        assert point.share == pytest.approx(abs(h) * point.s / (abs(a) + abs(b)))


@pytest.mark.parametrize("s", [0.01, 0.5, 1.0, 20.0])
def test_of_a_real_quadratic_the_interaction_is_exact_at_every_scale(s):
    """I(s) = s^2 a^T H b, whatever slope and curvature each displacement has alone."""
    model, task, space = quadratic(torch.tensor([3.0, -1.0, 0.5, 2.0]))
    model = model.double()
    batch = next(task.batches("test", 1, 0))
    parts = {
        name: space.unflatten(torch.randn(4, generator=generator(0, name))) for name in ("a", "b")
    }
    a, b = (space.flatten(parts[name]).double() for name in ("a", "b"))
    with moving(model, {name: part.__getitem__ for name, part in parts.items()}, space=space) as m:

        def at(x, y):
            m.to({"a": x, "b": y})
            return task.loss(model, batch).detach()[None]

        got = interaction(LossPlane(at, torch.ones(1).double()), s, generator=generator(0, "draw"))
        twice = LossPlane(lambda x, y: at(x + y, 0.0), torch.ones(1).double())
        same = interaction(twice, s, generator=generator(0, "draw"))
    assert got.interaction == pytest.approx(s**2 * float(a @ task.H @ b), rel=1e-6)
    # Of one and the same direction it is the curvature along it.
    assert same.interaction == pytest.approx(s**2 * float(a @ task.H @ a), rel=1e-6)


def test_the_order_of_the_two_and_the_unit_of_their_length_do_not_matter():
    plane = bilinear(-1.0, 0.3, 0.5, spread=0.5, n=30)
    got = found(plane)
    swapped = found(LossPlane(lambda x, y: plane.at(y, x), plane.counts))
    assert tuple(swapped.radius) == pytest.approx(tuple(got.radius))
    assert (swapped.low, swapped.high) == (got.low, got.high)
    half = found(
        LossPlane(lambda x, y: plane.at(x / 2, y / 2), plane.counts), scales=[2 * s for s in SCALES]
    )
    assert half.radius.value == pytest.approx(2 * got.radius.value)
    assert (half.low, half.high) == pytest.approx((2 * got.low, 2 * got.high))


def test_without_interaction_the_radius_is_open():
    got = found(bilinear(1.0, 2.0, 0.0))
    assert (got.radius.low, got.radius.high, got.limit) == (2.0, None, 2.0)
    assert (got.low, got.high) == (2.0, math.inf)


def test_a_first_scale_beyond_it_is_an_upper_end_only():
    got = found(bilinear(1.0, 1.0, 100.0))
    assert (got.radius.low, got.radius.high, got.radius.value) == (0.0, 1 / 32, None)
    assert (got.low, got.high) == (0.0, 1 / 32)


def test_the_condition_holds_at_all_smaller_scales_too():
    """The interaction h s^2 + c s^3 comes back to 0 at s = 1.6: the first crossing counts."""
    plane = bilinear(1.0, 1.0, 1.6, cubic=-1.0)
    got = found(plane)
    assert found(plane, scales=[1.6]).radius.high is None
    assert got.at(1.5).share < EPS
    # 1.6 s - s^2 = 0.4 first at 0.309.
    assert got.radius.low <= 0.8 - math.sqrt(0.24) <= got.radius.high
    assert got.high < 0.5


def test_a_loss_that_is_not_finite_ends_it():
    plane = bilinear(1.0, 1.0, 0.0)
    cut = LossPlane(lambda x, y: plane.at(x, y) / ((x + y) < 2), plane.counts)
    got = found(cut)
    assert 0.75 <= got.radius.low < 1 == got.radius.high
    assert got.radius.value is None
    assert got.at(1.0).share == math.inf


def test_examples_count_by_their_tokens():
    counts = torch.tensor([1.0, 3.0], dtype=torch.float64)
    mixed = torch.tensor([1.0, 0.2], dtype=torch.float64)
    plane = LossPlane(lambda x, y: counts * (x + y) + mixed * x * y, counts)
    got = interaction(plane, 2.0, generator=generator(0, "draw"))
    assert got.interaction == pytest.approx(4 * 1.2 / 4)
    assert (got.first, got.second) == pytest.approx((2.0, 2.0))


def test_the_interval_over_examples_covers_the_truth():
    """Interactions differ between examples; the closed form of their mean is 0.4."""
    inside = {"radius": 0, "interaction": 0}
    for seed in range(40):
        got = found(bilinear(-1.0, -1.0, 1.0, spread=1.0, n=40, seed=seed))
        inside["radius"] += got.low <= 0.4 <= got.high
        point = got.at(1.0)
        inside["interaction"] += point.low <= 1.0 <= point.high
    assert min(inside.values()) >= 34
    # It is not all that was looked at.
    assert got.low > SCALES[0]
    assert got.high < SCALES[-1]


def test_changes_that_rounding_hides_are_no_evidence():
    with pytest.raises(ValueError, match="neither displacement changes the loss by more than"):
        found(bilinear(1e-9, 1e-9, 1.0e-8))
    # The first scales do not count, and those after them do.
    got = found(bilinear(1e-4, 1e-4, 1e-5))
    assert [point.known for point in got.points] == [s > 0.1 for s in SCALES]
    assert got.radius.high is None


@pytest.mark.parametrize("wrong", [{"scales": ()}, {"scales": (0.0, 1.0)}, {"eps": 1.0}])
def test_settings_out_of_range(wrong):
    with pytest.raises(ValueError, match="pass scales above 0 and eps in"):
        found(bilinear(1.0, 1.0, 1.0), **wrong)


def test_the_map_has_all_places_and_shares_those_of_the_radius():
    model, names = tiny_gpt2().eval(), ("a", "b")
    space = ParamSpace.select(model)
    parts = {n: space.unflatten(torch.randn(space.dim, generator=generator(0, n))) for n in names}
    batch = {
        "input_ids": torch.tensor([[5, 9, 3], [4, 4, 1]]),
        "labels": torch.tensor([[-100, 9, 3], [-100, -100, 1]]),
    }
    with moving(model, {n: part.__getitem__ for n, part in parts.items()}, space=space) as mover:
        losses = DisplacedLosses(mover, {"task": batch})
        plane = losses.plane("task", "a", "b")
        points = loss_map(plane)
        passes = losses.passes
        assert passes == len(points) == len(MAP) ** 2
        composition(plane, scales=MAP[1:], generator=generator(0, "draw"), eps=0.99)
        # Only scales around the border are new.
        assert losses.passes - passes <= 6
    assert [(point.x, point.y) for point in points[:2]] == [(0.0, 0.0), (0.0, 0.25)]
    assert points[0].loss == plane.mean(0.0, 0.0)


def vector(origin="a", **weights):
    tensors = {name: torch.tensor(values) for name, values in weights.items()}
    return TaskVector({n: tuple(t.shape) for n, t in tensors.items()}, tensors.__getitem__, origin)


def test_vectors_of_different_weights_are_joined_with_zeros():
    model = torch.nn.Module()
    model.u, model.v = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    got = joint(model, {"a": vector(u=[1.0, 2.0]), "b": vector("b", v=[3.0, 4.0])})
    assert got.space.names == ("u", "v")
    read = got.displacements
    assert [read[n](w).tolist() for n in "ab" for w in "uv"] == [[1, 2], [0, 0], [0, 0], [3, 4]]
    with pytest.raises(ValueError, match="does not fit this model"):
        joint(model, {"a": vector(u=[1.0, 2.0]), "b": vector("b", w=[3.0, 4.0])})


def test_relation_names_one_and_the_same_direction():
    a = vector(u=[1.0, 2.0])
    assert relation(a, vector("b", u=[2.0, -1.0])).note == ""
    got = relation(a, 3 * a)
    assert (got.cosine, got.first, got.second) == pytest.approx((1.0, 5**0.5, 3 * 5**0.5))
    assert got.chance == pytest.approx(2**-0.5)
    assert "the same direction, so their interaction is the curvature" in got.note
    assert "opposite directions" in relation(a, -2 * a).note


def test_a_random_twin_has_every_norm_and_no_likeness():
    model = tiny_gpt2()
    space = ParamSpace.select(model)
    parts = space.unflatten(torch.randn(space.dim, generator=generator(0, "b")))
    twin, again, other = (
        random_twin(parts.__getitem__, space, seed=0, name=name) for name in ("b", "b", "c")
    )
    for name in space.names:
        assert norm(twin(name)) == pytest.approx(norm(parts[name]), rel=1e-5)
        assert torch.equal(twin(name), again(name))
        assert not torch.equal(twin(name), other(name))
    flat = space.flatten({name: twin(name) for name in space.names})
    likeness = torch.nn.functional.cosine_similarity(flat, space.flatten(parts), dim=0)
    assert abs(float(likeness)) < 5 * space.dim**-0.5


def test_parts_in_blocks_sum_to_the_displacement_and_empty_blocks_are_left_out():
    model = tiny_gpt2()
    space = ParamSpace.select(model)
    parts = space.unflatten(torch.randn(space.dim, generator=generator(0, "b")))
    got = by_block(model, parts.__getitem__, space)
    assert list(got) == ["block 0", "block 1", "block 2", OUTSIDE]
    for name in space.names:
        assert torch.equal(sum(read(name) for read in got.values()), parts[name])
    inside = [name for name in space.names if ".h.1." in name]
    only = restricted(parts.__getitem__, space, inside)
    assert list(by_block(model, only, space)) == ["block 1"]


def test_many_directions_are_refused_with_their_cost():
    require_few([str(i) for i in range(8)], 10, remedy="")
    with pytest.raises(ValueError, match="9 directions make 36 pairs, which take about 720 passes"):
        require_few([str(i) for i in range(9)], 10, remedy="leave some out")
