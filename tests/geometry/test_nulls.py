import pytest
import torch

from frenet.geometry.basis import random_basis
from frenet.geometry.energy import captured_energy, unit_rows
from frenet.geometry.linalg import gram
from frenet.geometry.nulls import (
    gaussian_like,
    random_capture,
    random_walk_share,
    shuffled_like,
    sign_flipped_like,
)
from frenet.geometry.rng import generator

SIZES = (40, 40, 1, 19)
D = sum(SIZES)
NULLS = {
    "gaussian": lambda G, draw: gaussian_like(G, SIZES, draw),
    "shuffle": lambda G, draw: shuffled_like(G, SIZES, draw),
    "sign": sign_flipped_like,
}
each_null = pytest.mark.parametrize("null", NULLS.values(), ids=NULLS)


def normal(*shape, key=0):
    return torch.randn(*shape, generator=generator(key, "nulls"))


@pytest.fixture
def gradients():
    """Six rows in a plane, with very different norms between rows and between tensors."""
    plane = normal(6, 2, key=1) @ normal(2, D, key=2)
    scales = torch.cat([torch.full((size,), 10.0**i) for i, size in enumerate(SIZES)])
    return plane * scales * torch.logspace(-4, 2, 6)[:, None]


@each_null
def test_nulls_keep_the_norm_of_every_tensor_of_every_row(gradients, null):
    found = null(gradients, generator(0))
    assert found.dtype == torch.float32
    assert found.shape == gradients.shape
    for before, after in zip(gradients.split(SIZES, 1), found.split(SIZES, 1), strict=True):
        torch.testing.assert_close(after.norm(dim=1), before.norm(dim=1), rtol=1e-6, atol=0)


@each_null
def test_nulls_follow_the_generator_and_leave_the_gradients(gradients, null):
    before = gradients.clone()
    first = null(gradients, generator(0))
    assert torch.equal(first, null(gradients, generator(0)))
    assert not torch.equal(first, null(gradients, generator(1)))
    assert torch.equal(gradients, before)


@each_null
def test_nulls_have_no_structure_left(null):
    n, k = 60, 3
    rows = normal(n, 3, key=1) @ normal(3, D, key=2)
    fit, test = torch.arange(n // 2), torch.arange(n // 2, n)
    true = captured_energy(unit_rows(gram(rows)), fit, test, [k])
    nulls = [
        float(captured_energy(unit_rows(gram(null(rows, generator(i)))), fit, test, [k]))
        for i in range(20)
    ]
    assert float(true) > 0.999
    # Above k / d = 0.03: the tensor of one coordinate can only change its sign.
    assert max(nulls) < 0.25


@each_null
def test_half_precision_and_zero_tensors(null):
    G = normal(3, D).to(torch.bfloat16)
    G[:, :40] = 0
    found = null(G, generator(0))
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()
    assert not found[:, :40].any()
    torch.testing.assert_close(found.norm(dim=1), G.float().norm(dim=1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("null", [gaussian_like, shuffled_like])
def test_sizes_that_do_not_cover_the_rows_are_refused(null):
    with pytest.raises(ValueError, match="the tensors hold 99 coordinates, the rows 100"):
        null(normal(2, D), (40, 40, 19), generator(0))


def test_gaussian_directions_are_isotropic_and_independent():
    repeats, size = 4000, 5
    draws = gaussian_like(torch.ones(repeats, 2 * size), (size, size), generator(0)) / size**0.5
    # Unit vectors: every coordinate has mean 0 and mean square 1 / size.
    mean, square = draws.mean(0), draws.square().mean(0)
    assert (mean.abs() < 4 * draws.std(0) / repeats**0.5).all()
    error = draws.square().std(0) / repeats**0.5
    assert ((square - 1 / size).abs() < 4 * error).all()
    # Tensors of equal shape share no noise, and neither do rows.
    across = torch.corrcoef(draws.T)[:size, size:]
    assert across.abs().max() < 5 / repeats**0.5
    neighbours = (draws[1:] * draws[:-1]).sum(1)
    assert abs(float(neighbours.mean())) < 4 * float(neighbours.std()) / repeats**0.5


def test_shuffle_keeps_the_multiset_of_every_tensor_of_every_row(gradients):
    found = shuffled_like(gradients, SIZES, generator(0))
    for before, after in zip(gradients.split(SIZES, 1), found.split(SIZES, 1), strict=True):
        assert torch.equal(before.sort(1).values, after.sort(1).values)
    assert not torch.equal(found[:, :40], gradients[:, :40])


def test_shuffles_are_uniform_and_independent_between_rows():
    repeats, size = 3000, 4
    rows = torch.arange(size).float().repeat(repeats, 1)
    found = shuffled_like(rows, (size,), generator(0))
    spread = 4 * (repeats * (1 / size) * (1 - 1 / size)) ** 0.5
    for place in range(size):
        counts = torch.bincount(found[:, place].long(), minlength=size)
        assert ((counts - repeats / size).abs() < spread).all()
    agree = float((found[1:, 0] == found[:-1, 0]).float().mean())
    assert abs(agree - 1 / size) < 4 * (0.25 * 0.75 / repeats) ** 0.5


def test_signs_are_fair_and_independent():
    n, d = 50, 400
    signs = sign_flipped_like(torch.ones(n, d), generator(0))
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 4 / (n * d) ** 0.5
    correlations = gram(signs) / d - torch.eye(n).double()
    assert correlations.abs().max() < 5 / d**0.5


def test_sign_flip_keeps_the_size_of_every_coordinate(gradients):
    assert torch.equal(sign_flipped_like(gradients, generator(0)).abs(), gradients.abs())


def test_random_walk_share_is_what_a_prefix_holds_of_a_random_walk():
    d, steps, k, repeats = 1500, 20, 5, 60
    sizes = torch.linspace(2, 0.5, steps)
    shares = []
    for i in range(repeats):
        path = normal(steps, d, key=i) * sizes[:, None]
        prefix, total = path[:k], path.sum(0)
        inside = torch.linalg.lstsq(prefix.T, total[:, None]).solution[:, 0] @ prefix
        shares.append(float(inside.norm() ** 2 / total.norm() ** 2))
    shares = torch.tensor(shares)
    # The rest of the walk adds its chance level, k / d of what the prefix does not hold.
    expected = random_walk_share(sizes, k)
    expected += (1 - expected) * random_capture(d, k)
    assert abs(float(shares.mean()) - expected) < 4 * float(shares.std()) / repeats**0.5


@pytest.mark.parametrize(("k", "share"), [(0, 0.0), (1, 0.64), (2, 1.0)])
def test_random_walk_share_in_closed_form(k, share):
    assert random_walk_share(torch.tensor([4.0, 3.0]), k) == pytest.approx(share)


def test_random_walk_share_refuses_what_it_cannot_say():
    with pytest.raises(ValueError, match="k=3 must be between 0 and the 2 steps"):
        random_walk_share(torch.ones(2), 3)
    with pytest.raises(ValueError, match="all 2 steps are zero"):
        random_walk_share(torch.zeros(2), 1)


def test_random_capture_is_what_random_subspaces_capture():
    d, k, repeats = 50, 6, 400
    x = normal(d)
    draws = [float(random_basis(d, k, generator(i)).captured_fraction(x)) for i in range(repeats)]
    draws = torch.tensor(draws)
    error = 4 * float(draws.std()) / repeats**0.5
    assert abs(float(draws.mean()) - random_capture(d, k)) < error


def test_random_capture_refuses_more_directions_than_there_are():
    with pytest.raises(ValueError, match="k=4 must be between 0 and the dimension d=3"):
        random_capture(3, 4)
