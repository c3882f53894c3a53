"""How `steering_effect` shows its rows."""

import math

from frenet.experiments.experiment import Figure, Rows, number
from frenet.experiments.figures.charts import Axis, Rule, dots, lines
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


def slope_chart(rows: Rows) -> object:
    """Slopes of both vectors, with the largest of each control."""
    table = [
        {**row, "series": NAMES[str(row["vector"])]}
        for row in over_seeds(select(rows, push="own"), by=("behaviour", "vector"), value="slope")
    ]
    # Earlier versions, and sources with one contrast, have no vectors of other contrasts.
    labels = {
        name: label
        for name, label in NAMES.items()
        if label in CONTROLS and any(row.get(name) is not None for row in rows)
    }
    table += series_over_seeds(select(rows, push="own"), by=("behaviour",), values=labels)
    return dots(
        table,
        x=Axis("value", "slope at dose 0 (nats per unit dose)"),
        row=Axis("behaviour", "contrast"),
        colour="series",
        rules=list(labels.values()),
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


def cost_chart(rows: Rows) -> object:
    """KL on neutral text at equal effect."""
    known = [row for row in select(rows, push="own") if row["kl"] is not None]
    most = math.inf
    table = over_seeds(known, by=("behaviour", "way"), value="kl", least=0.0, most=most)
    random = over_seeds(known, by=("behaviour",), value="kl_random", least=0.0, most=most)
    table += [{**row, "way": "random vector at the same dose"} for row in random]
    return dots(
        table,
        x=Axis("value", "KL divergence on neutral text (nats per token)"),
        row=Axis("behaviour", "contrast"),
        colour=Axis("way", "way"),
        rules=["random vector at the same dose"],
    )


FIGURES = (
    Figure(
        "doses",
        "How answers follow the added vector",
        "Vectors of equal norm, added at the last token of the prompt after one block. The block "
        "was chosen on other prompts, by the slope of the contrast vector.",
        "dose",
        dose_chart,
    ),
    Figure(
        "slopes",
        "Slopes at dose 0, compared with vectors that should do nothing",
        "Grey: the largest modulus among the draws of each control.",
        "slope",
        slope_chart,
    ),
    Figure(
        "ratios",
        "Do the two steer alike?",
        "Ratio of the slopes; the band counts as alike.",
        "ratio",
        ratio_chart,
    ),
    Figure(
        "costs",
        "What the same effect costs elsewhere",
        "Every way of steering is scaled to the effect of one dose of the contrast vector, if it "
        "can reach that effect. Vectors are added at every token of neutral text; the weight step "
        "changes the model itself.",
        "equal",
        cost_chart,
    ),
)
