"""How `recovery_basis` shows its rows: columns and figures."""

from collections.abc import Mapping

from frenet.experiments.experiment import Column, Figure, Row, Rows, Scalar, number
from frenet.experiments.figures.charts import Axis, Rule, dots, lines, scatter
from frenet.experiments.figures.names import label
from frenet.experiments.figures.wording import between, two
from frenet.experiments.intervals import over_seeds, select, series_over_seeds
from frenet.experiments.recovery_basis.findings import MOST_STATIC, PAPER, STATIC
from frenet.experiments.setup import columns
from frenet.experiments.setup.comparable import captures_of, comparable, reach

# What the directions of a basis are known from.
OTHER = "at the damaged point"
GROUPS: Mapping[str, tuple[str, ...]] = {
    "fixed before the recovery": ("random", *STATIC),
    OTHER: (),
    "steps of the recovery": ("prefix", "prefix of replicate"),
    "ceiling": ("PCA of replicate",),
}


def bases_chart(rows: Rows) -> object:
    """Capture by basis and optimiser at k = 10, or at the largest k that recoveries allow."""
    captures = comparable(rows)
    k = reach(captures)
    by = ("basis", "optimizer", "space")
    table = over_seeds(captures, by=by, value="captured", least=0.0)
    ordered = [row | {"group": group} for group in GROUPS for row in table if _group(row) == group]
    first = {group: str(select(ordered, group=group)[0]["basis"])
             for group in dict.fromkeys(row["group"] for row in ordered)}  # fmt: skip
    return dots(
        ordered,
        x=Axis("value", f"share of the recovery in {k} directions", domain=(0, 1)),
        row=Axis("basis", "basis"),
        colour=Axis("group", "directions"),
        lane=Axis("optimizer", "optimiser"),
        headings={basis: str(group) for group, basis in first.items()},
        facet="space",
        rules=[Rule(f"C2: below {MOST_STATIC}", MOST_STATIC)],
    )


def _group(row: Row) -> str:
    """What the directions of a basis are known from."""
    basis = str(row["basis"])
    return next((group for group, bases in GROUPS.items() if basis in bases), OTHER)


def prefix_chart(rows: Rows) -> object:
    """Capture of the prefix against k, with random walk, rest and replicate."""
    prefixes = select(captures_of(rows), basis="prefix")
    prefixes = [row for row in prefixes if row.get("captured") is not None]
    labels = {
        "captured": "prefix",
        "rest": "its capture of the rest",
        "walk_share": "random walk",
        "ceiling": "PCA of replicate",
    }
    table = series_over_seeds(prefixes, by=("k", "space"), values=labels, least=0.0)
    return lines(
        table,
        x=Axis("k", "first k updates", log=True),
        y=Axis("value", "captured fraction", domain=(0, 1)),
        facet="space",
        rules=["random walk", "PCA of replicate", Rule("paper, LoRA", PAPER)],
    )


def function_chart(rows: Rows) -> object:
    """Captured displacement against regained loss, basis by basis."""
    return scatter(
        _captured_and_regained(rows),
        x=Axis("value", "captured fraction of the displacement"),
        y=Axis("regained", "share of the lost loss regained"),
        colour=Axis("basis", "basis"),
        facet="space",
        named=True,
    )


def _captured_and_regained(rows: Rows) -> list[Row]:
    """Both means for every basis and space."""
    table = over_seeds(comparable(rows), by=("basis", "space"), value="captured", least=0.0)
    gains = {
        (row["basis"], row["space"]): row["value"]
        for row in over_seeds(comparable(rows), by=("basis", "space"), value="regained")
    }
    return [
        row | {"regained": gains[row["basis"], row["space"]]}
        for row in table
        if (row["basis"], row["space"]) in gains
    ]


def function_finding(rows: Rows) -> str:
    """The basis whose two shares differ most."""
    points = _captured_and_regained(rows)
    if not points:
        return ""
    most = max(points, key=lambda row: abs(number(row, "regained") - number(row, "value")))
    return (
        f"With {label(str(most['space']))}, the basis “{label(str(most['basis']))}” holds "
        f"{two(number(most, 'value'))} of the displacement and regains "
        f"{two(number(most, 'regained'))} of the lost loss."
    )


def curve_chart(rows: Rows) -> object:
    """Loss against step, from the first step on."""
    by = ("optimizer", "protocol", "space", "step")
    table = [row for row in over_seeds(held(rows), by=by, value="loss") if row["step"]]
    return lines(
        [row | {"series": _path(row)} for row in table],
        x=Axis("step", "recovery step", log=True),
        y=Axis("value", "loss (nats per token)"),
        facet="protocol",
        interval=None,
    )


def _path(row: Row) -> str:
    return f"{label(str(row['optimizer']))}, {label(str(row['space']))}"


def curve_finding(rows: Rows) -> str:
    """The steps of the fastest and of the slowest kind of recovery."""
    runs: dict[tuple[Scalar, ...], float] = {}
    for row in rows:
        keys = ("seed", "optimizer", "space", "protocol", "task", "replicate")
        run = tuple(row[key] for key in keys)
        runs[run] = max(runs.get(run, 0.0), number(row, "step"))
    ends: list[Row] = [
        {"seed": seed, "path": _path({"optimizer": optimizer, "space": space}), "steps": steps}
        for (seed, optimizer, space, *_), steps in runs.items()
    ]
    means = over_seeds(ends, by=("path",), value="steps")
    return f"Recoveries end after a mean of {between(means, 'path')} steps." if means else ""


def held(rows: Rows) -> list[Row]:
    """Every run at every step of its group: interpolated, and constant after its end.

    A mean over unfinished runs would jump whenever one of them ends.
    """
    import numpy as np

    groups: dict[tuple[Scalar, ...], dict[tuple[Scalar, ...], dict[float, float]]] = {}
    for row in rows:
        group = tuple(row[key] for key in ("optimizer", "protocol", "space"))
        run = tuple(row[key] for key in ("seed", "task", "replicate"))
        step, loss = number(row, "step"), number(row, "loss")
        groups.setdefault(group, {}).setdefault(run, {})[step] = loss
    interpolated: list[Row] = []
    for group, runs in groups.items():
        keys: Row = dict(zip(("optimizer", "protocol", "space"), group, strict=True))
        steps = sorted({step for run in runs.values() for step in run})
        for (seed, *_), losses in runs.items():
            own = sorted(losses)
            values = np.interp(steps, own, [losses[step] for step in own])
            pairs = zip(steps, values.tolist(), strict=True)
            interpolated += [{**keys, "seed": seed, "step": s, "loss": loss} for s, loss in pairs]
    return interpolated


_CASE = (
    columns.SEED,
    columns.SPACE,
    columns.DAMAGED_TASK,
    columns.PROTOCOL,
    columns.OPTIMIZER,
    Column("replicate", "", "0 or 1: the same recovery with other minibatches", "key"),
)
_LOSSES = (
    columns.LOSS_0,
    columns.LOSS_D,
)
TABLES = {
    "recovery": (
        *_CASE,
        Column(
            "status", "", "recovered; shallow: within two steps; not recovered; not damaged", "key"
        ),
        *_LOSSES,
        Column("loss_end", "nats/token", "select loss at the end", "measure", "threshold"),
        Column("threshold", "nats/token", "5% of min(loss_d, ln V) above loss_0", "reference"),
        Column("stop", "steps", "T_stop, among the measured steps", "measure", "longest"),
        Column("longest", "steps", "steps after which it is hopeless", "reference"),
        Column("displacement", "2-norm", "theta_stop - theta_damaged", "measure", "path_length"),
        Column("path_length", "2-norm", "summed step norms: the longest it could be", "reference"),
        Column("replicate_cosine", "", "between the replicates", "measure", "cosine_chance"),
        Column("cosine_chance", "", "1 / sqrt(d)", "reference"),
        Column("why", "", "why the damage or the recovery failed", "key"),
    ),
    "capture": (
        *_CASE,
        columns.COORDINATES,
        Column("basis", "", "basis", "key"),
        columns.K,
        Column("stop", "steps", "T_stop", "key"),
        Column("k_over_stop", "fraction", "no capture is given above 0.35", "key"),
        Column("captured", "fraction", "||U^T D||^2 / ||D||^2", "measure", "chance"),
        columns.CHANCE,
        Column("ceiling", "fraction", "the replicate's top-k PCA, if it recovered", "reference"),
        Column("lift", "", "capture over the random-walk share", "measure", "walk_share"),
        Column("walk_share", "fraction", "squared step norms in the first k steps", "reference"),
        Column("rest", "fraction", "captured of theta_stop - theta_k", "measure", "chance"),
        Column(
            "regained",
            "fraction",
            "of the lost loss, after projecting D",
            "measure",
            "regained_full",
        ),
        Column("regained_full", "fraction", "the same with all of D", "reference"),
        Column("accuracy", "fraction", "of tokens, after projecting D", "measure", "accuracy_full"),
        Column("accuracy_full", "fraction", "the same with all of D", "reference"),
        Column(
            "optimised",
            "fraction",
            "of the lost loss, by training inside",
            "measure",
            "regained_full",
        ),
        *_LOSSES,
    ),
    "curve": (
        *_CASE,
        Column("step", "steps", "recovery step", "key"),
        Column("loss", "nats/token", "select loss", "measure", "threshold"),
        Column("threshold", "nats/token", "the loss that counts as recovered", "reference"),
        *_LOSSES,
    ),
}
FIGURES = (
    Figure(
        "bases",
        "What does each basis hold of a recovery?",
        "Captured fraction of the displacement from the damaged point to T_stop: mean over "
        "protocols, tasks and replicates, with small marks for seeds. A smaller basis counts with "
        "all its directions. All bases are compared "
        "on the same recoveries, those long enough for a prefix of this k. A random basis holds "
        "k / d.",
        "capture",
        bases_chart,
    ),
    Figure(
        "prefix",
        "How soon is the recovery's direction known?",
        "The first k updates, orthonormalised in order. A random walk's prefix would capture its "
        "share of the squared step norms; the replicate's leading directions are the ceiling. "
        "Every k counts only recoveries of at least k / 0.35 steps, so larger k have fewer.",
        "capture",
        prefix_chart,
    ),
    Figure(
        "function",
        "Does a captured share regain as much of the loss?",
        "Share of the lost loss that the projected displacement regains, against the captured "
        "share of the displacement. On the dotted line the two agree.",
        "capture",
        function_chart,
        finds=function_finding,
    ),
    Figure(
        "curves",
        "How did the recoveries go?",
        "Loss on the select split, averaged over seeds, tasks and replicates. A finished recovery "
        "keeps its last loss.",
        "curve",
        curve_chart,
        finds=curve_finding,
        more=True,
    ),
)
