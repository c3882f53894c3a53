"""What the rows of `recovery_basis` say of the first updates: claim C4."""

import math

from frenet.experiments.experiment import Breakdown, Estimate, Finding, Row, Rows, integer
from frenet.experiments.intervals import estimate, fraction, select
from frenet.experiments.setup.comparable import RECOVERY, K, by_condition, least_steps, of
from frenet.experiments.setup.recovery import LONGEST_PREFIX
from frenet.experiments.verdicts import Cases, Condition, Criterion, Rule, every, some, upper_end

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
