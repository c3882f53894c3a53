"""How `steering_effect` shows its rows."""

import math

from frenet.experiments.experiment import Figure, Rows, Scalar, number
from frenet.experiments.figures.charts import Axis, Rule, dots, lines
from frenet.experiments.figures.wording import between
from frenet.experiments.intervals import over_seeds, select, series_over_seeds
from frenet.experiments.steering_effect.findings import CONTROLS, NAMES, WITHIN


def dose_chart(rows: Rows) -> object:
    """Change of the log-odds against dose, by vector."""
    changed = [
        {
            **row,
            "change": number(row, "difference") - number(row, "before"),
            "series": NAMES[str(row["vector"])],
        }
        for row in rows
    ]
    own = select(changed, push="own")
    table = over_seeds(own, by=("behaviour", "series", "dose"), value="change")
    return lines(
        table,
        x=Axis("dose", "dose: added vector / stream norm"),
        y=Axis("value", "change of log-odds (nats)"),
        facet="behaviour",
        rules=[label for label in CONTROLS if select(own, series=label)],
    )


def dose_finding(rows: Rows) -> str:
    """The contrasts on which the gradient's shift steers the other way, in every seed."""
    own = select(rows, push="own")
    largest = max((number(row, "dose") for row in own), default=0.0)
    changes = {
        vector: {
            (row["behaviour"], row["seed"]): number(row, "difference") - number(row, "before")
            for row in select(own, vector=vector, dose=largest)
        }
        for vector in ("gradient", "contrast")
    }
    against: dict[Scalar, list[bool]] = {}
    for case, change in changes["gradient"].items():
        if case in changes["contrast"]:
            against.setdefault(case[0], []).append(change * changes["contrast"][case] < 0)
    names = [f"“{name}”" for name, found in against.items() if all(found)]
    if not names:
        return ""
    return f"On {' and '.join(names)} the shift by a gradient step steers backwards, in every seed."


def slope_chart(rows: Rows) -> object:
    """Slopes of both vectors, and below them the largest of each control."""
    table = [
        {**row, "row": row["behaviour"], "series": NAMES[str(row["vector"])]}
        for row in over_seeds(select(rows, push="own"), by=("behaviour", "vector"), value="slope")
    ]
    order = list(dict.fromkeys(row["behaviour"] for row in table))
    # Earlier versions, and sources with one contrast, have no vectors of other contrasts.
    labels = {
        name: label
        for name, label in NAMES.items()
        if label in CONTROLS and any(row.get(name) is not None for row in rows)
    }
    controls = series_over_seeds(select(rows, push="own"), by=("behaviour",), values=labels)
    table += [{**row, "row": f"{row['behaviour']}: controls"} for row in controls]
    return dots(
        sorted(table, key=lambda row: order.index(row["behaviour"])),
        x=Axis("value", "slope at dose 0 (nats per unit dose)"),
        row=Axis("row", "contrast"),
        colour="series",
        rules=list(labels.values()),
    )


def slope_finding(rows: Rows) -> str:
    """On how many contrasts each vector steers more than every control."""
    own = select(rows, push="own")
    controls = [n for n, text in NAMES.items() if text in CONTROLS]
    beyond = {}
    for vector in ("contrast", "gradient"):
        mine = [
            {**row, "lead": abs(number(row, "slope")) - max(known)}
            for row in select(own, vector=vector)
            if (known := [number(row, n) for n in controls if row.get(n) is not None])
        ]
        means = over_seeds(mine, by=("behaviour",), value="lead")
        beyond[vector] = sum(number(row, "value") > 0 for row in means), len(means)
    (vectors, every), (shifts, _) = beyond["contrast"], beyond["gradient"]
    if not every:
        return ""
    return (
        f"On average over seeds, the contrast vector steers more than every control on {vectors} "
        f"of {every} contrasts, the shift by a gradient step on {shifts}."
    )


def ratio_chart(rows: Rows) -> object:
    """Ratio of the slopes."""
    return dots(
        over_seeds(rows, by=("behaviour", "push"), value="ratio"),
        x=Axis("value", "slope of the gradient shift / of the contrast vector"),
        row=Axis("behaviour", "contrast"),
        colour=Axis("push", "step made from"),
        rules=[Rule("alike", *WITHIN)],
    )


def ratio_finding(rows: Rows) -> str:
    """The range over contrasts."""
    means = over_seeds(select(rows, push="own"), by=("behaviour",), value="ratio")
    if not means:
        return ""
    return f"The shift steers {between(means, 'behaviour')} times as much as the vector."


def cost_chart(rows: Rows) -> object:
    """KL on neutral text at equal effect, on a logarithmic axis."""
    own = select(rows, push="own")
    known = [row for row in own if row["kl"] is not None]
    most = math.inf
    costs = over_seeds(known, by=("behaviour", "way"), value="kl", least=0.0, most=most)
    random = over_seeds(known, by=("behaviour",), value="kl_random", least=0.0, most=most)
    costs += [{**row, "way": "random vector at the same dose"} for row in random]
    table = [
        {**row, "row": f"{row['behaviour']}\n{_short(select(own, behaviour=row['behaviour']))}"}
        for row in costs
        if number(row, "value") > 0
    ]
    return dots(
        table,
        x=Axis("value", "KL divergence on neutral text (nats per token)", log=True),
        row=Axis("row", "contrast"),
        colour=Axis("way", "way"),
        rules=["random vector at the same dose"],
    )


def _short(rows: Rows) -> str:
    """The ways that do not reach the effect on one contrast in any seed."""
    ways = dict.fromkeys(str(row["way"]) for row in rows)
    short = [way for way in ways if all(row["kl"] is None for row in select(rows, way=way))]
    return f"not reached: {', '.join(short)}" if short else "all reach the effect"


def cost_finding(rows: Rows) -> str:
    """The mean cost of every way where all ways reach the effect."""
    own = select(rows, push="own")
    short = {row["behaviour"] for row in own if row["kl"] is None}
    both = [row for row in own if row["behaviour"] not in short]
    means = over_seeds(both, by=("way",), value="kl")
    if len(means) < 2:
        return ""
    return f"For the same effect, neutral text pays {between(means, 'way')} nats per token."


FIGURES = (
    Figure(
        "doses",
        "How do answers follow the added vector?",
        "Vectors of equal norm, added at the last token of the prompt after one block. The block "
        "was chosen on other prompts, by the slope of the contrast vector.",
        "dose",
        dose_chart,
        finds=dose_finding,
    ),
    Figure(
        "slopes",
        "Do they steer more than vectors that should do nothing?",
        "Slopes at dose 0. Grey: the largest modulus among the draws of each control.",
        "slope",
        slope_chart,
        finds=slope_finding,
    ),
    Figure(
        "ratios",
        "Do the two steer alike?",
        "Ratio of the slopes; the band counts as alike.",
        "ratio",
        ratio_chart,
        finds=ratio_finding,
    ),
    Figure(
        "costs",
        "What does the same effect cost elsewhere?",
        "Every way of steering is scaled to the effect of one dose of the contrast vector, if it "
        "can reach that effect. Vectors are added at every token of neutral text; the weight step "
        "changes the model itself.",
        "equal",
        cost_chart,
        finds=cost_finding,
    ),
)
