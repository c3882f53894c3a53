"""What the rows of `best_of_n` say: claims C5a (bands) and C5b (dimension)."""

import math
from collections.abc import Iterator, Mapping

from frenet.experiments.experiment import (
    Across,
    Breakdown,
    Claim,
    Finding,
    Row,
    Rows,
    Scalar,
    integer,
    number,
)
from frenet.experiments.intervals import (
    aggregate,
    breakdown,
    estimate,
    select,
)
from frenet.experiments.setup.comparable import of
from frenet.experiments.verdicts import Count, Criterion, Rule
from frenet.statistics.intervals import Estimate

COVERED, NOMINAL, LINEAR = 0.9, 0.95, 0.2
# The sigma up to which the model should hold, by the unit of sigma.
REACH = {"sigma*": 0.5, "trusted": 1.0}
WORDS = {"sigma*": "sigma*", "trusted": "the largest trusted sigma"}
EVEN = (1 / 1.25, 1.25)
CASE = ("seed", "space", "task", "protocol")
AT = ("in units of", "sigma", "in the predicted range")
PREDICTIONS = {"density": "signal density", "density_over_curvature": "density over curvature"}
LEAST_SEARCHES = 20
# Candidates of a search that counts. The candidates of a large search are those of several small
# ones, so only one size counts. With this one, five seeds of the smallest preset have 360 searches,
# enough to tell a coverage of 0.95 from 0.9 (docs/power.md).
SIZE = 8
COUNTED = (
    f"A search that counts has {SIZE} candidates (all of them if a run has fewer); the candidates "
    "of a larger one are divided into several"
)


BANDS = Criterion(
    f"the share of searches inside their predicted 95% band, with sigma up to {REACH['sigma*']} "
    "sigma* (up to the largest trusted sigma, if there is no sigma*),",
    above=COVERED,
)
ENOUGH = Count("the number of searches", least=LEAST_SEARCHES)
QUIET = Criterion("the noise of a score, as a share of the predicted spread,", below=1 / 3)
COVERAGE = Rule((BANDS,), premises=(ENOUGH, QUIET))

EVENLY = Criterion(
    "the logarithm of the gain in random directions over that in the whole space",
    within=(math.log(EVEN[0]), math.log(EVEN[1])),
)
COMPARED = Count(
    "the number of cases with both best sigmas inside the searched range, for the number of random "
    "directions with the fewest,",
    least=1,
)
GAINED = Criterion(
    "the least clear gain of a seed, in units of the half width of its predicted 95% band,",
    above=1.0,
)
DIMENSION = Rule((EVENLY,), premises=(COMPARED, GAINED))


def coverage(rows: Rows) -> Finding:
    """C5a: the bands have their coverage up to sigma* / 2."""
    within = within_reach(rows)
    size = min(SIZE, most_candidates(within))
    inside = select(within, candidates=size)
    covered = _covered(inside)
    searches = sum(integer(row, "blocks") for row in inside)
    measured = {
        BANDS: BANDS.of(covered),
        ENOUGH: ENOUGH.of(searches),
        QUIET: QUIET.of(estimate(within_reach(rows, table="spread"), "noise")),
    }
    return Finding(
        claim="C5a",
        decision=COVERAGE.decide(measured),
        quantity=f"share of {searches} searches of {size} candidates with the best one inside its "
        "predicted 95% band, in the predicted range of sigma",
        estimate=covered,
        reference="nominal coverage",
        reference_estimate=Estimate(NOMINAL, n=0) if covered else None,
        notes=tuple(_without_star(rows)),
        breakdowns=(*_bands(rows), *_sizes(within), *_curvature(rows), *_winners(rows)),
    )


def dimension(rows: Rows) -> Finding:
    """C5b: random directions gain as much as the whole space."""
    ratios = relative_gains(rows, "random:")
    logs = [
        {**row, "log": math.log(number(row, "ratio"))} for row in ratios if number(row, "ratio") > 0
    ]
    even = estimate(logs, "log")
    measured = {
        EVENLY: EVENLY.of(even),
        COMPARED: COMPARED.of(_fewest(rows, ratios)),
        GAINED: GAINED.of(estimate(_least_clear(ratios), "clear")),
    }
    return Finding(
        claim="C5b",
        decision=DIMENSION.decide(measured),
        quantity="gain in random directions over that in the whole space, each at its best sigma",
        estimate=_exponential(even),
        reference=f"equal from {EVEN[0]:g} to {EVEN[1]:g}",
        reference_estimate=None,
        notes=tuple(_not_compared(rows)),
        breakdowns=(*_shares(rows), *_ranks(rows)),
    )


def _covered(inside: Rows) -> Estimate | None:
    """Share of searches inside their bands, the searches of one seed as a cluster."""
    from frenet.statistics.coverage import clustered_share

    hits: dict[Scalar, int] = {}
    searches: dict[Scalar, int] = {}
    for row in inside:
        seed, blocks = row["seed"], integer(row, "blocks")
        hits[seed] = hits.get(seed, 0) + round(number(row, "inside") * blocks)
        searches[seed] = searches.get(seed, 0) + blocks
    if not hits:
        return None
    return clustered_share(list(hits.values()), list(searches.values())).estimate._replace(
        unit="seed"
    )


def _exponential(value: Estimate | None) -> Estimate | None:
    """A mean of logarithms as a geometric mean."""
    if value is None:
        return None
    low, high = (None if end is None else math.exp(end) for end in (value.low, value.high))
    return Estimate(math.exp(value.value), low, high, value.n, value.unit)


def searched(rows: Rows, *, table: str = "best") -> list[Row]:
    """Rows of a table that are of the whole space and of random directions."""
    return [
        dict(row)
        for row in select(rows, table=table)
        if row["place"] == "all" or str(row["place"]).startswith("random:")
    ]


def within_reach(rows: Rows, *, table: str = "best") -> list[Row]:
    """Rows of ``searched`` with sigma up to sigma* / 2, or up to the largest trusted sigma."""
    near = searched(rows, table=table)
    return [row for row in near if number(row, "factor") <= REACH[str(row["unit"])]]


def most_candidates(rows: Rows) -> int:
    """The largest N among rows of the table best."""
    return max((integer(row, "candidates") for row in rows), default=1)


def best_gains(rows: Rows, column: str = "gain") -> list[Row]:
    """The gain of the largest N at each place's best sigma, one row per case, size and place.

    ``noise`` is the half width of the predicted 95% band of a mean of as many searches.

    Only searches with a sigma* count, or all searches if none has one: means of different sigmas
    must be over the same searches. ``bracketed``: a larger sigma was searched and gained less, or
    no sigma beyond sigma* was searched and the prediction is trusted.
    """
    table = select(rows, table="best")
    keys = (*CASE, "size", "place", "dim")
    at = (*keys, "unit", "factor")
    most = [
        {**row, "half": (number(row, "high") - number(row, "low")) / 2}
        for row in select(table, candidates=most_candidates(table))
    ]
    halves = {of(row, at): number(row, "value") for row in aggregate(most, by=at, value="half")}
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in aggregate(most, by=at, value=column):
        row["noise"] = halves[of(row, at)] / integer(row, "n") ** 0.5
        groups.setdefault(tuple(row[name] for name in keys), []).append(row)
    gains = []
    for group in groups.values():
        with_unit = [dict(row) for row in select(group, unit="sigma*")] or group
        best = max(with_unit, key=lambda row: number(row, "value"))
        largest = max(number(row, "factor") for row in with_unit)
        inside = number(best, "factor") < largest
        gains.append(best | {"bracketed": inside or (best["unit"] == "sigma*" and largest <= 1)})
    return gains


def relative_gains(rows: Rows, start: str = "", *, column: str = "gain") -> list[Row]:
    """``best_gains`` relative to the whole space of the same network, if both are bracketed.

    Only places with names that begin with ``start`` are returned. ``clear``: the smaller of the two
    gains, in units of its noise.
    """
    gains = select(best_gains(rows, column), bracketed=True)
    keys = (*CASE, "size")
    whole = {tuple(row[key] for key in keys): row for row in select(gains, place="all")}
    compared = []
    for row in gains:
        all_ = whole.get(tuple(row[name] for name in keys))
        if all_ is None or not str(row["place"]).startswith(start) or number(all_, "value") <= 0:
            continue
        ratio = number(row, "value") / number(all_, "value")
        clear = min(_in_noise(row), _in_noise(all_))
        compared.append({**row, "ratio": ratio, "clear": clear})
    return compared


def _fewest(rows: Rows, ratios: Rows) -> int:
    """How many cases the number of directions with the fewest compared cases has."""
    places = {row["place"] for row in _in_random(rows)}
    return min((len(select(ratios, place=place)) for place in places), default=0)


def _least_clear(ratios: Rows) -> list[Row]:
    """For every seed the smallest gain in units of its noise."""
    least: dict[Scalar, float] = {}
    for row in ratios:
        least[row["seed"]] = min(number(row, "clear"), least.get(row["seed"], math.inf))
    return [{"seed": seed, "clear": clear} for seed, clear in least.items()]


def _in_noise(gain: Mapping[str, Scalar]) -> float:
    noise = number(gain, "noise")
    return number(gain, "value") / noise if noise > 0 else math.inf


def _directions(place: str) -> int:
    """How many random directions a place has."""
    return int(place.partition(":")[2])


def ranked(rows: Rows) -> list[Row]:
    """Places with both predictions of their rank, and the measured gain.

    Predictions and gains are relative to the largest of the same network and damage.
    """
    places: list[Row] = []
    keys = (*CASE, "size")
    gains = best_gains(rows)
    for case in dict.fromkeys(tuple(row[key] for key in keys) for row in gains):
        where = dict(zip(keys, case, strict=True))
        table: dict[str, Row] = {str(row["place"]): dict(row) for row in select(gains, **where)}
        for column in PREDICTIONS:
            own = select(rows, table="best", candidates=1, **where)
            for mean in aggregate(own, by=("place",), value=column):
                if str(mean["place"]) in table:
                    table[str(mean["place"])][column] = mean["value"]
        full = [row for row in table.values() if row.get("density_over_curvature") is not None]
        for column in (*PREDICTIONS, "value"):
            top = max((number(row, column) for row in full), default=0.0)
            for row in full:
                row[column] = number(row, column) / top if top > 0 else None
        places += full
    return places


def _without_star(rows: Rows) -> Iterator[str]:
    if bare := select(rows, table="place", sigma_star=None):
        yield (
            f"{len(bare)} of {len(select(rows, table='place'))} searches have no trusted best "
            "sigma: the trace of the Hessian is not clearly positive, or so small that the "
            "quadratic model does not hold that far. Their sigmas are in units of the largest "
            "trusted sigma, and count up to it."
        )


def _not_compared(rows: Rows) -> Iterator[str]:
    cases, compared = len(_in_random(rows)), len(relative_gains(rows, "random:"))
    if compared < cases:
        yield (
            f"Of {cases} gains in random directions, {cases - compared} cannot be compared with "
            "the gain in the whole space: one of the two best sigmas is outside the searched "
            "range, or the whole space has no gain."
        )


def _in_random(rows: Rows) -> list[Row]:
    """The gain at the best sigma of every search in random directions."""
    return [row for row in best_gains(rows) if str(row["place"]).startswith("random:")]


def _at_sigma(rows: Rows) -> list[Row]:
    """The rows with the words for their unit of sigma, and whether the model should hold there."""
    return [
        dict(row)
        | {
            "in units of": words,
            "sigma": row["factor"],
            "in the predicted range": number(row, "factor") <= REACH[unit],
        }
        for unit, words in WORDS.items()
        for row in select(rows, unit=unit)
    ]


def _bands(rows: Rows) -> tuple[Breakdown, ...]:
    """Share of searches inside their bands at each sigma, and the gain of the largest N."""
    searches = searched(rows)
    most = most_candidates(searches)
    fewer = {"gain": None, "predicted": None}
    table = [
        row | {"nominal": NOMINAL} | ({} if row["candidates"] == most else fewer)
        for row in searches
    ]
    return breakdown(
        "Searches inside their predicted 95% band, in the whole space and in random directions",
        _at_sigma(table),
        by=AT,
        values={
            "inside": "share inside",
            "nominal": "nominal share",
            "gain": f"gain of the best of {most}",
            "predicted": "predicted gain",
        },
        least=0.0,
    )


def _sizes(within: Rows) -> tuple[Breakdown, ...]:
    """Share of searches inside their bands by their number of candidates."""
    return breakdown(
        "Searches inside their predicted 95% band in the predicted range of sigma, by candidates",
        [dict(row) | {"nominal": NOMINAL} for row in within],
        by=("candidates",),
        values={"inside": "share inside", "nominal": "nominal share"},
        least=0.0,
    )


def _curvature(rows: Rows) -> tuple[Breakdown, ...]:
    """Share of searches inside their bands in all places, with little and much curvature."""
    table: list[Row] = []
    for row in sorted(select(rows, table="best"), key=lambda row: number(row, "second_order")):
        near = number(row, "second_order") <= LINEAR
        ratio = f"{'up to' if near else 'above'} {LINEAR}"
        table.append(
            dict(row) | {"nominal": NOMINAL, "spread by curvature over that by slope": ratio}
        )
    return breakdown(
        "Searches inside their band in all places, by curvature",
        table,
        by=("spread by curvature over that by slope",),
        values={"inside": "share inside", "nominal": "nominal share"},
        least=0.0,
    )


def _shares(rows: Rows) -> tuple[Breakdown, ...]:
    """Gains in random directions, and the number of cases."""
    compared = [
        row | {"least": EVEN[0], "most": EVEN[1]} for row in relative_gains(rows, "random:")
    ]
    table = [*compared, *(row | {"case": True} for row in _in_random(rows))]
    table = [row | {"random directions": _directions(str(row["place"]))} for row in table]
    return breakdown(
        "Gain at the best sigma, as a share of that in the whole space",
        sorted(table, key=lambda row: integer(row, "random directions")),
        by=("random directions",),
        values={"ratio": "share", "least": "even from", "most": "even up to"},
        counts={"ratio": "cases compared", "case": "cases"},
    )


def _winners(rows: Rows) -> tuple[Breakdown, ...]:
    """Gain on selection and held-out data, and of the gradient step of equal norm."""
    return breakdown(
        "Gain of the winners in all places",
        _at_sigma(select(rows, table="winner")),
        by=AT,
        values={
            "held_out": "held out",
            "held_out_predicted": "predicted held out",
            "step": "gradient step of equal norm, held out",
            "selected": "on the selection batch",
            "selected_predicted": "predicted on the selection batch",
        },
    )


def _ranks(rows: Rows) -> tuple[Breakdown, ...]:
    """Rank correlation of each prediction with the measured gain."""
    from scipy import stats

    ranks: list[Row] = []
    keys = (*CASE, "size")
    table = ranked(rows)
    for column, words in PREDICTIONS.items():
        for case in dict.fromkeys(tuple(row[key] for key in keys) for row in table):
            where = dict(zip(keys, case, strict=True))
            part = select(table, **where)
            pair = [[number(row, name) for row in part] for name in (column, "value")]
            # Three places, or equal values, give no rank correlation.
            if len(part) >= 4 and all(len(set(values)) > 1 for values in pair):
                rho = float(stats.spearmanr(*pair)[0])
                ranks.append(
                    where | {"ranked by": words, "rho": rho, "places": len(part), "chance": 0.0}
                )
    return breakdown(
        "Spearman's rank correlation of the places' gains with their predictions",
        ranks,
        by=("ranked by",),
        values={"rho": "correlation", "chance": "by chance", "places": "mean places per case"},
        counts={"rho": "cases"},
        least=-1.0,
    )


CLAIMS = (
    Claim(
        id="C5a",
        statement="A local-linear theorem says what Gaussian random search gains",
        short="Theory predicts a random search",
        against="nominal",
        paper="yes, no number given",
        rule=f"{COVERAGE}. {COUNTED}",
        decide=coverage,
        figure="best",
        across=Across(
            "share of searches inside their predicted 95% band",
            levels=BANDS.levels,
            reference="nominal coverage",
            limits=(0.0, 1.0),
            supports=BANDS.lines,
        ),
        says=("{value} of searches end inside their predicted 95% band", "aim {reference}"),
    ),
    Claim(
        id="C5b",
        statement="Random search gains as much in very high dimension as in 10 to 1,000 directions",
        short="Search gains as much in any space",
        paper="yes, no number given",
        rule=f"{DIMENSION}. Each gain is that at its own best sigma; the limits are the logarithms "
        f"of {EVEN[0]:g} and {EVEN[1]:g}",
        decide=dimension,
        figure="dimension",
        across=Across(
            "gain in random directions over that in the whole space",
            levels={f"within [{EVEN[0]:g}, {EVEN[1]:g}]": EVEN},
            limits=(0.0, math.inf),
            log=True,
            supports=EVEN,
        ),
        says=("10 to 1,000 random directions gain {value} of what the whole space gains",),
    ),
)
