"""How often a basis or a projection should be made again, from the measurements of a training."""

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from frenet.experiments.experiment import Answer, Rows, number
from frenet.experiments.intervals import select
from frenet.experiments.setup.brackets import bracket_of

if TYPE_CHECKING:
    from frenet.measure.bracket import Bracket

# Below this share a direction counts as stale.
STALE = 0.5


def sentences(rows: Rows) -> list[Answer]:
    """How long bases and projections of the start stay useful, and how often to renew them.

    Then how much of the way lies along the first steps.
    """
    return [*_of_bases(rows), *_of_projections(rows), *_of_first_steps(rows)]


def renewal(life: "Bracket", what: str, *, control: float | None) -> str:
    """The advice that follows from a half-life, or why none does.

    Args:
        life: in steps, between two measurements.
        what: is renewed.
        control: ratio of other examples at the start, without any training.
    """
    if control is not None and control <= STALE:
        return (
            f"no advice: other examples of the start differ as much (control {control:.2f}); pass "
            "a larger n"
        )
    if life.high is None:
        return "no advice on renewing it: it has not gone stale"
    if life.high <= 1:
        return f"make {what} anew at every step: it is stale after one"
    if life.low <= 0:
        return (
            f"make {what} anew at least every {_steps(life.high)}: it was stale at the first look, "
            "so a shorter gap may be needed"
        )
    ends = f"{life.low:.0f} to {life.high:.0f} steps"
    if life.value is not None:
        ends = f"{life.value:.0f} steps ({ends.removesuffix(' steps')})"
    return f"make {what} anew every {ends}"


def _of_bases(rows: Rows) -> list[Answer]:
    answers = []
    for row in select(rows, table="half_life"):
        if life := bracket_of(row):
            ends = "is stale after" if life.found else "stays useful for"
            controls = [
                number(look, "control") for look in select(rows, table="drift", probe=row["probe"])
            ]
            advice = renewal(life, "it", control=controls[0] if controls else None)
            sentence = f"the initial gradient basis {ends} {life.in_words('step')}; {advice}"
            answers.append(Answer(str(row["probe"]), {}, sentence))
    return answers


def _of_projections(rows: Rows) -> list[Answer]:
    answers = []
    gaps = select(rows, table="update_gap")
    for probe in dict.fromkeys(str(row["probe"]) for row in gaps):
        part = select(gaps, probe=probe)
        lives = [life for row in part if (life := bracket_of(row))]
        looks = select(rows, table="projections", probe=probe)
        if lives and looks:
            advice = renewal(median_life(lives), "them", control=number(looks[0], "control"))
            sentence = (
                f"projections of rank {part[0]['rank']} for each of {len(lives)} matrices: {advice}"
                f" (median over matrices; {span_of(lives)})"
            )
            answers.append(Answer(probe, {}, sentence))
    return answers


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


def median_life(lives: "Sequence[Bracket]") -> "Bracket":
    """A bracket that holds the median of half-lives of which only brackets are known.

    >>> from frenet.measure.bracket import Bracket
    >>> print(median_life([Bracket(1.0, 5.0), Bracket(5.0, 10.0), Bracket(50.0, None)]))
    between 5 and 10
    """
    from frenet.measure.bracket import Bracket

    low = statistics.median(life.low for life in lives)
    high = statistics.median(math.inf if life.high is None else life.high for life in lives)
    return Bracket(low, high if math.isfinite(high) else None)


def span_of(lives: "Sequence[Bracket]") -> str:
    """The shortest and the longest of some half-lives, in words.

    >>> from frenet.measure.bracket import Bracket
    >>> span_of([Bracket(1.0, 5.0), Bracket(5.0, 10.0), Bracket(50.0, None)])
    'the shortest between 1 and 5 steps, the longest more than 50 steps'
    """
    first = min(lives, key=lambda life: (life.low, life.high or math.inf))
    last = max(lives, key=lambda life: (life.high or math.inf, life.low))
    if first == last:
        return f"all {first.in_words('step')}"
    return f"the shortest {first.in_words('step')}, the longest {last.in_words('step')}"


def _steps(count: float) -> str:
    return f"{count:.0f} step{'' if count == 1 else 's'}"
