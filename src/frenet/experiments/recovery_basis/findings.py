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
    Verdict,
    number,
)
from frenet.experiments.intervals import fraction, high, low, over_seeds, select, why_open, worded
from frenet.experiments.recovery_basis.prefix_findings import MOST, PREFIX_SHARE, prefix_span
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
from frenet.experiments.setup.recovery import LONGEST_PREFIX

# Bases that need neither the damaged point's gradients nor the recovery itself.
STATIC = ("gradients at start", "other tasks", "task vectors", "damage direction")
MOST_STATIC = 0.25
# Shares of displacement and loss that differ by less say the same.
APART = 0.1


class Plane(NamedTuple):
    """The best static basis of one space, beside the prefix, and what that decides."""

    space: str
    k: int
    best: str
    static: Estimate | None
    prefix: Estimate | None
    verdict: Verdict
    why: str


def fixed_plane(rows: Rows) -> Finding:
    """C2: in every space the best static basis at k = 10 holds under 0.25, less than the prefix."""
    captures = comparable(rows)
    spaces = dict.fromkeys(str(row["space"]) for row in captures)
    planes = [_plane(select(captures, space=space), space) for space in spaces]
    # One space with a plane is enough against the claim; the highest capture is the one to show.
    order = ("contradicted", "undecided", "supported")
    planes.sort(key=lambda p: (order.index(p.verdict), -p.static.value if p.static else 0.0))
    shown = planes[0] if planes else _plane([], "")
    several = len(planes) > 1
    parts = _bases_apart(captures)
    return Finding(
        claim="C2",
        verdict=shown.verdict,
        quantity=f"recovery captured by the best static basis ({shown.best}), k = {shown.k}"
        + (f", {shown.space} space" if several else ""),
        estimate=shown.static,
        reference="prefix",
        reference_estimate=shown.prefix,
        why=shown.why + (f" in the {shown.space} space" if several else ""),
        notes=(
            *_other_spaces(planes[1:]),
            *_elsewhere(parts),
            *_function_notes(captures),
            *_status_notes(rows, captures),
        ),
        breakdown=parts,
    )


def _plane(captures: Rows, space: str) -> Plane:
    verdict: Verdict
    found = {
        name: value
        for name in STATIC
        if (value := fraction(select(captures, basis=name), "captured")) is not None
    }
    best = max(found, key=lambda name: found[name].value, default="none measured")
    static, prefix = found.get(best), fraction(select(captures, basis="prefix"), "captured")
    if high(static) < min(MOST_STATIC, low(prefix)):
        verdict, why = "supported", f"below {MOST_STATIC} and below the prefix"
    elif low(static) > min(MOST_STATIC, high(prefix)):
        above = f"{MOST_STATIC}" if low(static) > MOST_STATIC else "the prefix"
        verdict, why = "contradicted", f"above {above}"
    else:
        straddles = f"the interval straddles {MOST_STATIC}, or overlaps with the prefix's"
        open_yet = why_open(prefix, straddles, of="the prefix")
        verdict, why = "undecided", why_open(static, open_yet)
    return Plane(space, reach(captures), best, static, prefix, verdict, why)


def _other_spaces(planes: list[Plane]) -> tuple[str, ...]:
    return tuple(
        f"In the {plane.space} space the best ({plane.best}) holds {worded(plane.static)}, the "
        f"prefix {worded(plane.prefix)}: {plane.verdict} there."
        for plane in planes
        if plane.static
    )


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
        rule=f"in each space the best of {', '.join(STATIC)} at k = {K} (where no recovery is long "
        f"enough for it, at the largest k below) captures under {MOST_STATIC}, and its upper end "
        "is below the prefix's lower end, on the same recoveries",
        decide=fixed_plane,
        figure="bases",
    ),
    Claim(
        id="C4",
        statement="The first recovery updates span most of a LoRA recovery",
        paper="0.77",
        rule=f"for LoRA some k with k / T_stop <= {LONGEST_PREFIX} has an interval reaching "
        f"{PREFIX_SHARE} with its lower end above {MOST}, and its lift's lower end is above 1",
        decide=prefix_span,
        figure="prefix",
    ),
)
