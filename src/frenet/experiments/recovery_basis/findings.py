"""What the rows of `recovery_basis` say: claims C2 (fixed planes) and C4 (the first updates)."""

import math
from typing import NamedTuple

from frenet.experiments.experiment import (
    Breakdown,
    Claim,
    Finding,
    Row,
    Rows,
    Scalar,
    integer,
)
from frenet.experiments.intervals import breakdown, estimate, fraction, over_seeds, select
from frenet.experiments.setup.comparable import (
    CASE,
    RECOVERY,
    K,
    by_condition,
    comparable,
    least_steps,
    of,
    reach,
)
from frenet.experiments.setup.recovery import LONGEST_PREFIX
from frenet.experiments.verdicts import Cases, Condition, Criterion, Rule, every, some, upper_end
from frenet.statistics.intervals import Estimate

# Bases that need neither the damaged point's gradients nor the recovery itself.
STATIC = ("gradients at start", "other tasks", "task vectors", "damage direction")
MOST_STATIC = 0.25
# Shares of displacement and loss that differ by less count as equal.
APART = 0.1


SMALL = Criterion(
    "the capture of the best static basis",
    below=(MOST_STATIC, "the capture of the prefix on the same recoveries"),
)
EACH = Cases(f"in each space, at k = {K}", (SMALL,))
PLANES = Rule((EACH,))


class Plane(NamedTuple):
    """The best static basis of one space and the prefix, with their captures."""

    space: str
    k: int
    best: str
    static: Estimate | None
    prefix: Estimate | None

    @property
    def condition(self) -> Condition:
        """Whether it captures little, and less than the prefix."""
        return SMALL.of(
            self.static, than=self.prefix, case=f"at k = {self.k} in the {self.space} space"
        )


def fixed_plane(rows: Rows) -> Finding:
    """C2: in every space the best static basis at k = 10 holds under 0.25, less than the prefix."""
    captures = comparable(rows)
    # A space of which no recovery counts leaves the claim open.
    tried = (*captures, *select(rows, table="recovery"))
    spaces = dict.fromkeys(str(row["space"]) for row in tried)
    planes = [_plane(select(captures, space=space), space) for space in spaces]
    # One space with a plane is enough against the claim; show the highest capture.
    order = ("fails", "open", "holds")
    planes.sort(key=lambda p: (order.index(p.condition.state), -p.static.value if p.static else 0))
    shown = planes[0] if planes else _plane([], "")
    verdict, why = PLANES.decide({EACH: every([plane.condition for plane in planes])})
    several = len(planes) > 1
    held, apart = _held(captures), _bases_apart(captures)
    return Finding(
        claim="C2",
        verdict=verdict,
        quantity=f"recovery captured by the best static basis ({shown.best}), k = {shown.k}"
        + (f", {shown.space} space" if several else ""),
        estimate=shown.static,
        reference="prefix",
        reference_estimate=shown.prefix,
        why=why,
        notes=(*_elsewhere(apart), *_not_function(held)),
        breakdowns=(*_each_space(planes), *held, *apart, *_outcomes(rows, captures)),
    )


def _plane(captures: Rows, space: str) -> Plane:
    shares = {
        name: value
        for name in STATIC
        if (value := fraction(select(captures, basis=name), "captured")) is not None
    }
    best = max(shares, key=lambda name: shares[name].value, default="none measured")
    prefix = fraction(select(captures, basis="prefix"), "captured")
    return Plane(space, reach(captures), best, shares.get(best), prefix)


def _each_space(planes: list[Plane]) -> tuple[Breakdown, ...]:
    """The best static basis of each of several spaces, and what the space alone would decide."""
    rows: list[Row] = []
    for plane in planes:
        estimates = {"captured": plane.static, "prefix": plane.prefix}
        row: Row = {"space": plane.space, "basis": plane.best, "k": plane.k}
        for name, value in estimates.items():
            row[name] = None if value is None else value.value
            row[f"{name}, low"] = None if value is None else value.low
            row[f"{name}, high"] = None if value is None else value.high
        rows.append({**row, "verdict": _alone(plane)})
    return (Breakdown("The best static basis of each space", tuple(rows)),) if rows[1:] else ()


def _alone(plane: Plane) -> str:
    """What one space alone would decide."""
    return PLANES.decide({EACH: plane.condition})[0]


def _held(captures: Rows) -> tuple[Breakdown, ...]:
    """What every basis holds, and what the displacement projected on it regains."""
    values = {
        "captured": "captured",
        "chance": "chance",
        "ceiling": "ceiling",
        "regained": "loss regained",
        "regained_full": "regained by the whole displacement",
    }
    title = "Share of a displacement in each basis, and loss that this part regains"
    counts = {"captured": "recoveries"}
    by = ("space", "basis", "k")
    return breakdown(title, captures, by=by, values=values, counts=counts, least=0.0)


def _bases_apart(captures: Rows) -> tuple[Breakdown, ...]:
    """What every basis holds under each damage and optimiser."""
    names = dict.fromkeys(str(row["basis"]) for row in captures)
    names.pop("prefix of replicate", None)
    rows: list[Row] = []
    for condition, part in by_condition(captures):
        table = over_seeds(part, by=("basis",), value="captured")
        held = {str(row["basis"]): row["value"] for row in table}
        count = len({of(row, RECOVERY) for row in part})
        rows.append(condition | {"recoveries": count} | {name: held.get(name) for name in names})
    title = f"Captured at k = {reach(captures)}, by damage and optimiser"
    return (Breakdown(title, tuple(rows)),) if rows else ()


def _elsewhere(apart: tuple[Breakdown, ...]) -> tuple[str, ...]:
    """Whether a static basis is not small under some damage and optimiser: the mean hides it."""
    conditions = [
        max(held)
        for _, rows in apart
        for row in rows
        if (held := [value for name in STATIC if isinstance(value := row.get(name), float)])
    ]
    large = [value for value in conditions if value >= MOST_STATIC]
    if not large:
        return ()
    return (
        f"Static bases do not miss every recovery: under {len(large)} of {len(conditions)} pairs "
        f"of damage and optimiser, one captures {MOST_STATIC} or more (up to {max(large):.2f}).",
    )


def _not_function(held: tuple[Breakdown, ...]) -> tuple[str, ...]:
    """Capture and function disagree: name the basis for which they do most."""
    pairs = [
        (abs(gain - captured), captured, gain, str(row["space"]), str(row["basis"]))
        for _, rows in held
        for row in rows
        if isinstance(captured := row["captured"], float)
        and isinstance(gain := row.get("loss regained"), float)
    ]
    apart, captured, gain, space, basis = max(pairs, default=(0.0, 0.0, 0.0, "", ""))
    if apart < APART:
        return ()
    return (
        f"Capture is not function: in the {space} space, the basis {basis!r} captures "
        f"{captured:.3f} of the displacement, but this part regains {gain:.2f} of the lost loss.",
    )


def _outcomes(rows: Rows, captures: Rows) -> tuple[Breakdown, ...]:
    """How many cases, each damaged once and recovered twice, count, and why the others do not."""
    statuses: dict[tuple[Scalar, ...], set[Scalar]] = {}
    for row in select(rows, table="recovery"):
        statuses.setdefault(of(row, CASE), set()).add(row["status"])
    counted = {of(row, CASE) for row in captures}
    reasons = [
        _reason(of_case, dict(zip(CASE, case, strict=True)), captures)
        for case, of_case in statuses.items()
        if case not in counted
    ]
    if not reasons:
        return ()
    counts = {"counts": len(statuses) - len(reasons)}
    counts |= {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}
    table: list[Row] = [
        {"outcome": outcome, "cases": cases, "of": len(statuses)}
        for outcome, cases in counts.items()
    ]
    return (Breakdown("Which cases count, and why others do not", tuple(table)),)


def _reason(statuses: set[Scalar], case: Row, captures: Rows) -> str:
    """Why a case gives no capture at k, from the statuses of its two recoveries."""
    if "not damaged" in statuses:
        return f"not damaged by {case['protocol']}"
    for reason in ("not recovered", "shallow"):
        if reason in statuses:
            return reason
    k = reach(select(captures, space=case["space"]))
    return f"recovered in fewer than the {least_steps(k)} steps that k = {k} needs"


PREFIX_SHARE = 0.77
# Less than this is not most of a displacement, however wide the interval.
MOST = 0.5


REACHING = Criterion("the upper end of the captured share", within=(PREFIX_SHARE, math.inf))
HOLDING = Criterion("the captured share", above=(MOST,))
LIFTED = Criterion("its lift over a random walk", above=(1.0,), contradicts=False)
FIRST = Cases(
    f"for LoRA recoveries and some k with k / T_stop <= {LONGEST_PREFIX}",
    (REACHING, HOLDING, LIFTED),
)
PREFIX = Rule((FIRST,))


def prefix_span(rows: Rows) -> Finding:
    """C4: for LoRA some k with k / T_stop <= 0.35 reaches 0.77, all above 0.5 and a lift of 1."""
    prefixes = select(rows, table="capture", basis="prefix")
    lora = [r for r in prefixes if r["space"] == "lora" and r.get("captured") is not None]
    sizes = sorted({integer(r, "k") for r in lora})
    at = {k: fraction(select(lora, k=k), "captured") for k in sizes}
    conditions = {k: _first(select(lora, k=k), k) for k in sizes}
    reaching = [k for k in sizes if conditions[k].state == "holds"]
    # Show the k with the closest share: a wide interval reaches far but says little.
    best = min(reaching or sizes, key=lambda k: _distance(at[k]), default=0)
    # If none holds, give the reason for the k that is shown.
    order = sorted(sizes, key=lambda k: k != best)
    verdict, why = PREFIX.decide({FIRST: some([conditions[k] for k in order])})
    return Finding(
        claim="C4",
        verdict=verdict,
        quantity=f"LoRA recovery captured by the first {best or 'few'} updates",
        estimate=at.get(best),
        reference="random-walk share",
        reference_estimate=fraction(select(lora, k=best), "walk_share"),
        why=why,
        notes=(*_not_recovered(rows), *_long_enough(rows, best)),
        breakdowns=_prefixes_apart(prefixes),
    )


def _first(rows: Rows, k: int) -> Condition:
    """What the first k updates hold; a lift that is not above 1 leaves it open."""
    held, case = fraction(rows, "captured"), f"at k = {k}"
    lift = estimate(rows, "lift")
    measured = ((REACHING, upper_end(held)), (HOLDING, held), (LIFTED, lift))
    return every([criterion.of(value, case=case) for criterion, value in measured])


def _distance(value: Estimate | None) -> float:
    return math.inf if value is None else abs(value.value - PREFIX_SHARE)


def _not_recovered(rows: Rows) -> tuple[str, ...]:
    """How many recoveries do not count because they did not reach the threshold."""
    table = select(rows, table="recovery", space="lora")
    lost = select(table, status="not recovered")
    if not lost:
        return ()
    return (
        f"{len(lost)} of {len(table)} LoRA recoveries did not reach the threshold within the "
        "allowed steps (--steps) and do not count.",
    )


def _long_enough(rows: Rows, k: int) -> tuple[str, ...]:
    """On how many recoveries k is measured: the others were too short."""
    table = [r for r in select(rows, table="recovery", space="lora") if r.get("stop") is not None]
    measured = {
        of(row, RECOVERY)
        for row in select(rows, table="capture", basis="prefix", space="lora", k=k)
        if row.get("captured") is not None
    }
    if not measured or len(measured) >= len(table):
        return ()
    return (
        f"k = {k} is measured on {len(measured)} of the {len(table)} LoRA recoveries that reached "
        f"the threshold, those of {least_steps(k)} steps or more; other k on other recoveries.",
    )


def _prefixes_apart(prefixes: Rows) -> tuple[Breakdown, ...]:
    """Share that the first steps capture, with a random walk's, and their share of the run."""
    rows: list[Row] = []
    for condition, part in by_condition([r for r in prefixes if r.get("captured") is not None]):
        k = max((integer(row, "k") for row in part if integer(row, "k") <= K), default=0)
        at = select(part, k=k)
        shares = {
            "k / T_stop": estimate(at, "k_over_stop"),
            "captured": fraction(at, "captured"),
            "captured of the rest": estimate(at, "rest"),
            "random walk": fraction(at, "walk_share"),
            "lift": estimate(at, "lift"),
        }
        values = {name: None if share is None else share.value for name, share in shares.items()}
        rows.append({**condition, "recoveries": len(at), "k": k, **values})
    title = "Share that the first k steps capture, by damage and optimiser"
    return (Breakdown(title, tuple(rows)),) if rows else ()


CLAIMS = (
    Claim(
        id="C2",
        statement="No fixed task plane: static bases miss the recovery direction",
        paper="yes, no number given",
        rule=f"{PLANES}. The static bases are {', '.join(STATIC)}. If no recovery is long enough "
        f"for k = {K}, the largest k below it counts",
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
