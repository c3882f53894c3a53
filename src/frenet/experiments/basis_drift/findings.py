"""What the rows of `basis_drift` say: claim C3, columns and figures."""

import itertools
import math

from frenet.experiments.experiment import (
    Across,
    Breakdown,
    Claim,
    Column,
    Figure,
    Finding,
    Row,
    Rows,
    finite,
    integer,
    number,
)
from frenet.experiments.figures import charts
from frenet.experiments.figures.charts import Axis, dots, lines
from frenet.experiments.figures.names import label
from frenet.experiments.figures.wording import two
from frenet.experiments.intervals import (
    breakdown,
    estimate,
    over_seeds,
    select,
    series_over_seeds,
)
from frenet.experiments.setup import brackets, columns
from frenet.experiments.setup.brackets import bracket_of, life_columns
from frenet.experiments.setup.comparable import by_coordinates, factors_and_weights
from frenet.experiments.verdicts import Criterion, Rule

LAG, CEILING, CONTROL = 100, 0.7, 0.95
HALF = 0.5
# In notes, between the name of a damage and the reason why it was not measured.
LEFT_OUT = " left out: "


RATIO = Criterion(f"the energy ratio at lag {LAG}", below=CEILING)
# A fresh basis with 5 times the energy of chance, and a change of the loss above the half width of
# its interval. The mean of such ratios is about that of the largest, and hides the paths without;
# their reciprocals are shares.
FRESH = Criterion("the energy of a random basis, as a share of that of a fresh one,", below=0.2)
MOVED = Criterion("the noise of the change of the loss, as a share of noise and change,", below=0.5)
FROZEN = Criterion(f"the frozen control at lag {LAG}", above=CONTROL)
RULE = Rule((RATIO,), premises=(FRESH, MOVED, FROZEN))


def decide(rows: Rows) -> tuple[Finding, ...]:
    """C3: the ratio at lag 100 is below 0.7, if fresh bases hold something and training moves.

    Gradients of LoRA are judged in the factors and, as a case of its own, in the weights.
    """
    first, *others = (_decide(mine, case) for case, mine in by_coordinates(rows).items())
    lora = select(rows, table="drift", kind="gradients", lag=LAG, space="lora")
    between = factors_and_weights(lora, "ratio", f"energy ratio at lag {LAG}")
    return (first._replace(breakdowns=(*first.breakdowns, *between)), *others)


def _decide(rows: Rows, case: str) -> Finding:
    at_lag = select(rows, table="drift", kind="gradients", lag=LAG)
    ratio, control = estimate(at_lag, "ratio"), estimate(at_lag, "control")
    return Finding(
        claim="C3",
        decision=RULE.decide(
            {
                RATIO: RATIO.of(ratio, case=case),
                FRESH: FRESH.of(estimate(at_lag, "chance")),
                MOVED: MOVED.of(estimate(_noise(at_lag), "share")),
                FROZEN: FROZEN.of(control),
            }
        ),
        quantity=f"energy of new gradients in a basis made {LAG} steps earlier, relative to a "
        "fresh basis",
        estimate=ratio,
        reference="frozen control",
        reference_estimate=control,
        notes=_left_out(rows),
        breakdowns=_paths(rows, at_lag),
        case=case,
    )


def _noise(rows: Rows) -> list[Row]:
    """The half width h of the interval of the loss's change c, as the share h / (h + c)."""
    return [
        {**row, "share": 1 / (1 + moved)}
        for row in rows
        if (moved := finite(row.get("moved"))) is not None
    ]


def _paths(rows: Rows, at_lag: Rows) -> tuple[Breakdown, ...]:
    """Ratio and half-life for every optimiser: the step size decides both."""
    keys = ("space", "mode", "optimizer")
    lives = select(rows, table="half_life", kind="gradients")
    ratios = breakdown(
        f"Energy ratio at lag {LAG}, and half-life in steps, by space, mode and optimiser",
        at_lag,
        by=keys,
        values={
            "ratio": "ratio",
            "control": "frozen control",
            "chance": "random basis",
            "moved": "change of the loss over its noise",
        },
    )

    def with_half_life(row: Row) -> Row:
        return row | _half_life(select(lives, **{key: row[key] for key in keys}))

    return tuple(table._replace(rows=tuple(map(with_half_life, table.rows))) for table in ratios)


def _half_life(rows: Rows) -> Row:
    """One bracket around the half-lives of the runs in which the ratio halved."""
    from frenet.measure.bracket import hull

    lives = [life for row in rows if (life := bracket_of(row)) is not None]
    halved = [life for life in lives if life.found]
    around = hull(halved) if halved else min(lives, default=None)
    return {
        "half-life above": None if around is None else around.low,
        "half-life at most": None if around is None else around.high,
        "runs halved": len(halved),
        "runs": len(lives),
        "longest lag": max((integer(row, "longest") for row in rows), default=None),
    }


def reread(rows: Rows) -> list[Row]:
    """Rows with half-lives as brackets; those of earlier versions are converted."""
    keys = [column.name for column in _KEYS]
    return brackets.reread(rows, looks="drift", lives="half_life", keys=keys, lag="lag")


def _left_out(rows: Rows) -> tuple[str, ...]:
    """The damage that did not raise the loss, with the first reason."""
    notes = [str(row["note"]).partition(LEFT_OUT) for row in select(rows, table="notes")]
    left_out = [(damage, why) for damage, split, why in notes if split]
    if not left_out:
        return ()
    damage, why = left_out[0]
    return (f"The damage {damage} was left out {len(left_out)} times. First reason: {why}.",)


def _panelled(rows: Rows) -> list[Row]:
    """Gradient rows with a panel for every mode and space."""
    return [
        {**row, "panel": f"{label(str(row['mode']))}, {label(str(row['space']))}"}
        for row in select(by_coordinates(rows)[""], kind="gradients")
    ]


def _by_rate(rows: Rows) -> list[str]:
    """The kind of optimiser with most learning rates, from the smallest rate to the largest."""
    names = dict.fromkeys(str(row["optimizer"]) for row in rows)
    kinds = [name.partition(":")[0] for name in names]
    commonest = max(kinds, key=kinds.count, default="")
    mine = [name for name in names if name.partition(":")[0] == commonest and ":" in name]
    return sorted(mine, key=lambda name: float(name.partition(":")[2]))


PATH = ("panel", "optimizer")


def _means(rows: Rows) -> list[Row]:
    """The ratio of every path and lag."""
    return over_seeds(_panelled(rows), by=(*PATH, "lag"), value="ratio", least=0.0, most=math.inf)


def _crossings(means: Rows, x: str = "lag") -> list[Row]:
    """Where the line of each path first falls below a half, between two measured steps."""
    found: list[Row] = []
    for path in dict.fromkeys(tuple(row[key] for key in PATH) for row in means):
        at: Row = dict(zip(PATH, path, strict=True))
        mine = sorted(select(means, **at), key=lambda row: number(row, "lag"))
        for before, after in itertools.pairwise(mine):
            ends = [number(row, "value") for row in (before, after)]
            if ends[0] >= HALF > ends[1]:
                share = (ends[0] - HALF) / (ends[0] - ends[1])
                low, high = (math.log(number(row, x)) for row in (before, after))
                says = f"between {before['lag']:g} and {after['lag']:g} steps"
                found.append(
                    at | {x: math.exp(low + share * (high - low)), "value": HALF, "says": says}
                )
                break
    return found


def drift_chart(rows: Rows) -> object:
    """Energy ratio against lag, by optimiser, with the frozen control."""
    named = _panelled(rows)
    table = _means(rows)
    control = over_seeds(named, by=("panel", "lag"), value="control", least=0.0, most=math.inf)
    table += [{**row, "optimizer": "frozen control"} for row in control]
    return lines(
        table,
        x=Axis("lag", "steps since the basis was made", log=True),
        y=Axis("value", "share of what a fresh basis holds", domain=(0, 1.05)),
        colour=Axis("optimizer", "optimiser"),
        facet="panel",
        rules=["frozen control", charts.Rule(f"C3: below {CEILING}", CEILING)],
        ordered=_by_rate(named),
        marked=_crossings(table),
    )


def distance_chart(rows: Rows) -> object:
    """The same ratio against the distance travelled: do steps or distance wear a basis out?"""
    table = _travelled(rows)
    return lines(
        table,
        x=Axis("displacement", "distance from the start (2-norm)", log=True),
        y=Axis("value", "share of what a fresh basis holds", domain=(0, 1.05)),
        colour=Axis("optimizer", "optimiser"),
        facet="panel",
        rules=[charts.Rule(f"C3: below {CEILING}", CEILING)],
        ordered=_by_rate(table),
        marked=_crossings(table, "displacement"),
        direct=False,
    )


def _travelled(rows: Rows) -> list[Row]:
    """The means with the distance travelled by then; without the start, where it is 0."""
    keys = (*PATH, "lag")
    moved = {
        tuple(row[key] for key in keys): row["value"]
        for row in over_seeds(_panelled(rows), by=keys, value="displacement")
    }
    table = [row | {"displacement": moved[tuple(row[k] for k in keys)]} for row in _means(rows)]
    return [row for row in table if row["displacement"]]


def distance_finding(rows: Rows) -> str:
    """By what factor optimisers differ in steps, and in distance, until half is gone."""
    table = _travelled(rows)
    steps, distances = (
        {tuple(row[key] for key in PATH): number(row, x) for row in _crossings(table, x)}
        for x in ("lag", "displacement")
    )
    panels = [panel for panel, _ in steps]
    panel = max(panels, key=panels.count, default=None)
    mine = [path for path in steps if path[0] == panel]
    if len(mine) < 2:
        return ""
    by_steps, by_distance = (
        max(found[path] for path in mine) / min(found[path] for path in mine)
        for found in (steps, distances)
    )
    return (
        f"Until half is gone, optimisers differ by a factor of {two(by_steps)} in steps and of "
        f"{two(by_distance)} in distance ({panel})."
    )


def overlap_chart(rows: Rows) -> object:
    """Ratio and corrected overlap at lag 100 side by side: they disagree."""
    table = series_over_seeds(
        select(_panelled(rows), lag=LAG),
        by=PATH,
        values={"ratio": "energy ratio", "overlap": "overlap over ceiling", "control": "control"},
        least=0.0,
        most=math.inf,
    )
    return dots(
        table,
        x=Axis("value", f"after {LAG} steps, as a share of a fresh basis"),
        row=Axis("optimizer", "optimiser"),
        colour="series",
        facet="panel",
        rules=["control"],
    )


_KEYS = (
    columns.SEED,
    columns.SPACE,
    Column("mode", "", "recovery after damage, or fine-tuning on a new task", "key"),
    columns.TASK,
    columns.OPTIMIZER,
    Column("kind", "", "basis of gradients, or of windows of updates", "key"),
    columns.K,
    columns.COORDINATES,
)
TABLES = {
    "drift": (
        *_KEYS,
        Column("lag", "steps", "steps between the basis and the gradients", "key"),
        Column(
            "ratio", "", "held-out energy in the old basis over a fresh one's", "measure", "control"
        ),
        Column("control", "", "the same ratio with no step in between: the ceiling", "reference"),
        Column("chance", "", "the same ratio for a random basis", "reference"),
        Column("fresh", "fraction", "held-out energy in the fresh basis", "reference"),
        Column("overlap", "", "overlap over its ceilings; may exceed 1", "measure", "ceiling_s"),
        Column("ceiling_s", "fraction", "overlap of two old bases", "reference"),
        Column("ceiling_t", "fraction", "overlap of two fresh bases", "reference"),
        Column("displacement", "2-norm", "distance travelled", "key"),
        Column("loss", "nats/token", "loss on the select split", "measure", "loss_0"),
        Column("loss_0", "nats/token", "loss at the start", "reference"),
        Column("moved", "", "their difference, in half widths of its 95% interval", "reference"),
    ),
    "half_life": (
        *_KEYS,
        *life_columns("lag at which the ratio is 0.5"),
    ),
}

CLAIMS = (
    Claim(
        id="C3",
        statement="The useful basis drifts substantially within 100 steps",
        short="The useful basis drifts",
        against="control",
        paper="within about 100 steps",
        rule=str(RULE),
        decide=decide,
        figure="drift",
        across=Across(
            f"energy in a basis made {LAG} steps earlier, relative to a fresh one",
            levels=RATIO.levels,
            reference="frozen control",
            limits=(0.0, math.inf),
            supports=RATIO.lines,
        ),
        says=(
            f"a basis {LAG} steps old holds {{value}} of what a fresh one holds",
            "without training {reference}",
        ),
    ),
)
FIGURES = (
    Figure(
        "drift",
        "How much of new gradients does an old basis hold?",
        "Held-out gradient energy in the basis made at the start, relative to a basis made at the "
        "current step. The frozen control is the same ratio with no training in between. Thin "
        "lines are seeds. A ring is where a line falls below a half.",
        "drift",
        drift_chart,
    ),
    Figure(
        "distance",
        "Steps or distance?",
        "The same ratio against the distance travelled. If the curves of different step sizes "
        "coincide, distance wears a basis out, not the number of steps.",
        "drift",
        distance_chart,
        finds=distance_finding,
    ),
    Figure(
        "overlap",
        "Do two measures of the drift agree?",
        "The overlap weighs all k directions equally, the energy ratio by the gradient energy that "
        "they carry. The overlap may exceed 1 because its ceilings are estimates.",
        "drift",
        overlap_chart,
        more=True,
    ),
)
