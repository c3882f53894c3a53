"""What the rows of `update_order` say: claims C8 and C9."""

import statistics
from collections.abc import Mapping, Sequence

from frenet.experiments.experiment import (
    Across,
    Breakdown,
    Claim,
    Finding,
    Row,
    Rows,
    Scalar,
    finite,
    number,
)
from frenet.experiments.intervals import breakdown, estimate, select, share
from frenet.experiments.setup.comparable import by_coordinates, factors_and_weights
from frenet.experiments.update_order.figures import CLOSE, EQUAL, OTHER, medians, named
from frenet.experiments.verdicts import Count, Criterion, Rule

# Step sizes that count, as shares of the onset; the ends may be missed by rounding.
LEAST, MOST, ROUNDED = 0.01, 0.3, 1e-6
# Norms of gradients over their rounding error.
CLEAR = 10.0
THIRD = 1 / 3

RATIO = Criterion(
    "the median over pairs of the measured over the predicted difference of two orders",
    within=EQUAL,
)
NEAR = Criterion(f"the share of pairs within {CLOSE:g} of the prediction", above=0.9)
ALONG = Criterion("the cosine of the difference with the Lie bracket", above=0.99)
PAIRS = Count("the number of pairs with both gradients above their rounding error in a seed", 1)
INSIDE = Criterion(
    "the share of pairs whose order matters inside the window of single steps", above=THIRD
)
PREDICTED = Rule((RATIO, NEAR, ALONG), premises=(PAIRS,))
FRAGILE = Rule((INSIDE,), premises=(PAIRS,))


def predicted(rows: Rows) -> tuple[Finding, ...]:
    """C8: the Lie bracket predicts how far apart, and where, two orders end.

    Pairs at every step size between 0.01 and 0.3 of their onset count alike. Orders of LoRA are
    judged in the factors and, as a case of its own, in the weights.
    """
    first, *others = (_predicted(mine, case) for case, mine in by_coordinates(rows).items())
    lora = [row for row in counted(rows) if row.get("space") == "lora"]
    between = factors_and_weights(lora, "ratio", "measured over predicted difference")
    return (first._replace(breakdowns=(*first.breakdowns, *between)), *others)


def _predicted(rows: Rows, case: str) -> Finding:
    pairs = counted(rows)
    seeds = [_of_seed(select(pairs, seed=seed)) for seed in _seeds(pairs)]
    ratio = estimate(seeds, "ratio") if seeds else None
    return Finding(
        claim="C8",
        decision=PREDICTED.decide(
            {
                RATIO: RATIO.of(ratio, case=case),
                NEAR: NEAR.of(estimate(seeds, "near") if seeds else None, case=case),
                ALONG: ALONG.of(estimate(seeds, "cosine") if seeds else None, case=case),
                PAIRS: PAIRS.of(_fewest(rows, pairs)),
            }
        ),
        quantity="median over pairs of the measured over the predicted difference of two orders",
        estimate=ratio,
        reference="measured over what random steps of equal norm predict",
        reference_estimate=estimate(seeds, "null") if seeds else None,
        notes=_beyond(rows),
        breakdowns=(*_by_step(rows), *_by_window(pairs)),
        case=case,
    )


def counted(rows: Rows) -> list[Row]:
    """Pairs of two tasks, at the step sizes that count, whose gradients are above rounding."""
    low, high = LEAST * (1 - ROUNDED), MOST * (1 + ROUNDED)
    return [
        dict(row)
        for row in select(rows, table="order", kind=OTHER)
        if low <= number(row, "of_onset") <= high
    ]


def _of_seed(pairs: Rows) -> Row:
    """One row for a seed: the medians over its pairs, and the share of close ones."""
    ratios = [number(row, "ratio") for row in pairs]
    nulls = [value for row in pairs if (value := finite(row.get("null_ratio"))) is not None]
    return {
        "seed": pairs[0]["seed"],
        "ratio": statistics.median(ratios),
        "near": statistics.mean(abs(ratio - 1) <= CLOSE for ratio in ratios),
        "cosine": statistics.median(number(row, "cosine") for row in pairs),
        "null": statistics.median(nulls) if nulls else None,
    }


def _seeds(rows: Rows) -> list[Scalar]:
    return list(dict.fromkeys(row["seed"] for row in rows))


def _fewest(rows: Rows, pairs: Rows) -> int:
    """The number of pairs that count in the seed with the fewest."""
    return min((len(_names(select(pairs, seed=seed))) for seed in _seeds(rows)), default=0)


def _names(pairs: Rows) -> set[tuple[Scalar, ...]]:
    return {(row.get("space"), row["first"], row["second"]) for row in pairs}


def _beyond(rows: Rows) -> tuple[str, ...]:
    """A caution if the optimiser's memory is larger than what the bracket is about."""
    steps = select(rows, table="optimizer")
    remembered = [row for row in steps if number(row, "frozen") > number(row, "curvature")]
    if not remembered:
        return ()
    names = dict.fromkeys(f"{row['optimizer']} ({row['state']})" for row in remembered)
    return (
        f"It predicts gradient steps. Of {', '.join(names)} two orders differ mostly because the "
        "optimiser remembers the first gradient, at any step size.",
    )


def _by_step(rows: Rows) -> tuple[Breakdown, ...]:
    """Ratio and cosine at every step size, and for two minibatches of one task."""
    values = {
        "ratio": "measured / predicted",
        "null_ratio": "by random steps",
        "cosine": "cosine",
        "null_cosine": "with random steps",
        "rounding": "rounding",
    }
    by = ("space", "kind", "fraction")
    typical = medians(select(rows, table="order"), by, tuple(values))
    return breakdown(
        "Median over pairs, by step size as a share of the onset", typical, by=by, values=values
    )


def _by_window(pairs: Rows) -> tuple[Breakdown, ...]:
    """What counts, by whether the step is inside the window of both single steps."""
    split = [
        {
            **row,
            "step": "inside the window" if size <= 1 else "beyond it",
            "near": float(abs(number(row, "ratio") - 1) <= CLOSE),
        }
        for row in pairs
        if (size := finite(row.get("of_window"))) is not None
    ]
    values = {"near": f"within {CLOSE:g} of the prediction", "cosine": "cosine"}
    title = "Share of pairs near the prediction, by the window of both single steps"
    return breakdown(
        title, split, by=("space", "step"), values=values, counts={"ratio": "pairs"}, least=0.0
    )


def fragile(rows: Rows) -> tuple[Finding, ...]:
    """C9: for over a third of pairs the order matters where both single steps are still linear."""
    return tuple(_fragile(mine, case) for case, mine in by_coordinates(rows).items())


def _fragile(rows: Rows, case: str) -> Finding:
    pairs = [row for row in select(rows, table="bracket", kind=OTHER) if _known(row)]
    shares = [_shares(select(pairs, seed=seed)) for seed in _seeds(pairs)]
    inside = share(shares, "inside") if shares else None
    return Finding(
        claim="C9",
        decision=FRAGILE.decide(
            {INSIDE: INSIDE.of(inside, case=case), PAIRS: PAIRS.of(_fewest(rows, pairs))}
        ),
        quantity="share of pairs whose order matters inside the window of both single steps",
        estimate=inside,
        reference="the same with random steps of equal norm",
        reference_estimate=share(shares, "null") if shares else None,
        breakdowns=(*_onsets(rows), *_orders(rows)),
        case=case,
    )


def _known(row: Mapping[str, Scalar]) -> bool:
    """Whether both gradients are above rounding, and it is known which comes first."""
    clear = [finite(row.get(name)) for name in ("clear_first", "clear_second")]
    return row.get("inside") is not None and all(c is None or c >= CLEAR for c in clear)


def _shares(pairs: Rows) -> Row:
    """One row for a seed."""
    nulls = [bool(row["null_inside"]) for row in pairs if row.get("null_inside") is not None]
    return {
        "seed": pairs[0]["seed"],
        "inside": statistics.mean(bool(row["inside"]) for row in pairs),
        "null": statistics.mean(nulls) if nulls else None,
    }


def _onsets(rows: Rows) -> tuple[Breakdown, ...]:
    """Onset and window of every pair."""
    values = {
        "share": "inside the window",
        "onset": "onset",
        "null_onset": "random steps",
        "window": "window of single steps",
        "kappa": "kappa",
        "floor": "floor of kappa",
    }
    pairs = [
        {**row, "share": None if row.get("inside") is None else float(bool(row["inside"]))}
        for row in named(select(rows, table="bracket", kind=OTHER))
    ]
    title = "Step size from which on the order matters, by pair"
    return breakdown(title, pairs, by=("space", "pair"), values=values, least=0.0)


def _orders(rows: Rows) -> tuple[Breakdown, ...]:
    """Longer trainings by order: losses, and distances beside the spread of one order."""
    values = {
        "loss_first": "loss of the first",
        "loss_second": "loss of the second",
        "apart": "distance from the first order",
        "spread": "spread of one order",
        "predicted": "by the bracket",
    }
    trained: Sequence[Row] = named(select(rows, table="stretch"))
    by = ("space", "pair", "optimizer", "order")
    return breakdown("Trainings of equal length in four orders", trained, by=by, values=values)


CLAIMS = (
    Claim(
        id="C8",
        statement="The Lie bracket of two gradients predicts how the order of updates matters",
        short="The Lie bracket predicts order",
        against="random",
        paper="median measured / predicted 1.002",
        rule=str(PREDICTED),
        decide=predicted,
        figure="ratio",
        across=Across(
            "measured over predicted difference of two orders", levels=RATIO.levels,
            limits=(0.0, float("inf")), supports=RATIO.lines,
        ),
        says=(
            "the measured difference of two orders is {value} times the predicted one",
            "{reference} times what random steps predict",
        ),
    ),
    Claim(
        id="C9",
        statement="The order matters inside the window where single directions are linear",
        short="Order matters within linear steps",
        against="random",
        paper="in over a third of combinations",
        rule=str(FRAGILE),
        decide=fragile,
        figure="window",
        across=Across(
            "share of pairs whose order matters inside the window", levels=INSIDE.levels,
            reference="random steps", limits=(0.0, 1.0), supports=INSIDE.lines,
        ),
        says=("the share of pairs whose order matters is {value}", "{reference} with random steps"),
    ),
)  # fmt: skip
