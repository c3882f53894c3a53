"""What the findings of the steering experiments say about models and labels."""

from collections.abc import Iterator, Mapping

from frenet.experiments.experiment import Breakdown, Row, Rows, Scalar, integer, number
from frenet.experiments.intervals import breakdown, select
from frenet.experiments.setup.comparable import of
from frenet.experiments.setup.contrasts import ONE_MODEL

CONTRAST = ("behaviour", "space")
PUSHED = (*CONTRAST, "push")


def cautions(rows: Rows, table: str) -> Iterator[str]:
    """Cautions about contrasts and seeds, the most important first.

    ``table`` names the table of measurements.
    """
    if select(rows, table=table) and (reasons := list(unmeasured(rows, table))):
        yield f"{'; '.join(reasons)}."
    runs = select(rows, table="behaviour")
    if unknown := [row for row in runs if _unknown(row)]:
        names = ", ".join(dict.fromkeys(str(row["behaviour"]) for row in unknown))
        yield (
            f"In {len(unknown)} of {len(runs)} runs the model cannot tell the two classes apart "
            f"({names}), so these contrasts mean nothing to it."
        )
    if select(rows, table="notes", note=ONE_MODEL):
        yield (
            "Seeds only reshuffle the same prompts of one model. They are not independent, so the "
            "interval says nothing about other prompts or models."
        )


def known_labels(rows: Rows) -> tuple[Breakdown, ...]:
    """Whether the model can tell the two sides of each contrast apart."""
    return breakdown(
        "Whether the model knows the labels",
        [dict(row) | {"unknown": _unknown(row) or None} for row in select(rows, table="behaviour")],
        by=CONTRAST,
        values={
            "accuracy": "accuracy",
            "separation": "pairs in the right order",
            "chance": "both by chance",
            "p_known": "mean p-value of no difference",
            "p_limit": "limit of p",
        },
        counts={"unknown": "seeds with p above the limit"},
        least=0.0,
    )


def unmeasured(rows: Rows, table: str) -> Iterator[str]:
    """Why contrasts have no rows in the table of measurements."""
    measured = {row["behaviour"] for row in select(rows, table=table)}
    notes = ((row["behaviour"], row["note"]) for row in select(rows, table="notes"))
    for name, note in dict.fromkeys(pair for pair in notes if pair[0] not in measured):
        yield f"{name} was left out: {note}"


def with_blocks(rows: Rows) -> list[Row]:
    """The rows, with the chosen blocks of all seeds in the column ``blocks``."""
    chosen: dict[tuple[object, ...], set[int]] = {}
    for row in rows:
        chosen.setdefault(of(row, PUSHED), set()).add(integer(row, "block"))
    listed = {at: ", ".join(map(str, sorted(blocks))) for at, blocks in chosen.items()}
    return [dict(row) | {"blocks": listed[of(row, PUSHED)]} for row in rows]


def _unknown(row: Mapping[str, Scalar]) -> bool:
    """Whether the labels mean nothing to the model."""
    return number(row, "p_known") > number(row, "p_limit")
