"""The figures of `best_of_n`."""

from frenet.experiments.best_of_n.findings import (
    EVEN,
    REACH,
    WORDS,
    most_candidates,
    ranked,
    relative_gains,
    within_reach,
)
from frenet.experiments.experiment import Figure, Row, Rows, integer, number
from frenet.experiments.figures.charts import Axis, Rule, dots, lines, scatter
from frenet.experiments.figures.parts import sentence
from frenet.experiments.figures.wording import two
from frenet.experiments.intervals import EACH, over_seeds, select
from frenet.experiments.setup.comparable import of

FOUND, PREDICTED = "found", "holds 95% of single searches"
# The upper end of the axis of found over predicted gains.
TOP = 2.0
# The panel and the place of a point of the figure of C5a.
REACHED = ("reached", "candidates")
GAINS = ("gain", "predicted", "low", "high")
SCALES = {"sigma*": "the predicted gain at sigma*", "trusted": "the loss"}


def scaled(rows: Rows) -> list[Row]:
    """Rows of the table best, with gains in units of the best gain predicted for their place.

    Rows with a loss of zero are dropped: nothing can be gained there.
    """
    return [
        {**row, **{name: number(row, name) / number(row, "scale") for name in GAINS}}
        for row in rows
        if row["scale"]
    ]


# Places that a ranking needs to say anything.
FEW_PLACES = 4


def best_chart(rows: Rows) -> object:
    """Found over predicted gain against N, at each share of the range in which theory holds."""
    found, low, high = (
        over_seeds(_ratios(rows), by=REACHED, value=name) for name in ("gain", "low", "high")
    )
    table: list[Row] = [{**row, "series": FOUND} for row in found]
    for least, most in zip(low, high, strict=True):
        # The place of its name; the band itself is cut at the frame.
        shown = min(TOP, number(most, "value"))
        ends: Row = {"value": shown, "low": least["value"], "high": most["value"]}
        table.append({**most, **ends, EACH: None, "series": PREDICTED})
    return lines(
        table,
        x=Axis("candidates", "candidates N", log=True),
        y=Axis("value", "gain over the predicted one", domain=(0.0, TOP)),
        facet="reached",
        rules=[Rule("as predicted", 1.0)],
        shaded=PREDICTED,
    )


def _ratios(rows: Rows) -> list[Row]:
    """Gains and ends of bands of every seed, over the predicted gain.

    All searches of a seed with sigma at the same share of the range in which the theory holds
    count together. Of one candidate no gain is predicted.
    """
    counted = [
        {**row, "share": number(row, "factor") / REACH[str(row["unit"])]}
        for row in scaled(select(within_reach(rows), place="all"))
        if integer(row, "candidates") > 1
    ]
    found: list[Row] = []
    keys = ("seed", "share", "candidates")
    for case in sorted({of(row, keys) for row in counted}):
        where = dict(zip(keys, case, strict=True))
        sums = {name: sum(number(row, name) for row in select(counted, **where)) for name in GAINS}
        if sums["predicted"] > 0:
            panel = {"reached": f"sigma at {number(where, 'share'):g} of the range"}
            found.append(where | panel | {n: sums[n] / sums["predicted"] for n in GAINS})
    return sorted(found, key=lambda row: number(row, "share"))


def _place(row: Row) -> str:
    return "the whole space" if row["place"] == "all" else str(row["place"])


def _commonest_unit(rows: Rows) -> Rows:
    """The rows in the unit of sigma that most of them have."""
    units = [str(row["unit"]) for row in rows]
    return select(rows, unit=max(units, key=units.count)) if units else []


def sigma_chart(rows: Rows) -> object:
    """Gain of the most candidates against sigma, place by place."""
    at = scaled(_commonest_unit(select(rows, candidates=most_candidates(rows))))
    unit = str(at[0]["unit"]) if at else "sigma*"
    table: list[Row] = []
    for column, label in (("gain", FOUND), ("predicted", "predicted")):
        table += [
            {**row, "series": label, "panel": _place(row)}
            for row in over_seeds(at, by=("place", "factor"), value=column)
        ]
    return lines(
        table,
        x=Axis("factor", f"sigma over {WORDS[unit]}", log=True),
        y=Axis("value", f"gain of the best, relative to {SCALES[unit]}"),
        facet="panel",
        rules=["predicted"],
    )


def sigma_finding(rows: Rows) -> str:
    """The sigma that gains most in the whole space, found and predicted."""
    at = scaled(_commonest_unit(select(rows, candidates=most_candidates(rows), place="all")))
    best = [
        max(means, key=lambda row: number(row, "value"))
        for column in ("gain", "predicted")
        if (means := over_seeds(at, by=("factor", "unit"), value=column))
    ]
    if not best:
        return ""
    found, predicted = (f"{row['factor']:g} times {WORDS[str(row['unit'])]}" for row in best)
    same = "as predicted" if found == predicted else f"predicted: {predicted}"
    return f"The best of {most_candidates(rows)} gains most at {found} ({same})."


def dimension_chart(rows: Rows) -> object:
    """Gain at the best sigma against the number of random directions."""
    table: list[Row] = []
    for column, label in (("gain", FOUND), ("predicted", "predicted")):
        ratios = [
            row
            for row in relative_gains(rows, column=column)
            if row["place"] == "all" or str(row["place"]).startswith("random:")
        ]
        table += [
            {**row, "series": label}
            for row in over_seeds(ratios, by=("space", "dim"), value="ratio")
        ]
    return lines(
        table,
        x=Axis("dim", "dimension of the search", log=True),
        y=Axis("value", "gain at the best sigma, relative to the whole space", domain=(0, 1.5)),
        facet="space",
        rules=["predicted", Rule("within 25%", EVEN[0], EVEN[1])],
    )


def quantile_chart(rows: Rows) -> object:
    """Observed against predicted quantiles of the change."""
    table = over_seeds(select(rows, place="all"), by=("factor", "p", "unit"), value="observed")
    expected = {
        (row["factor"], row["p"], row["unit"]): row["value"]
        for row in over_seeds(
            select(rows, place="all"), by=("factor", "p", "unit"), value="predicted"
        )
    }
    return scatter(
        [
            row
            | {
                "predicted": expected[row["factor"], row["p"], row["unit"]],
                "sigma": f"{row['factor']} {row['unit']}",
            }
            for row in table
        ],
        x=Axis("predicted", "predicted quantile of the change (predicted standard deviations)"),
        y=Axis("value", "observed quantile of the change"),
        colour="sigma",
    )


def quantile_finding(rows: Rows) -> str:
    """The largest distance of a quantile from its prediction."""
    whole = select(rows, place="all")
    apart = [
        {**row, "apart": abs(number(row, "observed") - number(row, "predicted"))}
        for row in whole
        if row["observed"] is not None and number(row, "factor") <= REACH[str(row["unit"])]
    ]
    means = over_seeds(apart, by=("p",), value="apart")
    if not means:
        return ""
    most = max(number(row, "value") for row in means)
    return (
        "In the range of the theory, the quantile that is farthest from its prediction misses it "
        f"by a mean of {two(most)} standard deviations."
    )


def ranking_chart(rows: Rows) -> object:
    """Measured gains against both predictions of where search pays."""
    if len({row["place"] for row in ranked(rows)}) < FEW_PLACES:
        return sentence(f"A ranking needs {FEW_PLACES} places; these runs searched in fewer.")
    table: list[Row] = []
    for column, label in (
        ("density", "by signal density"),
        ("density_over_curvature", "by density over curvature"),
    ):
        points = [row | {"predicted": row[column], "panel": label} for row in ranked(rows)]
        means = over_seeds(points, by=("panel", "place"), value="value")
        across = {
            row["place"]: row["value"]
            for row in over_seeds(points, by=("panel", "place"), value="predicted")
        }
        table += [row | {"predicted": across[row["place"]]} for row in means]
    return scatter(
        table,
        x=Axis("predicted", "prediction, relative to the best place"),
        y=Axis("value", "gain at the best sigma, relative to the best place"),
        colour="place",
        facet="panel",
        named=True,
    )


def winner_chart(rows: Rows) -> object:
    """The winner's gain on the selection batch, on held-out data, and as predicted."""
    names = {
        "selected": "on the selection batch",
        "held_out": "on held-out data",
        "held_out_predicted": "predicted for held-out data",
    }
    table = [
        row | {"series": label, "sigma": f"{row['factor']} {row['unit']}"}
        for name, label in names.items()
        for row in over_seeds(rows, by=("factor", "unit"), value=name)
    ]
    return dots(
        table,
        x=Axis("value", "gain of the winner (nats per token)"),
        row=Axis("sigma", "sigma"),
        colour="series",
        rules=["predicted for held-out data"],
    )


def winner_finding(rows: Rows) -> str:
    """What is left of the gain at the sigma that gains most on the batch that selects."""
    means = over_seeds(rows, by=("factor", "unit"), value="selected")
    if not means:
        return ""
    best = max(means, key=lambda row: number(row, "value"))
    at = select(rows, factor=best["factor"], unit=best["unit"])
    (held,) = over_seeds(at, by=(), value="held_out") or [{"value": None}]
    if held["value"] is None or number(best, "value") <= 0:
        return ""
    return (
        f"At {best['factor']:g} times {WORDS[str(best['unit'])]} the winner gains "
        f"{two(number(held, 'value'))} nats per token on held-out data, and "
        f"{two(number(best, 'value'))} on the batch that selected it."
    )


FIGURES = (
    Figure(
        "winner",
        "How much of the winner's gain is left on held-out data?",
        "Gain of the winner on the batch that selected it, and on held-out examples.",
        "winner",
        winner_chart,
        finds=winner_finding,
    ),
    Figure(
        "best",
        "Does the best of N gain what theory predicts?",
        "Gain on the selection batch in the whole space, over the gain that the local-linear "
        "theorem predicts: 1 is as predicted. The panels are shares of the range of sigma in which "
        "the theory should hold, up to half of sigma* (the largest trusted sigma, if there is no "
        "sigma*). The line is the mean over searches; thin lines are seeds.",
        "best",
        best_chart,
    ),
    Figure(
        "sigma",
        "How large should the noise be?",
        "Gain of the most candidates against sigma, in units of the best gain that gradient and "
        "curvature predict for each place. If most searches have no trusted sigma*, only those are "
        "drawn, in units of the loss.",
        "best",
        sigma_chart,
        finds=sigma_finding,
    ),
    Figure(
        "dimension",
        "Does dimension matter?",
        "Gain at the best sigma in random directions, relative to the whole space. A case counts "
        "if both best sigmas lie within the searched range.",
        "best",
        dimension_chart,
    ),
    Figure(
        "ranking",
        "Where does search pay?",
        "Places ranked before the search by signal density and by density over curvature, against "
        "the measured gain. All values are relative to the best place of the same network.",
        "best",
        ranking_chart,
        more=True,
    ),
    Figure(
        "quantiles",
        "Does the theory predict the whole distribution?",
        "Quantiles of the change of the loss in the whole space, in predicted standard "
        "deviations. On the dotted line theory and search agree.",
        "quantile",
        quantile_chart,
        finds=quantile_finding,
    ),
)
