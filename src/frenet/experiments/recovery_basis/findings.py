"""What the rows of `recovery_basis` say of fixed planes: claim C2, and the claims."""

from typing import NamedTuple

from frenet.experiments.experiment import (
    Breakdown,
    Claim,
    Estimate,
    Finding,
    Row,
    Rows,
    Scalar,
    number,
)
from frenet.experiments.intervals import fraction, over_seeds, select, worded
from frenet.experiments.recovery_basis.prefix_findings import PREFIX, prefix_span
from frenet.experiments.setup.comparable import (
    CASE,
    RECOVERY,
    K,
    by_condition,
    comparable,
    least_steps,
    named,
    of,
    reach,
)
from frenet.experiments.verdicts import Cases, Condition, Criterion, Rule, every

# Bases that need neither the damaged point's gradients nor the recovery itself.
STATIC = ("gradients at start", "other tasks", "task vectors", "damage direction")
MOST_STATIC = 0.25
# Shares of displacement and loss that differ by less say the same.
APART = 0.1


SMALL = Criterion(
    f"what the best static basis holds at k = {K}",
    below=(MOST_STATIC, "what the prefix holds of the same recoveries"),
)
EACH = Cases("in each space", (SMALL,))
PLANES = Rule((EACH,))


class Plane(NamedTuple):
    """The best static basis of one space, with the prefix, and what that decides."""

    space: str
    k: int
    best: str
    static: Estimate | None
    prefix: Estimate | None

    @property
    def condition(self) -> Condition:
        """Whether it holds little, and less than the prefix."""
        return SMALL.of(self.static, than=self.prefix, case=f"in the {self.space} space")


def fixed_plane(rows: Rows) -> Finding:
    """C2: in every space the best static basis at k = 10 holds under 0.25, less than the prefix."""
    captures = comparable(rows)
    spaces = dict.fromkeys(str(row["space"]) for row in captures)
    planes = [_plane(select(captures, space=space), space) for space in spaces]
    # One space with a plane is enough against the claim; the highest capture is the one to show.
    order = ("fails", "open", "holds")
    planes.sort(key=lambda p: (order.index(p.condition.state), -p.static.value if p.static else 0))
    shown = planes[0] if planes else _plane([], "")
    verdict, why = PLANES.decide({EACH: every([plane.condition for plane in planes])})
    several = len(planes) > 1
    parts = _bases_apart(captures)
    return Finding(
        claim="C2",
        verdict=verdict,
        quantity=f"recovery captured by the best static basis ({shown.best}), k = {shown.k}"
        + (f", {shown.space} space" if several else ""),
        estimate=shown.static,
        reference="prefix",
        reference_estimate=shown.prefix,
        why=why,
        notes=(
            *_other_spaces(planes[1:]),
            *_elsewhere(parts),
            *_function_notes(captures),
            *_status_notes(rows, captures),
        ),
        breakdowns=(parts,) if parts else (),
    )


def _plane(captures: Rows, space: str) -> Plane:
    found = {
        name: value
        for name in STATIC
        if (value := fraction(select(captures, basis=name), "captured")) is not None
    }
    best = max(found, key=lambda name: found[name].value, default="none measured")
    prefix = fraction(select(captures, basis="prefix"), "captured")
    return Plane(space, reach(captures), best, found.get(best), prefix)


def _other_spaces(planes: list[Plane]) -> tuple[str, ...]:
    return tuple(
        f"In the {plane.space} space the best ({plane.best}) holds {worded(plane.static)}, the "
        f"prefix {worded(plane.prefix)}: {_alone(plane)} there."
        for plane in planes
        if plane.static
    )


def _alone(plane: Plane) -> str:
    """What one space alone would decide."""
    return PLANES.decide({EACH: plane.condition})[0]


def _bases_apart(captures: Rows) -> Breakdown | None:
    """What every basis holds; those at the damaged point stand beside the verdict."""
    names = dict.fromkeys(str(row["basis"]) for row in captures)
    names.pop("prefix of replicate", None)
    rows: list[Row] = []
    for condition, part in by_condition(captures):
        table = over_seeds(part, by=("basis",), value="captured")
        held = {str(row["basis"]): row["value"] for row in table}
        count = len({of(row, RECOVERY) for row in part})
        rows.append(condition | {"recoveries": count} | {name: held.get(name) for name in names})
    title = f"Captured at k = {reach(captures)}, by damage and optimiser"
    return Breakdown(title, tuple(rows)) if rows else None


def _elsewhere(parts: Breakdown | None) -> tuple[str, ...]:
    """Damages and optimisers under which a static basis is not small: the mean hides them."""
    found = []
    for row in parts.rows if parts else ():
        held = {name: value for name in STATIC if isinstance(value := row.get(name), float)}
        if held:
            found.append((named(row), *max(held.items(), key=lambda pair: pair[1])))
    large = sorted((f for f in found if f[2] >= MOST_STATIC), key=lambda f: -f[2])
    if not large:
        return ()
    listed = "; ".join(f"{where} ({name} {value:.2f})" for where, name, value in large)
    chance = [v for row in parts.rows if isinstance(v := row.get("random"), float)] if parts else []
    beside = f" (a random one at most {max(chance):.2g})" if chance else ""
    return (
        f"Not everywhere: under {len(large)} of {len(found)} damages and optimisers a static basis "
        f"holds {MOST_STATIC} or more{beside}: {listed}.",
    )


def _function_notes(captures: Rows) -> tuple[str, ...]:
    """Capture and function disagree: name the pair that does most."""
    both = [row for row in captures if row.get("regained") is not None]
    by_basis = {
        str(row["basis"]): number(row, "value")
        for row in over_seeds(both, by=("basis",), value="captured")
    }
    gains = over_seeds(both, by=("basis",), value="regained")
    apart = [(str(row["basis"]), number(row, "value")) for row in gains]
    if not apart:
        return ()
    name, gain = max(apart, key=lambda pair: abs(pair[1] - by_basis[pair[0]]))
    if abs(gain - by_basis[name]) < APART:
        return ()
    return (
        f"Capture is not function: {name} holds {by_basis[name]:.3f} of the displacement, and the "
        f"displacement projected on it regains {gain:.2f} of the lost loss.",
    )


def _status_notes(rows: Rows, captures: Rows) -> tuple[str, ...]:
    """How many cases, each damaged once and recovered twice, count, and why the others do not."""
    statuses: dict[tuple[Scalar, ...], set[Scalar]] = {}
    for row in select(rows, table="recovery"):
        statuses.setdefault(of(row, CASE), set()).add(row["status"])
    counted = {of(row, CASE) for row in captures}
    reasons = [
        _reason(found, dict(zip(CASE, case, strict=True)), captures)
        for case, found in statuses.items()
        if case not in counted
    ]
    if not reasons:
        return ()
    listed = ", ".join(f"{reasons.count(reason)} {reason}" for reason in dict.fromkeys(reasons))
    return (f"Of {len(statuses)} cases {len(counted)} count. The others: {listed}.",)


def _reason(statuses: set[Scalar], case: Row, captures: Rows) -> str:
    """Why a case gives no capture at k, from the statuses of its two recoveries."""
    if "not damaged" in statuses:
        return f"not damaged by {case['protocol']}"
    for reason in ("not recovered", "shallow"):
        if reason in statuses:
            return reason
    k = reach(select(captures, space=case["space"]))
    return f"recovered in fewer than the {least_steps(k)} steps that k = {k} needs"


CLAIMS = (
    Claim(
        id="C2",
        statement="No fixed task plane: static bases miss the recovery direction",
        paper="they miss it",
        rule=f"{PLANES}. Static are {', '.join(STATIC)}. If no recovery is long enough for "
        f"k = {K}, the largest k below it counts",
        decide=fixed_plane,
        figure="bases",
    ),
    Claim(
        id="C4",
        statement="The first recovery updates span most of a LoRA recovery",
        paper="0.77",
        rule=str(PREFIX),
        decide=prefix_span,
        figure="prefix",
    ),
)
