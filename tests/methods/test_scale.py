"""The radius of a direction: closed forms, intervals, and refusals."""

import math
from functools import cache

import pytest
import torch

from frenet.geometry.resampling import resampled_counts
from frenet.geometry.rng import generator
from frenet.measure.curvature import hessian_product
from frenet.measure.gradients import gradient
from frenet.measure.loss_line import LossLine, loss_line
from frenet.methods.linear_range import ROUNDING, _Seen, radius
from frenet.network.adapters import attach_lora
from frenet.network.space import ParamSpace
from frenet.network.synthetic.model import SyntheticConfig, SyntheticTask, SyntheticTransformer
from frenet.network.tasks import collate, example_losses, in_parts
from measure.quadratic import ROWS, RowsTask
from network.models import tiny_gpt2, tiny_llama

EPS, TASK = 0.2, RowsTask()


def polynomial(slope, curvature=0.0, cubic=0.0, *, n=8, spread=0.0, offset=1.0):
    """n examples with q_i(r) = offset + s_i r + h r^2 / 2 + c r^3 / 6."""
    draw = generator(0, "line")
    slopes = slope * (1 + spread * torch.randn(n, generator=draw, dtype=torch.float64))

    def at(r):
        return offset + slopes * r + curvature * r**2 / 2 + cubic * r**3 / 6

    return LossLine(at, slopes, torch.ones(n, dtype=torch.float64), curvature)


def found(line, *, sign=1, start=0.01, limit=100.0, eps=EPS):
    return radius(line, start=start, limit=limit, sign=sign, eps=eps, generator=generator(0, "b"))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("start", [1e-3, 0.3, 50.0])
@pytest.mark.parametrize(("slope", "curvature"), [(2.0, 3.0), (-2.0, 3.0), (0.5, -0.1)])
def test_of_a_quadratic_it_is_the_closed_form(slope, curvature, start, sign):
    """|h| r^2 / 2 <= eps |s| r up to r = 2 eps |s| / |h|, wherever the search starts."""
    got = found(polynomial(slope, curvature), start=start, sign=sign)
    closed = 2 * EPS * abs(slope) / abs(curvature)
    assert got.predicted == pytest.approx(closed)
    assert closed / 1.05 <= got.radius <= closed
    assert (got.low, got.high) == pytest.approx((got.radius, got.radius), rel=0.06)
    assert not got.unbounded
    assert got.slope == pytest.approx(slope)


def test_of_a_cubic_it_is_the_closed_form():
    """|c| r^3 / 6 <= eps |s| r up to r = sqrt(6 eps |s| / |c|); no quadratic knows it."""
    got = found(polynomial(1.0, 0.0, 4.0))
    closed = math.sqrt(6 * EPS / 4)
    assert closed / 1.05 <= got.radius <= closed
    assert got.predicted == math.inf


def test_a_radius_is_also_in_lengths_and_a_share_of_what_moves():
    """Of a line of parameters; a bare distance says nothing about its size."""
    got = found(polynomial(2.0, 3.0)._replace(length=0.5, size=4.0))
    assert (got.times, got.relative) == (got.radius / 0.5, got.radius / 4.0)
    assert f"{got.radius / 4.0:.3g} of the norm of the parameters" in repr(got)
    bare = found(polynomial(2.0, 3.0))
    assert (bare.times, bare.relative) == (None, None)
    assert "norm" not in repr(bare)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_linear_quantity_is_unbounded_and_says_so(sign):
    got = found(polynomial(-3.0), sign=sign, limit=7.0)
    assert got.unbounded
    assert got.radius == got.limit == 7.0
    assert got.high == math.inf
    assert max(abs(point.r) for point in got.points) == 7.0


def test_the_interval_covers_what_other_examples_would_give():
    """Slopes differ between examples: 40 sets of 32 of them, the closed form of the mean is 0.4."""
    inside = 0
    for seed in range(40):
        draw = generator(seed, "examples")
        slopes = 1 + 0.5 * torch.randn(32, generator=draw, dtype=torch.float64)
        line = LossLine(lambda r, s=slopes: s * r + r**2 / 2, slopes, torch.ones(32).double())
        got = radius(line, start=0.01, limit=9.0, generator=generator(seed, "b"))
        inside += got.low <= 0.4 <= got.high
    assert inside >= 35


def test_examples_count_by_their_tokens():
    """A line of sums over 1, 3 and 6 tokens is that of the mean over all tokens."""
    counts = torch.tensor([1.0, 3.0, 6.0], dtype=torch.float64)
    slopes = torch.tensor([1.0, 6.0, 3.0], dtype=torch.float64)
    line = LossLine(lambda r: slopes * r + counts * r**2, slopes, counts)
    assert line.slope == pytest.approx(1.0)
    assert found(line).radius == pytest.approx(EPS, rel=0.05)


def test_a_slope_that_drowns_in_rounding_is_refused():
    with pytest.raises(ValueError, match="is too small to distinguish from rounding within"):
        found(polynomial(1e-9, 1.0))
    with pytest.raises(ValueError, match=r"slope along the direction, 0, is too small"):
        found(polynomial(0.0, 1.0))


def test_values_that_are_not_finite_end_it():
    line = polynomial(1.0)
    cut = LossLine(lambda r: line.at(r) / (r < 2), line.slopes, line.counts)
    assert 2 / 1.05 <= found(cut).radius < 2


@pytest.mark.parametrize(
    "wrong", [{"start": 0.0}, {"start": 200.0}, {"eps": 1.0}, {"sign": 2}, {"limit": math.inf}]
)
def test_settings_out_of_range(wrong):
    with pytest.raises(ValueError, match="pass 0 < start <= limit"):
        found(polynomial(1.0), **wrong)


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
@pytest.mark.parametrize("lora", [False, True])
def test_the_line_of_a_loss_is_the_loss_along_it(make, lora):
    model = attach_lora(make(), rank=2, seed=0) if lora else make()
    space, batch = ParamSpace.select(model), collate(ROWS)
    direction = torch.randn(space.dim, generator=generator(0, "u"))
    unit = direction / direction.norm()
    before = space.read(model)
    g = gradient(model, TASK, batch, space=space)
    with loss_line(model, TASK, batch, direction, space=space) as line:
        assert line.slope == pytest.approx(float(g @ unit), rel=1e-4, abs=1e-6)
        for r in (0.0, 0.3, -0.2):
            values = line.at(r)
            space.write(model, before + r * unit)
            with torch.no_grad():
                losses, counts = example_losses(model, batch)
            torch.testing.assert_close(values, losses.double(), rtol=1e-6, atol=1e-5)
            assert line.counts.tolist() == counts.tolist()
        # Central differences of the mean, of first and of second order.
        h = 1e-2
        means = [float(line.at(r).sum() / line.counts.sum()) for r in (-h, 0.0, h)]
        assert (means[2] - means[0]) / (2 * h) == pytest.approx(line.slope, rel=0.02, abs=1e-4)
        second = (means[2] - 2 * means[1] + means[0]) / h**2
        assert line.curvature == pytest.approx(second, rel=0.1, abs=0.02)
        # Example by example.
        ends = [line.at(r) for r in (-h, h)]
        torch.testing.assert_close((ends[1] - ends[0]) / (2 * h), line.slopes, rtol=0.03, atol=1e-3)
    assert torch.equal(space.read(model), before)


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_the_curvature_is_that_of_the_hessian(make):
    """Two derivatives in forward mode, also through layer normalisation."""
    model = make()
    space, batch = ParamSpace.select(model), collate(ROWS)
    u = torch.randn(space.dim, generator=generator(1, "u"))
    u = u / u.norm()
    bend = float(hessian_product(model, TASK, batch, space=space)(u).double() @ u.double())
    with loss_line(model, TASK, batch, u, space=space) as line:
        assert line.curvature == pytest.approx(bend, rel=1e-5, abs=1e-7)


def test_a_line_by_its_parts_is_that_of_the_whole_vector_and_looks_once_at_a_distance():
    model = tiny_llama()
    space, batch = ParamSpace.select(model, "proj"), collate(ROWS)
    u = torch.randn(space.dim, generator=generator(2, "u"))
    passes = []
    handle = model.register_forward_hook(lambda *_: passes.append(1))
    with loss_line(model, TASK, batch, u, space=space) as line:
        whole = (line.slopes, line.curvature, line.at(0.3))
    with loss_line(model, TASK, batch, space.unflatten(u).get, space=space) as line:
        assert torch.equal(line.slopes, whole[0])
        assert line.curvature == whole[1]
        passes.clear()
        assert torch.equal(line.at(0.3), whole[2])
        first = len(passes)
        assert torch.equal(line.at(0.3), whole[2])
        assert len(passes) == first
    handle.remove()


def test_rows_that_do_not_fit_at_once_give_the_same_line(monkeypatch):
    """Every row alone: the same sums, up to their order."""
    model = tiny_llama()
    space, batch = ParamSpace.select(model), collate(ROWS)
    u = torch.randn(space.dim, generator=generator(3, "u"))
    with loss_line(model, TASK, batch, u, space=space) as line:
        whole = (line.slopes, line.counts, line.at(0.3), torch.tensor(line.curvature))
    monkeypatch.setattr("frenet.network.tasks.ROOM", 1)
    assert len(in_parts(model, batch, copies=1)) == len(ROWS)
    with loss_line(model, TASK, batch, u, space=space) as line:
        parts = (line.slopes, line.counts, line.at(0.3), torch.tensor(line.curvature))
    for one, other in zip(parts, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("line", "most"),
    [
        # The evaluation at 0, and on each side half of the border, and 2.5% beyond and before it.
        (polynomial(1.0, 1.0), 1 + 2 * 3),
        (polynomial(1.0, 0.0, 3.0), 1 + 2 * 5),
        # And the ends of the interval over examples.
        (polynomial(1.0, 1.0, 0.3, spread=0.1, n=32), 14),
        (polynomial(1.0, 1.0, 0.3, spread=2.0, n=32), 24),
        (polynomial(1.0, 1.0, -8.0, spread=0.5, n=32), 24),
    ],
)
def test_passes_of_the_two_sides_of_a_direction(line, most):
    """The start is half of the border of a quadratic; the evaluation at 0 is shared."""
    calls = set()
    shared = line._replace(at=cache(lambda r: calls.add(r) or line.at(r)))
    for sign in (1, -1):
        found(shared, sign=sign, start=EPS)
    assert len(calls) <= most


def test_the_radius_of_a_real_loss_obeys_its_definition():
    """Inside the border the deviation is at most eps, just beyond it it is more."""
    model, task = SyntheticTransformer(SyntheticConfig(width=16)), SyntheticTask("copy")
    space = ParamSpace.select(model)
    batch = next(task.batches("test", 16, 0))
    g = gradient(model, task, batch, space=space)
    with loss_line(model, task, batch, g, space=space) as line:
        got = radius(line, start=0.01, limit=50.0, sign=-1, generator=generator(0, "b"))
        zero, counts = line.at(0.0), line.counts

        def deviation(r):
            change = float((line.at(-r) - zero).sum() / counts.sum())
            return abs(change + r * line.slope) / abs(r * line.slope)

        assert deviation(got.radius) <= EPS < deviation(1.06 * got.radius)
    assert got.low <= got.radius <= got.high


@pytest.mark.parametrize("kind", ["gradient", "random"])
def test_radius_and_interval_are_those_of_a_dense_sweep(kind):
    """First crossings of the mean and of resampled examples, at distances 3% apart.

    The interval contains theirs. Its ends are at most as far from them as the steps outwards go.
    """
    model, task = SyntheticTransformer(SyntheticConfig(width=16)).double(), SyntheticTask("copy")
    space = ParamSpace.select(model)
    batch = next(task.batches("test", 16, 2))
    u = gradient(model, task, batch, space=space)
    if kind == "random":
        u = torch.randn(space.dim, generator=generator(2, "u"))
    with loss_line(model, task, batch, u, space=space) as line:
        start = EPS * abs(line.slope / line.curvature)
        got = radius(line, start=start, limit=30.0, generator=generator(0, "b"), resamples=2000)
        distances = torch.tensor([start / 16 * 1.03**i for i in range(250)], dtype=torch.float64)
        zero = line.at(0.0)
        changes = torch.stack([line.at(r) - zero for r in distances.tolist()], 1)
        resamples = torch.from_numpy(resampled_counts(16, 2000, generator(0, "b")))
    weights = torch.cat([torch.ones(1, 16, dtype=torch.float64), resamples])
    linear = (weights @ line.slopes)[:, None] * distances
    beyond = (weights @ changes - linear).abs() > EPS * linear.abs()
    first = torch.where(beyond, distances, math.inf).min(1).values
    assert first[0] / 1.09 <= got.radius <= first[0]
    low, high = first[1:].sort().values[[49, 1949]].tolist()
    assert low / 4 <= got.low <= 1.03 * low
    assert high / 1.03 <= got.high <= 4 * high


def test_no_line_along_nothing():
    model = tiny_llama()
    space = ParamSpace.select(model, "norm")
    with pytest.raises(ValueError, match="the direction is zero"):  # noqa: SIM117
        with loss_line(model, TASK, collate(ROWS), torch.zeros(space.dim), space=space):
            pass


def test_no_line_through_weights_that_round_it_away():
    model = tiny_llama().bfloat16()
    space = ParamSpace.select(model)
    message = "line through the weights moves .* than torch.bfloat16 rounds .* measure in float32"
    with pytest.raises(ValueError, match=message):  # noqa: SIM117
        with loss_line(model, TASK, collate(ROWS), torch.ones(space.dim), space=space):
            pass


def test_an_interval_whose_lower_end_is_measured_keeps_it_where_the_mean_has_no_end():
    """Two of eight examples bend: some resamples end before the limit, the mean does not."""
    bends = torch.tensor([0.16, 0.16, *[0.0] * 6], dtype=torch.float64)
    slopes = torch.ones(8, dtype=torch.float64)
    line = LossLine(lambda r: slopes * r + bends * r**2, slopes, torch.ones(8, dtype=torch.float64))
    got = found(line, limit=4.0)
    assert got.unbounded
    assert got.high == math.inf
    # 0.16 r n / 8 <= 0.2: with n = 2 it never ends before 4, with 5 of 8 at 2.
    assert 1.2 < got.low < 4.0


@pytest.mark.parametrize("eps", [0.1, 0.4])
def test_the_nearest_distance_is_where_rounding_is_as_large_as_the_allowed_deviation(eps):
    """Values near 2 are known to 2e-6; the deviation that counts is eps |slope| r."""
    seen = _Seen(polynomial(0.5, offset=2.0), 1, eps)
    assert seen.nearest == pytest.approx(ROUNDING * 2.0 / (0.5 * eps))


def test_the_side_is_named():
    """The side of a radius is a part of what it says."""
    line = polynomial(1.0, 1.0)
    assert "along" in repr(found(line))
    assert "against" in repr(found(line, sign=-1))


def test_an_interval_is_never_narrower_than_the_distances_looked_at():
    """Ends between two distances far apart: for a quadratic each resample's border is known.

    2 eps |s| / h, s the mean slope of the resample: its quantiles lie within the interval.
    """
    draw = generator(3, "far")
    slopes = 1 + 1.6 * torch.randn(16, generator=draw, dtype=torch.float64)
    slopes = slopes - slopes.mean() + 1
    line = LossLine(lambda r: slopes * r + r**2 / 2, slopes, torch.ones(16).double(), 1.0)
    rows = torch.randint(0, 16, (20_000, 16), generator=draw)
    borders = 2 * EPS * slopes[rows].mean(1).abs()
    ends = [float(borders.quantile(q)) for q in (0.03, 0.97)]
    for start in (0.01, 0.3, 0.38):
        got = radius(line, start=start, limit=100.0, generator=generator(0, "b"), resamples=4000)
        assert got.low <= ends[0]
        assert got.high >= ends[1]
        nearest = min(abs(point.r) for point in got.points if point.r)
        # Borders below the nearest distance are only bounded by it.
        assert (got.low == 0) == (ends[0] < nearest)


def bending(*bends):
    """Examples with q_i(r) = r + b_i r^2: a resample's border is eps n / sum of its b_i."""
    b = torch.tensor(bends, dtype=torch.float64)
    ones = torch.ones(len(bends), dtype=torch.float64)
    return LossLine(lambda r: r * ones + b * r**2, ones, ones)


def test_an_upper_end_that_the_points_do_not_bound_is_looked_for_further():
    """A third of the resamples lack the one example with a near border: theirs is 20, not 0.49.

    The points around the border of the mean do not bound them.
    """
    line = bending(1.6, 0.01, 0.01, 0.01)
    got = found(line, start=0.1)
    assert got.radius == pytest.approx(EPS * 4 / 1.63, rel=0.05)
    assert 20 <= got.high <= 40
    assert not got.unbounded
    # Up to the limit and no further.
    near = found(line, start=0.1, limit=15.0)
    assert near.high == math.inf
    assert max(point.r for point in near.points) == 15.0


def test_a_lower_end_that_the_points_do_not_bound_is_looked_for_nearer():
    """One in twenty resamples has that example three times of four: its border is 0.166."""
    got = found(bending(1.6, 0.01, 0.01, 0.01), start=0.45)
    closed = EPS * 4 / (3 * 1.6 + 0.01)
    assert closed / 2 <= got.low <= closed
    assert min(point.r for point in got.points if point.r) < closed


def test_an_interval_that_the_points_bound_costs_nothing_more():
    calls = []
    line = polynomial(1.0, 1.0)
    counted = line._replace(at=lambda r: calls.append(r) or line.at(r))
    got = found(counted, start=0.1)
    assert got.high == pytest.approx(got.radius, rel=0.06)
    assert max(calls) <= 0.4 * 2 + 1e-9
