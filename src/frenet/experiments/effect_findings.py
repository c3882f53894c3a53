"""What the rows of `steering_effect` say: claim C7, columns and figures."""

from collections.abc import Iterator

from frenet.experiments.charts import Axis, Rule, dots, lines
from frenet.experiments.experiment import Claim, Column, Figure, Finding, Rows, Verdict
from frenet.experiments.intervals import (
    estimate,
    high,
    low,
    outliers,
    over_seeds,
    select,
    series_over_seeds,
    why_open,
)
from frenet.experiments.steered import CELL_KEYS
from frenet.experiments.steered_findings import one_model, unknown_labels, unmeasured

WITHIN = (0.5, 2.0)
NAMES = {
    "contrast": "contrast vector",
    "gradient": "shift by a gradient step",
    "shuffled": "labels shuffled",
    "random": "random",
    "matched": "random of equal covariance",
}
CONTROLS = tuple(NAMES.values())[2:]


def decide(rows: Rows) -> Finding:
    """Supported where the ratio lies within [0.5, 2] and both slopes are above the random ones."""
    verdict: Verdict
    slopes = select(rows, table="slope", push="own")
    ratios = select(rows, table="ratio", push="own")
    ratio = estimate(ratios, "ratio")
    alone = outliers(ratios, by=("behaviour", "space"), value="ratio", within=WITHIN)
    own = {
        name: estimate(select(slopes, vector=name), "slope") for name in ("contrast", "gradient")
    }
    control = estimate(slopes, "random")
    weak = [name for name, slope in own.items() if high(slope) < low(control)]
    unclear = [name for name, slope in own.items() if low(slope) <= high(control)]
    if weak:
        verdict, why = "contradicted", f"the {NAMES[weak[0]]} steers no more than a random vector"
    elif high(ratio) < WITHIN[0] or low(ratio) > WITHIN[1]:
        verdict, why = "contradicted", "the ratio of the slopes lies outside [0.5, 2]"
    elif unclear:
        random = f"whether the {NAMES[unclear[0]]} steers more than a random vector is not clear"
        verdict, why = "undecided", why_open(own[unclear[0]], random)
    elif alone:
        verdict, why = "undecided", f"the ratio lies outside [0.5, 2] for {alone[0]} alone"
    elif WITHIN[0] <= low(ratio) and high(ratio) <= WITHIN[1]:
        verdict, why = "supported", "the ratio lies within [0.5, 2], both slopes above the random"
    else:
        verdict, why = "undecided", why_open(ratio, "the ratio's interval straddles 0.5 or 2")
    if not slopes:
        why = "; ".join(unmeasured(rows, "slope")) or why
    return Finding(
        claim="C7",
        verdict=verdict,
        quantity="slope of the answer's logit difference for the gradient shift, over that for the "
        "contrast vector of equal norm",
        estimate=ratio,
        reference=f"counts as alike from {WITHIN[0]} to {WITHIN[1]}",
        reference_estimate=None,
        why=why,
        notes=tuple(_notes(rows)),
    )


def _notes(rows: Rows) -> Iterator[str]:
    keys = ("space", "behaviour", "push")
    for row in over_seeds(select(rows, table="ratio"), by=keys, value="ratio"):
        same = select(rows, table="slope", **{key: row[key] for key in keys})
        own = [estimate(select(same, vector=name), "slope") for name in ("contrast", "gradient")]
        controls = [estimate(same, name) for name in ("random", "matched", "shuffled")]
        found = [value.value for value in (*own, *controls) if value]
        blocks = sorted({int(str(one["block"])) for one in same})
        listed = " / ".join(f"{value:.2g}" for value in found)
        at = ", ".join(map(str, blocks))
        yield (
            f"{row['behaviour']} ({row['space']}, {row['push']} push), block {at}: slopes in "
            f"nats per stream norm, contrast / gradient / largest of the random / equal covariance "
            f"/ shuffled: {listed}; ratio {row['value']:.2f}."
        )
    for row in over_seeds(select(rows, table="equal"), by=("way",), value="kl"):
        same = select(rows, table="equal", way=row["way"])
        size, random = (
            estimate([r for r in same if r["size"] is not None], "size"),
            estimate(same, "kl_random"),
        )
        missed = sum(one["size"] is None for one in same)
        never = f"; {missed} of {len(same)} times it never gets there" if missed else ""
        if size and random:
            yield (
                f"At equal effect, {row['way']}: dose {size.value:.2g}, KL on neutral text "
                f"{float(str(row['value'])):.2g} nats per token (a random vector: "
                f"{random.value:.2g}){never}."
            )
    yield from one_model(rows)
    yield from unknown_labels(rows)
    if select(rows, table="slope"):
        yield from (f"{reason}." for reason in unmeasured(rows, "slope"))


def dose_chart(rows: Rows) -> object:
    """Change of the logit difference against dose, by vector."""
    changed = [
        {
            **row,
            "change": float(str(row["difference"])) - float(str(row["before"])),
            "series": NAMES[str(row["vector"])],
        }
        for row in rows
    ]
    own = select(changed, push="own")
    table = over_seeds(own, by=("behaviour", "series", "dose"), value="change")
    return lines(
        table,
        x=Axis("dose", "added vector over stream norm"),
        y=Axis("value", "change of logit difference (nats)"),
        facet="behaviour",
        rules=list(CONTROLS),
    )


def slope_chart(rows: Rows) -> object:
    """Slopes of both vectors beside the largest of the controls."""
    table = [
        {**row, "series": NAMES[str(row["vector"])]}
        for row in over_seeds(select(rows, push="own"), by=("behaviour", "vector"), value="slope")
    ]
    labels = dict(zip(("shuffled", "random", "matched"), CONTROLS, strict=True))
    table += series_over_seeds(select(rows, push="own"), by=("behaviour",), values=labels)
    return dots(
        table,
        x=Axis("value", "slope at dose 0 (nats per stream norm)"),
        row=Axis("behaviour", "contrast"),
        colour="series",
        rules=list(CONTROLS),
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
    table = over_seeds(known, by=("behaviour", "way"), value="kl")
    random = over_seeds(known, by=("behaviour",), value="kl_random")
    table += [{**row, "way": "random vector at the same dose"} for row in random]
    return dots(
        table,
        x=Axis("value", "KL divergence on neutral text (nats per token)"),
        row=Axis("behaviour", "contrast"),
        colour=Axis("way", "way"),
        rules=["random vector at the same dose"] if random else [],
    )


_KEYS = (
    *CELL_KEYS,
    Column("block", "", "0-based block, chosen by the contrast vector on other prompts", "key"),
)
TABLES = {
    "dose": (
        *_KEYS,
        Column("vector", "", "what is added at the last token of the prompt", "key"),
        Column("dose", "", "its length over the stream's root mean square norm", "key"),
        Column("difference", "nats", "mean logit(positive) - logit(negative)", "measure", "before"),
        Column("before", "nats", "the same without a vector", "reference"),
        Column("accuracy", "fraction", "prompts answered right", "measure", "accuracy_before"),
        Column("accuracy_before", "fraction", "without a vector", "reference"),
    ),
    "slope": (
        *_KEYS,
        Column("vector", "", "what is added", "key"),
        Column("slope", "nats", "change of the difference per dose, at 0", "measure", "random"),
        Column("low", "nats", "its 95% interval over prompts", "reference"),
        Column("high", "nats", "its 95% interval over prompts", "reference"),
        Column("random", "nats", "largest modulus of random vectors", "reference"),
        Column("matched", "nats", "the same, covariance of the stream", "reference"),
        Column("shuffled", "nats", "the same, contrast of shuffled labels", "reference"),
    ),
    "ratio": (
        *_KEYS,
        Column("ratio", "", "slope of gradient shift over that of contrast", "measure", "lower"),
        Column("low", "", "its 95% interval over prompts", "reference"),
        Column("high", "", "its 95% interval over prompts", "reference"),
        Column("lower", "", "alike from here", "reference"),
        Column("upper", "", "alike up to here", "reference"),
    ),
    "equal": (
        *_KEYS,
        Column("way", "", "how the effect is brought about", "key"),
        Column("size", "", "dose; of a weight step that of its mean shift there", "key"),
        Column("target", "nats", "effect that all ways are brought to", "key"),
        Column(
            "kl", "nats/token", "to the unchanged model, on neutral text", "measure", "kl_random"
        ),
        Column("kl_random", "nats/token", "of a random vector of the contrast's dose", "reference"),
        Column("perplexity", "", "of neutral text", "measure", "perplexity_before"),
        Column("perplexity_before", "", "of the same, unchanged model", "reference"),
    ),
}
CLAIMS = (
    Claim(
        id="C7",
        statement="The shift by a gradient step steers answers like the contrast vector",
        paper="a similar effect",
        rule="the ratio of the two slopes at equal norm has its whole interval inside [0.5, 2], "
        "and no contrast has its own outside; both slopes have theirs above the largest of the "
        "random vectors",
        decide=decide,
        figure="doses",
    ),
)
FIGURES = (
    Figure(
        "doses",
        "How answers follow the added vector",
        "Vectors of equal norm, added at the last token of the prompt after one block, which was "
        "chosen on other prompts by the contrast vector's own slope.",
        "dose",
        dose_chart,
    ),
    Figure(
        "slopes",
        "Slopes at dose 0, beside vectors that should do nothing",
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
        "Every way is brought to the effect of one dose of the contrast vector. Vectors are added "
        "at every token of neutral text; the weight step changes the model itself.",
        "equal",
        cost_chart,
    ),
)
