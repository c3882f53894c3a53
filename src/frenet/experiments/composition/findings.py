"""What the rows of `composition` say: claim C10, and how far two displacements go together."""

import math

from frenet.experiments.composition.tables import ALL, VECTORS
from frenet.experiments.experiment import (
    Across,
    Breakdown,
    Claim,
    Decision,
    Finding,
    Row,
    Rows,
    number,
)
from frenet.experiments.intervals import breakdown, estimate, select
from frenet.experiments.setup.brackets import bracket_of
from frenet.experiments.verdicts import Criterion, Rule

# Additivity error that the claim needs, and the scale at which it is judged.
LINE, FULL_SCALE = 0.2, 1.0
# Places of the blocks at which activations are measured.
DEPTHS = ("at depth 1/3", "at depth 2/3", "at the last block")
SPACES = {"full": "", "lora": " with LoRA"}

ERROR = Criterion("the additivity error at full scale", above=LINE)
# Noise n and shift m as the share n / (n + m): a mean of ratios is about that of the largest, and
# hides the pairs whose shift is noise.
CLEAR = Criterion("the noise of the weaker shift, as a share of noise and shift,", below=0.5)
RULE = Rule((ERROR,), premises=(CLEAR,))


def decide(rows: Rows) -> tuple[Finding, ...]:
    """C10, for each block and space: shifts of two task vectors do not add up.

    The unit is the seed: its error is the mean over its pairs of tasks.
    """
    at = select(rows, table="position", kind=VECTORS)
    cases = [
        (str(space), depth)
        for space in dict.fromkeys(row["space"] for row in at)
        for depth in DEPTHS
        if select(at, space=space, depth=depth)
    ]
    if not at:
        notes = [str(row["note"]) for row in select(rows, table="notes")]
        why = "; ".join(notes) or "nothing was measured"
        return (_finding(rows, [], "", Decision("not testable", why)),)
    findings = []
    for space, depth in cases:
        mine = select(at, space=space, depth=depth)
        case = f"{depth}{SPACES.get(space, f' with {space}')}"
        decision = RULE.decide(
            {
                ERROR: ERROR.of(estimate(mine, "error"), case=case),
                CLEAR: CLEAR.of(estimate(mine, "noise")),
            }
        )
        findings.append(_finding(rows, mine, case, decision))
    first, *others = findings
    return (first._replace(breakdowns=(*_errors(rows), *_radii(rows), *_places(rows))), *others)


def _finding(rows: Rows, at: Rows, case: str, decision: Decision) -> Finding:
    return Finding(
        claim="C10",
        decision=decision,
        quantity="distance of the shift by two task vectors from the sum of their shifts, relative "
        "to that sum",
        estimate=estimate(at, "error"),
        reference="with a random second one",
        reference_estimate=estimate(at, "random"),
        case=case,
    )


def _errors(rows: Rows) -> tuple[Breakdown, ...]:
    """The error of every pair at every block."""
    return breakdown(
        "Additivity error at full scale, by pair and block",
        select(rows, table="position"),
        by=("space", "kind", "first", "second", "depth"),
        values={
            "error": "error",
            "random": "random second one",
            "each": "of single prompts",
            "noise": "noise / (noise + shift)",
        },
    )


def _radii(rows: Rows) -> tuple[Breakdown, ...]:
    """How far every pair can be scaled together: one bracket around those of all seeds."""
    parts: list[Row] = []
    keys = ("space", "kind", "first", "second", "task")
    radii = select(rows, table="radius")
    for case in dict.fromkeys(tuple(row[key] for key in keys) for row in radii):
        part: Row = dict(zip(keys, case, strict=True))
        mine = select(radii, **part)
        found = [bracket for row in mine if (bracket := bracket_of(row, "radius")) is not None]
        ends = [bracket.high for bracket in found]
        parts.append(
            {
                **part,
                "composes above": min(bracket.low for bracket in found),
                "at most": None if None in ends else max(end for end in ends if end is not None),
                "seeds": len(mine),
                "beyond the limit": sum(end is None for end in ends),
                "limit": max(number(row, "limit") for row in mine),
                "random second one above": min(number(row, "random_low") for row in mine),
                "linear along the first": _least(mine, "single_first"),
                "linear along the second": _least(mine, "single_second"),
            }
        )
    title = "Composition radius in lengths of the displacements, one bracket around all seeds"
    return (Breakdown(title, tuple(parts)),) if parts else ()


def _places(rows: Rows) -> tuple[Breakdown, ...]:
    """With which block of the second vector the first one interacts most, by pair and task."""
    keys = ("space", "first", "second", "task")
    parts: list[Row] = []
    blocks = select(rows, table="block")
    for case in dict.fromkeys(tuple(row[key] for key in keys) for row in blocks):
        part: Row = dict(zip(keys, case, strict=True))
        means = {
            str(name): estimate(select(blocks, **part, block=name), "interaction")
            for name in dict.fromkeys(row["block"] for row in select(blocks, **part))
        }
        known = {name: mean.value for name, mean in means.items() if mean is not None}
        places = {name: value for name, value in known.items() if name != ALL}
        if not places:
            continue
        most = max(places, key=lambda name: abs(places[name]))
        at = select(blocks, **part, block=most)
        random, predicted = (estimate(at, name) for name in ("random", "predicted"))
        parts.append(
            {
                **part,
                "interaction": known.get(ALL),
                "most with": most,
                "interaction there": places[most],
                "random second one there": None if random is None else random.value,
                "second order there": None if predicted is None else predicted.value,
            }
        )
    title = "The block of the second vector that the first interacts with most, nats per token"
    return (Breakdown(title, tuple(parts)),) if parts else ()


def _least(rows: Rows, name: str) -> float | None:
    """The least of a radius over seeds; None if none was measured."""
    return min((number(row, name) for row in rows if row[name] is not None), default=None)


CLAIMS = (
    Claim(
        id="C10",
        statement="Two task vectors do not compose in activations",
        short="Two task vectors do not add up",
        against="random",
        paper="no universal radius for composing two updates",
        rule=str(RULE),
        decide=decide,
        figure="curve",
        across=Across(
            "additivity error of the shifts by two task vectors",
            levels=ERROR.levels,
            reference="with a random second one",
            limits=(0.0, math.inf),
            supports=ERROR.lines,
        ),
        says=(
            "the shift by both misses the sum of their shifts by {value}",
            "{reference} with a random second vector",
        ),
    ),
)
