"""What the rows of `steering_effect` say: claim C7, and columns."""

from collections.abc import Iterator

from frenet.experiments.experiment import (
    Across,
    Breakdown,
    Claim,
    Column,
    Decision,
    Finding,
    Row,
    Rows,
    number,
)
from frenet.experiments.intervals import breakdown, estimate, paired, select
from frenet.experiments.setup.comparable import of
from frenet.experiments.setup.contrast_notes import (
    CONTRAST,
    PUSHED,
    cautions,
    known_labels,
    unmeasured,
    with_blocks,
)
from frenet.experiments.setup.contrasts import CELL_KEYS
from frenet.experiments.verdicts import Criterion, Rule

WITHIN = (0.5, 2.0)
CASE = ("seed", *CONTRAST)
NAMES = {
    "contrast": "contrast vector",
    "gradient": "shift by a gradient step",
    "shuffled": "labels shuffled",
    "random": "random",
    "matched": "random of equal covariance",
}
CONTROLS = tuple(NAMES.values())[2:]


STEP, VECTOR = f"the slope of the {NAMES['gradient']}", f"the slope of the {NAMES['contrast']}"
HALF = Criterion(f"{STEP} minus {WITHIN[0]:g} times {VECTOR}", above=0.0, one_sided=True)
TWICE = Criterion(f"{STEP} minus {WITHIN[1]:g} times {VECTOR}", below=0.0, one_sided=True)
STEERS = {
    name: Criterion(f"{VECTOR}", over=f"the largest of the vectors of {NAMES[name]}")
    for name in ("matched", "shuffled")
}
RULE = Rule((HALF, TWICE), premises=tuple(STEERS.values()))


def decide(rows: Rows) -> Finding:
    """C7: at equal norm, the shift steers at least half and at most twice as much as the vector.

    Not testable unless the contrast vector steers more than every kind of null.
    """
    slopes = select(rows, table="slope", push="own")
    both = _together(slopes)
    contrast = select(slopes, vector="contrast")
    decision = RULE.decide(
        {
            HALF: HALF.of(estimate(both, "half")),
            TWICE: TWICE.of(estimate(both, "twice")),
            **{one: one.of(paired(contrast, "slope", name)) for name, one in STEERS.items()},
        }
    )
    if not slopes:
        why = "; ".join(unmeasured(rows, "slope")) or decision.why
        decision = Decision("not testable", why)
    return Finding(
        claim="C7",
        decision=decision,
        quantity="slope of the answer's logit difference for the gradient shift, over that for the "
        "contrast vector of equal norm",
        estimate=estimate(select(rows, table="ratio", push="own"), "ratio"),
        reference=f"alike from {WITHIN[0]:g} to {WITHIN[1]:g}; the same for the largest of the "
        "random vectors of equal covariance",
        reference_estimate=estimate(_matched(slopes), "ratio"),
        notes=tuple(_cautions(rows, slopes))[:2],
        breakdowns=_tables(rows, slopes),
    )


def _together(slopes: Rows) -> list[Row]:
    """The slopes of shift and vector in one row for each seed and contrast, and what is tested."""
    shifts = {of(row, CASE): number(row, "slope") for row in select(slopes, vector="gradient")}
    return [
        {
            **row,
            "half": shifts[of(row, CASE)] - WITHIN[0] * number(row, "slope"),
            "twice": shifts[of(row, CASE)] - WITHIN[1] * number(row, "slope"),
        }
        for row in select(slopes, vector="contrast")
        if of(row, CASE) in shifts
    ]


def _by_contrast(slopes: Rows) -> Iterator[tuple[str, Rows]]:
    """Rows of each contrast and space, with the name of the contrast, and of one of two spaces."""
    several = len({row["space"] for row in slopes}) > 1
    for behaviour, space in dict.fromkeys((row["behaviour"], row["space"]) for row in slopes):
        name = f"{behaviour} ({space})" if several else str(behaviour)
        yield name, select(slopes, behaviour=behaviour, space=space)


def _matched(slopes: Rows) -> list[Row]:
    """The ratio for the largest of the random vectors of equal covariance."""
    return [
        {**row, "ratio": number(row, "matched") / abs(number(row, "slope"))}
        for row in select(slopes, vector="contrast")
        if row["slope"]
    ]


def _cautions(rows: Rows, slopes: Rows) -> Iterator[str]:
    parts = [part for _, part in _by_contrast(slopes)]
    if count := sum(_as_random(part) for part in parts):
        yield (
            f"For {count} of {len(parts)} contrasts and spaces, the largest of the random vectors "
            "with the stream's covariance steers as much as the shift by a gradient step; the rule "
            "uses random vectors without that covariance."
        )
    yield from cautions(rows, "slope")


def _as_random(slopes: Rows) -> bool:
    """Whether a random vector of the stream's covariance does as much for one contrast."""
    own = estimate(select(slopes, vector="gradient"), "slope")
    matched = estimate(slopes, "matched")
    return bool(own and matched and 0 < own.value <= matched.value)


def _tables(rows: Rows, slopes: Rows) -> tuple[Breakdown, ...]:
    return (*_ratios(rows), *_slopes(slopes), *_at_equal_effect(rows), *known_labels(rows))


def _ratios(rows: Rows) -> tuple[Breakdown, ...]:
    """The ratio under every contrast, space and push, and both slopes."""
    slopes = [dict(row) | {str(row["vector"]): row["slope"]} for row in select(rows, table="slope")]
    limits: Row = {"lower": WITHIN[0], "upper": WITHIN[1]}
    ratios = [dict(row) | limits for row in select(rows, table="ratio")]
    return breakdown(
        "Ratios of slopes",
        with_blocks([*ratios, *slopes]),
        by=(*PUSHED, "blocks"),
        values={
            "ratio": "ratio",
            "lower": "alike from",
            "upper": "alike up to",
            "gradient": NAMES["gradient"],
            "contrast": NAMES["contrast"],
        },
    )


def _slopes(slopes: Rows) -> tuple[Breakdown, ...]:
    """The slope of every vector; of random ones, the largest of the draws."""
    table: list[Row] = []
    for _, part in _by_contrast(slopes):
        for vector in ("contrast", "gradient"):
            table += [dict(r) | {"vector": NAMES[vector]} for r in select(part, vector=vector)]
        for vector in ("random", "matched", "shuffled"):
            table += [
                dict(row) | {"vector": f"{NAMES[vector]}, the largest", "slope": row[vector]}
                for row in select(part, vector="contrast")
            ]
    return breakdown(
        "Slopes in nats per unit dose, own push",
        table,
        by=(*CONTRAST, "vector"),
        values={"slope": "slope", "random": "largest of the random vectors"},
    )


def _at_equal_effect(rows: Rows) -> tuple[Breakdown, ...]:
    """The cost on neutral text at the same effect."""
    return breakdown(
        "At equal effect on the answers: the cost on neutral text, in nats per token",
        select(rows, table="equal"),
        by=("way",),
        values={"kl": "KL", "kl_random": "KL of a random vector", "size": "dose"},
        counts={"size": "cases that reach the effect", "kl_random": "cases"},
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
        Column("size", "", "dose; for a weight step, that of its mean shift", "key"),
        Column("target", "nats", "effect that all ways are scaled to", "key"),
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
        rule=str(RULE),
        decide=decide,
        figure="doses",
        across=Across(
            "slope for the gradient shift over that for the contrast vector",
            levels={f"alike from {WITHIN[0]:g} to {WITHIN[1]:g}": WITHIN},
            reference="largest of the random vectors of equal covariance",
            apart="the rule compares two slopes, whose size depends on the network; their ratio "
            "has no mean if the slope of a contrast vector may be 0",
        ),
    ),
)
