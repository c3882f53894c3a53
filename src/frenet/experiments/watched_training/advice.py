"""How often a basis or a projection should be made again, from the measurements of a training."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from frenet.experiments.experiment import Answer, Row, Rows, Scalar, integer, number
from frenet.experiments.intervals import select
from frenet.experiments.setup.brackets import bracket_cells, bracket_of

if TYPE_CHECKING:
    from frenet.measure.bracket import Bracket
    from frenet.measure.renewal import Gap

# Below this share a direction counts as stale.
STALE = 0.5
# Of what renewing at every step would hold, what is to be held on average between two renewals: as
# much as if a share fell evenly from 1 to a half.
HELD = 0.75


def sentences(rows: Rows) -> list[Answer]:
    """How long bases and projections of the start stay useful, and how often to renew them.

    Then how much of the way lies along the first steps.
    """
    return [*_of_bases(rows), *_of_projections(rows), *_of_first_steps(rows)]


def renewal(gap: "Gap", *, several: bool = False, control: float | None) -> str:
    """The advice that follows from a gap between two renewals, or why none does.

    Args:
        gap: of a basis, or the median of projections.
        several: whether it is about projections.
        control: ratio of other examples at the start, without any training.
    """
    it, initial = ("them", "initial ones hold") if several else ("it", "initial one holds")
    whole = f"over all {gap.longest} steps the {initial} {gap.held:.2f}"
    if control is not None and control <= STALE:
        return (
            f"no advice: other examples of the start differ as much (control {control:.2f}); pass "
            "a larger n"
        )
    low, high, value = gap.steps
    if high is None:
        return f"no need to renew {it}: {whole} of the energy in fresh ones"
    often = f"every {low:.0f} to {high:.0f} steps"
    if high <= 1:
        often = "at every step"
    elif low <= 0:
        often = f"at least every {high:.0f} steps"
    elif value is not None:
        often = f"every {value:.0f} steps ({low:.0f} to {high:.0f})"
    return f"make {it} anew {often} to hold {HELD:g} of the energy in fresh ones; {whole}"


def basis_gap(looks: Rows) -> "Gap":
    """For how long a probe's initial basis may be kept, from its rows of the table drift."""
    from frenet.measure.renewal import renewal_gap

    fresh = {integer(row, "step"): number(row, "fresh") for row in looks}
    ratio = {integer(row, "step"): number(row, "ratio") for row in looks}
    return renewal_gap(
        {step: ratio[step] * held for step, held in fresh.items()}, fresh, level=HELD
    )


def projection_gap(looks: Rows) -> "Gap | None":
    """For how long a matrix's initial projection may be kept, from its rows of projection.

    None if a fresh one held no more than chance at the start.
    """
    from frenet.measure.renewal import renewal_gap

    kept, fresh = (
        {integer(row, "step"): number(row, name) - number(row, "chance") for row in looks}
        for name in ("energy", "fresh")
    )
    if fresh[0] <= 0:
        return None
    at_least = {step: max(above, 0.0) for step, above in fresh.items()}
    return renewal_gap(kept, at_least, level=HELD)


def gap_cells(gap: "Gap") -> Row:
    """A gap as cells of the table update_gap."""
    return {**bracket_cells(gap.steps), "longest": gap.longest, "held": gap.held, "nothing": 0.0}


def _of_bases(rows: Rows) -> list[Answer]:
    answers = []
    for row in select(rows, table="half_life"):
        looks = select(rows, table="drift", probe=row["probe"])
        if life := bracket_of(row):
            ends = (
                "first falls to half of a fresh one after"
                if life.found
                else "stays above half of a fresh one for"
            )
            advice = renewal(basis_gap(looks), control=number(looks[0], "control"))
            sentence = f"the initial gradient basis {ends} {life.in_words('step')}; {advice}"
            answers.append(Answer(str(row["probe"]), {}, sentence))
    return answers


def _of_projections(rows: Rows) -> list[Answer]:
    answers = []
    every = select(rows, table="update_gap")
    for probe in dict.fromkeys(str(row["probe"]) for row in every):
        part = select(every, probe=probe)
        gaps = [_gap_in(row) for row in part]
        looks = select(rows, table="projections", probe=probe)
        control = number(looks[0], "control") if looks else None
        advice = renewal(median_gap(gaps), several=True, control=control)
        sentence = (
            f"projections of rank {part[0]['rank']} for each of {len(gaps)} matrices: {advice}"
            f" (medians over matrices; {span_of([gap.steps for gap in gaps])})"
        )
        answers.append(Answer(probe, {}, sentence))
    return answers


def _gap_in(row: Mapping[str, Scalar]) -> "Gap":
    from frenet.measure.renewal import Gap

    steps = bracket_of(row)
    assert steps is not None
    return Gap(steps, number(row, "held"), integer(row, "longest"))


def _of_first_steps(rows: Rows) -> list[Answer]:
    """What the last look says about the prefix."""
    for row in select(rows, table="prefix")[-1:]:
        if row["captured"] is not None:
            sentence = (
                f"{row['captured']:.2g} of the squared displacement after {row['step']} steps lies "
                f"in their span; of a random walk with equal steps {row['random_walk']:.2g}"
            )
            return [Answer(f"first {row['k']} steps", {}, sentence)]
    return []


def median_gap(gaps: "Sequence[Gap]") -> "Gap":
    """A bracket that holds the median of gaps of which only brackets are known, and other medians.

    >>> from frenet.measure.bracket import Bracket
    >>> from frenet.measure.renewal import Gap
    >>> ends = [Bracket(1.0, 5.0), Bracket(5.0, 10.0), Bracket(50.0, None)]
    >>> print(median_gap([Gap(bracket, 0.5, 50) for bracket in ends]).steps)
    between 5 and 10
    """
    from frenet.measure.bracket import Bracket
    from frenet.measure.renewal import Gap

    steps = [gap.steps for gap in gaps]
    low = statistics.median(bracket.low for bracket in steps)
    high = statistics.median(math.inf if b.high is None else b.high for b in steps)
    return Gap(
        Bracket(low, high if math.isfinite(high) else None),
        statistics.median(gap.held for gap in gaps),
        max(gap.longest for gap in gaps),
    )


def span_of(gaps: "Sequence[Bracket]") -> str:
    """The shortest and the longest of some gaps, in words.

    >>> from frenet.measure.bracket import Bracket
    >>> span_of([Bracket(1.0, 5.0), Bracket(5.0, 10.0), Bracket(50.0, None)])
    'the shortest between 1 and 5 steps, the longest more than 50 steps'
    """
    first = min(gaps, key=lambda gap: (gap.low, gap.high or math.inf))
    last = max(gaps, key=lambda gap: (gap.high or math.inf, gap.low))
    if first == last:
        return f"all {first.in_words('step')}"
    return f"the shortest {first.in_words('step')}, the longest {last.in_words('step')}"
