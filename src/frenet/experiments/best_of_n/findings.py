"""What the rows of `best_of_n` say: claim C5."""

import math
from collections.abc import Iterator

from frenet.experiments.experiment import (
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
    estimate,
    fraction,
    over_seeds,
    select,
    worded,
)
from frenet.experiments.verdicts import Cases, Criterion, NoOutlier, Rule, every

COVERED, NOMINAL, LINEAR = 0.9, 0.95, 0.2
# How far the model is said to hold, by the unit of sigma.
REACH = {"sigma*": 0.5, "trusted": 1.0}
WORDS = {"sigma*": "sigma*", "trusted": "the largest sigma to be trusted"}
EVEN = (0.75, 1.25)
CASE = ("seed", "space", "task", "protocol")


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
        notes=tuple(_notes(rows, even)),
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
    for name in sorted(places, key=lambda text: int(text.partition(":")[2])):
        if (value := estimate(select(relative, place=name), "ratio")) is not None:
            found[int(name.partition(":")[2])] = value
    return found


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
        for column in ("density", "density_over_curvature"):
            own = select(rows, table="best", candidates=1, **where)
            for mean in aggregate(own, by=("place",), value=column):
                if str(mean["place"]) in table:
                    table[str(mean["place"])][column] = mean["value"]
        full = [row for row in table.values() if row.get("density_over_curvature") is not None]
        for column in ("density", "density_over_curvature", "value"):
            top = max((number(row, column) for row in full), default=0.0)
            for row in full:
                row[column] = number(row, column) / top if top > 0 else None
        found += full
    return found


def _notes(rows: Rows, even: dict[int, Estimate]) -> Iterator[str]:
    if bare := select(rows, table="place", sigma_star=None):
        yield (
            f"{len(bare)} of {len(select(rows, table='place'))} searches have no best sigma to "
            "trust: the trace of the Hessian is not clearly positive, or so small that the "
            "quadratic model does not hold as far out; they are measured in units of the largest "
            "sigma to be trusted, and count up to that."
        )
    for unit in WORDS:
        yield from _range_notes(select(searched(rows), unit=unit), unit)
    linear = [r for r in select(rows, table="best") if number(r, "second_order") <= LINEAR]
    if (inside := fraction(linear, "inside")) is not None:
        yield (
            f"Where curvature spreads less than {LINEAR} of what the slope does, with or without a "
            f"sigma*, {inside.value:.2f} lie inside."
        )
    yield from _even_notes(rows, even)
    for unit in WORDS:
        yield from _winner_notes(rows, unit)
    yield from _rank_notes(rows)


def _even_notes(rows: Rows, even: dict[int, Estimate]) -> Iterator[str]:
    """Gains in random directions, and of how many cases they are known."""
    relative, gains = relative_gains(rows, "random:"), best_gains(rows)
    found = []
    for k, ratio in even.items():
        kept, cases = (len(select(part, place=f"random:{k}")) for part in (relative, gains))
        found.append(f"{worded(ratio)} in {k} random directions ({kept} of {cases} cases)")
    if found:
        yield (
            f"Of the gain in the whole space: {', '.join(found)}. Cases count in which both have a "
            "best sigma within what was searched."
        )


def _range_notes(rows: Rows, unit: str) -> Iterator[str]:
    """How many lie inside at each sigma, and how far that goes."""
    words = WORDS[unit]
    by_factor = over_seeds(rows, by=("factor",), value="inside")
    for row in by_factor:
        at = select(rows, factor=row["factor"], candidates=(most := most_candidates(rows)))
        gain, predicted = estimate(at, "gain"), estimate(at, "predicted")
        if gain and predicted:
            yield (
                f"sigma = {row['factor']} times {words}: {number(row, 'value'):.2f} inside; "
                f"best of {most} gains {gain.value:.3g} nats, predicted {predicted.value:.3g}."
            )
    covered = [number(r, "factor") for r in by_factor if number(r, "value") >= COVERED]
    if covered:
        yield (
            f"Bands hold at least {COVERED} up to {max(covered):g} times {words}; predicted was "
            f"{REACH[unit]:g}."
        )


def _winner_notes(rows: Rows, unit: str) -> Iterator[str]:
    """Selected against held out, and the gradient step of equal norm."""
    reach = REACH[unit]
    near = [r for r in select(rows, table="winner", unit=unit) if number(r, "factor") <= reach]
    names = ("selected", "held_out", "held_out_predicted", "step")
    values = [found.value for name in names if (found := estimate(near, name)) is not None]
    if len(values) == len(names):
        selected, held, predicted, step = values
        yield (
            f"Winners up to {reach:g} times {WORDS[unit]}: {selected:.3g} nats on the batch they "
            f"were selected on, {held:.3g} on held-out data (predicted {predicted:.3g}); one "
            f"gradient step of equal norm gains {step:.3g} there."
        )


def _rank_notes(rows: Rows) -> Iterator[str]:
    """Rank correlation of either prediction with what searching found."""
    from scipy import stats

    table = ranked(rows)
    for column, words in (
        ("density", "signal density"),
        ("density_over_curvature", "density over curvature"),
    ):
        found, sizes = [], []
        for case in dict.fromkeys(tuple(row[key] for key in (*CASE, "size")) for row in table):
            where = dict(zip((*CASE, "size"), case, strict=True))
            part = select(table, **where)
            if len(part) >= 4:
                pair = [[number(row, name) for row in part] for name in (column, "value")]
                if any(len(set(values)) == 1 for values in pair):
                    continue  # nothing is ranked
                found.append({"seed": where["seed"], "rho": float(stats.spearmanr(*pair)[0])})
                sizes.append(len(part))
        if (rho := fraction(found, "rho", least=-1.0)) is not None:
            yield (
                f"Places ranked by {words}: Spearman {worded(rho)} with the gains found, mean of "
                f"{len(found)} cases with {_counted(sizes)} places each."
            )


def _counted(sizes: list[int]) -> str:
    least, most = min(sizes), max(sizes)
    return str(least) if least == most else f"{least} to {most}"


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
