"""What the rows of `recovery_basis` say: claims C2 (fixed planes) and C4 (the first updates)."""

import statistics
from typing import NamedTuple

from frenet.experiments.experiment import (
    Across,
    Breakdown,
    Claim,
    Decision,
    Finding,
    Row,
    Rows,
    Scalar,
    integer,
)
from frenet.experiments.intervals import (
    breakdown,
    estimate,
    over_seeds,
    paired,
    seed_means,
    select,
    share,
)
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
from frenet.experiments.verdicts import (
    Cases,
    Condition,
    Count,
    Criterion,
    Requirement,
    Rule,
    every,
)
from frenet.statistics.intervals import Estimate

# From the worst to the best.
WORST = ("contradicted", "not testable", "undecided", "supported")
# Of a prefix that a random walk would hold as well nothing can be said.
MOST_WALK = 0.8
# Steps of a recovery at the rate that counts for C4.
STEPS = (least_steps(K), 60)
RATE = (
    f"Of the rates of Adam, the largest with a median recovery of {STEPS[0]} to {STEPS[1]} steps "
    "counts; it is chosen without a look at captures"
)
# Bases that need neither the damaged point's gradients nor the recovery itself.
STATIC = ("gradients at start", "other tasks", "task vectors", "damage direction")
MOST_STATIC = 0.25
# Shares of displacement and loss that differ by less count as equal.
APART = 0.1


PREFIX = f"the capture of the prefix at k = {K}"
STATICS = f"the capture of the best static basis at k = {K}"
SMALL = Criterion(STATICS, below=MOST_STATIC)
LESS = Criterion(PREFIX, over="that of the best static basis on the same recoveries")
REPLICATED = Count(
    f"the smallest number of recoveries of one seed with {least_steps(K)} steps or more,", least=2
)
WALK = Criterion("the random walk's share of the prefix", below=MOST_WALK)
EACH = Cases("in each space", (LESS, SMALL))
PLANES = Rule((EACH,), premises=(REPLICATED, WALK))


class Plane(NamedTuple):
    """The best static basis of one space and the prefix, with their captures.

    Attributes:
        space: of the recoveries.
        best: name of the static basis.
        static: its capture.
        prefix: that of the prefix.
        decision: what this space alone decides.
    """

    space: str
    best: str
    static: Estimate | None
    prefix: Estimate | None
    decision: Decision


def fixed_plane(rows: Rows) -> Finding:
    """C2: in every space the best static basis holds under 0.25, and less than the prefix."""
    captures = comparable(rows)
    tried = (*captures, *select(rows, table="recovery"))
    spaces = list(dict.fromkeys(str(row["space"]) for row in tried))
    planes = [_plane(rows, select(captures, space=space), space) for space in spaces]
    # The worst space counts; of equal ones, show the highest capture.
    planes.sort(key=lambda p: (WORST.index(p.decision.verdict), -p.static.value if p.static else 0))
    shown = planes[0] if planes else _plane([], [], "")
    held, apart = _held(captures), _bases_apart(captures)
    return Finding(
        claim="C2",
        decision=shown.decision,
        quantity=f"recovery captured by the best static basis ({shown.best}), k = {K}"
        + (f", {shown.space} space" if len(planes) > 1 else ""),
        estimate=shown.static,
        reference="prefix",
        reference_estimate=shown.prefix,
        notes=(*_elsewhere(apart), *_not_function(held)),
        breakdowns=(*_each_space(planes), *held, *apart, *_outcomes(rows, captures)),
    )


def _plane(rows: Rows, captures: Rows, space: str) -> Plane:
    at_k = captures if reach(captures) == K else []
    shares = {
        name: value
        for name in STATIC
        if (value := share(select(at_k, basis=name), "captured")) is not None
    }
    best = max(shares, key=lambda name: shares[name].value, default="none measured")
    prefix, case = select(at_k, basis="prefix"), f"in the {space} space"
    conditions = [
        LESS.of(lead(prefix, select(at_k, basis=best), "captured"), case=case),
        SMALL.of(shares.get(best), case=case),
    ]
    decision = PLANES.decide(
        {
            EACH: every(conditions),
            REPLICATED: replicated(select(rows, space=space), case),
            WALK: WALK.of(share(prefix, "walk_share"), case=case),
        }
    )
    return Plane(space, best, shares.get(best), share(prefix, "captured"), decision)


def replicated(rows: Rows, case: str = "") -> Condition:
    """Whether every seed has recoveries that are long enough for k = 10."""
    seeds = {row["seed"]: 0 for row in select(rows, table="recovery")}
    for row in select(rows, table="recovery"):
        seeds[row["seed"]] += integer(row, "stop") >= least_steps(K) if row.get("stop") else 0
    return REPLICATED.of(min(seeds.values(), default=0), case=case)


def lead(first: Rows, second: Rows, value: str) -> Estimate | None:
    """A column in some rows minus the same in others, paired by seed."""
    others = {row["seed"]: row[value] for row in seed_means(second, by=(), value=value)}
    both = [
        {**row, "other": others[row["seed"]]}
        for row in seed_means(first, by=(), value=value)
        if row["seed"] in others
    ]
    return paired(both, value, "other")


def _each_space(planes: list[Plane]) -> tuple[Breakdown, ...]:
    """The best static basis of each of several spaces, and what the space alone would decide."""
    rows: list[Row] = []
    for plane in planes:
        estimates = {"captured": plane.static, "prefix": plane.prefix}
        row: Row = {"space": plane.space, "basis": plane.best}
        for name, value in estimates.items():
            row[name] = None if value is None else value.value
            row[f"{name}, low"] = None if value is None else value.low
            row[f"{name}, high"] = None if value is None else value.high
        rows.append({**row, "verdict": str(plane.decision)})
    return (Breakdown("The best static basis of each space", tuple(rows)),) if rows[1:] else ()


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


PAPER, NEAR = 0.77, 0.1
# Less than this is not most of a displacement.
MOST = 0.5
LORA = f"the share of LoRA recoveries that the first {K} steps capture"
HOLDING = Criterion(LORA, above=MOST)
LIFTED = Criterion(LORA, over="the random walk's share")
PREMISES = (REPLICATED, WALK)
SPAN = Rule((HOLDING, LIFTED), premises=PREMISES)
AS_PAPER = Criterion(LORA, within=(round(PAPER - NEAR, 2), round(PAPER + NEAR, 2)))
SAME = Rule((AS_PAPER,), premises=PREMISES)


def prefix_span(rows: Rows) -> Finding:
    """C4a: the first 10 steps hold more than half of a LoRA recovery, more than a random walk's."""
    recovered = at_chosen_rate(rows)
    at_k = _prefixes(recovered)
    held = share(at_k, "captured")
    return Finding(
        claim="C4a",
        decision=SPAN.decide(
            {
                HOLDING: HOLDING.of(held),
                LIFTED: LIFTED.of(paired(at_k, "captured", "walk_share")),
                **_premises(recovered, at_k),
            }
        ),
        quantity=_captured(at_k),
        estimate=held,
        reference="random-walk share",
        reference_estimate=share(at_k, "walk_share"),
        notes=_not_recovered(rows),
        breakdowns=_prefixes_apart(rows),
    )


def prefix_as_paper(rows: Rows) -> Finding:
    """C4b: that share equals the paper's within 0.1."""
    recovered = at_chosen_rate(rows)
    at_k = _prefixes(recovered)
    held = share(at_k, "captured")
    decision = SAME.decide({AS_PAPER: AS_PAPER.of(held), **_premises(recovered, at_k)})
    side = "" if held is None else " (above it)" if held.value > PAPER else " (below it)"
    return Finding(
        claim="C4b",
        decision=decision,
        quantity=_captured(at_k),
        estimate=held,
        reference=f"the paper's share{side}; equal within {NEAR}",
        reference_estimate=Estimate(PAPER, n=0),
    )


def at_chosen_rate(rows: Rows) -> Rows:
    """Rows of LoRA recoveries by Adam at the rate that counts, chosen without a look at capture.

    It is the largest rate with a median recovery of 29 to 60 steps.
    """
    lora = [dict(row) for row in rows if row.get("space") == "lora" and row.get("optimizer")]
    stops: dict[str, list[int]] = {}
    for row in select(lora, table="recovery"):
        if row.get("stop") and str(row["optimizer"]).startswith("adam"):
            stops.setdefault(str(row["optimizer"]), []).append(integer(row, "stop"))
    inside = [
        name for name, steps in stops.items() if STEPS[0] <= statistics.median(steps) <= STEPS[1]
    ]
    largest = max(inside, key=lambda name: float(name.partition(":")[2]), default=None)
    return select(lora, optimizer=largest)


def _prefixes(recovered: Rows) -> Rows:
    table = select(recovered, table="capture", basis="prefix", k=K)
    return [row for row in table if row.get("captured") is not None]


def _premises(recovered: Rows, at_k: Rows) -> dict[Requirement, Condition]:
    return {REPLICATED: replicated(recovered), WALK: WALK.of(share(at_k, "walk_share"))}


def _captured(at_k: Rows) -> str:
    rate = f", {at_k[0]['optimizer']}" if at_k else ""
    return f"LoRA recovery captured by the first {K} updates{rate}"


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


def _prefixes_apart(run: Rows) -> tuple[Breakdown, ...]:
    """Share that the first steps capture, with a random walk's, and their share of the run."""
    rows: list[Row] = []
    prefixes = select(run, table="capture", basis="prefix")
    for condition, part in by_condition([r for r in prefixes if r.get("captured") is not None]):
        k = max((integer(row, "k") for row in part if integer(row, "k") <= K), default=0)
        at = select(part, k=k)
        shares = {
            "k / T_stop": estimate(at, "k_over_stop"),
            "captured": share(at, "captured"),
            "captured of the rest": estimate(at, "rest"),
            "random walk": share(at, "walk_share"),
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
        paper="yes; a second-hand reading gives 0.15",
        rule=f"{PLANES}. The static bases are {', '.join(STATIC)}. The worst space counts",
        decide=fixed_plane,
        figure="bases",
        across=Across(
            f"recovery captured by the best static basis of the worst space, k = {K}",
            levels=SMALL.levels,
            reference="prefix",
            limits=(0.0, 1.0),
        ),
    ),
    Claim(
        id="C4a",
        statement="The first recovery updates span most of a LoRA recovery",
        paper="0.77",
        rule=f"{SPAN}. {RATE}",
        decide=prefix_span,
        figure="prefix",
        across=Across(
            f"LoRA recovery captured by its first {K} steps",
            levels=HOLDING.levels,
            reference="random-walk share",
            limits=(0.0, 1.0),
        ),
    ),
    Claim(
        id="C4b",
        statement="They span as much as in the paper",
        paper="0.77",
        rule=f"{SAME}. {RATE}",
        decide=prefix_as_paper,
        figure="prefix",
        across=Across(
            f"LoRA recovery captured by its first {K} steps",
            levels=AS_PAPER.levels,
            reference="the paper's share",
            limits=(0.0, 1.0),
        ),
    ),
)
