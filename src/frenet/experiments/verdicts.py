"""How a claim is decided: the criteria of a rule, in three-valued logic.

The criteria of a rule are written before its numbers are known. They give both the sentence of the
rule and the verdict, so that words and code always agree.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from frenet._errors import UsageError
from frenet.experiments.experiment import Rows, Verdict
from frenet.experiments.intervals import estimate_of, high, low, over_seeds, why_undecided
from frenet.statistics.intervals import Estimate

State = Literal["holds", "fails", "open"]


class Condition(NamedTuple):
    """A criterion once it is measured: whether it holds, and the sentence that says so."""

    state: State
    why: str


@dataclass(frozen=True)
class Criterion:
    """A requirement on a quantity: its whole interval lies beyond a line, or between two.

    Attributes:
        quantity: the subject of the sentence.
        above: lines that the interval may not touch, each a number, or the name of another measured
            quantity.
        below: the same on the other side.
        within: two lines that the interval may touch; infinite if there is only one.
        contradicts: whether it fails beyond its line; otherwise it stays open.
    """

    quantity: str
    above: tuple[float | str, ...] = ()
    below: tuple[float | str, ...] = ()
    within: tuple[float, float] | None = None
    contradicts: bool = True

    def __post_init__(self) -> None:
        if not (self.above or self.below or self.within):
            raise UsageError(
                f"the criterion of {self.quantity} has no line; pass above, below or within"
            )

    def __str__(self) -> str:
        return f"{self.quantity} is {self.predicate}"

    @property
    def predicate(self) -> str:
        """The predicate of the sentence.

        >>> Criterion("the ratio", above=(0.5,), below=(2.0, "the control")).predicate
        'above 0.5 and below 2 and the control'
        >>> Criterion("the share", within=(0.9, math.inf)).predicate
        'at least 0.9'
        """
        parts = []
        for side, lines in (("above", self.above), ("below", self.below)):
            if lines:
                parts.append(f"{side} {' and '.join(map(_line, lines))}")
        if self.within is not None:
            least, most = self.within
            if most == math.inf:
                parts.append(f"at least {least:g}")
            elif least == -math.inf:
                parts.append(f"at most {most:g}")
            else:
                parts.append(f"within [{least:g}, {most:g}]")
        return " and ".join(parts)

    def of(
        self, value: Estimate | None, *, than: Estimate | None = None, case: str = ""
    ) -> Condition:
        """The criterion once its quantity is measured.

        Args:
            value: with its interval; without one the criterion stays open.
            than: the quantity that ``above`` or ``below`` names.
            case: which of several cases it is, such as "in the full space".
        """
        named = f"{self.quantity} {case}".rstrip()
        parts = list(self._parts(value, than))
        failing = [words for state, words, _ in parts if state == "fails"]
        if failing:
            state: State = "fails" if self.contradicts else "open"
            return Condition(state, f"{named} is not {failing[0]}")
        for part, words, line in parts:
            if part == "open":
                unclear = f"{named} is not clearly {words}"
                other = unclear if line is None else why_undecided(than, unclear, of=line)
                return Condition("open", why_undecided(value, other, of=named))
        return Condition("holds", f"{named} is {self.predicate}")

    def _parts(
        self, value: Estimate | None, than: Estimate | None
    ) -> Iterator[tuple[State, str, str | None]]:
        """Every line by itself: its state, the words for it, and its name if it is measured."""
        for side, lines in (("above", self.above), ("below", self.below)):
            for line in lines:
                name = line if isinstance(line, str) else None
                other = exact(line) if not isinstance(line, str) else than
                over = (value, other) if side == "above" else (other, value)
                yield _greater(*over), f"{side} {_line(line)}", name
        if self.within is not None:
            least, most = self.within
            beyond = high(value) < least or low(value) > most
            inside = value is not None and least <= low(value) and high(value) <= most
            state: State = "fails" if beyond else "holds" if inside else "open"
            yield state, self.predicate, None


@dataclass(frozen=True)
class Cases:
    """A requirement on several cases: each, or some, must meet all criteria at once."""

    which: str
    criteria: tuple[Criterion, ...]

    def __str__(self) -> str:
        return f"{self.which}, {', '.join(map(str, self.criteria))}"


@dataclass(frozen=True)
class NoOutlier:
    """A requirement on every single case: it must not lie wholly beyond the line of a criterion.

    Opposite cases cancel in the mean. A case beyond the line leaves the claim open.
    """

    criterion: Criterion
    case: str
    by: tuple[str, ...]

    def __str__(self) -> str:
        return f"no single {self.case} lies wholly outside that on its own"

    def of(self, rows: Rows, value: str) -> Condition:
        """The condition for rows; their columns ``by`` name the case."""
        line = replace(self.criterion, contradicts=True)
        for row in over_seeds(rows, by=self.by, value=value):
            named = ", ".join(str(row[key]) for key in self.by)
            condition = line.of(estimate_of(row), case=f"for {named} alone")
            if condition.state == "fails":
                return Condition("open", condition.why)
        return Condition("holds", str(self))


Requirement = Criterion | Cases | NoOutlier


def every(conditions: Sequence[Condition]) -> Condition:
    """Several conditions as one: it fails if one fails, and holds if all hold."""
    for state in ("fails", "open"):
        for condition in conditions:
            if condition.state == state:
                return condition
    why = "; ".join(dict.fromkeys(condition.why for condition in conditions))
    return Condition("holds" if conditions else "open", why or "nothing was measured")


def some(conditions: Sequence[Condition]) -> Condition:
    """Several conditions as one: it holds if one holds, and fails if all fail."""
    for state in ("holds", "open", "fails"):
        mine = [condition for condition in conditions if condition.state == state]
        if mine:
            return mine[0]
    return Condition("open", "nothing was measured")


def alike(conditions: Sequence[Condition]) -> Condition:
    """Several cases as one condition: it holds if all hold, and fails only if all fail."""
    together = every(conditions)
    if together.state == "fails" and any(c.state != "fails" for c in conditions):
        return Condition("open", together.why)
    return together


_VERDICTS: tuple[tuple[State, Verdict], ...] = (
    ("fails", "contradicted"),
    ("open", "undecided"),
    ("holds", "supported"),
)


class Rule(NamedTuple):
    """The criteria of a claim, fixed before the run.

    The claim is undecided unless all premises hold. It is contradicted if one criterion fails,
    supported if all hold, and undecided otherwise.
    """

    criteria: tuple[Requirement, ...]
    premises: tuple[Requirement, ...] = ()

    def __str__(self) -> str:
        criteria = "; ".join(map(str, self.criteria))
        unless = " and ".join(map(str, self.premises))
        premise = f". Undecided unless {unless}" if unless else ""
        return f"{criteria}, with the whole interval over seeds{premise}"

    def decide(self, measured: Mapping[Requirement, Condition]) -> tuple[Verdict, str]:
        """The verdict and its reason.

        Args:
            measured: a condition for every criterion and premise of the rule.
        """
        for premise in self.premises:
            if measured[premise].state != "holds":
                return "undecided", measured[premise].why
        conditions = [measured[criterion] for criterion in self.criteria]
        for state, verdict in _VERDICTS:
            reasons = [condition.why for condition in conditions if condition.state == state]
            if reasons:
                return verdict, "; ".join(reasons)
        raise ValueError("a rule without criteria decides nothing")


def exact(value: float) -> Estimate:
    """A number that is given, or that counts as a line."""
    return Estimate(value, value, value, 0)


def upper_end(value: Estimate | None) -> Estimate | None:
    """The upper end of an interval as a line, if there is one."""
    return value if value is None or value.high is None else exact(value.high)


def _greater(one: Estimate | None, other: Estimate | None) -> State:
    """Whether the whole interval of one lies above that of the other."""
    if low(one) > high(other):
        return "holds"
    return "fails" if high(one) < low(other) else "open"


def _line(line: float | str) -> str:
    return line if isinstance(line, str) else f"{line:g}"
