"""What the rows of `best_of_n` say: claim C5."""

import math
from collections.abc import Iterator

from frenet.experiments.experiment import (
    Breakdown,
    Claim,
    Estimate,
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

COVERED, NOMINAL, LINEAR = 0.9, 0.95, 0.2
# How far the model is said to hold, by the unit of sigma.
REACH = {"sigma*": 0.5, "trusted": 1.0}
WORDS = {"sigma*": "sigma*", "trusted": "the largest sigma to be trusted"}
EVEN = (0.75, 1.25)
CASE = ("seed", "space", "task", "protocol")
AT = ("in units of", "sigma", "in the predicted range")
PREDICTIONS = {"density": "signal density", "density_over_curvature": "density over curvature"}


BANDS = Criterion(
    f"the share of searches inside their predicted 95% band, with sigma up to {REACH['sigma*']} "
    "sigma* (up to the largest sigma to be trusted, if there is no sigma*),",
    within=(COVERED, math.inf),
)
EVENLY = Criterion(
    "the gain at the best sigma, as a share of that in the whole space,", within=EVEN
)
NUMBERS = Cases("in 10 to 1,000 random directions", (EVENLY,))
NOWHERE = NoOutlier(EVENLY, "case", ("place", "task", "protocol", "space", "size"))
RULE = Rule((BANDS, NUMBERS, NOWHERE))


def decide(rows: Rows) -> Finding:
    """C5: the bands hold what they should up to sigma* / 2, and gains are even."""
    covered = fraction(within_reach(rows), "inside")
    even = evenness(rows)
    measured = [EVENLY.of(r, case=f"in {k} random directions") for k, r in even.items()]
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
        quantity="best-of-N inside its predicted 95% band, in the predicted range of sigma",
        estimate=covered,
        reference="nominal coverage",
        reference_estimate=Estimate(NOMINAL, n=0) if covered else None,
        why=why,
        notes=tuple(_cautions(rows)),
        breakdowns=_tables(rows),
    )


def searched(rows: Rows) -> list[Row]:
    """Best-of-N rows of everything and of random directions."""
    return [
        dict(row)
        for row in select(rows, table="best")
        if row["place"] == "all" or str(row["place"]).startswith("random:")
    ]


def within_reach(rows: Rows) -> list[Row]:
    """Of these, those with sigma up to sigma* / 2, or as far as the model is to be trusted."""
    return [row for row in searched(rows) if number(row, "factor") <= REACH[str(row["unit"])]]


def most_candidates(rows: Rows) -> int:
    """The largest N among rows of the table best."""
    return max((integer(row, "candidates") for row in rows), default=1)


def best_gains(rows: Rows, column: str = "gain") -> list[Row]:
    """The gain of the largest N at each place's best sigma, one row a case, size and place.

    Of its searches with a sigma*, or of all where none has one: the mean of some sigmas over other
    searches than that of others would say which search is best. ``bracketed``: a larger sigma was
    searched and gained less, or none beyond sigma* was and it is taken at its word.
    """
    table = select(rows, table="best")
    keys = (*CASE, "size", "place", "dim")
    most = select(table, candidates=most_candidates(table))
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in aggregate(most, by=(*keys, "unit", "factor"), value=column):
        groups.setdefault(tuple(row[name] for name in keys), []).append(row)
    found = []
    for group in groups.values():
        own = [dict(row) for row in select(group, unit="sigma*")] or group
        best = max(own, key=lambda row: number(row, "value"))
        largest = max(number(row, "factor") for row in own)
        inside = number(best, "factor") < largest
        found.append(best | {"bracketed": inside or (best["unit"] == "sigma*" and largest <= 1)})
    return found


def relative_gains(rows: Rows, start: str = "", *, column: str = "gain") -> list[Row]:
    """``best_gains`` over that in the whole space of the same network, where both are bracketed.

    Of the places whose names start so.
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
    """By number of random directions: gain at the best sigma over that in the whole space."""
    relative = relative_gains(rows, "random:")
    places = {str(row["place"]) for row in relative}
    found = {}
    for name in sorted(places, key=_directions):
        if (value := estimate(select(relative, place=name), "ratio")) is not None:
            found[_directions(name)] = value
    return found


def _directions(place: str) -> int:
    """How many random directions a place has."""
    return int(place.partition(":")[2])


def ranked(rows: Rows) -> list[Row]:
    """Places with both predictions of their rank and the gain that was found.

    Predictions and gains are given over the largest of the same network and damage.
    """
    found: list[Row] = []
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
        found += full
    return found


def _cautions(rows: Rows) -> Iterator[str]:
    if bare := select(rows, table="place", sigma_star=None):
        yield (
            f"{len(bare)} of {len(select(rows, table='place'))} searches have no best sigma to "
            "trust: the trace of the Hessian is not clearly positive, or so small that the "
            "quadratic model does not hold as far out; they are measured in units of the largest "
            "sigma to be trusted, and count up to that."
        )
    cases, compared = len(_in_random(rows)), len(relative_gains(rows, "random:"))
    if compared < cases:
        yield (
            f"Of {cases} gains in random directions, {cases - compared} cannot be compared with "
            "the gain in the whole space: one of the two best sigmas is not within what was "
            "searched, or the whole space has no gain."
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
    """How many searches lie inside their bands at each sigma, and what the best of most gains."""
    found = searched(rows)
    most = most_candidates(found)
    fewer = {"gain": None, "predicted": None}
    table = [
        row | {"nominal": NOMINAL} | ({} if row["candidates"] == most else fewer) for row in found
    ]
    return breakdown(
        "Searches inside their predicted 95% band, everywhere and in random directions",
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
    """The same in all places, apart for those with little curvature."""
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
    """Gains in random directions, and in how many cases they are known."""
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
    """Selected against held out, and the gradient step of equal norm."""
    return breakdown(
        "Gain of the winners in all places",
        _at_sigma(select(rows, table="winner")),
        by=AT,
        values={
            "held_out": "held out",
            "held_out_predicted": "predicted held out",
            "step": "gradient step of equal norm, held out",
            "selected": "where selected",
            "selected_predicted": "predicted where selected",
        },
    )


def _ranks(rows: Rows) -> tuple[Breakdown, ...]:
    """Rank correlation of either prediction with what searching found."""
    from scipy import stats

    ranks: list[Row] = []
    keys = (*CASE, "size")
    table = ranked(rows)
    for column, words in PREDICTIONS.items():
        for case in dict.fromkeys(tuple(row[key] for key in keys) for row in table):
            where = dict(zip(keys, case, strict=True))
            part = select(table, **where)
            pair = [[number(row, name) for row in part] for name in (column, "value")]
            # Of three places, or of equal values, nothing is ranked.
            if len(part) >= 4 and all(len(set(values)) > 1 for values in pair):
                rho = float(stats.spearmanr(*pair)[0])
                ranks.append(
                    where | {"ranked by": words, "rho": rho, "places": len(part), "chance": 0.0}
                )
    return breakdown(
        "Spearman's rank correlation of the places' gains with what predicts them",
        ranks,
        by=("ranked by",),
        values={"rho": "correlation", "chance": "by chance", "places": "places in a case, mean"},
        counts={"rho": "cases"},
        least=-1.0,
    )


CLAIMS = (
    Claim(
        id="C5",
        statement="Gaussian random search works in very high dimension, as a local-linear theorem "
        "says",
        paper="it does",
        rule=f"{RULE}. The gains of a case count if both best sigmas lie within what was searched",
        decide=decide,
        figure="best",
    ),
)
