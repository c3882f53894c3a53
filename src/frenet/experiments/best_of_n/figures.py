"""The figures of `best_of_n`."""

from frenet.experiments.best_of_n.findings import (
    EVEN,
    WORDS,
    most_candidates,
    ranked,
    relative_gains,
    searched,
)
from frenet.experiments.experiment import Figure, Row, Rows, number
from frenet.experiments.figures.charts import Axis, Rule, dots, lines, scatter
from frenet.experiments.figures.parts import sentence
from frenet.experiments.intervals import over_seeds, select

FOUND, PREDICTED = "found", "predicted, with its 95% band"
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
    """Best of N against N in the whole space, with the predicted band."""
    keys = ("unit", "factor", "candidates")
    everywhere = scaled(select(searched(rows), place="all"))
    ends = {
        name: {
            tuple(row[key] for key in keys): row["value"]
            for row in over_seeds(everywhere, by=keys, value=name)
        }
        for name in ("low", "high")
    }
    table: list[Row] = []
    for row in over_seeds(everywhere, by=keys, value="predicted"):
        at = tuple(row[key] for key in keys)
        band: Row = {name: values[at] for name, values in ends.items()}
        table.append({**row, **band, "series": PREDICTED})
    table += [{**row, "series": FOUND} for row in over_seeds(everywhere, by=keys, value="gain")]
    return lines(
        [{**row, "sigma": f"sigma = {row['factor']:g} {_unit(row)}"} for row in table],
        x=Axis("candidates", "candidates N", log=True),
        y=Axis("value", "gain, relative to that at sigma* or to the loss", apart=True),
        facet="sigma",
        rules=[PREDICTED],
    )


def _unit(row: Row) -> str:
    return "sigma*" if row["unit"] == "sigma*" else "times the trusted one"


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
            {**row, "series": label} for row in over_seeds(at, by=("place", "factor"), value=column)
        ]
    return lines(
        table,
        x=Axis("factor", f"sigma over {WORDS[unit]}", log=True),
        y=Axis("value", f"gain of the best, relative to {SCALES[unit]}"),
        facet="place",
        rules=["predicted"],
    )


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


def slope_chart(rows: Rows) -> object:
    """Gain in units of m_N sigma ||g|| at the smallest sigma, against dimension."""
    least = min((number(row, "factor") for row in rows), default=1.0)
    at = _commonest_unit(select(rows, candidates=most_candidates(rows), factor=least))
    table: list[Row] = []
    for column, label in (("gain", FOUND), ("predicted", "predicted")):
        shares = [
            {**row, "share": number(row, column) / number(row, "linear")}
            for row in at
            if row["linear"]
        ]
        table += [
            row | {"series": label}
            for row in over_seeds(shares, by=("space", "dim"), value="share")
        ]
    return lines(
        table,
        x=Axis("dim", "dimension of the search", log=True),
        y=Axis("value", "gain / (m_N sigma ||g||)", domain=(0, 1.2)),
        facet="space",
        rules=["predicted", Rule("linear loss", 1.0)],
        interval=None,
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


FIGURES = (
    Figure(
        "best",
        "The best of N, predicted and found",
        "Gain on the selection batch in the whole space, in units of the gain predicted at sigma* "
        "(of the loss, if there is no trusted sigma*). The band holds 95% of single searches. The "
        "measured gain is the mean over searches; thin lines are seeds. Every panel has its own "
        "scale.",
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
        "slope",
        "Gain at equal gradient norm",
        "Best of N at the smallest sigma, relative to a linear loss with the same gradient, for "
        "every place and size of network.",
        "best",
        slope_chart,
    ),
    Figure(
        "ranking",
        "Where does search pay?",
        "Places ranked before the search by signal density and by density over curvature, against "
        "the measured gain. All values are relative to the best place of the same network.",
        "best",
        ranking_chart,
    ),
    Figure(
        "quantiles",
        "The whole distribution",
        "Quantiles of the change of the loss in the whole space, in predicted standard "
        "deviations. On the dotted line theory and search agree.",
        "quantile",
        quantile_chart,
    ),
    Figure(
        "winner",
        "What is left on held-out data",
        "Gain of the winner on the batch that selected it, and on held-out examples.",
        "winner",
        winner_chart,
    ),
)
