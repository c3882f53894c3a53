"""What the rows of `subspace_training` say: two questions of our own, S1 and S2."""

from collections import Counter
from collections.abc import Iterator, Sequence

from frenet.experiments.experiment import (
    Claim,
    Estimate,
    Finding,
    Row,
    Rows,
    integer,
    number,
)
from frenet.experiments.intervals import estimate, select
from frenet.experiments.setup.comparable import of
from frenet.experiments.setup.recovery import LONGEST_PREFIX
from frenet.experiments.verdicts import Criterion, Rule

K = 10
ALL, UNSWEPT = "all coordinates", "all, at the run's rate"
# Bases from the damaged point on, and bases that come after the first k steps of the run.
FIXED = ("prefix", "gradients", "Adam-scaled gradients", "random")
MOVING = ("prefix from step k", "moving prefix", "random from step k", "moving random")
# Every basis, and the random directions that get as many full steps.
CHANCE = {
    **dict.fromkeys(FIXED, "random"),
    "prefix from step k": "random from step k",
    "moving prefix": "moving random",
    "random from step k": "random from step k",
    "moving random": "moving random",
}
CASE = ("seed", "space", "task", "protocol", "optimizer")
OWN = "not in the paper: a question of our own"


LEADS = "A lead is a difference of the shares of the lost loss that are regained, paired by case"
BETTER = Criterion(f"the lead of the prefix over the best of {', '.join(FIXED[1:])}", above=(0.0,))
BEST_FIXED = Rule((BETTER,))
LEAD = "the lead of a prefix that is refreshed after every k steps inside over"
PAYS = Criterion(f"{LEAD} one that stays", above=(0.0,))
BEYOND_STEPS = Criterion(
    f"{LEAD} random directions refreshed with as many full steps", above=(0.0,)
)
REFRESHING = Rule((PAYS, BEYOND_STEPS))


def fixed_prefix(rows: Rows) -> Finding:
    """S1: at equal k and steps the prefix regains more than the best of the other bases."""
    table = at_k(select(rows, table="trained"))
    others = {name: found for name in FIXED[1:] if (found := _share(table, name)) is not None}
    best = max(others, key=lambda name: others[name].value, default="none measured")
    more = estimate(_paired(table, "prefix", best), "difference")
    verdict, why = BEST_FIXED.decide({BETTER: BETTER.of(more)})
    return Finding(
        claim="S1",
        verdict=verdict,
        quantity=f"share of the lost loss regained inside the prefix, minus that inside {best}, "
        f"k = {_k(table)}",
        estimate=more,
        reference=f"share regained inside {best}",
        reference_estimate=others.get(best),
        why=why,
        notes=(
            *_share_notes(table),
            *_difference_notes(table, "prefix", (*FIXED[1:], ALL, UNSWEPT)),
            *_stop_notes(table),
            *_rate_notes(rows),
            *_run_notes(rows),
        ),
    )


def refreshed_prefix(rows: Rows) -> Finding:
    """S2: the moving prefix regains more than the fixed one, and than moving random directions."""
    table = at_k(select(rows, table="trained"))
    more = estimate(_paired(table, "moving prefix", "prefix from step k"), "difference")
    over = estimate(_paired(table, "moving prefix", "moving random"), "difference")
    verdict, why = REFRESHING.decide({PAYS: PAYS.of(more), BEYOND_STEPS: BEYOND_STEPS.of(over)})
    return Finding(
        claim="S2",
        verdict=verdict,
        quantity="share of the lost loss regained inside the moving prefix, minus that inside the "
        f"prefix that stays, k = {_k(table)}",
        estimate=more,
        reference="moving prefix minus moving random directions",
        reference_estimate=over,
        why=why,
        notes=(
            *_step_notes(table),
            *_difference_notes(table, "prefix from step k", ("random from step k", ALL, UNSWEPT)),
            *_difference_notes(table, "moving prefix", (*FIXED[1:3], ALL, UNSWEPT)),
        ),
    )


def at_k(rows: Rows) -> list[Row]:
    """Rows at :func:`_k`, with those of all coordinates in the same cases."""
    k = _k(rows)
    cases = {of(row, CASE) for row in rows if row["basis"] in CHANCE and row["k"] == k}
    return [
        dict(row)
        for row in rows
        if (row["k"] == k if row["basis"] in CHANCE else of(row, CASE) in cases)
    ]


def groups(table: Rows) -> list[tuple[str, list[Row]]]:
    """The rows of each space and optimiser, with a name."""
    keys = dict.fromkeys((row["space"], row["optimizer"]) for row in table)
    return [
        (
            f"{space}, {optimizer}",
            [dict(r) for r in select(table, space=space, optimizer=optimizer)],
        )
        for space, optimizer in keys
    ]


def _k(table: Rows) -> int:
    """10, or the largest dimension below it that more seeds have."""
    seeds: dict[int, set[object]] = {}
    for row in table:
        if row["basis"] in CHANCE and (k := integer(row, "k")) <= K:
            seeds.setdefault(k, set()).add(row["seed"])
    return max(seeds, key=lambda k: (len(seeds[k]), k), default=K)


def _share(table: Rows, basis: str) -> Estimate | None:
    return estimate(select(table, basis=basis), "regained")


def _paired(table: Rows, first: str, second: str) -> list[Row]:
    """Difference of the shares of two bases in every case that has both."""
    other = {of(row, CASE): number(row, "regained") for row in select(table, basis=second)}
    return [
        {"seed": row["seed"], "difference": number(row, "regained") - other[case]}
        for row in select(table, basis=first)
        if (case := of(row, CASE)) in other
    ]


def _ends(value: Estimate) -> str:
    return f" {value.value:+.3f} [{value.low:+.3f}, {value.high:+.3f}]"


def _listed(part: Rows, bases: Sequence[str], column: str = "regained") -> str:
    """The mean of a column in every basis that has it."""
    means = [(name, estimate(select(part, basis=name), column)) for name in bases]
    return ", ".join(f"{name} {found.value:.2f}" for name, found in means if found)


def _share_notes(table: Rows) -> Iterator[str]:
    for name, part in groups(table):
        yield f"Regained from the damaged point, {name}: {_listed(part, (*FIXED, ALL, UNSWEPT))}."
    prefix = select(table, basis="prefix")
    spent = {str(row["spent"]) for row in select(table, basis="gradients")}
    if prefix and spent:
        yield (
            f"To find its basis the prefix takes {prefix[0]['spent']} full steps that are thrown "
            f"away here, a gradient basis {' or '.join(sorted(spent))} gradients."
        )


def _step_notes(table: Rows) -> Iterator[str]:
    for name, part in groups(table):
        listed = _listed(part, (*MOVING, ALL, UNSWEPT))
        yield f"Regained with full steps on the way, {name}: {listed}."
        alone = _listed(part, ("prefix from step k", "moving prefix"), "regained_steps")
        if alone:
            yield f"Of that, their full steps alone regain, {name}: {alone}."


def _difference_notes(table: Rows, basis: str, others: Sequence[str]) -> Iterator[str]:
    """Share regained in one basis minus that in every other one."""
    parts = []
    for other in others:
        found = estimate(_paired(table, basis, other), "difference")
        if found is not None:
            ends = f" {found.value:+.3f}" if found.low is None else _ends(found)
            parts.append(f"{other}{ends}")
    if parts:
        yield f"At equal steps, {basis} minus: {'; '.join(parts)}."


def _stop_notes(table: Rows) -> Iterator[str]:
    """Who recovered within the run's steps."""
    parts = []
    for basis in (ALL, *CHANCE):
        own = select(table, basis=basis)
        reached = [row for row in own if row.get("stop") is not None]
        shares = [number(row, "stop") / number(row, "steps") for row in reached]
        if own:
            after = f" after {sum(shares) / len(shares):.2f} of its steps" if shares else ""
            parts.append(f"{basis} {len(reached)} of {len(own)}{after}")
    if parts:
        yield f"Recovered within the steps of the run: {'; '.join(parts)}."


def _rate_notes(rows: Rows) -> Iterator[str]:
    """Whether the sweep was wide enough."""
    chosen = select(rows, table="rate", chosen=True)
    at_end = [row for row in chosen if row["at_end"]]
    if chosen:
        yield (
            "Rates are chosen by the loss on the training minibatches; the best was the last one "
            f"tried in {len(at_end)} of {len(chosen)} sweeps."
        )


def _run_notes(rows: Rows) -> Iterator[str]:
    runs = select(rows, table="run")
    lost = [row for row in runs if row["status"] != "recovered"]
    if lost:
        words = sorted({str(row["status"]) for row in lost})
        yield f"{len(lost)} of {len(runs)} cases have no result: {', '.join(words)}."
    short = Counter(int(k) for row in runs for k in str(row.get("left_out") or "").split(",") if k)
    if short:
        listed = ", ".join(f"k = {k} in {n} of {len(runs)}" for k, n in sorted(short.items()))
        yield f"Left out where the run was shorter than k / {LONGEST_PREFIX}: {listed}."


CLAIMS = (
    Claim(
        id="S1",
        statement="The first k updates are the best k coordinates to train in",
        paper=OWN,
        rule=f"from the damaged point, at equal steps and k = {K} (or the largest k below that "
        f"more seeds have): {BEST_FIXED}. {LEADS}",
        decide=fixed_prefix,
        figure="curves",
    ),
    Claim(
        id="S2",
        statement="Refreshing the prefix pays",
        paper=OWN,
        rule=f"at equal steps and the same k: {REFRESHING}. {LEADS}",
        decide=refreshed_prefix,
        figure="curves",
    ),
)
