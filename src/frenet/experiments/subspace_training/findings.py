"""What the rows of `subspace_training` say: two questions of our own, S1 and S2."""

from collections.abc import Iterator, Mapping, Sequence

from frenet.experiments.experiment import (
    Across,
    Breakdown,
    Claim,
    Finding,
    Row,
    Rows,
    integer,
    number,
)
from frenet.experiments.figures.names import label
from frenet.experiments.intervals import breakdown, estimate, select
from frenet.experiments.setup.comparable import of
from frenet.experiments.setup.recovery import LONGEST_PREFIX
from frenet.experiments.verdicts import Condition, Count, Criterion, Requirement, Rule
from frenet.statistics.intervals import Estimate

K = 10
WHOLE = ALL, UNSWEPT = "all coordinates", "all, at the run's rate"
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


LEADS = "A lead is a difference in the regained share of the lost loss, paired by case"
MARGIN = 0.05
BETTER = Criterion(
    f"the lead of the prefix over the best of {', '.join(FIXED[1:])}", above=0.0, margin=MARGIN
)
EXIST = Count("the number of recoveries on which the bases can be compared", least=1)
# Two shares below the margin would be equal without saying anything.
SAVES = Criterion("the higher of the two shares of the lost loss that are compared", above=MARGIN)
PREMISES = (EXIST, SAVES)
BEST_FIXED = Rule((BETTER,), premises=PREMISES)
LEAD = "the lead of the moving prefix (refreshed after every k steps inside it) over"
PAYS = Criterion(f"{LEAD} a prefix that stays", above=0.0, margin=MARGIN)
BEYOND_STEPS = Criterion(
    f"{LEAD} random directions refreshed with as many full steps", above=0.0, margin=MARGIN
)
REFRESHING = Rule((PAYS, BEYOND_STEPS), premises=PREMISES)


def fixed_prefix(rows: Rows) -> Finding:
    """S1: at equal k and steps the prefix regains more than the best of the other bases."""
    table = at_k(select(rows, table="trained"))
    others = {name: held for name in FIXED[1:] if (held := _share(table, name)) is not None}
    best = max(others, key=lambda name: others[name].value, default="none measured")
    leads = _paired(table, "prefix", best)
    more = estimate(leads, "difference")
    return Finding(
        claim="S1",
        decision=BEST_FIXED.decide(
            {BETTER: BETTER.of(more, best_of=max(len(others), 1)), **_premises(leads)}
        ),
        quantity=f"share of the lost loss regained inside the prefix, minus that inside {best}, "
        f"k = {_k(table)}",
        estimate=more,
        reference=f"share regained inside {best}",
        reference_estimate=others.get(best),
        notes=tuple(_cautions(rows)),
        breakdowns=(
            *_shares(
                "Regained from the damaged point",
                table,
                (*FIXED, *WHOLE),
                {"spent": "steps or gradients spent on the basis"},
            ),
            *_leads(table, {"prefix": (*FIXED[1:], *WHOLE)}),
            *_sweeps(rows),
            *_left_out(rows),
        ),
    )


def refreshed_prefix(rows: Rows) -> Finding:
    """S2: the moving prefix regains more than the fixed one, and than moving random directions."""
    table = at_k(select(rows, table="trained"))
    leads = _paired(table, "moving prefix", "prefix from step k")
    more = estimate(leads, "difference")
    over = estimate(_paired(table, "moving prefix", "moving random"), "difference")
    measured = {PAYS: PAYS.of(more), BEYOND_STEPS: BEYOND_STEPS.of(over), **_premises(leads)}
    return Finding(
        claim="S2",
        decision=REFRESHING.decide(measured),
        quantity="share of the lost loss regained inside the moving prefix, minus that inside the "
        f"prefix that stays, k = {_k(table)}",
        estimate=more,
        reference="moving prefix minus moving random directions",
        reference_estimate=over,
        breakdowns=(
            *_shares(
                "Regained with full steps on the way",
                table,
                (*MOVING, *WHOLE),
                {"regained_steps": "its full steps alone"},
            ),
            *_leads(
                table,
                {
                    "prefix from step k": ("random from step k", *WHOLE),
                    "moving prefix": (*MOVING[:1], *MOVING[3:], *FIXED[1:3], *WHOLE),
                },
            ),
        ),
    )


def _premises(leads: Rows) -> dict[Requirement, Condition]:
    return {EXIST: EXIST.of(len(leads)), SAVES: SAVES.of(estimate(leads, "higher"))}


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
            f"{label(str(space))}, {label(str(optimizer))}",
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
        {
            "seed": row["seed"],
            "difference": number(row, "regained") - other[case],
            "other": other[case],
            "higher": max(number(row, "regained"), other[case]),
        }
        for row in select(table, basis=first)
        if (case := of(row, CASE)) in other
    ]


def _cautions(rows: Rows) -> Iterator[str]:
    runs = select(rows, table="run")
    if lost := [row for row in runs if row["status"] != "recovered"]:
        words = ", ".join(sorted({str(row["status"]) for row in lost}))
        yield f"{len(lost)} of {len(runs)} cases have no result: {words}."
    chosen = select(rows, table="rate", chosen=True)
    if at_end := select(chosen, at_end=True):
        yield (
            f"In {len(at_end)} of {len(chosen)} sweeps the best learning rate was the last one "
            "tried, so a rate that was not tried may be better."
        )


def _shares(
    title: str, table: Rows, bases: Sequence[str], more: Mapping[str, str]
) -> tuple[Breakdown, ...]:
    """What every basis regains, and how many recover in the run's steps; ``more``: columns."""
    listed = [
        row
        | {"after": None if row.get("stop") is None else number(row, "stop") / number(row, "steps")}
        for _, part in groups(table)
        for basis in bases
        for row in part
        if row["basis"] == basis
    ]
    return breakdown(
        f"{title}, at equal steps and k = {_k(table)}",
        listed,
        by=("space", "optimizer", "basis"),
        values={
            "regained": "share of the lost loss",
            "chance": "random directions, as many full steps",
            **more,
            "after": "share of the steps until recovered",
        },
        counts={"stop": "recovered", "regained": "cases"},
    )


def _leads(table: Rows, pairs: Mapping[str, Sequence[str]]) -> tuple[Breakdown, ...]:
    """The share regained in some bases minus that in others, paired by case."""
    listed = [
        row | {"basis": basis, "over": other}
        for basis, others in pairs.items()
        for other in others
        for row in _paired(table, basis, other)
    ]
    return breakdown(
        "Leads in the regained share, paired by case",
        listed,
        by=("basis", "over"),
        values={"difference": "lead", "other": "regained share of the other"},
        counts={"difference": "cases"},
    )


def _sweeps(rows: Rows) -> tuple[Breakdown, ...]:
    """Whether the sweeps were wide enough."""
    return breakdown(
        "Sweeps of the learning rate, which is chosen by the loss on the training minibatches",
        [
            dict(row) | {"at_end": row["at_end"] or None}
            for row in select(rows, table="rate", chosen=True)
        ],
        by=("basis",),
        counts={"at_end": "ended on the last rate tried", "chosen": "sweeps"},
    )


def _left_out(rows: Rows) -> tuple[Breakdown, ...]:
    """In how many runs a dimension was too large."""
    runs = select(rows, table="run")
    short = [{int(k) for k in str(row.get("left_out") or "").split(",") if k} for row in runs]
    return breakdown(
        f"Dimensions left out because the run was shorter than k / {LONGEST_PREFIX}",
        [
            {"k": k, "left out": k in ks or None, "run": True}
            for k in sorted(set().union(*short))
            for ks in short
        ],
        by=("k",),
        counts={"left out": "runs without it", "run": "runs"},
    )


CLAIMS = (
    Claim(
        id="S1",
        statement="The first k updates are the best k coordinates to train in",
        short="First steps are the best to train",
        against="rival",
        paper=OWN,
        rule=f"{BEST_FIXED}. All train from the damaged point, with equal steps and k = {K} (or "
        f"the largest k below that more seeds have). The best is chosen on the same seeds, so a "
        f"contradiction needs an interval of {1 - 0.05 / len(FIXED[1:]):.1%}. {LEADS}",
        decide=fixed_prefix,
        figure="curves",
        across=Across(
            "share of the lost loss regained, prefix minus best other basis",
            levels=BETTER.levels,
            supports=BETTER.lines,
        ),
        says=("the first steps lead the best other basis by {value} of the lost loss",),
    ),
    Claim(
        id="S2",
        statement="Refreshing the prefix pays",
        short="Refreshing the first steps pays",
        against="over random",
        paper=OWN,
        rule=f"{REFRESHING}. All train with equal steps and the same k. {LEADS}",
        decide=refreshed_prefix,
        figure="curves",
        across=Across(
            "share of the lost loss regained, moving prefix minus one that stays",
            levels=PAYS.levels,
            reference="minus moving random directions",
            supports=PAYS.lines,
        ),
        says=(
            "refreshed steps lead those that stay by {value} of the lost loss",
            "refreshed random directions by {reference}",
        ),
    ),
)
