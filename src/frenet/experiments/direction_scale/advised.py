"""What the rows of `frenet probe` advise: columns, sentences and figures."""

from collections.abc import Iterator, Mapping

from frenet.experiments.direction_scale import answers
from frenet.experiments.experiment import Answer, Column, Figure, Row, Rows, Scalar, number
from frenet.experiments.figures.charts import Axis, Rule, dots, lines
from frenet.experiments.figures.wording import between, span, two
from frenet.experiments.intervals import select
from frenet.experiments.setup import columns
from frenet.experiments.setup.check import CHECK, LOSSES, check_sentence

# Which examples a loss is of.
CHOOSE, JUDGE, OTHER = "select", "test", "other text"
# What is added to the weights.
OWN, RANDOM = "the direction", "a random change of equal norm"
# The ways to choose ranks.
WHOLE, BY_EFFECT, BY_NORM = "whole", "by effect", "by norm"
_KEYS = (
    columns.SEED,
    columns.SPACE,
    columns.TASK,
    Column("direction", "", "the file it comes from", "key"),
)
KEYS = tuple(column.name for column in _KEYS)
_NATS = "nats/token"


def _ends(name: str, unit: str = "") -> tuple[Column, Column]:
    """The columns of an interval."""
    return (
        Column(f"{name}_low", unit, "lower end of its 95% interval over examples", "reference"),
        Column(f"{name}_high", unit, "its upper end", "reference"),
    )


TABLES = {
    "check": (*_KEYS, *CHECK, *LOSSES),
    "coefficient": (
        *_KEYS,
        Column("scale", "", "coefficient", "key"),
        Column("change", "", "what is added to the weights", "key"),
        Column("examples", "", "select: to choose on; test: to judge; other text: the cost", "key"),
        Column("loss", _NATS, "at this coefficient", "measure", "without"),
        *_ends("loss", _NATS),
        Column("without", _NATS, "the same without the change", "reference"),
        Column("gain", _NATS, "without less loss, paired by example", "measure", "none"),
        *_ends("gain", _NATS),
        Column("none", _NATS, "nothing", "reference"),
    ),
    "advice": (
        *_KEYS,
        Column("advised", "", "coefficient; empty: no advice", "measure", "usual"),
        Column("usual", "", "the coefficient without advice", "reference"),
        Column("why", "", "reason", "key"),
        Column("best", "", "the best coefficient on the examples to choose on", "measure", "usual"),
        Column("over_usual", _NATS, "what the best takes off the loss at 1, on test examples",
               "measure", "none"),
        *_ends("over_usual", _NATS),
        Column("none", _NATS, "nothing", "reference"),
        Column("helps_from", "", "smallest coefficient from which all that were tried up to the "
               "advised one are shown to be better than nothing", "measure", "least"),
        Column("helps_to", "", "largest coefficient up to which all that were tried are",
               "measure", "most"),
        Column("helps_not", "", "the next one tried; empty: none", "reference"),
        Column("least", "", "smallest coefficient tried", "reference"),
        Column("most", "", "largest coefficient tried", "reference"),
        Column("edge", "", "whether the best is the smallest or the largest tried", "key"),
        Column("select_rows", "", "examples to choose on", "key"),
        Column("test_rows", "", "examples that judge", "key"),
        Column("other", "", "name of the other text", "key"),
    ),
    "rank": (
        *_KEYS,
        Column("weight", "", "a weight that the adapter changes", "key"),
        Column("by_effect", "", "the advised rank, with which all weights hold the share of the "
               "effect", "measure", "by_norm"),
        Column("by_norm", "", "smallest rank that holds it of the squared norm",
               "measure", "by_norm_random"),
        Column("by_norm_random", "", "the same of a random adapter of equal rank and norm",
               "reference"),
        Column("whole", "", "the adapter's rank", "reference"),
        Column("effect", _NATS, "rise of the loss without the weight's part, on the examples to "
               "choose on", "measure", "none"),
        *_ends("effect", _NATS),
        Column("none", _NATS, "nothing", "reference"),
    ),
    "held": (
        *_KEYS,
        Column("ranks", "", "how the ranks were chosen", "key"),
        Column("change", "", "the adapter, or a random one of equal ranks and norms", "key"),
        Column("total", "", "sum of all ranks; empty: no advice", "measure", "total_whole"),
        Column("total_whole", "", "of the adapter as it is", "reference"),
        Column("loss", _NATS, "on test examples", "measure", "without"),
        Column("without", _NATS, "the same without the adapter", "reference"),
        Column("held", "", "share of the adapter's effect on them", "measure", "share"),
        *_ends("held"),
        Column("share", "", "to be held", "reference"),
        Column("gain", _NATS, "what the adapter takes off the loss of the examples to choose on",
               "measure", "none"),
        *_ends("gain", _NATS),
        Column("none", _NATS, "nothing", "reference"),
        Column("test_rows", "", "test examples", "key"),
    ),
}  # fmt: skip


def sentences(rows: Rows) -> list[Answer]:
    """What to do with every direction from disk first, then how far and how long each lasts."""
    advice = {_key(row): row for row in select(rows, table="advice")}
    far = {(*a.keys.values(), a.subject): a for a in answers.sentences(rows)}
    said = []
    for key, row in advice.items():
        # A DoRA adapter has no straight line, and so no radius.
        after = f"; {far.pop(key).sentence}" if key in far else ""
        said.append(_answer(row, f"{_advice(rows, row)}{after}"))
        said += [_answer(row, text) for text in (*_cost(rows, row), *_ranks(rows, row))]
    return [*said, *far.values()]


def all_sentences(rows: Rows) -> list[Answer]:
    """How the tasks are read, and then the answers."""
    return [*checks(rows), *sentences(rows)]


def checks(rows: Rows) -> list[Answer]:
    """How the task of every cell is read, and its loss without and with every direction."""
    cells: dict[tuple[Scalar, ...], list[Mapping[str, Scalar]]] = {}
    for row in select(rows, table="check"):
        cells.setdefault(tuple(_cell(row).values()), []).append(row)
    return [
        Answer("check", _cell(few[0]), check_sentence(few[0], check_losses(few)))
        for few in cells.values()
    ]


def check_losses(rows: Rows) -> list[tuple[str, float]]:
    """The losses of rows of the table check of one cell, with their words."""
    named = [row for row in rows if row["direction"]]
    known = [("without" if named else "", number(rows[0], "without"))]
    return known + [
        (f"with {row['direction']}", number(row, "with"))
        for row in named
        if row["with"] is not None
    ]


def _answer(row: Mapping[str, Scalar], sentence: str) -> Answer:
    return Answer(str(row["direction"]), _cell(row), sentence)


def _key(row: Mapping[str, Scalar]) -> tuple[Scalar, ...]:
    return tuple(row[name] for name in KEYS)


def _cell(row: Mapping[str, Scalar]) -> Row:
    return {name: row[name] for name in KEYS[:-1]}


def _at(rows: Rows, of: Mapping[str, Scalar], **keys: Scalar) -> Mapping[str, Scalar] | None:
    """The row of the table coefficient with these keys."""
    cell = {name: of[name] for name in KEYS}
    return next(iter(select(rows, table="coefficient", **cell, **keys)), None)


def _advice(rows: Rows, row: Mapping[str, Scalar]) -> str:
    """The coefficient, its loss on test rows, and up to where it helps."""
    scale = row["advised"] if row["advised"] is not None else row["best"]
    there = _at(rows, row, scale=scale, examples=JUDGE, change=OWN)
    if there is None:
        return str(row["why"])
    loss = (
        f"loss {number(there, 'without'):.3g} -> {_with_ends(there, 'loss')} "
        f"on {number(row, 'test_rows'):.0f} test rows"
    )
    if row["advised"] is None:
        gain = f"a gain of {_with_ends(there, 'gain', 2)}"
        return f"no advice: {row['why']} ({loss} at {scale:g} x, {gain})"
    random = _at(rows, row, scale=scale, examples=JUDGE, change=RANDOM)
    if random is not None:
        loss += f", {number(random, 'loss'):.3g} with {RANDOM}"
    lead = f"best at {scale:g} x" if row["best"] == scale else f"leave it at {scale:g} x"
    said = f"{lead} ({loss}{_compared(row)})"
    return f"{said}; {_reach(row)}{_edge(row)}"


def _compared(row: Mapping[str, Scalar]) -> str:
    """The best coefficient on the examples to choose on, compared with 1."""
    if row["best"] == row["usual"]:
        return ""
    over = _with_ends(row, "over_usual", 2)
    if row["best"] == row["advised"]:
        return f"; {over} lower than at 1 x"
    return f"; {row['best']:g} x, the best of other rows, is not shown to be better: by {over}"


def _reach(row: Mapping[str, Scalar]) -> str:
    """The range of coefficients that help."""
    start = f"from {row['helps_from']:g} x " if row["helps_from"] != row["least"] else ""
    if row["helps_not"] is None:
        return f"better than nothing {start}at least up to {row['helps_to']:g} x"
    beyond = f"not shown at {row['helps_not']:g} x"
    return f"better than nothing {start}up to {row['helps_to']:g} x ({beyond})"


def _edge(row: Mapping[str, Scalar]) -> str:
    if not row["edge"]:
        return ""
    end = "largest" if row["best"] == row["most"] else "smallest"
    beyond = "larger" if end == "largest" else "smaller"
    return f"; the best is the {end} that was tried: pass --scales with {beyond} ones"


def _with_ends(row: Mapping[str, Scalar], name: str, digits: int = 3) -> str:
    """A number with its interval."""
    value, low, high = (
        "?" if row[key] is None else f"{number(row, key):.{digits}g}"
        for key in (name, f"{name}_low", f"{name}_high")
    )
    return f"{value} [{low}, {high}]"


def _cost(rows: Rows, row: Mapping[str, Scalar]) -> Iterator[str]:
    """What a direction costs on other text."""
    cell = {name: row[name] for name in KEYS}
    found = select(rows, table="coefficient", **cell, examples=OTHER, change=OWN)
    if found:
        at = [f"{_with_ends(there, 'loss')} at {there['scale']:g} x" for there in found]
        without = f"{number(found[0], 'without'):.3g} without it"
        yield f"on {row['other']}: loss {without}, {', '.join(at)}"


def _ranks(rows: Rows, row: Mapping[str, Scalar]) -> Iterator[str]:
    """How many ranks hold the share of the effect."""
    cell = {name: row[name] for name in KEYS}
    for own in select(rows, table="held", **cell, ranks=BY_EFFECT, change=OWN):
        if own["total"] is None:
            yield (
                "no advice about ranks: it is not shown to lower the loss of the examples to "
                f"choose on (a gain of {_with_ends(own, 'gain', 2)})"
            )
            continue
        (norm,) = select(rows, table="held", **cell, ranks=BY_NORM, change=OWN)
        (random,) = select(rows, table="held", **cell, ranks=BY_EFFECT, change=RANDOM)
        yield (
            f"{own['total']} of its {own['total_whole']} ranks hold {_with_ends(own, 'held')} of "
            f"its effect on {number(own, 'test_rows'):.0f} test rows (to be held: "
            f"{own['share']:g}); the {norm['total']} that hold it of the squared norm: "
            f"{_with_ends(norm, 'held')}; a random adapter of equal ranks and norms: "
            f"{number(random, 'held'):.2g}"
        )


def curve_chart(rows: Rows) -> object:
    """The loss against the coefficient, on test examples and on other text."""
    shown = {
        (JUDGE, OWN): "test rows", (OTHER, OWN): "other text", (JUDGE, RANDOM): "random change",
    }  # fmt: skip
    names = list(dict.fromkeys(str(row["direction"]) for row in rows))
    table: list[Row] = []
    for (examples, change), series in shown.items():
        found = select(rows, examples=examples, change=change)
        cells = {_key(row): row["without"] for row in found}
        for row in (*({**dict(zip(KEYS, key, strict=True)), "scale": 0.0, "loss": without}
                      for key, without in cells.items()), *found):  # fmt: skip
            several = f", {row['direction']}" if len(names) > 1 else ""
            panel = f"{row['task']}{several}"
            table.append({**row, "series": series, "panel": panel})
    return lines(
        sorted(table, key=lambda row: number(row, "scale")),
        x=Axis("scale", "coefficient"),
        y=Axis("loss", "loss in nats per token"),
        interval=("loss_low", "loss_high"),
        colour="series",
        facet="panel",
        rules=[Rule("1 x", 1.0, axis="x")],
    )


def coefficient_finding(rows: Rows) -> str:
    """The coefficient that is best on other examples, and the test losses there, at 1 and at 0."""
    best: list[Mapping[str, Scalar]] = []
    for key in dict.fromkeys(map(_key, rows)):
        cell = dict(zip(KEYS, key, strict=True))
        tried = [r for r in select(rows, **cell, examples=CHOOSE) if r["loss"] is not None]
        if tried:
            best.append(min(tried, key=lambda row: number(row, "loss")))
    if len(best) > 1:
        return (
            "The coefficients that are best on the examples to choose on are "
            f"{between(best, 'direction', 'scale')}; 1 is the direction as it is."
        )
    tested = {row["scale"]: row for row in select(rows, examples=JUDGE, change=OWN)}
    if not best or best[0]["scale"] not in tested:
        return ""
    scale = best[0]["scale"]
    there = tested[scale]
    usual = (
        f"with 1 it is {two(number(tested[1.0], 'loss'))}, " if scale != 1 and 1.0 in tested else ""
    )
    return (
        f"With coefficient {scale:g}, the best on other examples, the test loss is "
        f"{two(number(there, 'loss'))}; {usual}without the direction "
        f"{two(number(there, 'without'))}."
    )


def rank_chart(rows: Rows) -> object:
    """The ranks of every weight, by effect and by norm."""
    names = {BY_EFFECT: "by_effect", BY_NORM: "by_norm", "by norm, random": "by_norm_random"}
    table: list[Row] = [
        {**row, "series": series, "rank": row[column]}
        for row in rows
        for series, column in names.items()
    ]
    return dots(
        table, x=Axis("rank", "rank"), row="weight", colour="series", facet="direction",
        interval=None, rules=["by norm, random"],
    )  # fmt: skip


def rank_finding(rows: Rows) -> str:
    """The sums of the advised ranks, of those by norm, and of those of a random adapter."""
    names = ("by_effect", "by_norm", "by_norm_random", "whole")
    sums: list[Row] = [
        {"direction": direction} | {name: sum(number(row, name) for row in mine) for name in names}
        for direction in dict.fromkeys(row["direction"] for row in rows)
        if (mine := select(rows, direction=direction))
        and all(row[name] is not None for row in mine for name in names)
    ]
    if not sums:
        return ""
    _, norm, random, whole = (span([number(row, name) for row in sums]) for name in names)
    return (
        f"The effect needs {between(sums, 'direction', 'by_effect')} of {whole} ranks; the squared "
        f"norm {norm}, that of a random adapter {random}."
    )


FIGURES = (
    Figure(
        "coefficient",
        "Which coefficient is best?",
        "The loss with the direction added at each coefficient, on test examples, which did not "
        "choose it, and on other text. Intervals are over examples. At 0 the direction is left "
        "out. The random change has the direction's norm and changes the same weights.",
        "coefficient",
        curve_chart,
        front=True,
        finds=coefficient_finding,
    ),
    Figure(
        "rank",
        "Which ranks does the effect need?",
        "For every weight of the adapter the advised rank, with which all of them hold the share "
        "of the adapter's effect on the loss, and the smallest rank that holds it of the squared "
        "norm. The tick is the latter for a random adapter of equal rank and norm.",
        "rank",
        rank_chart,
        finds=rank_finding,
    ),
)
