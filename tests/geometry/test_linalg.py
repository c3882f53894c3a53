import math

import pytest
import torch

import oracles
from frenet.geometry import blocks, linalg
from frenet.geometry.alignment import cosine
from frenet.geometry.blocks import reject
from frenet.geometry.linalg import (
    gram,
    gram_of,
    orthonormalise,
    participation_ratio,
    principal_angles,
    spectrum,
    stable_rank,
    subspace_overlap,
    top_k_svd,
)
from frenet.geometry.rng import generator
from frenet.geometry.subspace import Basis

HALF = [torch.float16, torch.bfloat16]
NAN, INF = float("nan"), float("inf")


def normal(*shape, key=0):
    return torch.randn(*shape, generator=generator(key, "linalg"))


def off_orthonormal(U):
    return float((U.double().T @ U.double() - torch.eye(U.shape[1]).double()).abs().max())


def largest_angle(U, V):
    return float(oracles.principal_angles(U, V).max())


@pytest.fixture
def tiny_blocks(monkeypatch):
    """Blocks of a few columns, so that small matrices go through many of them."""
    monkeypatch.setattr(blocks, "block_size", lambda: 64)


@pytest.mark.parametrize("numbers", [1, 7, 64, 10**6])
def test_gram_is_the_float64_product_for_every_block_size(monkeypatch, numbers):
    monkeypatch.setattr(blocks, "block_size", lambda: numbers)
    G, H = normal(3, 41), normal(5, 41, key=1)
    torch.testing.assert_close(gram(G, H), G.double() @ H.double().T, rtol=0, atol=1e-13)
    torch.testing.assert_close(gram(G), G.double() @ G.double().T, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("threads", "numbers"), [(1, 262_144), (2, 4_194_304), (9, 4_194_304)])
def test_a_block_fits_the_cache_of_one_thread_and_is_large_for_several(
    monkeypatch, threads, numbers
):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert blocks.block_size() == numbers


def test_gram_sums_in_float64():
    # In float32 the ones are lost next to 1e8: the sum is off by 0 or 1000.
    G = torch.cat([torch.tensor([1e4]), torch.ones(1000)])[None]
    assert float(gram(G)) == 1e8 + 1000


def test_the_gram_matrix_of_parts_is_that_of_the_whole_bit_for_bit(tiny_blocks):
    G = normal(7, 30)
    assert torch.equal(gram_of(G.split([3, 0, 4])), gram(G))
    G[5, 2] = math.nan
    with pytest.raises(FloatingPointError, match="row 2 is nan at coordinate 2"):
        gram_of(G.split([3, 4]))


def test_gram_is_exactly_symmetric_and_leaves_its_input(tiny_blocks):
    G = normal(9, 300).requires_grad_()
    before = G.detach().clone()
    K = gram(G)
    assert torch.equal(K, K.T)
    assert not K.requires_grad
    assert torch.equal(G.detach(), before)


def test_gram_never_holds_a_float64_copy(monkeypatch):
    sizes = []
    real = torch.empty

    def watched(*shape, **options):
        made = real(*shape, **options)
        sizes.append(made.numel())
        return made

    monkeypatch.setattr(torch, "empty", watched)
    monkeypatch.setattr(torch.Tensor, "double", lambda self: pytest.fail("a float64 copy"))
    gram(torch.zeros(8, 1_200_000))
    assert sizes == [blocks.block_size()]


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("routine", [gram, orthonormalise, lambda G: top_k_svd(G, 2)])
def test_a_bad_entry_is_named_by_row_and_coordinate(routine, bad):
    G = normal(4, 30)
    G[2, 17] = bad
    with pytest.raises(FloatingPointError, match=f"row 2 is {bad} at coordinate 17"):
        routine(G)


def test_gram_checks_both_matrices():
    H = normal(2, 30)
    H[1, 3] = NAN
    with pytest.raises(FloatingPointError, match="row 1 is nan at coordinate 3"):
        gram(normal(4, 30), H)


def test_a_square_beyond_float64_is_an_error_of_its_own():
    with pytest.raises(FloatingPointError, match="overflow float64; scale the vectors down"):
        gram(torch.full((2, 3), 1e200, dtype=torch.float64))


@pytest.mark.usefixtures("unchecked")
def test_vectors_of_different_length_do_not_meet():
    with pytest.raises(ValueError, match="vectors of 3 and of 4 coordinates"):
        gram(normal(2, 3), normal(2, 4))


def test_spectrum_is_that_of_the_dense_svd():
    G = normal(8, 50)
    S, V = spectrum(gram(G))
    torch.testing.assert_close(S, oracles.svd(G)[1], rtol=1e-12, atol=0)
    torch.testing.assert_close(V @ torch.diag(S**2) @ V.T, gram(G), rtol=0, atol=1e-11)


@pytest.mark.parametrize("shape", [(12, 200), (12, 12), (20, 7), (1, 5)])
def test_top_k_is_that_of_the_dense_svd(tiny_blocks, shape):
    G = normal(*shape)
    U, S, rank = top_k_svd(G, 5)
    k = min(5, *shape)
    assert (U.shape, S.shape, rank) == ((shape[1], k), (k,), min(shape))
    assert U.dtype == torch.float32
    assert S.dtype == torch.float64
    torch.testing.assert_close(S, oracles.svd(G)[1][:k], rtol=1e-10, atol=0)
    # Each direction by itself, not only their span: the signs are free.
    cosines = (U.double() * oracles.top_basis(G, k)).sum(0).abs()
    torch.testing.assert_close(cosines, torch.ones(k).double(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_directions_are_right_down_to_the_resolution(dtype):
    S = torch.logspace(0, -5.5, 12)
    G = oracles.rows_with_spectrum(S, 12, 400, generator(0)).to(dtype)
    U, found, rank = top_k_svd(G, 12)
    assert rank == 12
    assert off_orthonormal(U) <= 1e-6
    torch.testing.assert_close(found, oracles.svd(G)[1], rtol=1e-4, atol=0)
    assert largest_angle(U, oracles.top_basis(G, 12)) < 1e-6
    assert largest_angle(U[:, :6], oracles.top_basis(G, 6)) < 1e-6


def test_a_float32_product_where_it_is_used_is_as_good():
    G = oracles.rows_with_spectrum(torch.logspace(0, -0.5, 12), 12, 30_000, generator(0)).float()
    U = top_k_svd(G, 12).U
    assert not torch.equal(U, top_k_svd(G.double(), 12).U)
    assert off_orthonormal(U) <= 1e-6
    assert largest_angle(U[:, :6], oracles.top_basis(G, 6)) < 1e-6


@pytest.mark.parametrize(
    ("smallest", "single"), [(0.055, False), (0.066, True), (0.085, True), (0.3, True)]
)
def test_a_float32_product_is_used_down_to_0_06_of_the_whole(smallest, single):
    """Below, its rounding of 6e-8 ||G|| would be more than 1e-6 of a direction."""
    rest = (1 - smallest**2) / 3
    S = torch.tensor([rest**0.5] * 3 + [smallest])
    G = oracles.rows_with_spectrum(S, 4, 300, generator(0)).float()
    assert torch.equal(top_k_svd(G, 4).U, top_k_svd(G.double(), 4).U) is not single
    # Dropped rows do not matter.
    assert not torch.equal(top_k_svd(G, 3).U, top_k_svd(G.double(), 3).U)


@pytest.mark.parametrize(("largest", "single"), [(0.9e30, True), (1.2e30, False)])
def test_coefficients_beyond_1e30_are_taken_in_float64(largest, single):
    G = oracles.rows_with_spectrum(torch.tensor([1.0, 0.8, 0.6]), 3, 300, generator(0)).float()
    S, V = spectrum(gram(G))
    G *= float((V / S).abs().max()) / largest
    assert torch.equal(top_k_svd(G, 3).U, top_k_svd(G.double(), 3).U) is not single


def test_the_rank_counts_singular_values_above_1e_6_of_the_largest():
    S = torch.tensor([1.0, 1e-3, 2e-6, 5e-7, 1e-9])
    G = oracles.rows_with_spectrum(S, 9, 60, generator(1))
    assert top_k_svd(G, 9).rank == 3
    assert top_k_svd(1e-12 * G, 9).rank == 3


@pytest.mark.parametrize(("second", "rank"), [(0.9e-6, 1), (1.1e-6, 2)])
def test_a_millionth_of_the_largest_is_the_limit_of_a_direction(second: float, rank: int):
    assert top_k_svd(torch.diag(torch.tensor([1.0, second])), 2).rank == rank


@pytest.mark.parametrize("copies", [2, 5])
def test_duplicated_rows_add_no_rank(copies):
    rows = normal(4, 90)
    U, S, rank = top_k_svd(rows.repeat(copies, 1), 20)
    assert rank == 4
    assert U.shape == (90, 4)
    assert off_orthonormal(U) <= 1e-6
    torch.testing.assert_close(S, math.sqrt(copies) * oracles.svd(rows)[1], rtol=1e-9, atol=0)
    assert largest_angle(U, oracles.top_basis(rows, 4)) < 1e-6


def test_rows_that_depend_up_to_float32_rounding_add_no_rank():
    rows = normal(6, 5000)
    sums = (normal(10, 6, key=1) @ rows).float()
    assert top_k_svd(torch.cat([rows, sums]), 16).rank == 6


def test_zero_matrix_has_rank_0_and_an_empty_basis():
    U, S, rank = top_k_svd(torch.zeros(4, 6), 3)
    assert (U.shape, S.shape, rank) == ((6, 0), (0,), 0)
    assert top_k_svd(torch.zeros(0, 6), 3).U.shape == (6, 0)


def test_zero_rows_among_others_change_nothing():
    rows = normal(3, 40)
    with_zeros = torch.cat([torch.zeros(1, 40), rows, torch.zeros(2, 40)])
    for unit in (False, True):
        U, S, rank = top_k_svd(with_zeros, 6, unit_rows=unit)
        assert rank == 3
        torch.testing.assert_close(S, top_k_svd(rows, 3, unit_rows=unit).S)
        assert largest_angle(U, oracles.top_basis(rows, 3)) < 1e-6


def test_unit_rows_is_the_svd_of_the_scaled_rows():
    G = normal(10, 80) * torch.logspace(-3, 3, 10)[:, None]
    scaled = G.double() / G.double().norm(dim=1, keepdim=True)
    U, S, _ = top_k_svd(G, 4, unit_rows=True)
    torch.testing.assert_close(S, oracles.svd(scaled)[1][:4], rtol=1e-9, atol=0)
    assert largest_angle(U, oracles.top_basis(scaled, 4)) < 1e-6
    # Without it the longest row decides.
    assert largest_angle(top_k_svd(G, 1).U, G[-1:].T) < 0.1


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_is_computed_in_float64(dtype):
    G = normal(8, 300).to(dtype)
    U, S, rank = top_k_svd(G, 3)
    assert (U.dtype, S.dtype, rank) == (torch.float32, torch.float64, 8)
    torch.testing.assert_close(S, oracles.svd(G)[1][:3], rtol=1e-10, atol=0)
    assert largest_angle(U, oracles.top_basis(G, 3)) < 1e-6
    assert off_orthonormal(orthonormalise(G)) <= 1e-6


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e30])
def test_tiny_and_huge_float32_entries_neither_vanish_nor_overflow(scale):
    G = normal(5, 60) * scale
    U, S, rank = top_k_svd(G, 2)
    assert rank == 5
    torch.testing.assert_close(S, oracles.svd(G)[1][:2], rtol=1e-9, atol=0)
    assert off_orthonormal(U) <= 1e-6


def test_order_of_rows_and_rotation_among_them_do_not_matter():
    G = normal(9, 70).double()
    expected = top_k_svd(G, 4).U
    for rotated in (G.flip(0), oracles.random_rotation(9, generator(3)) @ G, -G):
        assert largest_angle(top_k_svd(rotated, 4).U, expected) < 1e-6


def test_strided_input_gives_the_same_as_contiguous():
    G = normal(70, 9)
    torch.testing.assert_close(top_k_svd(G.T, 4).U, top_k_svd(G.T.contiguous(), 4).U)


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_1_is_refused(k):
    with pytest.raises(ValueError, match=f"k={k} must be at least 1"):
        top_k_svd(normal(3, 4), k)


def test_wrong_products_of_the_device_are_noticed_not_returned(monkeypatch):
    real = blocks.combine

    def wrong(W, G, *, out=None):
        Q = real(W, G, out=out)
        Q[0] += 0.5 * Q[1]
        return Q

    monkeypatch.setattr(linalg, "combine", wrong)
    for routine in (lambda G: top_k_svd(G.double(), 3), orthonormalise):
        with pytest.raises(ArithmeticError, match="no basis orthonormal to 1e-05 on device cpu"):
            routine(normal(4, 20))


@pytest.mark.parametrize("size", [1e-6, 1e-4, 1e-2])
def test_deviation_is_that_of_the_dense_product(size):
    Q = orthonormalise(normal(5, 40_000)).T
    Q[2] += size * Q[0]
    expected = (Q.double() @ Q.double().T - torch.eye(5).double()).abs().max()
    assert blocks.deviation(Q) == pytest.approx(float(expected), abs=1e-7)
    Q[3, 7] = NAN
    assert math.isnan(blocks.deviation(Q))


def test_the_cpu_takes_over_from_a_wrong_device_and_says_so(monkeypatch):
    G, calls = normal(4, 20), []

    def wrong_once(*args, **options):
        calls.append(args)
        return None if len(calls) == 1 else real(*args, **options)

    real = linalg._orthonormal
    monkeypatch.setattr(linalg, "_orthonormal", wrong_once)
    monkeypatch.setattr(linalg, "_on_cpu", lambda X: X)
    assert largest_angle(top_k_svd(G, 2).U, oracles.top_basis(G, 2)) < 1e-6
    calls.clear()
    assert largest_angle(orthonormalise(G), G.T) < 1e-6
    assert len(calls) == 2


def test_orthonormalise_is_gram_schmidt_in_order(tiny_blocks):
    X = normal(6, 50)
    Q = orthonormalise(X)
    torch.testing.assert_close(Q.double(), oracles.gram_schmidt(X), rtol=0, atol=1e-6)
    for j in range(1, 7):
        torch.testing.assert_close(orthonormalise(X[:j]), Q[:, :j], rtol=0, atol=1e-6)


def test_the_scale_of_a_row_does_not_matter():
    X = normal(6, 50)
    scaled = X * torch.logspace(-15, 15, 6)[:, None]
    torch.testing.assert_close(orthonormalise(scaled), orthonormalise(X), rtol=0, atol=1e-6)


@pytest.mark.parametrize("spread", [1e-2, 1e-4, 1e-5])
def test_nearly_parallel_rows_are_still_orthonormalised(spread):
    X = normal(1, 200).double() + spread * normal(8, 200, key=1).double()
    twice = X[[0, 1, 0, 2, 3, 4, 3, 5, 6, 7, 7]]
    for Q in (orthonormalise(X), orthonormalise(twice)):
        assert Q.shape == (200, 8)
        assert off_orthonormal(Q) <= 1e-6
        for j in range(1, 9):
            assert largest_angle(Q[:, :j], X[:j].T) < 1e-6


def test_both_ways_through_give_the_same_basis(monkeypatch):
    X = normal(7, 80) * torch.logspace(0, 3, 7)[:, None]
    expected = orthonormalise(X)
    monkeypatch.setattr(linalg, "_independent", lambda K, kept: False)
    torch.testing.assert_close(orthonormalise(X), expected, rtol=0, atol=1e-6)


def kahan(n, angle):
    """Unit columns of an upper triangle: each adds sin^j to those before it, and yet the smallest
    singular value is far below the last of these."""
    sine, cosine = math.sin(angle), math.cos(angle)
    upper = torch.eye(n).double() - cosine * torch.ones(n, n).double().triu(1)
    return torch.tensor([sine**j for j in range(n)]).double()[:, None] * upper


def test_no_row_is_dropped_only_because_all_together_are_nearly_singular():
    R = kahan(30, 0.9)
    assert R[-1, -1] > 8e-4
    assert oracles.svd(R)[1][-1] < 1e-8
    Q = orthonormalise(R.T)
    assert off_orthonormal(Q) <= 1e-6
    torch.testing.assert_close(Q, torch.eye(30), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("added", "rank"), [(0.9e-6, 1), (1.1e-6, 2), (1.5e-6, 2)])
def test_a_row_is_kept_where_it_adds_a_millionth_of_its_norm(added, rank):
    X = torch.tensor([[1.0, 0.0, 0.0], [3.0, 3 * added, 0.0]])
    Q = orthonormalise(X)
    torch.testing.assert_close(Q, torch.eye(3)[:, :rank], rtol=0, atol=1e-6)


def test_dependent_rows_are_dropped_where_they_stand():
    a, b, c = normal(3, 40)
    X = torch.stack([a, 2 * a, torch.zeros(40), b, a - 3 * b, c, c])
    Q = orthonormalise(X)
    expected = oracles.gram_schmidt(torch.stack([a, b, c]))
    torch.testing.assert_close(Q.double(), expected, rtol=0, atol=1e-6)


def test_more_rows_than_dimensions_fill_the_space_and_no_more():
    Q = orthonormalise(normal(12, 5))
    assert Q.shape == (5, 5)
    assert off_orthonormal(Q) <= 1e-6


@pytest.mark.parametrize("shape", [(3, 4), (1, 1), (0, 4)])
def test_zero_rows_have_an_empty_basis(shape):
    assert orthonormalise(torch.zeros(shape)).shape == (shape[1], 0)


def test_reject_leaves_nothing_inside_the_span(tiny_blocks):
    Q, x = orthonormalise(normal(5, 60)).T, normal(60, key=1)
    left = reject(x, Q)
    expected = x.double() - oracles.projector(Q.T) @ x.double()
    torch.testing.assert_close(left, expected, rtol=0, atol=1e-6)
    assert (Q.double() @ left).abs().max() < 1e-12


def plane_pair(*angles):
    """Two subspaces of R^(2m) with the given angles."""
    m = len(angles)
    eye, t = torch.eye(2 * m).double(), torch.tensor(angles, dtype=torch.float64)
    return eye[:, :m], eye[:, :m] * t.cos() + eye[:, m:] * t.sin()


@pytest.mark.parametrize(
    "angles",
    [(0.3,), (0.0, 0.5, 1.2), (1e-9, 1e-4, 1.0), (math.pi / 2 - 1e-9, math.pi / 2), (0.0, 0.0)],
)
def test_angles_in_closed_form_small_and_right_ones_included(angles):
    U, V = plane_pair(*angles)
    expected = torch.tensor(sorted(angles), dtype=torch.float64)
    torch.testing.assert_close(principal_angles(U, V), expected, rtol=1e-6, atol=1e-15)
    torch.testing.assert_close(principal_angles(V, U), expected, rtol=1e-6, atol=1e-15)


@pytest.mark.parametrize(("k", "m"), [(4, 4), (2, 5), (5, 2), (1, 1)])
def test_angles_are_those_of_the_dense_reference(tiny_blocks, k, m):
    U, V = orthonormalise(normal(k, 30)), orthonormalise(normal(m, 30, key=1))
    found = principal_angles(U, V)
    assert found.shape == (min(k, m),)
    torch.testing.assert_close(found, oracles.principal_angles(U, V), rtol=0, atol=1e-7)


@pytest.mark.parametrize("key", range(5))
def test_the_angle_of_a_space_with_itself_is_0(key):
    U = orthonormalise(normal(6, 500, key=key))
    flips = U * torch.tensor([1.0, -1.0, 1.0, -1.0, -1.0, 1.0])
    rotated = (U.double() @ oracles.random_rotation(6, generator(key))).float()
    assert principal_angles(U, U).max() < 1e-12
    for same in (flips, U.flip(1), rotated):
        found = principal_angles(U, same)
        assert torch.isfinite(found).all()
        assert found.max() < 1e-6


def test_angles_do_not_depend_on_the_bases_only_on_their_spans():
    U, V = orthonormalise(normal(4, 60)).double(), orthonormalise(normal(3, 60, key=1)).double()
    expected = principal_angles(U, V)
    mixed = U @ oracles.random_rotation(4, generator(2)), 5 * V @ normal(3, 3).double()
    torch.testing.assert_close(principal_angles(*mixed), expected, rtol=0, atol=1e-9)


def test_a_subspace_makes_no_angle_with_a_larger_one():
    U = orthonormalise(normal(6, 90))
    assert principal_angles(U[:, 2:4], U).max() < 1e-12


def test_an_empty_subspace_has_no_angles():
    assert principal_angles(torch.zeros(5, 0), torch.eye(5)[:, :2]).shape == (0,)


def test_dependent_columns_have_no_angles():
    U = torch.eye(5)[:, [0, 1, 0]]
    with pytest.raises(ValueError, match="vector 2 depends on those before it"):
        principal_angles(U, torch.eye(5)[:, :3])


@pytest.mark.parametrize("t", [0.0, 0.1, 0.7, math.pi / 2])
def test_overlap_is_the_mean_squared_cosine(t):
    U, V = plane_pair(t, 0.0)
    assert subspace_overlap(U, V) == pytest.approx((math.cos(t) ** 2 + 1) / 2, abs=1e-12)


@pytest.mark.parametrize(("k", "m"), [(4, 4), (2, 5)])
def test_overlap_is_that_of_the_projections_and_of_the_angles(k, m):
    U, V = orthonormalise(normal(k, 30)), orthonormalise(normal(m, 30, key=1))
    found = subspace_overlap(U, V)
    assert found == pytest.approx(oracles.overlap(U, V), abs=1e-6)
    assert found == pytest.approx(float(principal_angles(U, V).cos().square().mean()), abs=1e-6)
    rotated = (U.double() @ oracles.random_rotation(k, generator(5))).float()
    assert subspace_overlap(rotated, V) == pytest.approx(found, abs=1e-6)


def test_random_subspaces_overlap_by_the_larger_dimension_over_d():
    k, m, d, repeats = 3, 6, 60, 200
    draws = [
        subspace_overlap(
            orthonormalise(normal(k, d, key=2 * i)), orthonormalise(normal(m, d, key=2 * i + 1))
        )
        for i in range(repeats)
    ]
    draws = torch.tensor(draws)
    assert abs(float(draws.mean()) - m / d) < 4 * float(draws.std()) / repeats**0.5


def test_overlap_with_an_empty_subspace_is_refused():
    with pytest.raises(ValueError, match=r"empty subspace \(rank 0\)"):
        subspace_overlap(torch.zeros(5, 0), torch.eye(5))


@pytest.mark.parametrize("measure", [participation_ratio, stable_rank])
def test_effective_ranks_count_equal_directions_and_ignore_scale(measure):
    for r in (1, 2, 7):
        assert measure(torch.cat([torch.full((r,), 3.0), torch.zeros(4)])) == pytest.approx(r)
    S = torch.tensor([5.0, 3.0, 1.0])
    for scale in (1e-200, 1e200):
        assert measure(S.double() * scale) == pytest.approx(measure(S), rel=1e-6)
    assert measure(S.flip(0)) == pytest.approx(measure(S))
    assert measure(torch.zeros(3)) == 0.0
    assert measure(torch.zeros(0)) == 0.0


def test_effective_ranks_in_closed_form():
    S = torch.tensor([2.0, 1.0, 1.0])
    assert participation_ratio(S) == pytest.approx(36 / 18)
    assert stable_rank(S) == pytest.approx(6 / 4)


def test_steps_of_equal_size_in_every_coordinate_are_orthonormalised() -> None:
    # Adam's first steps are plus or minus the rate: float32 sums of their squares are biased.
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (4, 100_000), generator=generator).float() * 2 - 1
    Q = orthonormalise(3e-4 * signs).double()
    assert Q.shape == (100_000, 4)
    assert (Q.T @ Q - torch.eye(4)).abs().max() <= 1e-5


LONG = 20_000_003


def test_long_vectors_lose_no_digits():
    """Constant vectors: float32 norms are off by 1e-2 at this d, inner products by 1e-3."""
    x, y = torch.full((LONG,), 0.25), torch.full((LONG,), 3.0)
    x[-1] = -7.0
    assert linalg.dot(x, y) == pytest.approx(0.75 * (LONG - 1) - 21, rel=1e-14)
    assert linalg.norm(x) == pytest.approx(math.sqrt((LONG - 1) / 16 + 49), rel=1e-14)
    assert linalg.root_mean_square(y) == pytest.approx(3.0, rel=1e-14)
    assert cosine(x, y) == pytest.approx(
        (0.75 * (LONG - 1) - 21) / (3 * math.sqrt(LONG * ((LONG - 1) / 16 + 49))), rel=1e-13
    )


def test_falling_entries_have_the_norm_of_the_harmonic_series():
    """sum 1 / i = ln d + gamma + 1 / 2d; the largest entries come first, where rounding starts."""
    x = torch.arange(1, LONG + 1, dtype=torch.float64).rsqrt().float()
    harmonic = math.log(LONG) + 0.5772156649015329 + 0.5 / LONG
    assert linalg.norm(x) == pytest.approx(math.sqrt(harmonic), rel=1e-8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_norms_of_any_shape_and_dtype_are_those_of_float64(dtype, tiny_blocks):
    G = torch.randn(3, 5, 7, generator=generator(0, "norms")).to(dtype)
    for x in (G, G.transpose(0, 2), G[:, 1:2], G[0, 0, 0], G[:, :0]):
        wanted = x.double().square().sum()
        assert linalg.norm(x) == pytest.approx(float(wanted.sqrt()), rel=1e-12)
        assert linalg.dot(x, 2 * x) == pytest.approx(float(2 * wanted), rel=1e-2)
    rows = G.flatten(1)
    torch.testing.assert_close(linalg.norms(rows), rows.double().norm(dim=1))
    assert linalg.root_mean_square(G[:, :0]) == 0.0
    assert linalg.root_mean_square(G[0, 0, :1]) == pytest.approx(float(G[0, 0, 0].abs()))


def test_vectors_that_do_not_meet_are_refused_and_what_is_not_finite_shows():
    with pytest.raises(ValueError, match="vectors of 3 and of 4 coordinates"):
        linalg.dot(torch.ones(3), torch.ones(4))
    assert math.isnan(linalg.norm(torch.tensor([1.0, float("nan")])))
    assert linalg.norm(torch.tensor([1.0, float("inf")])) == math.inf


def test_coordinates_in_a_basis_of_long_vectors_lose_no_digits():
    d = 5_000_000
    U = torch.zeros(d, 2)
    U[: d // 2, 0] = U[d // 2 :, 1] = (d // 2) ** -0.5
    basis = Basis(U, None, None, "halves", rank=2)
    x = torch.full((2, d), 0.3)
    x[1, d // 2 :] = -0.1
    half = math.sqrt(d // 2)
    wanted = torch.tensor([[0.3 * half, 0.3 * half], [0.3 * half, -0.1 * half]])
    torch.testing.assert_close(basis.coordinates(x), wanted, rtol=1e-6, atol=0)
    torch.testing.assert_close(basis.coordinates(x[0]), wanted[0], rtol=1e-6, atol=0)
