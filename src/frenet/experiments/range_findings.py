"""What the rows of `task_vector_range` say: columns and figures."""

from frenet.experiments.charts import Axis, dots, lines
from frenet.experiments.experiment import Column, Figure, Row, Rows
from frenet.experiments.intervals import over_seeds, series_over_seeds

OWN, OTHERS, RANDOM = "its own task", "the other tasks", "its own, along a random vector"


def along_chart(rows: Rows) -> object:
    """Loss against the coefficient, of the vector's own task and of the others."""
    by = ("space", "task", "a")
    columns = {"loss": OWN, "random": RANDOM}
    if any(row["others"] is not None for row in rows):
        columns["others"] = OTHERS
    return lines(
        series_over_seeds(rows, by=by, values=columns),
        x=Axis("a", "coefficient of the vector"),
        y=Axis("value", "loss, nats per token"),
        colour="series",
        facet="task",
        rules=[RANDOM],
    )


def kept_chart(rows: Rows) -> object:
    """How much of a task's gain is left when another vector is added."""
    table: list[Row] = [
        {**row, "pair": f"{row['task']} + {row['other']}"}
        for row in rows
        if row["kept"] is not None
    ]
    values = {
        "kept": "with the other vector added",
        "transfer": "by the other vector alone",
        "kept_random": "with a random vector as long added",
    }
    return dots(
        series_over_seeds(table, by=("pair",), values=values),
        x=Axis("value", "share of the first task's gain"),
        row=Axis("pair", "task + added vector"),
        colour="series",
        rules=["with a random vector as long added"],
    )


def inside_chart(rows: Rows) -> object:
    """Share of the vector in bases of k directions."""
    table = [
        {**row, "series": "captured"} for row in over_seeds(rows, by=("basis",), value="captured")
    ]
    for column, label in (("walk", "of a random walk"), ("random", "of a random basis")):
        found = over_seeds(rows, by=("basis",), value=column)
        table += [{**row, "series": label} for row in found]
    return dots(
        table,
        x=Axis("value", "share of the vector's squared norm", domain=(0.0, 1.0)),
        row="basis",
        colour="series",
        rules=["of a random walk", "of a random basis"],
    )


_KEYS = (
    Column("seed", "", "seed of network, data and minibatches", "key"),
    Column("space", "", "parameters that train: all weights, or LoRA adapters", "key"),
    Column("task", "", "task of the vector", "key"),
)
TABLES = {
    "answer": (
        *_KEYS,
        Column("sentence", "", "loss along the vector and in sums, in words", "key"),
    ),
    "along": (
        *_KEYS,
        Column("a", "", "coefficient of the vector", "key"),
        Column("loss", "nats/token", "of its own task at theta_0 + a tau", "measure", "random"),
        Column("start", "nats/token", "of its own task at theta_0", "reference"),
        Column("random", "nats/token", "along a random vector as long", "reference"),
        Column("others", "nats/token", "mean of the other tasks", "measure", "others_start"),
        Column("others_start", "nats/token", "the same at theta_0", "reference"),
    ),
    "pair": (
        *_KEYS,
        Column("other", "", "task of the added vector", "key"),
        Column("gain", "nats/token", "loss that the vector takes off its task", "measure", "none"),
        Column("none", "nats/token", "no gain", "reference"),
        Column(
            "kept",
            "",
            "gain of the sum over that of the vector alone; empty: that is less "
            "than a tenth of the loss",
            "measure",
            "whole",
        ),
        Column("whole", "", "nothing lost", "reference"),
        Column("kept_random", "", "the same with a random vector added", "reference"),
        Column("transfer", "", "gain of the other vector alone, over the same", "measure", "whole"),
        Column("cosine", "", "between the two vectors", "measure", "cosine_random"),
        Column("cosine_random", "", "1 / sqrt(d)", "reference"),
        Column("cosine_ceiling", "", "between two vectors of the same task", "reference"),
    ),
    "inside": (
        *_KEYS,
        Column("basis", "", "what the directions are", "key"),
        Column("k", "", "how many", "key"),
        Column("captured", "fraction", "of the vector's squared norm", "measure", "random"),
        Column("random", "fraction", "k / d", "reference"),
        Column("walk", "fraction", "of a random walk with the same step lengths", "reference"),
    ),
}

FIGURES = (
    Figure(
        "along",
        "Along a task vector",
        "Loss at theta_0 + a tau: 1 is where training ended, below 0 the vector is negated, "
        "beyond 1 it is carried further than training went.",
        "along",
        along_chart,
    ),
    Figure(
        "kept",
        "Two vectors at once",
        "How much of what a task vector gains on its own task is left when another is added: 1 is "
        "all of it. Below, what the other vector does for the task alone. Of the vectors that take "
        "at least a tenth off their task's loss.",
        "pair",
        kept_chart,
    ),
    Figure(
        "inside",
        "Where a task vector lies",
        "Share of its squared norm in bases of k directions. The prefix of a random walk with the "
        "same step lengths would hold its part too.",
        "inside",
        inside_chart,
    ),
)
