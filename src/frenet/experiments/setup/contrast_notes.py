"""What the findings of the experiments on steering say about models and labels."""

from collections.abc import Iterator

from frenet.experiments.experiment import Rows, number
from frenet.experiments.intervals import select
from frenet.experiments.setup.contrasts import ONE_MODEL


def one_model(rows: Rows) -> Iterator[str]:
    """What the interval over seeds is, where they share one model."""
    if select(rows, table="notes", note=ONE_MODEL):
        yield (
            "Seeds deal the same prompts of one model anew: they are not independent, and the "
            "interval is not about other prompts or models."
        )


def unknown_labels(rows: Rows) -> Iterator[str]:
    """For each contrast whose sides a model does not tell apart: in how many runs that is so."""
    table = select(rows, table="behaviour")
    for name in dict.fromkeys(row["behaviour"] for row in table):
        own = select(table, behaviour=name)
        unknown = sum(number(row, "p_known") > number(row, "p_limit") for row in own)
        if unknown:
            yield (
                f"In {unknown} of {len(own)} runs the model is at chance on the labels of {name}: "
                "there they mean nothing to it."
            )


def unmeasured(rows: Rows, table: str) -> Iterator[str]:
    """Why contrasts have no rows in the table of what is measured."""
    measured = {row["behaviour"] for row in select(rows, table=table)}
    notes = ((row["behaviour"], row["note"]) for row in select(rows, table="notes"))
    for name, note in dict.fromkeys(pair for pair in notes if pair[0] not in measured):
        yield f"{name} was left out: {note}"
