"""Held-out energies and effective ranks: planted spectra, dense references, nulls."""

import pytest
import torch

import oracles
from frenet.geometry.energy import half_splits
from frenet.geometry.rng import generator
from frenet.measure.spectra import NullSpectra, effective_ranks, held_out_energy, unit_gram

COLUMNS = (
    "energy",
    "ceiling",
    "centred",
    "label_shuffled",
    "in_shuffled_basis",
    "null_gaussian",
    "null_shuffle",
    "null_sign",
)


def energies(G, shuffled=None, *, ks=(1,), repeats=4, sizes=None, draws=1):
    draw = generator(0, "spectra")
    nulls = [NullSpectra.draw(G, sizes or (G.shape[1],), draw) for _ in range(draws)]
    splits = half_splits(len(G), repeats, draw)
    return held_out_energy(
        G, G if shuffled is None else shuffled, splits=splits, draws=nulls, ks=ks
    )


def low_rank(n, d, *, share, k=3, seed=0):
    """Rows with this share of their energy in k directions, the rest isotropic."""
    draw = generator(seed, "planted")
    directions = torch.linalg.qr(torch.randn(d, k, generator=draw))[0].T
    inside = torch.randn(n, k, generator=draw) @ directions
    noise = torch.randn(n, d, generator=draw)
    inside /= inside.norm(dim=1, keepdim=True)
    noise /= noise.norm(dim=1, keepdim=True)
    return share**0.5 * inside + (1 - share) ** 0.5 * noise


def test_isotropic_noise_has_energy_k_over_d_held_out_and_far_more_in_sample():
    d, ks = 150, (1, 5, 20)
    found = [
        energies(torch.randn(40, d, generator=generator(i, "noise")), ks=ks, repeats=1)
        for i in range(40)
    ]
    for i, k in enumerate(ks):
        values = torch.tensor([one["energy"][i] for one in found])
        assert abs(values.mean() - k / d) < 4 * values.std() / 40**0.5
        assert min(one["ceiling"][i] for one in found) > 2 * k / d
    # 20 vectors always fit in 20 dimensions.
    assert all(one["ceiling"][2] == pytest.approx(1) for one in found)


def test_equal_gradients_have_all_energy_in_one_direction_and_nothing_beside_their_mean():
    found = energies(torch.ones(8, 20), ks=(1, 2))
    assert found["energy"] == pytest.approx([1, 1])
    assert found["centred"] == [None, None]


def test_planted_directions_hold_the_planted_share():
    """An estimated direction is off by noise / signal = (1 - s) / (n s / k), from n fitted rows."""
    n, d, k = 240, 400, 3
    for share in (0.3, 0.8):
        found = energies(low_rank(n, d, share=share), ks=(k,), repeats=2)
        off = (1 - share) / (n / 2 * share / k)
        expected = share * (1 - off) + (1 - share) * k / d
        assert found["energy"][0] == pytest.approx(expected, abs=0.015)
        for null in ("null_gaussian", "null_shuffle", "null_sign"):
            assert found[null][0] < 0.05


def test_rows_along_axes_have_energies_that_can_be_counted():
    """Both halves hold four rows along x, two along y, one along z."""
    half = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    G = torch.eye(6)[torch.cat([half, half])]
    split = (torch.arange(7), torch.arange(7, 14))
    draws = [NullSpectra.draw(G, (6,), generator(0, "x"))]
    found = held_out_energy(G, G, splits=[split], draws=draws, ks=(0, 1, 2, 3, 9))
    for column in ("energy", "ceiling", "label_shuffled", "in_shuffled_basis"):
        assert found[column] == pytest.approx([0, 4 / 7, 6 / 7, 1, 1])


def test_every_column_against_explicit_projections():
    G, shuffled = low_rank(24, 50, share=0.6), low_rank(24, 50, share=0.4, seed=1)
    draw = generator(0, "dense")
    splits = half_splits(24, 3, draw)
    nulls = NullSpectra.draw(G, (20, 30), draw)
    ks = (1, 4, 10)
    found = held_out_energy(G, shuffled, splits=splits, draws=[nulls], ks=ks)
    assert set(found) == set(COLUMNS)
    G, shuffled = (
        rows.double() / rows.double().norm(dim=1, keepdim=True) for rows in (G, shuffled)
    )

    def mean(value):
        return [sum(value(fit, test, k) for fit, test in splits) / len(splits) for k in ks]

    def foreign(fit, test, k):
        U = oracles.top_basis(shuffled[fit], k)
        return sum(oracles.captured_fraction(U, G[i]) for i in test.tolist()) / len(test)

    def centred(fit, test, k):
        moved = G - G[fit].mean(0)
        return oracles.captured_energy(moved, fit, test, k)

    expected = {
        "energy": mean(lambda fit, test, k: oracles.captured_energy(G, fit, test, k)),
        "ceiling": mean(lambda fit, test, k: oracles.captured_energy(G, test, test, k)),
        "label_shuffled": mean(
            lambda fit, test, k: oracles.captured_energy(shuffled, fit, test, k)
        ),
        "in_shuffled_basis": mean(foreign),
        "centred": mean(centred),
    }
    for column, values in expected.items():
        assert found[column] == pytest.approx(values, rel=1e-6), column


def test_scaling_rows_and_turning_all_of_them_changes_nothing():
    G = low_rank(20, 30, share=0.6)
    draw = generator(0, "scale")
    scales = 10.0 ** torch.empty(20, 1).uniform_(-3, 3, generator=draw)
    turned = ((G * scales).double() @ oracles.random_rotation(30, draw)).float()
    before, after = energies(G, ks=(1, 3)), energies(turned, ks=(1, 3))
    for column in ("energy", "ceiling", "centred", "label_shuffled", "in_shuffled_basis"):
        assert after[column] == pytest.approx(before[column], rel=1e-5), column
    ranks = [effective_ranks(rows, NullSpectra.draw(G, (30,), draw)) for rows in (G, turned)]
    for name in ("participation_ratio", "stable_rank", "rank", "mean_share"):
        assert ranks[1][name] == pytest.approx(ranks[0][name], rel=1e-5), name


def test_the_mean_alone_can_make_gradients_look_low_rank():
    """One common direction and isotropic noise: nothing is left after centring."""
    draw = generator(0, "mean")
    G = torch.randn(60, 100, generator=draw) / 10 + 3 * torch.eye(100)[0]
    found = energies(G, ks=(1,))
    assert found["energy"][0] > 0.85
    assert found["centred"][0] == pytest.approx(1 / 100, abs=0.01)


def test_the_shuffled_task_is_seen_in_its_own_basis_and_the_task_in_the_shuffled_ones():
    draw = generator(0, "shuffled")
    axes = torch.eye(20)
    own, other = (torch.randn(16, 2, generator=draw) @ axes[i : i + 2] for i in (0, 2))
    apart = energies(own, other, ks=(2,))
    assert (apart["energy"], apart["label_shuffled"]) == (pytest.approx([1]), pytest.approx([1]))
    assert apart["in_shuffled_basis"] == pytest.approx([0], abs=1e-12)
    together = energies(own, own.flip(0), ks=(2,))
    assert together["in_shuffled_basis"] == pytest.approx([1])


def test_a_null_reports_the_highest_of_its_draws():
    G = low_rank(12, 40, share=0.7)
    draw = generator(0, "draws")
    splits = half_splits(12, 2, draw)
    draws = [NullSpectra.draw(G, (40,), draw) for _ in range(3)]
    single = [held_out_energy(G, G, splits=splits, draws=[one], ks=(1, 2)) for one in draws]
    found = held_out_energy(G, G, splits=splits, draws=draws, ks=(1, 2))
    for name in ("null_gaussian", "null_shuffle", "null_sign"):
        for i in (0, 1):
            values = [one[name][i] for one in single]
            assert len(set(values)) == 3
            assert found[name][i] == pytest.approx(max(values))


def test_nulls_keep_what_they_say_and_lose_the_structure():
    """All rows nearly alike, with nearly all of their energy in the second of two tensors."""
    row = torch.cat([torch.full((90,), 0.1), torch.full((10,), 3.0)])
    G = row + 1e-3 * torch.randn(16, 100, generator=generator(0, "row"))
    G *= torch.linspace(1, 100, 16)[:, None]
    found = energies(G, ks=(1,), sizes=(90, 10), draws=3)
    assert found["energy"][0] == pytest.approx(1, abs=1e-5)
    # All entries of a tensor are equal: shuffling has no effect, signs and noise have one.
    assert found["null_shuffle"][0] == pytest.approx(1, abs=1e-5)
    assert found["null_sign"][0] < 0.3
    assert found["null_gaussian"][0] < 0.3


def test_one_row_apart_from_the_mean_is_enough_for_a_centred_energy():
    """Equal rows to fit span no subspace without their mean, so the centred energy is None."""
    G = torch.eye(4)[[0, 0, 0, 1]]
    draws = [NullSpectra.draw(G, (4,), generator(0, "centred"))]
    fit = torch.tensor([0, 1])
    for test, centred in (([2, 3], 0.0), ([2], None)):
        splits = [(fit, torch.tensor(test))]
        found = held_out_energy(G, G, splits=splits, draws=draws, ks=(1,))
        assert found["centred"] == [centred]


def test_unit_gram_is_the_matrix_of_cosines():
    rows = torch.tensor([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]])
    expected = torch.tensor([[1, 0.8, 0], [0.8, 1, 0], [0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(unit_gram(rows), expected)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        # n times one direction, with either sign: the mean of the signs, squared.
        (
            torch.outer(torch.tensor([1.0, 2, 3, -4]), torch.eye(10)[0]),
            {"participation_ratio": 1, "stable_rank": 1, "rank": 1, "mean_share": 0.25},
        ),
        (
            torch.eye(10)[:4] * 7,
            {"participation_ratio": 4, "stable_rank": 4, "rank": 4, "mean_share": 0.25},
        ),
        # Three along x, one along y: (3 + 1)^2 / (9 + 1), 4 / 3, and (9 + 1) / 16.
        (
            torch.eye(10)[torch.tensor([0, 0, 0, 1])],
            {"participation_ratio": 1.6, "stable_rank": 4 / 3, "rank": 2, "mean_share": 0.625},
        ),
    ],
)
def test_effective_ranks_in_closed_form(rows, expected):
    null = NullSpectra.draw(rows, (10,), generator(0, "ranks"))
    found = effective_ranks(rows, null)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value), name
    assert found["zero_share"] == pytest.approx(float((rows == 0).all(0).float().mean()))


def test_the_ranks_of_the_null_stand_beside_those_of_the_gradients():
    G = low_rank(30, 200, share=0.9)
    null = NullSpectra.draw(G, (200,), generator(0, "null"))
    found = effective_ranks(G, null)
    assert found["participation_ratio"] < 5 < 20 < found["participation_ratio_null"]
    assert found["rank"] == found["rank_null"] == 30
    assert found["mean_share_null"] == pytest.approx(1 / 30, rel=0.5)
    assert found["zero_share"] == 0
