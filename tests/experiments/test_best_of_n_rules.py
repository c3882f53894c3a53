"""The rules of C5a (bands) and C5b (dimension), on rows made for them."""

import dataclasses
import math

import pytest
import torch

from experiments.parts import parts
from experiments.small import small
from frenet.experiments import EXPERIMENTS
from frenet.experiments.best_of_n.findings import (
    best_gains,
    coverage,
    dimension,
    most_candidates,
    ranked,
    relative_gains,
)
from frenet.experiments.best_of_n.measure import REPEATED, Spot, score_error
from frenet.experiments.setup.networks import build
from frenet.methods.candidates import Noise
from frenet.methods.search import random_search

RIGHT = [0.94, 0.95, 0.96]


def best(
    place: str, inside: list[float], gain: float, **changes: object
) -> list[dict[str, object]]:
    """Best-of-N rows of one place, over seeds, at sigma* / 2 and sigma*.

    The half width of the band is half of the gain.
    """
    base = {"table": "best", "space": "full", "size": 64, "task": "a", "protocol": "p"}
    at = {"unit": "sigma*", "place": place, "dim": 9, "search": 0, "predicted": gain}
    more = {"density": 1.0, "density_over_curvature": 1.0, "second_order": 0.3, "blocks": 100}
    rows = []
    for s, share in enumerate(inside):
        for factor in (0.5, 1.0):
            for n in (1, 8):
                found = gain * (1 + 0.01 * s) * factor * n / 8
                band = {"gain": found, "low": found / 2, "high": 3 * found / 2}
                own = {"seed": s, "candidates": n, "factor": factor, "inside": share}
                rows.append({**base, **at, **more, **own, **band, **changes})
    return rows


def errors(noise: float | None, seeds: int = 3, **changes: object) -> list[dict[str, object]]:
    """Rows with the error of a score over the predicted spread."""
    base = {"table": "spread", "place": "all", "unit": "sigma*", "factor": 0.5, "noise": noise}
    return [base | {"seed": s} | changes for s in range(seeds)]


QUIET = errors(1e-4)


@pytest.mark.parametrize(
    ("inside", "verdict"),
    [
        (RIGHT, "supported"),
        ([0.60, 0.61, 0.62], "contradicted"),
        ([0.80, 0.90, 0.99], "undecided"),
        ([0.95], "undecided"),
        ([0.95, 0.96], "supported"),
    ],
)
def test_c5a(inside: list[float], verdict: str) -> None:
    finding = coverage(best("all", inside, 1.0) + QUIET)
    assert finding.verdict == verdict
    assert finding.estimate is not None
    assert finding.estimate.n == len(inside)
    assert finding.estimate.value == pytest.approx(sum(inside) / len(inside), abs=0.01)


def test_c5a_counts_every_candidate_once() -> None:
    """The searches of 8 candidates, or of all if a run has fewer."""
    rows = best("all", RIGHT, 1.0)  # of 1 and of 8 candidates
    ones = [row | {"inside": 0.5} if row["candidates"] == 1 else row for row in rows]
    fewer = [row | {"candidates": 4} for row in rows if row["candidates"] == 8]
    larger = [row | {"candidates": 128, "inside": 0.0} for row in fewer]
    for made, size in ((rows, 8), (ones, 8), (fewer, 4), (rows + larger, 8)):
        finding = coverage(made + QUIET)
        assert finding.estimate == coverage(rows + QUIET).estimate
        assert f"share of 300 searches of {size} candidates" in finding.quantity
    told = parts(coverage(ones + QUIET), "Searches inside their predicted 95% band in the")
    assert [(row["candidates"], row["share inside"]) for row in told] == [
        (1, 0.5), (8, pytest.approx(0.95))
    ]  # fmt: skip


@pytest.mark.parametrize(("blocks", "verdict"), [(6, "not testable"), (7, "undecided")])
def test_c5a_needs_twenty_searches(blocks: int, verdict: str) -> None:
    finding = coverage(best("all", [1.0] * 3, 1.0, blocks=blocks) + QUIET)
    assert finding.verdict == verdict
    assert ("18, not 20" in finding.why) is (blocks == 6)


@pytest.mark.parametrize(
    ("noise", "verdict"), [(0.3, "supported"), (1 / 3, "not testable"), (0.5, "not testable")]
)
def test_c5a_is_not_testable_if_scores_are_noisy(noise: float, verdict: str) -> None:
    rows = best("all", RIGHT, 1.0)
    assert coverage(rows + errors(noise)).verdict == verdict
    # Of searches that do not count, the noise does not count either.
    beyond = errors(9.0, factor=1.0) + errors(9.0, place="name:a")
    assert coverage(rows + errors(noise) + beyond).verdict == verdict


def test_rows_without_the_noise_of_scores_say_what_the_bands_alone_say() -> None:
    for rows in (best("all", RIGHT, 1.0), best("all", RIGHT, 1.0) + errors(None)):
        finding = coverage(rows)
        assert finding.verdict == "not testable"
        assert "not known whether this premise holds; the criteria alone say supp" in finding.why


def test_a_seed_without_searches_does_not_count() -> None:
    lost = [{"table": "notes", "seed": 3, "note": "p left out: the loss went from 1 to 1"}]
    rows = best("all", RIGHT, 1.0) + best("random:10", RIGHT, 1.0) + QUIET
    for decide in (coverage, dimension):
        assert decide(rows + lost) == decide(rows)
        assert decide(lost).verdict == "not testable"
        assert decide(lost).estimate is None


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([1.0, 1.0, 1.0], "supported"),
        ([0.95, 1.0, 1.05], "supported"),
        ([0.5, 0.5, 0.51], "contradicted"),
        ([1.3, 1.3, 1.31], "contradicted"),
        ([0.7, 1.0, 1.4], "undecided"),
        ([1.0], "undecided"),
        ([1.0, 1.01], "supported"),
        ([0.8, 1.25], "undecided"),
    ],
)
def test_c5b(ratios: list[float], verdict: str) -> None:
    inside = [0.95] * len(ratios)
    rows = [
        row | {name: row[name] * ratios[row["seed"]] for name in ("gain", "low", "high")}
        for row in best("random:10", inside, 1.0)
    ]
    finding = dimension(best("all", inside, 1.0) + rows)
    assert finding.verdict == verdict
    assert finding.estimate is not None
    assert finding.estimate.value == pytest.approx(math.prod(ratios) ** (1 / len(ratios)))
    (row,) = parts(finding, "Gain at the best sigma")
    assert (row["random directions"], row["share"]) == (
        10, pytest.approx(sum(ratios) / len(ratios))
    )  # fmt: skip
    assert row["cases compared"] == row["cases"] == row["seeds"] == len(ratios)
    assert (row["even from"], row["even up to"]) == (0.8, 1.25)
    assert finding.notes == ()


def test_the_gain_is_a_geometric_mean_with_the_interval_of_its_logarithm() -> None:
    rows = best("all", RIGHT, 1.0)
    rows += [
        row | {"gain": row["gain"] * math.exp(0.01 * row["seed"])}
        for row in best("random:10", RIGHT, 1.0)
    ]
    found = dimension(rows).estimate
    # Logarithms 0, 0.01, 0.02: standard error 0.01 / sqrt(3), t(2) = 4.302653.
    half = 4.302652729911275 * 0.01 / 3**0.5
    assert found is not None
    ends = [found.low, found.value, found.high]
    assert ends == pytest.approx([math.exp(0.01 + side * half) for side in (-1, 0, 1)])


def test_c5b_averages_the_cases_of_a_seed() -> None:
    """The unit is the seed: half in one case and twice in the other are even."""
    rows = [
        row
        for task, ratio in (("a", 0.5), ("b", 2.0))
        for place, gain in (("all", 1.0), ("random:10", ratio))
        for row in best(place, RIGHT, gain, task=task)
    ]
    assert dimension(rows).verdict == "supported"


@pytest.mark.parametrize(
    ("searches", "half", "verdict"),
    [(1, 0.5, "supported"), (1, 1.0, "not testable"), (1, 1.5, "not testable"),
     (4, 1.5, "supported"), (4, 2.5, "not testable")],
)  # fmt: skip
@pytest.mark.parametrize("noisy", ["all", "random:10"])
def test_c5b_is_not_testable_if_a_gain_is_within_its_noise(
    searches: int, half: float, verdict: str, noisy: str
) -> None:
    """The band of a mean of four searches is half as wide."""
    rows = []
    for place in ("all", "random:10"):
        for row in best(place, RIGHT, 1.0):
            band = (half if place == noisy else 0.1) * row["gain"]
            ends = {"low": row["gain"] - band, "high": row["gain"] + band}
            rows += [row | ends | {"search": search} for search in range(searches)]
    assert dimension(rows).verdict == verdict


def test_the_least_clear_gain_of_a_seed_counts() -> None:
    rows = best("all", RIGHT, 1.0) + best("random:10", RIGHT, 1.0)
    rows += [
        row | {"low": row["gain"] - 9, "high": row["gain"] + 9}
        for row in best("random:100", RIGHT, 1.0)
    ]
    finding = dimension(rows)
    assert finding.verdict == "not testable"
    assert "the least clear gain of a seed" in finding.why


def test_c5b_needs_cases_of_every_number_of_directions() -> None:
    whole = best("all", RIGHT, 1.0)
    assert dimension(whole).verdict == "not testable"
    rows = whole + best("random:10", RIGHT, 1.0)
    assert dimension(rows).verdict == "supported"
    # A place whose best sigma is the largest one tried has no gain that counts.
    grows = best("random:1000", RIGHT, 1.0, unit="trusted")
    finding = dimension(rows + grows)
    assert (finding.verdict, "is 0, not 1 or more" in finding.why) == ("not testable", True)
    beyond = [row | {"factor": 2.0, "gain": 0.1} for row in grows if row["factor"] == 1.0]
    assert dimension(rows + grows + beyond).verdict == "supported"


def test_a_prediction_that_a_search_lacks_is_left_empty() -> None:
    """A sigma beyond the trusted range has gains but no prediction."""
    rows = best("all", RIGHT, 1.0) + best("random:10", RIGHT, 1.0)
    bare = [row | {"predicted": None} if row["factor"] == 1.0 else row for row in rows]
    near, far = parts(coverage(bare), BANDS)
    assert (near["predicted gain"], far["predicted gain"]) == (1.0, None)
    assert far["gain of the best of 8"] == pytest.approx(1.01)


def test_c5a_counts_places_without_a_best_sigma_as_far_as_they_are_to_be_trusted() -> None:
    """Beyond that, at twice the trusted sigma, nothing is predicted."""
    rows = best("all", RIGHT, 1.0) + best("random:10", RIGHT, 1.0)
    bare = best("random:100", [0.0, 0.0, 0.0], 9.0, unit="trusted")
    beyond = [row | {"factor": 2.0} for row in bare if row["factor"] == 1.0]
    assert coverage(rows + beyond).estimate == coverage(rows).estimate
    assert coverage(rows + bare).estimate != coverage(rows).estimate


@pytest.mark.parametrize("unit", ["sigma*", "trusted"])
def test_a_gain_that_still_grows_at_the_largest_sigma_is_not_compared(unit: str) -> None:
    rows = best("all", RIGHT, 1.0) + best("random:10", RIGHT, 1.0)
    grows = best("random:100", RIGHT, 9.0, unit=unit)
    beyond = [row | {"factor": 3.0, "gain": 99.0} for row in grows if row["factor"] == 1.0]
    falls = [row | {"factor": 4.0, "gain": 0.0} for row in beyond]
    # Nothing is known of 100 directions then, and the claim is about them, too.
    assert dimension(rows + grows + beyond).verdict == "not testable"
    assert dimension(rows + grows + beyond + falls).verdict == "contradicted"
    assert [
        row["ratio"] for row in relative_gains(rows + grows + beyond + falls, "random:100")
    ] == [pytest.approx(99 / (1 + 0.01 * s)) for s in range(3)]


def test_a_search_that_gains_nothing_in_the_whole_space_has_no_share_of_it() -> None:
    rows = best("all", RIGHT, 0.0) + best("random:10", RIGHT, 1.0)
    assert relative_gains(rows, "random:") == []
    gains = best("all", RIGHT, 2.0) + best("random:10", RIGHT, 1.0)
    shares = [row["ratio"] for row in relative_gains(gains, "random:")]
    assert shares == pytest.approx([0.5] * 3)


def test_searches_without_a_best_sigma_do_not_enter_the_gain_of_those_with_one() -> None:
    rows = best("all", RIGHT, 1.0) + best("random:10", RIGHT, 1.0)
    bare = best("random:10", RIGHT, 9.0, unit="trusted", search=1)
    assert best_gains(rows + bare) == best_gains(rows)


def test_winners_are_listed_by_the_unit_of_their_sigma() -> None:
    """Predicted up to half of sigma*, and up to all of the largest trusted sigma."""
    base = {"table": "winner", "held_out_predicted": 0.0, "step": 0.0}
    rows = [
        base | {"seed": s, "unit": unit, "factor": factor, "selected": gain, "held_out": -gain}
        for s in (0, 1)
        for unit, factor, gain in (
            ("sigma*", 0.5, 0.1), ("sigma*", 1.0, 9.0), ("trusted", 1.0, 0.2), ("trusted", 2.0, 9.0)
        )
    ]  # fmt: skip
    told = {
        (row["in units of"], row["sigma"]): row for row in parts(coverage(rows), "Gain of the win")
    }
    trusted = "the largest trusted sigma"
    gains = {at: row["on the selection batch"] for at, row in told.items()}
    assert gains == {
        ("sigma*", 0.5): pytest.approx(0.1), ("sigma*", 1.0): 9.0,
        (trusted, 1.0): pytest.approx(0.2), (trusted, 2.0): 9.0,
    }  # fmt: skip
    assert all(row["held out"] == -row["on the selection batch"] for row in told.values())
    assert all(row["predicted held out"] == 0 for row in told.values())
    reached = {at for at, row in told.items() if row["in the predicted range"]}
    assert reached == {("sigma*", 0.5), (trusted, 1.0)}


def test_the_gain_of_a_place_is_that_of_its_best_sigma_and_most_candidates() -> None:
    gains = best_gains(best("all", RIGHT, 1.0))
    assert [row["value"] for row in gains] == pytest.approx([1.0, 1.01, 1.02])


def test_places_are_ranked_within_their_network() -> None:
    rows = best("all", RIGHT, 2.0) + best("name:embed", RIGHT, 1.0, density=4.0)
    for row in ranked(rows):
        alone = row["place"] == "name:embed"
        assert row["value"] == pytest.approx(0.5 if alone else 1.0)
        assert row["density"] == (1.0 if alone else 0.25)
        assert row["density_over_curvature"] == 1.0


RANKS = "Spearman's rank correlation"


@pytest.mark.parametrize("order", [1, -1])
def test_c5b_says_how_well_either_prediction_ranks_the_places(order: int) -> None:
    """The rank correlation, by density and by density over curvature, compared with chance."""
    places = ["all", "name:a", "name:b", "name:c", "name:d"]
    rows = [
        row
        for i, place in enumerate(places)
        for row in best(
            place, RIGHT, 1.0 + i, density=1.0 + order * 0.1 * i, density_over_curvature=2.0 + i
        )
    ]
    by_density, by_curvature = parts(dimension(rows), RANKS)
    names = ("ranked by", "correlation", "low", "high")
    at = pytest.approx(order)
    assert [by_density[name] for name in names] == ["signal density", at, at, at]
    assert [by_curvature[name] for name in names[1:]] == pytest.approx([1.0] * 3)
    counted = ("by chance", "mean places per case", "cases")
    assert [by_density[name] for name in counted] == [0, 5, 3]
    fewer = [row for row in rows if row["place"] != "name:d" or row["seed"] != 0]
    mean = parts(dimension(fewer), RANKS)[0]["mean places per case"]
    assert mean == pytest.approx((4 + 5 + 5) / 3)


@pytest.mark.parametrize(
    ("unit", "largest", "compared"),
    [("sigma*", 1.0, True), ("sigma*", 2.0, False), ("trusted", 1.0, False)],
)
def test_a_best_sigma_at_the_end_counts_at_sigma_star_alone(
    unit: str, largest: float, compared: bool
) -> None:
    """Which is trusted if nothing beyond it was searched."""
    rows = best("all", RIGHT, 1.0)
    for row in best("random:10", RIGHT, 1.0, unit=unit):
        rows.append(row | {"factor": largest if row["factor"] == 1.0 else 0.5})
    assert bool(relative_gains(rows, "random:")) is compared
    assert {row["bracketed"] for row in best_gains(rows) if row["place"] != "all"} == {compared}


def test_gains_have_no_share_of_a_whole_space_that_was_not_coverage() -> None:
    rows = best("all", RIGHT, 1.0) + best("random:10", RIGHT, 1.0, task="b")
    assert relative_gains(rows, "random:") == []
    assert (most_candidates(rows), most_candidates([])) == (8, 1)


def test_places_that_gain_nothing_have_no_rank() -> None:
    rows = ranked(best("all", RIGHT, 0.0) + best("name:embed", RIGHT, 0.0))
    assert {row["value"] for row in rows} == {None}
    assert {row["density"] for row in rows} == {1.0}


def test_c5a_counts_curvature_up_to_a_fifth_of_the_slope() -> None:
    rows = best("random:10", [0.0, 0.0], 1.0, second_order=0.21)
    rows += best("name:a", [1.0, 1.0], 1.0, second_order=0.2)
    near, far = parts(coverage(rows), "Searches inside their band in all places")
    assert (near["spread by curvature over that by slope"], near["share inside"]) == (
        "up to 0.2",
        1.0,
    )
    assert (far["spread by curvature over that by slope"], far["share inside"]) == (
        "above 0.2",
        0.0,
    )
    assert near["nominal share"] == pytest.approx(0.95)


BANDS = "Searches inside their predicted 95% band, in the whole"


def test_c5a_lists_coverage_and_gains_of_most_candidates_by_sigma() -> None:
    rows = [
        row | {"inside": inside, "factor": factor}
        for factor, inside in ((0.25, 1.0), (0.5, 0.9), (1.0, 0.875))
        for row in best("all", RIGHT, 1.0)
        if row["factor"] == 1.0
    ]
    told = parts(coverage([*rows, *best("name:a", [0.0] * 3, 9.0)]), BANDS)
    assert [row["sigma"] for row in told] == [0.25, 0.5, 1.0]
    assert [row["share inside"] for row in told] == pytest.approx([1.0, 0.9, 0.875])
    assert [row["in the predicted range"] for row in told] == [True, True, False]
    for row in told:
        assert row["nominal share"] == pytest.approx(0.95)
        # Over seeds, 1 + 0.01 s of the best of 8.
        assert row["gain of the best of 8"] == pytest.approx(1.01)
        assert row["predicted gain"] == 1.0


def test_intervals_of_coverage_stay_within_0_and_1() -> None:
    (row, _) = parts(coverage(best("all", [0.5, 1.0], 1.0)), BANDS)
    assert row["share inside"] == 0.75
    assert 0 <= row["low"] < 0.01
    assert 0.99 < row["high"] <= 1


def test_c5a_and_c5b_warn_of_searches_without_a_best_sigma_and_of_gains_that_are_not_compared() -> (
    None
):
    rows = best("all", RIGHT, 1.0) + best("random:10", RIGHT, 1.0)
    places = [{"table": "place", "seed": s, "sigma_star": 0.1} for s in range(3)]
    assert coverage(rows + places).notes == ()
    (bare,) = coverage([*rows, *places, {"table": "place", "sigma_star": None}]).notes
    assert bare.startswith("1 of 4 searches")
    grows = best("random:100", RIGHT, 9.0, unit="trusted")
    finding = dimension(rows + grows)
    (uncompared,) = finding.notes
    assert "6 gains" in uncompared
    assert "3 cannot" in uncompared
    _, row = parts(finding, "Gain at the best sigma")
    assert (row["random directions"], row["share"]) == (100, None)
    assert (row["cases compared"], row["cases"]) == (0, 3)


def test_places_are_ranked_from_four_on_and_by_what_differs() -> None:
    """Interval of a rank correlation: down to -1, and no further."""

    def rows(places: int, turned: tuple[int, ...] = (), **changes: object):
        return [
            row | {"density": (5.0 - i if row["seed"] in turned else 1.0 + i)} | changes
            for i in range(places)
            for row in best(f"name:{i}", RIGHT, 1.0 + i)
        ]

    (row,) = parts(dimension(rows(4)), RANKS)
    assert [row[name] for name in ("correlation", "low", "high")] == pytest.approx([1.0] * 3)
    assert parts(dimension(rows(3)), RANKS) == []
    assert parts(dimension(rows(4, density=1.0)), RANKS) == []
    (row,) = parts(dimension(rows(4, turned=(0, 1))), RANKS)
    found = [row[name] for name in ("correlation", "low", "high")]
    assert found == pytest.approx([-1 / 3, -1.0, 1.0])


@pytest.fixture(scope="module")
def spot() -> Spot:
    config = small("best-of-n", train_steps=5)
    cell = EXPERIMENTS["best-of-n"].cells(config)[0]
    network = build(config, space=cell["space"], seed=cell.seed)
    return Spot(network, network.tasks[cell["task"]], config, cell)


def test_the_error_of_a_score_is_that_of_two_scores_of_the_same_weights(spot: Spot) -> None:
    """Of scores that are off by +-e it is e / sqrt(2), as if the second ones were off as much."""
    model, space = spot.network.model, spot.network.space
    before = space.read(model).clone()
    result = random_search(
        model, spot.task, space, noise=Noise(1e-3, seed=1), num_candidates=16,
        selection=spot.selection,
    )  # fmt: skip
    rounding = score_error(spot, space, result)
    assert 0 <= rounding < 1e-6
    signs = torch.tensor([1.0, -1.0] * 8)
    off = dataclasses.replace(result, scores=result.scores + 0.01 * signs)
    assert score_error(spot, space, off) == pytest.approx(0.01 / 2**0.5, rel=1e-3)
    later = dataclasses.replace(
        result, scores=result.scores + 0.01 * (torch.arange(16) >= REPEATED)
    )
    assert score_error(spot, space, later) == rounding
    assert torch.equal(space.read(model), before)
