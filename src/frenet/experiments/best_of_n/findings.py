"""What the rows of `best_of_n` say: claim C5."""

import math
from collections.abc import Iterator

from frenet.experiments.experiment import (
    Breakdown,
    Claim,
    Finding,
    Row,
    Rows,
    integer,
    number,
)
from frenet.experiments.intervals import (
    aggregate,
    breakdown,
    estimate,
    fraction,
    select,
)
from frenet.experiments.verdicts import Cases, Criterion, NoOutlier, Rule, every
from frenet.statistics.intervals import Estimate

COVERED, NOMINAL, LINEAR = 0.9, 0.95, 0.2
# The sigma up to which the model should hold, by the unit of sigma.
REACH = {"sigma*": 0.5, "trusted": 1.0}
WORDS = {"sigma*": "sigma*", "trusted": "the largest trusted sigma"}
EVEN = (0.75, 1.25)
CASE = ("seed", "space", "task", "protocol")
AT = ("in units of", "sigma", "in the predicted range")
PREDICTIONS = {"density": "signal density", "density_over_curvature": "density over curvature"}


BANDS = Criterion(
    f"the share of searches inside their predicted 95% band, with sigma up to {REACH['sigma*']} "
    "sigma* (up to the largest trusted sigma, if there is no sigma*),",
    within=(COVERED, math.inf),
)
EVENLY = Criterion(
    "the gain at the best sigma, as a share of that in the whole space,", within=EVEN
)
NUMBERS = Cases("in each number of random directions that was searched", (EVENLY,))
NOWHERE = NoOutlier(EVENLY, "case", ("place", "task", "protocol", "space", "size"))
RULE = Rule((BANDS, NUMBERS, NOWHERE))


def decide(rows: Rows) -> Finding:
    """C5: the bands have their coverage up to sigma* / 2, and gains are even."""
    covered = fraction(within_reach(rows), "inside")
    even = evenness(rows)
    # A number of directions in which no case can be compared leaves the claim open.
    tried = {_directions(str(r["place"])) for r in searched(rows) if r["place"] != "all"}
    measured = [EVENLY.of(even.get(k), case=f"in {k} random directions") for k in sorted(tried)]
    nothing = EVENLY.of(None, case="in any random directions")
    verdict, why = RULE.decide(
        {
            BANDS: BANDS.of(covered),
            NUMBERS: every(measured or [nothing]),
            NOWHERE: NOWHERE.of(relative_gains(rows, "random:"), "ratio"),
        }
    )
    return Finding(
        claim="C5",
        verdict=verdict,
        quantity="share of searches with the best of N inside its predicted 95% band, in the "
        "predicted range of sigma",
        estimate=covered,
        reference="nominal coverage",
        reference_estimate=Estimate(NOMINAL, n=0) if covered else None,
        why=why,
        notes=tuple(_cautions(rows)),
        breakdowns=_tables(rows),
    )


def searched(rows: Rows) -> list[Row]:
    """Best-of-N rows of the whole space and of random directions."""
    return [
        dict(row)
        for row in select(rows, table="best")
        if row["place"] == "all" or str(row["place"]).startswith("random:")
    ]


def within_reach(rows: Rows) -> list[Row]:
    """Rows of ``searched`` with sigma up to sigma* / 2, or up to the largest trusted sigma."""
    return [row for row in searched(rows) if number(row, "factor") <= REACH[str(row["unit"])]]


def most_candidates(rows: Rows) -> int:
    """The largest N among rows of the table best."""
    return max((integer(row, "candidates") for row in rows), default=1)


def best_gains(rows: Rows, column: str = "gain") -> list[Row]:
    """The gain of the largest N at each place's best sigma, one row per case, size and place.

    Only searches with a sigma* count, or all searches if none has one: means of different sigmas
    must be over the same searches. ``bracketed``: a larger sigma was searched and gained less, or
    no sigma beyond sigma* was searched and the prediction is trusted.
    """
    table = select(rows, table="best")
    keys = (*CASE, "size", "place", "dim")
    most = select(table, candidates=most_candidates(table))
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in aggregate(most, by=(*keys, "unit", "factor"), value=column):
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

    Only places with names that begin with ``start`` are returned.
    """
    gains = select(best_gains(rows, column), bracketed=True)
    keys = (*CASE, "size")
    whole = {
        tuple(row[key] for key in keys): number(row, "value") for row in select(gains, place="all")
    }
    return [
        {**row, "ratio": number(row, "value") / whole[key]}
        for row in gains
        if str(row["place"]).startswith(start)
        and whole.get(key := tuple(row[name] for name in keys), 0) > 0
    ]


def evenness(rows: Rows) -> dict[int, Estimate]:
    """Gain at the best sigma relative to the whole space, by number of random directions."""
    relative = relative_gains(rows, "random:")
    places = {str(row["place"]) for row in relative}
    shares = {}
    for name in sorted(places, key=_directions):
        if (value := estimate(select(relative, place=name), "ratio")) is not None:
            shares[_directions(name)] = value
    return shares


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


def _cautions(rows: Rows) -> Iterator[str]:
    if bare := select(rows, table="place", sigma_star=None):
        yield (
            f"{len(bare)} of {len(select(rows, table='place'))} searches have no trusted best "
            "sigma: the trace of the Hessian is not clearly positive, or so small that the "
            "quadratic model does not hold that far. Their sigmas are in units of the largest "
            "trusted sigma, and count up to it."
        )
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


def _tables(rows: Rows) -> tuple[Breakdown, ...]:
    return (*_bands(rows), *_curvature(rows), *_shares(rows), *_winners(rows), *_ranks(rows))


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
        id="C5",
        statement="Gaussian random search works in very high dimension, as a local-linear theorem "
        "says",
        paper="yes, no number given",
        rule=f"{RULE}. The gains of a case count if both best sigmas lie in the searched range",
        decide=decide,
        figure="best",
    ),
)
