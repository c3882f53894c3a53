"""What the rows of `recovery_basis` say: claims C2 (fixed planes) and C4 (the first updates)."""

import math
import statistics
from collections.abc import Mapping, Sequence
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
    number,
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
    IN_WEIGHTS,
    RECOVERY,
    WEIGHTS,
    K,
    by_condition,
    captures_of,
    comparable,
    least_steps,
    of,
    reach,
)
from frenet.experiments.setup.recovery import HOPELESS
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
    f"Of the rates of Adam, the largest counts with two recoveries of {STEPS[0]} steps or more in "
    f"every seed, and a median of at most {STEPS[1]}; it is chosen without a look at captures"
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
    f"the smallest number of recoveries of one seed with {least_steps(K)} steps or more", least=2
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


def fixed_plane(rows: Rows) -> tuple[Finding, ...]:
    """C2: in every space the best static basis holds under 0.25, and less than the prefix.

    LoRA's recoveries are judged in its factors and, as a case of its own, in the weights.
    """
    captures = comparable(rows)
    tried = (*captures, *select(rows, table="recovery"))
    spaces = list(dict.fromkeys(str(row["space"]) for row in tried))
    found = _planes(rows, captures, [space for space in spaces if space != WEIGHTS])
    if not select(captures_of(rows), space=WEIGHTS):
        return (found._replace(breakdowns=(*found.breakdowns, *_outcomes(rows, captures))),)
    between = _factors_and_weights(captures, (*STATIC, "prefix"))
    outcomes = (*between, *_outcomes(rows, captures))
    return (
        found._replace(breakdowns=(*found.breakdowns, *outcomes)),
        _planes(rows, captures, [WEIGHTS])._replace(case=IN_WEIGHTS),
    )


def _planes(rows: Rows, captures: Rows, spaces: list[str]) -> Finding:
    """The finding of some spaces."""
    planes = [_plane(rows, select(captures, space=space), space) for space in spaces]
    # The worst space counts; of equal ones, show the highest capture.
    planes.sort(key=lambda p: (WORST.index(p.decision.verdict), -p.static.value if p.static else 0))
    shown = planes[0] if planes else _plane([], [], "")
    mine = [row for row in captures if row["space"] in spaces]
    held, apart = _held(mine), _bases_apart(mine)
    return Finding(
        claim="C2",
        decision=shown.decision,
        quantity=f"recovery captured by the best static basis ({shown.best}), k = {K}"
        + (f", {shown.space} space" if len(planes) > 1 else ""),
        estimate=shown.static,
        reference="prefix",
        reference_estimate=shown.prefix,
        notes=(*_elsewhere(apart), *_not_function(held)),
        breakdowns=(*_each_space(planes), *held, *apart),
    )


def _plane(rows: Rows, captures: Rows, space: str) -> Plane:
    at_k = captures if reach(captures) == K else []
    shares = {
        name: value
        for name in STATIC
        if (value := share(select(at_k, basis=name), "captured")) is not None
    }
    best = max(shares, key=lambda name: shares[name].value, default="none measured")
    prefix, tried = select(at_k, basis="prefix"), max(len(shares), 1)
    case, moved = (IN_WEIGHTS, "lora") if space == WEIGHTS else (f"in the {space} space", space)
    conditions = [
        LESS.of(lead(prefix, select(at_k, basis=best), "captured"), case=case, best_of=tried),
        SMALL.of(shares.get(best), case=case, best_of=tried),
    ]
    decision = PLANES.decide(
        {
            EACH: every(conditions),
            REPLICATED: replicated(select(rows, space=moved), case),
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
    """How many recoveries count, and why the others do not; without damage there is none."""
    counted = {of(row, RECOVERY) for row in captures}
    tried = select(rows, table="recovery")
    reasons = [_reason(row, captures) for row in tried if of(row, RECOVERY) not in counted]
    if not reasons:
        return ()
    counts = {"counts": len(tried) - len(reasons)}
    counts |= {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}
    table: list[Row] = [
        {"outcome": outcome, "recoveries": number, "of": len(tried)}
        for outcome, number in counts.items()
    ]
    return (Breakdown("Which recoveries count, and why others do not", tuple(table)),)


def _reason(recovery: Mapping[str, Scalar], captures: Rows) -> str:
    """Why a recovery gives no capture at k."""
    if recovery["status"] == "not damaged":
        return f"not damaged by {recovery['protocol']}"
    if recovery["status"] != "recovered":
        return str(recovery["status"])
    k = reach(select(captures, space=recovery["space"]))
    return f"recovered in fewer than the {least_steps(k)} steps that k = {k} needs"


def _factors_and_weights(captures: Rows, bases: Sequence[str]) -> tuple[Breakdown, ...]:
    """What LoRA's bases hold in the factors and in the weights, and the difference by seed."""
    rows: list[Row] = []
    sizes = dict.fromkeys((str(row["basis"]), integer(row, "k")) for row in captures)
    for basis, k in ((basis, k) for basis, k in sizes if basis in bases):
        factors, weights = (
            select(captures, space=space, basis=basis, k=k) for space in ("lora", WEIGHTS)
        )
        apart = lead(factors, weights, "captured")
        if apart is None:
            continue
        sides = {"in the factors": factors, "in the weights": weights}
        means = {name: share(part, "captured") for name, part in sides.items()}
        row: Row = {"basis": basis, "k": k}
        row |= {name: None if mean is None else mean.value for name, mean in means.items()}
        row |= {"difference": apart.value, "low": apart.low, "high": apart.high, "seeds": apart.n}
        rows.append(row)
    title = "LoRA: captured in the factors and in the weights, and the difference, paired by seed"
    return (Breakdown(title, tuple(rows)),) if rows else ()


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


def prefix_span(rows: Rows) -> tuple[Finding, ...]:
    """C4a: the first 10 steps hold more than half of a LoRA recovery, more than a random walk's."""
    recovered = at_chosen_rate(rows)
    found = []
    for case, space in _cases(rows):
        at_k = _prefixes(recovered, space)
        held = share(at_k, "captured")
        decision = SPAN.decide(
            {
                HOLDING: HOLDING.of(held, case=case),
                LIFTED: LIFTED.of(paired(at_k, "captured", "walk_share"), case=case),
                **_premises(recovered, at_k, case),
            }
        )
        found.append(
            Finding(
                claim="C4a",
                decision=decision,
                quantity=_captured(at_k, space),
                estimate=held,
                reference="random-walk share",
                reference_estimate=share(at_k, "walk_share"),
                notes=(*_no_rate(rows, recovered), *_not_recovered(rows)),
                breakdowns=_prefixes_apart(rows, space),
                case=case,
            )
        )
    prefixes = [row for row in captures_of(recovered) if row["basis"] == "prefix"]
    between = _factors_and_weights(prefixes, ("prefix",))
    return (found[0]._replace(breakdowns=(*found[0].breakdowns, *between)), *found[1:])


def prefix_as_paper(rows: Rows) -> tuple[Finding, ...]:
    """C4b: that share equals the paper's within 0.1."""
    recovered = at_chosen_rate(rows)
    found = []
    for case, space in _cases(rows):
        at_k = _prefixes(recovered, space)
        held = share(at_k, "captured")
        of_paper = {AS_PAPER: AS_PAPER.of(held, case=case)}
        side = "" if held is None else " (above it)" if held.value > PAPER else " (below it)"
        found.append(
            Finding(
                claim="C4b",
                decision=SAME.decide({**of_paper, **_premises(recovered, at_k, case)}),
                quantity=_captured(at_k, space),
                estimate=held,
                reference=f"the paper's share{side}; equal within {NEAR}",
                reference_estimate=Estimate(PAPER, n=0),
                case=case,
            )
        )
    return tuple(found)


def _cases(rows: Rows) -> list[tuple[str, str]]:
    """The cases of C4 with the spaces of their captures; old rows have none in the weights."""
    measured = select(captures_of(rows), space=WEIGHTS)
    return [("", "lora"), (IN_WEIGHTS, WEIGHTS)] if measured else [("", "lora")]


def at_chosen_rate(rows: Rows) -> Rows:
    """Rows of LoRA recoveries by Adam at the rate that counts, chosen without a look at capture.

    It is the largest rate with two recoveries of 29 steps or more in every seed, and a median of at
    most 60.
    """
    lora = select(rows, space="lora")
    inside = [
        name
        for name, median in _medians(rows).items()
        if median <= STEPS[1] and replicated(select(lora, optimizer=name)).state == "holds"
    ]
    largest = max(inside, key=lambda name: float(name.partition(":")[2]), default=None)
    return select(rows, space="lora", optimizer=largest) if largest else []


def _medians(rows: Rows) -> dict[str, float]:
    """Median steps of LoRA's recoveries at every rate of Adam.

    One that did not arrive counts as longer than all others.
    """
    steps: dict[str, list[float]] = {}
    for row in select(rows, table="recovery", space="lora"):
        if row["status"] != "not damaged" and str(row["optimizer"]).startswith("adam"):
            stop = number(row, "stop") if row.get("stop") else math.inf
            steps.setdefault(str(row["optimizer"]), []).append(stop)
    return {name: statistics.median(stops) for name, stops in steps.items()}


def _prefixes(recovered: Rows, space: str) -> Rows:
    table = select(captures_of(recovered), space=space, basis="prefix", k=K)
    return [row for row in table if row.get("captured") is not None]


def _premises(recovered: Rows, at_k: Rows, case: str) -> dict[Requirement, Condition]:
    walk = WALK.of(share(at_k, "walk_share"), case=case)
    return {REPLICATED: replicated(recovered), WALK: walk}


def _captured(at_k: Rows, space: str) -> str:
    rate = f", {at_k[0]['optimizer']}" if at_k else ""
    place = IN_WEIGHTS if space == WEIGHTS else "in the factors"
    return f"LoRA recovery captured by the first {K} updates{rate}, {place}"


def _no_rate(rows: Rows, recovered: Rows) -> tuple[str, ...]:
    """The medians of all rates, if none of them counts."""
    medians = _medians(rows)
    if recovered or not medians:
        return ()
    shown = ", ".join(
        f"{name} {median:g} steps" if median < math.inf else f"{name} not recovered"
        for name, median in medians.items()
    )
    return (
        f"No rate has two recoveries of {STEPS[0]} steps or more in every seed, and a median of at "
        f"most {STEPS[1]} (medians: {shown}); pass rates between or beyond them as "
        "--lora-optimizers.",
    )


def _not_recovered(rows: Rows) -> tuple[str, ...]:
    """How many recoveries do not count because they did not reach the threshold."""
    table = select(rows, table="recovery", space="lora")
    lost = select(table, status="not recovered")
    if not lost:
        return ()
    longest = max(integer(row, "longest") for row in lost)
    return (
        f"{len(lost)} of {len(table)} LoRA recoveries did not reach the threshold within "
        f"{longest} steps ({HOPELESS} times --steps) and do not count.",
    )


def _prefixes_apart(run: Rows, space: str) -> tuple[Breakdown, ...]:
    """Share that the first steps capture, with a random walk's, and their share of the run.

    ``space`` is "lora", which has all rows that are not in the weights, or WEIGHTS.
    """
    rows: list[Row] = []
    prefixes = [
        row
        for row in select(captures_of(run), basis="prefix")
        if (row["space"] == WEIGHTS) == (space == WEIGHTS)
    ]
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
        short="Static bases miss the recovery",
        against="first steps",
        paper="yes; a second-hand reading gives 0.15",
        rule=f"{PLANES}. The static bases are {', '.join(STATIC)}. The best is chosen "
        f"on the same seeds, so a contradiction needs an interval of {1 - 0.05 / len(STATIC):.2%}. "
        "The worst space counts",
        decide=fixed_plane,
        figure="bases",
        across=Across(
            f"recovery captured by the best static basis, k = {K}",
            levels=SMALL.levels,
            reference="prefix",
            limits=(0.0, 1.0),
            supports=SMALL.lines,
        ),
        says=(
            "the best fixed basis holds {value} of a recovery",
            "its own first steps {reference}",
        ),
    ),
    Claim(
        id="C4a",
        statement="The first recovery updates span most of a LoRA recovery",
        short="First steps hold most of recovery",
        against="random walk",
        paper="0.77",
        rule=f"{SPAN}. {RATE}",
        decide=prefix_span,
        figure="prefix",
        across=Across(
            f"LoRA recovery captured by its first {K} steps",
            levels=HOLDING.levels,
            reference="random-walk share",
            limits=(0.0, 1.0),
            supports=HOLDING.lines,
        ),
        says=(
            f"the first {K} steps hold {{value}} of a LoRA recovery",
            "a random walk's {reference}",
        ),
    ),
    Claim(
        id="C4b",
        statement="They span as much as in the paper",
        short="First steps hold the paper's share",
        against="paper",
        paper="0.77",
        rule=f"{SAME}. {RATE}",
        decide=prefix_as_paper,
        figure="prefix",
        across=Across(
            f"LoRA recovery captured by its first {K} steps",
            levels=AS_PAPER.levels,
            reference="the paper's share",
            limits=(0.0, 1.0),
            supports=AS_PAPER.lines,
        ),
        says=(f"the first {K} steps hold {{value}}", "in the paper {reference}"),
    ),
)
