"""How a claim is decided: the criteria of a rule, in three-valued logic.

The criteria of a rule are written before its numbers are known. They give both the sentence of the
rule and the verdict, so that words and code always agree.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from frenet._errors import UsageError
from frenet.experiments.experiment import Decision, Needs, Verdict
from frenet.experiments.intervals import judged, narrow
from frenet.statistics.intervals import Estimate, Sample, student_factor

if TYPE_CHECKING:
    from frenet.statistics.power import Needed

# "equal": a difference is smaller than its margin, whatever its sign.
State = Literal["holds", "fails", "equal", "open"]
# Before the verdict that a claim would have if an unknown premise held.
ALONE = "the criteria alone say"


class Condition(NamedTuple):
    """A criterion once it is measured.

    Attributes:
        state: whether it holds.
        why: the sentence that says so.
        needs: what would settle it, if more units would.
        counted: whether enough units count for an interval.
    """

    state: State
    why: str
    needs: Needs | None = None
    counted: bool = True


@dataclass(frozen=True)
class Criterion:
    """A requirement on a quantity: its whole interval lies beyond a line, or between two.

    Attributes:
        quantity: the subject of the sentence.
        above: the line that the 95% interval must lie above.
        below: the line that it must lie below.
        within: two limits that hold the 90% interval, which is two one-sided tests at 5%; the
            criterion fails if the 95% interval lies wholly outside.
        over: the other quantity, if the first minus the other, paired by unit, has to be above 0.
        margin: a difference is equal if its 90% interval lies within [-margin, margin].
        one_sided: whether one-sided tests at 5% decide, so that the 90% interval does.
        contradicts: whether it fails beyond its line; otherwise it stays open.
    """

    quantity: str
    above: float | None = None
    below: float | None = None
    within: tuple[float, float] | None = None
    over: str = ""
    margin: float | None = None
    one_sided: bool = False
    contradicts: bool = True

    def __post_init__(self) -> None:
        lines = [self.above, self.below, self.within, self.over or None]
        if sum(line is not None for line in lines) != 1:
            raise UsageError(
                f"the criterion of {self.quantity} has {4 - lines.count(None)} lines; pass one of "
                "above, below, within and over"
            )

    def __str__(self) -> str:
        equal = f" (equal within {self.margin:g})" if self.margin is not None else ""
        return f"{self.quantity} is {self.predicate}{equal}"

    @property
    def predicate(self) -> str:
        """The predicate of the sentence.

        >>> Criterion("the ratio", below=0.7).predicate
        'below 0.7'
        >>> Criterion("the share", within=(0.67, 0.87)).predicate
        'within [0.67, 0.87]'
        """
        if self.within is not None:
            return f"within [{self.within[0]:.3g}, {self.within[1]:.3g}]"
        if self.over:
            return f"above {self.over}"
        return f"below {self.below:.3g}" if self.above is None else f"above {self.above:.3g}"

    @property
    def levels(self) -> dict[str, tuple[float, float | None]]:
        """What a figure compares the quantity with: a value, and the other end of a band, if any.

        >>> Criterion("the lead", above=0.0, margin=0.05).levels
        {'above 0': (0.0, None), 'equal within 0.05': (-0.05, 0.05)}
        """
        least, most = self.lines
        line = most if math.isinf(least) else least
        levels: dict[str, tuple[float, float | None]] = {
            self.predicate: self.within or (line, None)
        }
        if self.margin is not None:
            levels[f"equal within {self.margin:g}"] = (-self.margin, self.margin)
        return levels

    @property
    def lines(self) -> tuple[float, float]:
        """The values that the quantity may have, as an interval."""
        if self.within is not None:
            return self.within
        if self.below is not None:
            return (-math.inf, self.below)
        return (0.0 if self.above is None else self.above, math.inf)

    def of(self, value: Estimate | None, *, case: str = "", best_of: int = 1) -> Condition:
        """The criterion once its quantity is measured.

        Args:
            value: with its intervals; without them the criterion stays open. With ``over``, the
                estimate of the paired difference.
            case: which of several cases it is, such as "in the full space".
            best_of: how many candidates the value is of or compared with the best of, if the best
                was chosen on the same units. It fails only if its interval of the level
                1 - 0.05 / best_of does (Bonferroni), since the best of several equal ones is above
                their mean.
        """
        named = f"{self.quantity} {case}".rstrip()
        if value is None:
            return Condition("open", f"{named} was not measured", counted=False)
        if value.low is None:
            why = f"only one {value.unit} counts for {named.rstrip(',')}, so there is no interval"
            return Condition("open", why, Needs(value.unit, value.n), counted=False)
        state = self._state(value, best_of)
        if state == "holds":
            return Condition(state, f"{named} is {self.predicate}")
        if state == "equal":
            return Condition(state, f"{named} is equal within {self.margin:g}")
        low, high = judged(value)
        number = f"{'difference ' if self.over else ''}{value.value:.3g} [{low:.3g}, {high:.3g}]"
        if state == "fails":
            state = "fails" if self.contradicts else "open"
            return Condition(state, f"{named} is not {self.predicate} ({number})")
        why = f"{named} is not clearly {self.predicate} ({number})"
        return Condition(state, why, self._needs(value))

    def _state(self, value: Estimate, best_of: int) -> State:
        """By the intervals on the raw scale."""
        (low, high), (inner_low, inner_high) = judged(value), narrow(value)
        outer_low, outer_high = (low, high) if best_of == 1 else _wider(value, best_of)
        least, most = self.lines
        if self.margin is not None and -self.margin <= inner_low and inner_high <= self.margin:
            return "equal"
        if self.within is not None:
            holds = least <= inner_low and inner_high <= most
        else:
            inner = (inner_low, inner_high) if self.one_sided else (low, high)
            holds = least < inner[0] and inner[1] < most
        if holds:
            return "holds"
        return "fails" if outer_high < least or outer_low > most else "open"

    def _needs(self, value: Estimate) -> Needs:
        """How many units would settle it at this mean and spread."""
        from frenet.statistics import power

        sample, (least, most) = Sample.of(value), self.lines
        if self.within is not None:
            needed = power.units_for_equivalence(sample, lower=least, upper=most)
            return _of(value, needed, power.smallest_margin(sample))
        level = 0.9 if self.one_sided else 0.95
        needed = power.units_needed(sample, most if math.isinf(least) else least, level=level)
        if self.margin is not None:
            equal = power.units_for_equivalence(sample, lower=-self.margin, upper=self.margin)
            needed = min(needed, equal, key=_most_of)
        return _of(value, needed, power.smallest_effect(sample, level=level))


def _wider(value: Estimate, best_of: int) -> tuple[float, float]:
    """The interval of the level 1 - 0.05 / best_of."""
    half = student_factor(value.n, 1 - 0.05 / best_of) * Sample.of(value).error
    return value.value - half, value.value + half


def _of(value: Estimate, needed: "Needed | None", smallest: float | None) -> Needs:
    about, low, high = needed or (None, None, None)
    return Needs(value.unit, value.n, about, low, high, smallest)


def _most_of(needed: "Needed | None") -> float:
    return math.inf if needed is None or needed.n is None else float(needed.n)


@dataclass(frozen=True)
class Chance:
    """A requirement on a p-value. A large one shows nothing, so the criterion stays open then."""

    quantity: str
    limit: float

    def __str__(self) -> str:
        return f"{self.quantity} has p < {self.limit:g}"

    def of(self, p: float | None, *, needs: Needs | None = None) -> Condition:
        """The criterion once p is known."""
        if p is None:
            return Condition("open", f"p of {self.quantity} was not measured", counted=False)
        if p < self.limit:
            return Condition("holds", str(self))
        return Condition(
            "open", f"{self.quantity} has p = {p:.2g}, not below {self.limit:g}", needs
        )


@dataclass(frozen=True)
class Cases:
    """A requirement on several cases: each must meet all criteria at once."""

    which: str
    criteria: tuple[Criterion, ...]

    def __str__(self) -> str:
        return f"{self.which}, {' and '.join(map(str, self.criteria))}"


@dataclass(frozen=True)
class Count:
    """A requirement on a number of things that count, which is known exactly."""

    quantity: str
    least: int

    def __str__(self) -> str:
        return f"{self.quantity} is at least {self.least}"

    def of(self, count: int, *, case: str = "") -> Condition:
        """The requirement once they are counted."""
        named = f"{self.quantity} {case}".rstrip()
        if count >= self.least:
            return Condition("holds", f"{named} is at least {self.least}")
        return Condition("fails", f"{named} is {count}, not {self.least} or more")


Requirement = Criterion | Chance | Cases | Count
# From the worst to the best, for "all of them". An open criterion may turn out to fail, so it
# comes before one that says equal.
_ORDER: tuple[State, ...] = ("fails", "open", "equal", "holds")
_VERDICTS: dict[State, Verdict] = {
    "fails": "contradicted",
    "open": "undecided",
    "equal": "equivalent",
    "holds": "supported",
}


def every(conditions: Sequence[Condition]) -> Condition:
    """Several conditions as one: it fails if one fails, and holds if all hold."""
    for state in _ORDER[:-1]:
        mine = [condition for condition in conditions if condition.state == state]
        if mine:
            counted = all(condition.counted for condition in mine)
            return Condition(state, mine[0].why, most_needed(mine), counted)
    why = "; ".join(dict.fromkeys(condition.why for condition in conditions))
    return Condition("holds" if conditions else "open", why or "nothing was measured")


def most_needed(conditions: Sequence[Condition]) -> Needs | None:
    """What settles all of them: the most of what each needs."""
    needs = [condition.needs for condition in conditions if condition.needs is not None]
    return max(needs, key=lambda need: need.about or math.inf, default=None)


class Rule(NamedTuple):
    """The criteria of a claim, fixed before the run.

    The claim is not testable unless all premises hold. It is contradicted if one criterion fails,
    or if all of ``against`` holds. Otherwise it is undecided if a criterion is open, equivalent if
    one says equal, and supported if all hold.
    """

    criteria: tuple[Requirement, ...]
    premises: tuple[Requirement, ...] = ()
    against: tuple[Criterion, ...] = ()

    def __str__(self) -> str:
        text = f"Supported if the intervals show that {' and '.join(map(str, self.criteria))}. "
        text += "Contradicted if they show that "
        if self.against:
            text += " and ".join(map(str, self.against))
        else:
            text += "one of these is false" if len(self.criteria) > 1 else "this is false"
        if self.premises:
            text += f". Not testable unless {' and '.join(map(str, self.premises))}"
        return text

    def decide(self, measured: Mapping[Any, Condition]) -> Decision:
        """The verdict and its reason.

        Args:
            measured: a condition for every requirement of the rule.
        """
        for premise in self.premises:
            condition = measured[premise]
            if condition.state == "holds":
                continue
            if condition.counted:
                return Decision("not testable", condition.why)
            if condition.needs is not None:  # one seed decides nothing, not even this
                return Decision("undecided", condition.why, condition.needs)
            alone = self._decide(measured)
            if not any(measured[one].counted for one in self.criteria):
                return alone
            why = f"{condition.why}, so it is not known whether this premise holds"
            why = f"{why}; {ALONE} {alone}: {alone.why}"
            return Decision("not testable", why, alone=alone.verdict)
        return self._decide(measured)

    def _decide(self, measured: Mapping[Any, Condition]) -> Decision:
        """The verdict of the criteria."""
        if self.against and all(measured[one].state == "holds" for one in self.against):
            return Decision("contradicted", "; ".join(measured[one].why for one in self.against))
        conditions = [measured[criterion] for criterion in self.criteria]
        if not conditions:
            raise ValueError("a rule without criteria decides nothing")
        state = min((condition.state for condition in conditions), key=_ORDER.index)
        mine = [condition for condition in conditions if condition.state == state]
        margins = (c.margin for c in self.criteria if isinstance(c, Criterion))
        margin = next((m for m in margins if m is not None), None) if state == "equal" else None
        why = "; ".join(condition.why for condition in mine)
        return Decision(_VERDICTS[state], why, most_needed(mine), margin)
