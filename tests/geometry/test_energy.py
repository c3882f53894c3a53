import pytest
import torch

import oracles
from frenet.geometry.energy import (
    captured_energy,
    centred,
    half_splits,
    overlap,
    spanned_energy,
    unit_rows,
)
from frenet.geometry.linalg import gram
from frenet.geometry.rng import generator

FIT, TEST = torch.arange(0, 7), torch.arange(7, 12)


def normal(*shape, key=0):
    return torch.randn(*shape, generator=generator(key, "energy"))


def low_rank(n, d, rank, noise):
    """Rows near a subspace of that dimension."""
    return normal(n, rank) @ normal(rank, d, key=1) + noise * normal(n, d, key=2)


def dense_energies(G, fit, test, ks):
    values = [oracles.captured_energy(G, fit, test, k) for k in ks]
    return torch.tensor(values, dtype=torch.float64)


def test_unit_rows_is_the_gram_matrix_of_the_scaled_rows():
    G = normal(6, 30) * torch.logspace(-8, 8, 6)[:, None]
    scaled = G.double() / G.double().norm(dim=1, keepdim=True)
    torch.testing.assert_close(unit_rows(gram(G)), scaled @ scaled.T, rtol=0, atol=1e-13)


def test_zero_rows_stay_zero():
    G = normal(4, 30)
    G[1] = 0
    K = unit_rows(gram(G))
    assert K.diagonal().tolist() == pytest.approx([1, 0, 1, 1])
    assert not K[1].any()


def test_centred_takes_the_mean_of_the_fit_rows_from_all():
    G = normal(12, 40) + 3 * normal(1, 40, key=1)
    moved = G.double() - G[FIT].double().mean(0)
    torch.testing.assert_close(centred(gram(G), FIT, TEST), moved @ moved.T, rtol=0, atol=1e-10)


def test_rows_equal_to_the_mean_become_exactly_zero():
    same = normal(1, 40).expand(5, 40)
    assert not centred(gram(same), torch.arange(5)).any()
    G = torch.cat([normal(6, 40), torch.zeros(1, 40)])
    G[6] = G[:6].double().mean(0).float()
    K = centred(gram(G), torch.arange(6))
    assert not K[6].any()
    assert (K.diagonal()[:6] > 1).all()


@pytest.mark.parametrize(("apart", "zero"), [(1.3e-6, True), (1.5e-6, False), (1e-4, False)])
def test_a_row_equals_the_mean_to_a_millionth_of_both_norms(apart, zero):
    """|g - m|^2 <= 1e-12 (|g|^2 + |m|^2), which is 1.41e-6 of either."""
    G = torch.zeros(4, 5, dtype=torch.float64)
    G[:, 0], G[0, 1], G[1, 1] = 7.0, 3.0, -3.0
    G[2, 2] = 7 * apart
    K = centred(G @ G.T, torch.tensor([0, 1]))
    assert bool(K[2].any()) is not zero
    assert K[0, 0] == pytest.approx(9.0)


def test_the_mean_of_held_out_rows_is_refused():
    with pytest.raises(ValueError, match="row 6 is in fit and in test, so it is not held out"):
        centred(gram(normal(12, 40)), FIT, torch.tensor([9, 6]))


def test_the_mean_of_nothing_is_refused():
    with pytest.raises(ValueError, match="the mean of no rows is not defined"):
        centred(gram(normal(3, 40)), torch.tensor([], dtype=torch.int64))


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("centre", [False, True])
def test_captured_energy_is_that_of_explicit_projections(unit, centre):
    G = (low_rank(12, 60, 3, 0.3) + normal(1, 60, key=3)).double()
    K, ks = gram(G), (0, 1, 2, 3, 5)
    if unit:
        G, K = G / G.norm(dim=1, keepdim=True), unit_rows(K)
    if centre:
        G, K = G - G[FIT].mean(0), centred(K, FIT, TEST)
    found = captured_energy(K, FIT, TEST, ks)
    torch.testing.assert_close(found, dense_energies(G, FIT, TEST, ks), rtol=0, atol=1e-10)


def test_energy_grows_with_k_and_ends_at_the_whole_rank():
    K = gram(low_rank(12, 60, 3, 0.3))
    found = captured_energy(K, FIT, TEST, range(10))
    assert found[0] == 0
    assert (found.diff()[:7] > 0).all()
    assert torch.equal(found[7:], found[7].expand(3))
    assert found[7] < 1


def test_rows_inside_a_subspace_are_captured_at_its_dimension():
    K = gram(low_rank(12, 60, 3, 0.0))
    found = captured_energy(K, FIT, TEST, (2, 3, 8))
    assert found[0] < 0.999
    torch.testing.assert_close(found[1:], torch.ones(2).double(), rtol=0, atol=1e-9)


def test_in_sample_energy_is_the_share_of_the_leading_singular_values():
    G = normal(9, 50)
    rows = torch.arange(9)
    G = G / G.norm(dim=1, keepdim=True)
    S = oracles.svd(G)[1]
    expected = (S[:4] ** 2).sum() / (S**2).sum()
    assert float(captured_energy(unit_rows(gram(G)), rows, rows, [4])) == pytest.approx(
        float(expected), abs=1e-6
    )


def test_isotropic_noise_has_8_percent_in_sample_in_the_top_10_of_128():
    rows = torch.arange(128)
    found = captured_energy(unit_rows(gram(normal(128, 60_000))), rows, rows, [10])
    # 10 / 128 = 0.078, and a little more because the leading ones are chosen.
    assert 0.078 < float(found) < 0.086


def test_isotropic_noise_has_k_over_d_held_out():
    d, k, repeats = 120, 10, 60
    fit, test = torch.arange(20), torch.arange(20, 40)
    draws = [
        float(captured_energy(gram(normal(40, d, key=i)), fit, test, [k])) for i in range(repeats)
    ]
    draws = torch.tensor(draws)
    assert abs(float(draws.mean()) - k / d) < 4 * float(draws.std()) / repeats**0.5


def test_order_of_rows_and_rotation_of_the_space_do_not_matter():
    G, ks = low_rank(12, 30, 3, 0.3).double(), (1, 3)
    expected = captured_energy(gram(G), FIT, TEST, ks)
    turned = G @ oracles.random_rotation(30, generator(4))
    shuffled = captured_energy(gram(turned), FIT.flip(0), TEST.flip(0), ks)
    torch.testing.assert_close(shuffled, expected, rtol=0, atol=1e-10)
    signs = torch.tensor([1.0, -1.0]).double().repeat(6)[:, None]
    torch.testing.assert_close(
        captured_energy(gram(signs * G), FIT, TEST, ks), expected, rtol=0, atol=1e-10
    )


def test_duplicated_fit_rows_change_nothing_where_all_have_the_same_copies():
    K = gram(low_rank(12, 60, 3, 0.3))
    ks = (1, 3, 7, 20)
    torch.testing.assert_close(
        captured_energy(K, FIT.repeat(3), TEST, ks), captured_energy(K, FIT, TEST, ks)
    )


def test_zero_test_rows_are_left_out_of_the_mean():
    G = low_rank(12, 60, 3, 0.3)
    G[9] = 0
    live = torch.tensor([7, 8, 10, 11])
    found = captured_energy(gram(G), FIT, TEST, [2])
    assert torch.equal(found, captured_energy(gram(G), FIT, live, [2]))


def test_only_zero_test_rows_are_refused():
    G = normal(12, 60)
    G[TEST] = 0
    with pytest.raises(ValueError, match="all 5 test rows are zero"):
        captured_energy(gram(G), FIT, TEST, [2])


def test_zero_fit_rows_capture_nothing():
    G = normal(12, 60)
    G[FIT] = 0
    assert captured_energy(gram(G), FIT, TEST, [0, 2]).tolist() == [0, 0]


def test_a_negative_k_is_refused():
    with pytest.raises(ValueError, match="k=-1 must not be negative"):
        captured_energy(gram(normal(12, 60)), FIT, TEST, [2, -1])


@pytest.mark.parametrize("k", [1, 3, 5, 9])
def test_overlap_is_that_of_the_dense_bases(k):
    G = low_rank(12, 60, 3, 0.5)
    U, V = (oracles.top_basis(G[rows], min(k, len(rows))) for rows in (FIT, TEST))
    assert overlap(gram(G), FIT, TEST, k) == pytest.approx(oracles.overlap(U, V), abs=1e-9)
    assert overlap(gram(G), FIT, FIT, k) == pytest.approx(1, abs=1e-12)


def test_overlap_needs_a_k_and_rows_that_are_not_zero():
    G = normal(12, 60)
    G[TEST] = 0
    with pytest.raises(ValueError, match="k=0 must be at least 1"):
        overlap(gram(G), FIT, FIT, 0)
    with pytest.raises(ValueError, match="all 5 rows of a set are zero"):
        overlap(gram(G), FIT, TEST, 2)


@pytest.mark.parametrize("n", [2, 9, 10])
def test_half_splits_are_disjoint_halves(n):
    for fit, test in half_splits(n, 20, generator(0)):
        assert (len(fit), len(test)) == (n // 2, n - n // 2)
        assert sorted(torch.cat([fit, test]).tolist()) == list(range(n))


def test_half_splits_follow_the_generator_and_are_uniform():
    n, repeats = 10, 2000
    splits = half_splits(n, repeats, generator(0))
    again = half_splits(n, repeats, generator(0))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(splits, again, strict=True))
    counts = torch.bincount(torch.cat([fit for fit, _ in splits]), minlength=n)
    assert ((counts - repeats / 2).abs() < 4 * (repeats / 4) ** 0.5).all()


def test_one_row_cannot_be_split():
    with pytest.raises(ValueError, match="n=1 rows cannot be split"):
        half_splits(1, 3, generator(0))


def test_spanned_energy_against_explicit_projections() -> None:
    """Also if a row repeats another, and if the first one is zero."""
    draw = generator(0, "spanned")
    G = torch.randn(7, 12, dtype=torch.float64, generator=draw)
    G[0] = 0
    G[3] = 2 * G[1] - G[2]
    fit, test = torch.arange(5), torch.tensor([5, 6])
    found = spanned_energy(G @ G.T, fit, test, (1, 2, 3, 4, 5))
    for k, share in zip((1, 2, 3, 4, 5), found, strict=True):
        P = torch.linalg.pinv(G[:k]) @ G[:k]
        wanted = ((G[5:] @ P).square().sum(1) / G[5:].square().sum(1)).mean()
        assert float(share) == pytest.approx(float(wanted), abs=1e-12)
    assert found[0] == 0
    assert found[3] == pytest.approx(found[2])


def test_eigenvalues_below_the_cut_span_nothing() -> None:
    """Rows e1 and e1 + 1e-4 e2: the second direction has a share of 2.5e-9 of the first."""
    G = torch.tensor([[1.0, 0.0], [1.0, 1e-4], [0.0, 1.0]], dtype=torch.float64)
    fit, test = torch.tensor([0, 1]), torch.tensor([2])
    for cut, share in ((1e-10, 1.0), (1e-8, 0.0)):
        found = spanned_energy(G @ G.T, fit, test, (2,), cut=cut)
        assert float(found) == pytest.approx(share, abs=1e-6)
