"""What the rows of `gradient_rank` say: claim C1, columns and figures."""

from collections.abc import Mapping
from statistics import mean

from frenet.experiments.experiment import (
    Across,
    Breakdown,
    Claim,
    Column,
    Figure,
    Finding,
    Row,
    Rows,
    Scalar,
    finite,
    integer,
    number,
)
from frenet.experiments.figures import charts
from frenet.experiments.figures.charts import Axis, dots, heatmap, lines
from frenet.experiments.figures.wording import between, two
from frenet.experiments.intervals import (
    breakdown,
    estimate,
    high,
    low,
    over_seeds,
    paired,
    select,
    series_over_seeds,
    share,
)
from frenet.experiments.setup import columns
from frenet.experiments.setup.comparable import by_coordinates, factors_and_weights
from frenet.experiments.verdicts import Criterion, Rule
from frenet.statistics.intervals import Estimate

K, FLOOR = 10, 0.4
NULLS = ("null_gaussian", "null_shuffle")
NULL = "higher of both nulls"
POINTS = {"none": "before damage"}
# In notes on gradients that use the training rows more than once.
SAME_EXAMPLES = "both halves of the gradients are of the same examples"


ENERGY = f"the held-out energy at k = {K} and the largest batch size"
ENOUGH = Criterion(ENERGY, above=FLOOR)
BEYOND = Criterion(ENERGY, over="the higher of the Gaussian and the shuffle null")
KNOWN = Criterion("the task's loss, as a share of that of a uniform guess,", below=0.5)
# Norms above 10 times their rounding error, and its reciprocal: the mean of many ratios is about
# that of the largest, and hides the gradients that are all rounding.
CLEAR = Criterion("the rounding error of a gradient, as a share of its norm,", below=0.1)
RULE = Rule((ENOUGH, BEYOND), premises=(KNOWN, CLEAR))


def decide(rows: Rows) -> tuple[Finding, ...]:
    """C1: the held-out energy at k = 10 is above 0.4 and above every null.

    Gradients of LoRA are judged in the factors and, as a case of its own, in the weights.
    """
    first, *others = (_decide(mine, case) for case, mine in by_coordinates(rows).items())
    lora = select(rows, table="energy", k=K, point="none", space="lora")
    at_k = select(lora, batch_size=_largest_batch(lora))
    between = factors_and_weights(at_k, "energy", f"held-out energy at k = {K}")
    return (first._replace(breakdowns=(*first.breakdowns, *between)), *others)


def _decide(rows: Rows, case: str) -> Finding:
    every_size = select(rows, table="energy", k=K, point="none")
    size = _largest_batch(every_size)
    at_k = [_with_null(row) for row in select(every_size, batch_size=size)]
    energy, shuffled = share(at_k, "energy"), share(at_k, "label_shuffled")
    return Finding(
        claim="C1",
        decision=RULE.decide(
            {
                ENOUGH: ENOUGH.of(energy, case=case),
                BEYOND: BEYOND.of(paired(at_k, "energy", "null"), case=case),
                KNOWN: KNOWN.of(estimate(_learned(rows, at_k), "share")),
                CLEAR: CLEAR.of(estimate(_rounding(at_k), "share")),
            }
        ),
        quantity=f"held-out gradient energy of the undamaged network in the top {K} directions"
        + (f", batches of {size}" if size else ""),
        estimate=energy,
        reference="higher of the Gaussian and the shuffle null"
        + (f" (label-shuffled tasks: {shuffled.value:.2f})" if shuffled else ""),
        reference_estimate=share(at_k, "null"),
        notes=_cautions(rows, energy, shuffled),
        breakdowns=(*_energies(every_size), *_overlaps(rows)),
        case=case,
        also={"shuffled": shuffled},
    )


def _learned(rows: Rows, measured: Rows) -> list[Row]:
    """The loss of every measured task as a share of ln V."""
    tasks = {row["task"] for row in measured}
    return [
        {**row, "share": number(row, "loss") / number(row, "chance")}
        for row in select(rows, table="learned")
        if row["task"] in tasks
    ]


def _rounding(rows: Rows) -> list[Row]:
    """The rounding error of every gradient as a share of its norm, 1 if it is nothing else."""
    return [
        {**row, "share": 1 / max(clear, 1.0)}
        for row in rows
        if (clear := finite(row.get("clear"))) is not None
    ]


def _with_null(row: Mapping[str, Scalar]) -> Row:
    """The row with the higher of its two nulls."""
    return {**row, "null": max(number(row, name) for name in NULLS)}


def _cautions(rows: Rows, energy: Estimate | None, shuffled: Estimate | None) -> tuple[str, ...]:
    """Is it the task that is low-rank, and is it more than these examples?"""
    cautions = []
    if energy and shuffled and high(shuffled) >= low(energy):
        cautions.append(
            f"Gradients of the same inputs with shuffled labels are as low-rank, with "
            f"{shuffled.value:.2f} of their energy in their top {K} directions: low rank by itself "
            "says nothing about the task."
        )
    if any(SAME_EXAMPLES in str(row["note"]) for row in select(rows, table="notes")):
        cautions.append(
            "Both halves of the gradients come from the same training rows, so part of the "
            "held-out energy comes from this overlap. The Gaussian and shuffle nulls lack it."
        )
    return tuple(cautions)


def _energies(at_k: Rows) -> tuple[Breakdown, ...]:
    """The energy of every batch size, with that of shuffled labels."""
    values = {
        "energy": "energy",
        "ceiling": "ceiling",
        "null_gaussian": "Gaussian null",
        "null_shuffle": "shuffle null",
        "label_shuffled": "shuffled labels, own basis",
        "in_shuffled_basis": "true labels, basis of shuffled",
        "chance": "chance",
    }
    title = f"Held-out energy at k = {K}, by space and batch size"
    return breakdown(title, at_k, by=("space", "batch_size"), values=values, least=0.0)


def _overlaps(rows: Rows) -> tuple[Breakdown, ...]:
    """Overlap of the bases of two tasks, with two halves of one task as the ceiling."""
    overlaps = select(rows, table="overlap", point="none")
    size = _largest_batch(overlaps)
    kinds = [
        {**row, "same" if row["task"] == row["other"] else "other tasks": row["overlap"]}
        for row in select(overlaps, batch_size=size)
    ]
    values = {"other tasks": "two tasks", "same": "two halves of one task", "chance": "chance"}
    title = f"Overlap of bases at k = {K}, batches of {size}"
    return breakdown(title, kinds, by=("space",), values=values, least=0.0)


def _largest_batch(rows: Rows) -> int:
    """The batch size that decides: smaller batches have other spectra."""
    return max((integer(row, "batch_size") for row in rows), default=0)


def energy_chart(rows: Rows) -> object:
    """Energy against k with every null, at the trained point and in the largest batches."""
    measured = {
        "energy": "task",
        "label_shuffled": "labels shuffled",
        "ceiling": "ceiling (own basis)",
        "null": NULL,
    }
    rows = by_coordinates(rows)[""]
    size = _largest_batch(rows)
    at = [
        {**row, "null": max(number(row, null) for null in NULLS)}
        for row in select(rows, point="none", batch_size=size)
    ]
    table = series_over_seeds(at, by=("k",), values=measured, least=0.0)
    return lines(
        table,
        x=Axis("k", "basis dimension k", log=True),
        y=Axis("value", f"held-out energy (fraction), batches of {size}", domain=(0, 1)),
        rules=["ceiling (own basis)", NULL, charts.Rule(f"rule of C1: {FLOOR}", FLOOR)],
    )


def task_chart(rows: Rows) -> object:
    """Energy at k = 10 by task and point, in the largest batches."""
    size = _largest_batch(by_coordinates(rows)[""])
    return dots(
        [{**row, "point": POINTS.get(str(row["point"]), row["point"])} for row in _by_task(rows)],
        x=Axis("value", f"held-out energy in the top {K}, batches of {size}", domain=(0, 1)),
        row=Axis("task", "task"),
        colour=Axis("point", "damage"),
        rules=[charts.Rule(f"rule of C1: {FLOOR}", FLOOR)],
    )


def _by_task(rows: Rows) -> list[Row]:
    """Mean energy by task and point."""
    rows = by_coordinates(rows)[""]
    at = select(rows, k=K, batch_size=_largest_batch(rows))
    return over_seeds(at, by=("task", "point"), value="energy", least=0.0)


def task_finding(rows: Rows) -> str:
    """The range over tasks, before damage."""
    before = [dict(row) for row in select(_by_task(rows), point="none")]
    return f"{K} directions hold {between(before, 'task')} of a gradient." if before else ""


def overlap_chart(rows: Rows) -> object:
    """Task against task, split halves on the diagonal."""
    return heatmap(
        _between_tasks(rows),
        x=Axis("other", "basis of the other half"),
        y=Axis("task", "basis of one half"),
        value=Axis("value", "overlap"),
    )


def _between_tasks(rows: Rows) -> list[Row]:
    """Mean overlap of every task with every other one, and with itself."""
    rows = by_coordinates(rows)[""]
    at = select(rows, point="none", batch_size=_largest_batch(rows))
    return over_seeds(at, by=("task", "other"), value="overlap")


def overlap_finding(rows: Rows) -> str:
    """The overlap of different tasks, and that of two halves of one."""
    table = _between_tasks(rows)
    same, other = (
        [number(row, "value") for row in table if (row["task"] == row["other"]) == one]
        for one in (True, False)
    )
    if not same or not other:
        return ""
    return (
        f"The directions of two tasks overlap by {two(mean(other))}; "
        f"those of two halves of one task by {two(mean(same))}."
    )


_KEYS = (
    columns.SEED,
    columns.SPACE,
    Column("point", "", "none: the trained network; otherwise the damage", "key"),
    Column("batch_size", "examples", "examples in a minibatch", "key"),
    columns.TASK,
    columns.COORDINATES,
)
TABLES = {
    "energy": (
        *_KEYS,
        columns.K,
        Column(
            "energy",
            "fraction",
            "energy of the other half's unit gradients in the top-k basis of one half",
            "measure",
            "null_gaussian",
        ),
        Column("null_gaussian", "fraction", "highest of Gaussian draws, equal norms", "reference"),
        Column("null_shuffle", "fraction", "highest of coordinate shuffles", "reference"),
        Column("null_sign", "fraction", "highest of random signs", "reference"),
        Column("ceiling", "fraction", "the other half in its own top k", "reference"),
        Column(
            "centred", "fraction", "energy with the basis half's mean removed", "measure", "ceiling"
        ),
        Column(
            "label_shuffled",
            "fraction",
            "the label-shuffled task in its own basis",
            "measure",
            "null_gaussian",
        ),
        Column(
            "in_shuffled_basis",
            "fraction",
            "the task's gradients in the label-shuffled task's basis",
            "measure",
            "chance",
        ),
        columns.CHANCE,
        Column(
            "clear", "", "norm of a gradient over its rounding error, from float64", "reference"
        ),
    ),
    "spectrum": (
        *_KEYS,
        Column("participation_ratio", "", "effective rank", "measure", "participation_ratio_null"),
        Column("participation_ratio_null", "", "the same for the Gaussian null", "reference"),
        Column("stable_rank", "", "squared Frobenius over spectral", "measure", "stable_rank_null"),
        Column("stable_rank_null", "", "the same for the Gaussian null", "reference"),
        Column("rank", "", "numerical rank of the gradients", "measure", "rank_null"),
        Column("rank_null", "", "the same for the Gaussian null", "reference"),
        Column(
            "mean_share", "fraction", "energy of the mean gradient", "measure", "mean_share_null"
        ),
        Column("mean_share_null", "fraction", "the same for the Gaussian null", "reference"),
        Column("zero_share", "fraction", "coordinates with no gradient at all", "key"),
    ),
    "overlap": (
        *_KEYS,
        Column("other", "", "the other task", "key"),
        columns.K,
        Column("overlap", "fraction", "||U^T V||^2 / k between two halves", "measure", "chance"),
        columns.CHANCE,
    ),
}

CLAIMS = (
    Claim(
        id="C1",
        statement="Task gradients are locally low-rank",
        short="Task gradients are low-rank",
        against="chance",
        paper="strongly low-rank",
        rule=str(RULE),
        decide=decide,
        figure="energy",
        across=Across(
            f"held-out gradient energy in the top {K} directions",
            levels=ENOUGH.levels,
            reference="higher null",
            limits=(0.0, 1.0),
            supports=ENOUGH.lines,
        ),
        says=(
            f"{K} directions hold {{value}} of a held-out gradient",
            "{shuffled} if labels are shuffled",
            "{reference} by chance",
        ),
    ),
)
FIGURES = (
    Figure(
        "energy",
        "How much of a new gradient lies in the top directions of others?",
        "The basis comes from half of the minibatches, the energy from the other half. The nulls, "
        "Gaussian draws and shuffles of coordinates, have the same number of gradients and the "
        "same norms. Shuffled labels: the same inputs "
        "with answers that cannot be learned.",
        "energy",
        energy_chart,
    ),
    Figure(
        "tasks",
        "Is it the same on every task, and after damage?",
        f"Held-out energy in the top {K}; small marks are seeds.",
        "energy",
        task_chart,
        finds=task_finding,
    ),
    Figure(
        "overlap",
        "Do tasks share their directions?",
        "Overlap of the bases of two tasks; the diagonal compares two halves of one task and "
        "is the ceiling. Chance is k / d.",
        "overlap",
        overlap_chart,
        finds=overlap_finding,
    ),
)
