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
    finite,
    number,
)
from frenet.experiments.intervals import breakdown, estimate, paired, select
from frenet.experiments.setup.comparable import of
from frenet.experiments.setup.contrast_notes import (
    CONTRAST,
    PREMISES,
    PUSHED,
    Counted,
    by_prompts,
    by_space,
    cautions,
    contrasts,
    contrasts_that_count,
    known_labels,
    over_units,
    premise,
    premises,
    unmeasured,
    widened,
    with_blocks,
)
from frenet.experiments.setup.contrasts import CEILINGS, CELL_KEYS, UNIT
from frenet.experiments.verdicts import Condition, Criterion, Requirement, Rule
from frenet.statistics.contrasts import linear_contrast, stratified_interval
from frenet.statistics.intervals import Estimate

WITHIN = (0.5, 2.0)
CASE = ("seed", *CONTRAST)
NAMES = {
    "contrast": "contrast vector",
    "gradient": "shift by a gradient step",
    "shuffled": "labels shuffled",
    "random": "random",
    "matched": "random of equal covariance",
    "unrelated": "other contrasts",
}
CONTROLS = tuple(NAMES.values())[2:]
# Of the bootstrap over prompts.
RESAMPLES = 2000


STEP, VECTOR = f"the slope of the {NAMES['gradient']}", f"the slope of the {NAMES['contrast']}"
HALF = Criterion(f"{STEP} minus {WITHIN[0]:g} times {VECTOR}", above=0.0, one_sided=True)
TWICE = Criterion(f"{STEP} minus {WITHIN[1]:g} times {VECTOR}", below=0.0, one_sided=True)
STEERS = {
    name: Criterion(VECTOR, over=f"the largest slope of {vectors}")
    for name, vectors in (
        ("matched", "random vectors with the stream's covariance"),
        ("shuffled", "contrast vectors of shuffled labels"),
        ("unrelated", "the vectors of other contrasts"),
    )
}
ALONE = (
    "there are no vectors of other contrasts to compare {} with, since its source holds no other "
    "contrast; pass a second one with --tasks (of frenet reproduce: --statements)"
)
STRONGER = "a steering vector that moves answers no more than these has no effect to compare with"
RULE = Rule((HALF, TWICE), premises=(*PREMISES, *STEERS.values()))


def decide(rows: Rows) -> tuple[Finding, ...]:
    """C7, for each space: at equal norm, the shift steers half to twice as much as the vector.

    It is judged on the contrasts that the model knows, whose vectors are reliable, and whose
    contrast vector steers more than every kind of null, each with equal weight.
    """
    slopes = select(rows, table="slope", push="own")
    spaces = by_space((*slopes, *select(rows, table="behaviour")))
    if not spaces:
        why = "; ".join(unmeasured(rows, "slope")) or "nothing was measured"
        return (_finding(rows, slopes, "", Decision("not testable", why), ()),)
    return tuple(
        _of_space(select(rows, space=space), select(slopes, space=space), case)
        for space, case in spaces
    )


def _of_space(rows: Rows, slopes: Rows, case: str) -> Finding:
    counted, decision = decision_of(rows, slopes)
    own = [row for row in slopes if row["behaviour"] in counted.names]
    return _finding(rows, own, case, decision, counted.left)


def decision_of(rows: Rows, slopes: Rows) -> tuple[Counted, Decision]:
    """The contrasts that count, and the verdict on them.

    Args:
        rows: of one space.
        slopes: of these, the slopes of the own push.
    """
    names = contrasts(rows, slopes)
    counted = contrasts_that_count({name: _premises(rows, slopes, name) for name in names})
    own = [row for row in slopes if row["behaviour"] in counted.names]
    half, twice = (linear(rows, own, counted.names, weight) for weight in WITHIN)
    measured = {HALF: HALF.of(half), TWICE: TWICE.of(twice), **counted.premises}
    return counted, RULE.decide(measured)


def _premises(rows: Rows, slopes: Rows, name: str) -> dict[Requirement, Condition]:
    """Whether one contrast is known, and its vector steers more than every null."""
    vectors = select(slopes, vector="contrast")
    contrast, found = select(vectors, behaviour=name), premises(rows, vectors, name)
    for null, criterion in STEERS.items():
        lead = (
            _over_prompts([_contrasts(rows, name, (("contrast", 1.0), (null, -1.0)))])
            if by_prompts(slopes)
            else paired(contrast, "slope", null)
        )
        lead = widened(lead, len(contrasts(rows, vectors)))
        found[criterion] = premise(criterion, lead, name, STRONGER)
        if lead is None and null == "unrelated":
            found[criterion] = Condition("open", ALONE.format(name), counted=False)
    return found


def linear(rows: Rows, slopes: Rows, names: tuple[str, ...], weight: float) -> Estimate | None:
    """The slope of the shift minus so many times that of the contrast vector."""
    if by_prompts(slopes):
        terms = (("gradient", 1.0), ("contrast", -weight))
        return _over_prompts([_contrasts(rows, name, terms) for name in names])
    return estimate(_together(slopes, weight), "linear")


def _contrasts(rows: Rows, name: str, terms: tuple[tuple[str, float], ...]) -> list[float]:
    """A weighted sum of the slopes of every prompt of a contrast; none if a column is missing."""
    own = select(rows, table="prompt", behaviour=name, push="own")
    columns = [[finite(row.get(column)) for row in own] for column, _ in terms]
    if not own or any(value is None for column in columns for value in column):
        return []
    known = [[value for value in column if value is not None] for column in columns]
    return linear_contrast(known, [weight for _, weight in terms])


def _over_prompts(strata: list[list[float]]) -> Estimate | None:
    """The mean over contrasts of equal weight, with its intervals over their prompts."""
    known = [values for values in strata if values]
    if not known:
        return None
    wide, inner = (
        stratified_interval(known, level=level, resamples=RESAMPLES) for level in (0.95, 0.9)
    )
    if wide.low is None or wide.high is None or inner.low is None or inner.high is None:
        return wide._replace(unit="prompt")
    return wide._replace(unit="prompt", raw=(wide.low, wide.high), narrow=(inner.low, inner.high))


def _together(slopes: Rows, weight: float) -> list[Row]:
    """The linear contrast of both slopes for each seed and contrast."""
    shifts = {of(row, CASE): number(row, "slope") for row in select(slopes, vector="gradient")}
    return [
        {**row, "linear": shifts[of(row, CASE)] - weight * number(row, "slope")}
        for row in select(slopes, vector="contrast")
        if of(row, CASE) in shifts
    ]


def _finding(
    rows: Rows, slopes: Rows, case: str, decision: Decision, left: tuple[str, ...]
) -> Finding:
    names = dict.fromkeys(str(row["behaviour"]) for row in slopes)
    ratios = [r for r in select(rows, table="ratio", push="own") if r["behaviour"] in names]
    return Finding(
        claim="C7",
        decision=decision,
        quantity="slope of the answer's log-odds for the gradient shift, over that for the "
        f"contrast vector of equal norm{f' ({chr(44).join(names)})' if left else ''}",
        estimate=over_units(ratios, "ratio"),
        reference=f"alike from {WITHIN[0]:g} to {WITHIN[1]:g}; the same for the largest of the "
        "random vectors of equal covariance",
        reference_estimate=estimate(_matched(slopes), "ratio"),
        notes=tuple(cautions(rows, "slope", left))[:2],
        breakdowns=_tables(rows),
        case=case,
    )


def _matched(slopes: Rows) -> list[Row]:
    """The ratio for the largest of the random vectors of equal covariance."""
    return [
        {**row, "ratio": number(row, "matched") / abs(number(row, "slope"))}
        for row in select(slopes, vector="contrast")
        if row["slope"]
    ]


def _tables(rows: Rows) -> tuple[Breakdown, ...]:
    slopes = select(rows, table="slope", push="own")
    return (*_ratios(rows), *_slopes(slopes), *_at_equal_effect(rows), *known_labels(rows))


def _by_contrast(slopes: Rows) -> Iterator[Rows]:
    """Rows of each contrast."""
    for behaviour in dict.fromkeys(row["behaviour"] for row in slopes):
        yield select(slopes, behaviour=behaviour)


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
    for part in _by_contrast(slopes):
        for vector in ("contrast", "gradient"):
            table += [dict(r) | {"vector": NAMES[vector]} for r in select(part, vector=vector)]
        for vector in ("random", "matched", "shuffled", "unrelated"):
            table += [
                dict(row) | {"vector": f"{NAMES[vector]}, the largest", "slope": row.get(vector)}
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
    UNIT,
    Column("block", "", "0-based block, chosen by the contrast vector on other prompts", "key"),
)
_PROMPTS = Column("prompts", "", "reported prompts", "key")
TABLES = {
    "dose": (
        *_KEYS,
        Column("vector", "", "what is added at the last token of the prompt", "key"),
        Column("dose", "", "its length over the stream's root mean square norm", "key"),
        Column("difference", "nats", "mean log-odds of the answers", "measure", "before"),
        Column("before", "nats", "the same without a vector", "reference"),
        Column("accuracy", "fraction", "prompts answered right", "measure", "accuracy_before"),
        Column("accuracy_before", "fraction", "without a vector", "reference"),
    ),
    "prompt": (
        *_KEYS,
        Column("prompt", "", "0-based reported prompt", "key"),
        Column("contrast", "nats", "slope of the contrast vector", "measure", "matched"),
        Column("gradient", "nats", "slope of the gradient step's shift", "measure", "matched"),
        Column("random", "nats", "of the random vector that steers most", "reference"),
        Column("matched", "nats", "the same, covariance of the stream", "reference"),
        Column("shuffled", "nats", "the same, contrast of shuffled labels", "reference"),
        Column("unrelated", "nats", "the same, other contrasts", "reference"),
    ),
    "slope": (
        *_KEYS,
        _PROMPTS,
        Column("vector", "", "what is added", "key"),
        Column("slope", "nats", "change of the difference per dose, at 0", "measure", "random"),
        Column("low", "nats", "its 95% interval over prompts", "reference"),
        Column("high", "nats", "its 95% interval over prompts", "reference"),
        Column("random", "nats", "largest modulus of random vectors", "reference"),
        Column("matched", "nats", "the same, covariance of the stream", "reference"),
        Column("shuffled", "nats", "the same, contrast of shuffled labels", "reference"),
        Column("unrelated", "nats", "the same, other contrasts", "reference"),
        *CEILINGS,
    ),
    "ratio": (
        *_KEYS,
        _PROMPTS,
        Column("ratio", "", "slope of gradient shift over that of contrast", "measure", "lower"),
        Column("ratio_low", "", "its 95% interval over prompts", "reference"),
        Column("ratio_high", "", "its 95% interval over prompts", "reference"),
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
        short="A step steers as the vector does",
        against="random",
        paper="a similar effect",
        rule=str(RULE),
        decide=decide,
        figure="doses",
        across=Across(
            "slope for the gradient shift over that for the contrast vector",
            levels={f"alike from {WITHIN[0]:g} to {WITHIN[1]:g}": WITHIN},
            reference="random of equal covariance",
            apart="the rule compares two slopes, whose size depends on the network; their ratio "
            "has no mean if the slope of a contrast vector may be 0",
            supports=WITHIN,
        ),
        says=(
            "it moves the answers {value} times as much as the contrast vector",
            "the best random vector {reference}",
        ),
    ),
)
