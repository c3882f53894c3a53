"""``frenet probe``: how far, and for how long, can directions from a model be followed?"""

from typing import Any

from frenet.cli.execution import run_here
from frenet.cli.options import OneProcess, parse_both, printing
from frenet.experiments.direction_scale import PROBE, PROBED
from frenet.experiments.direction_scale.advised import checks, sentences
from frenet.experiments.experiment import Answer, Row, Rows, Scalar
from frenet.experiments.intervals import select
from frenet.experiments.setup.brackets import life_columns

ABOUT = (
    "How far can directions from the weights of a model be followed, and which coefficient is "
    "best? Adapters, checkpoints and task vectors from disk (--vectors) get an advice, its cost on "
    "other text, and a random change of equal norm. Steering vectors have a radius only. Without "
    "any of these: the gradient, an Adam step and a random direction. With --lags "
    "also for how long, in a training run that frenet starts; --directions names further kinds."
)
SHOWN = (
    "radius", "low", "high", "predicted", "times", "relative", "unbounded", "length", "coordinates",
)  # fmt: skip


def probe(args: list[str]) -> int:
    """``frenet probe``."""
    options, config = parse_both(
        OneProcess, PROBE, args, command="probe", about=ABOUT, titles=("running", "probe")
    )
    with printing(options.json) as show:
        ended = run_here(PROBED, config, options)
        rows = ended.run.rows
        if options.json:
            found = {"check": _rows(rows, "check"), "directions": _results(rows)}
            show(ended.facts("probe") | found)
        else:
            for answer in (*checks(rows), *sentences(rows)):
                show(f"{named_cell(answer, rows)}: {answer.sentence}")
            ended.show(show)
    return ended.code


def named_cell(answer: Answer, rows: Rows) -> str:
    """What an answer is about, with its task, space and seed if the run has several of them."""
    cells = select(rows, table="check")
    several = [
        f"{key} {value}" for key, value in answer.keys.items()
        if len({row[key] for row in cells}) > 1
    ]  # fmt: skip
    return f"{answer.subject} ({', '.join(several)})" if several else answer.subject


def _rows(rows: Rows, table: str, **keys: Scalar) -> list[Row]:
    """The rows of a table, without its name and these keys."""
    left_out = {"table", *keys}
    return [
        {name: value for name, value in row.items() if name not in left_out}
        for row in select(rows, table=table, **keys)
    ]


def _results(rows: Rows) -> list[dict[str, Any]]:
    """Of every direction: its sentences, what is advised, both radii, and the lifetime if asked."""
    results: dict[tuple[Scalar, ...], dict[str, Any]] = {}
    for answer in sentences(rows):
        keys: Row = {**answer.keys, "direction": answer.subject}
        known = results.get(tuple(keys.values()))
        if known is not None:
            known["more"].append(answer.sentence)
            continue
        of_direction = select(rows, **keys)
        sides = {
            "along" if row["sign"] == 1 else "against": {name: row.get(name) for name in SHOWN}
            for row in select(of_direction, table="radius")
        }
        lives = select(of_direction, table="lifetime")
        lifetime = {c.name: lives[0][c.name] for c in life_columns("")} if lives else None
        tables = {f"{name}s": _rows(rows, name, **keys) for name in ("coefficient", "rank")}
        results[tuple(keys.values())] = {
            **keys, "sentence": str(answer), "more": [], **sides, "lifetime": lifetime,
            "advice": next(iter(_rows(rows, "advice", **keys)), None), **tables,
            "held": _rows(rows, "held", **keys),
        }  # fmt: skip
    return list(results.values())
