"""Rows of every experiment about its networks: how well they know their tasks, and notes."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from frenet.experiments.experiment import Cell, Column, Row, Rows
from frenet.experiments.setup import columns
from frenet.experiments.setup.networks import Network, at_most

if TYPE_CHECKING:
    from frenet.network.tasks import Split

# Held-out examples on which the knowledge of a task is measured.
EXAMPLES = 32

NETWORK_TABLES = {
    "learned": (
        columns.SEED,
        columns.SPACE,
        columns.TASK,
        Column("loss", "nats/token", "held-out loss before the experiment", "measure", "chance"),
        Column("chance", "nats/token", "ln V, a uniform guess over the vocabulary", "reference"),
        Column("token_accuracy", "fraction", "of held-out tokens", "measure", "guess"),
        Column("exact_match", "fraction", "of whole held-out answers", "measure", "guess"),
        Column("guess", "fraction", "1 / V", "reference"),
    ),
    "notes": (
        columns.SEED,
        columns.SPACE,
        Column("note", "", "caveats about the network and its data", "key"),
    ),
}


def describe(
    network: Network,
    cell: Cell,
    cells: Sequence[Cell],
    config: Any,
    *,
    select: int = 0,
    test: int = 0,
) -> Iterator[Row]:
    """Rows of the tables learned and notes; only the first cell of a network gives them.

    Args:
        network: of the cell.
        cell: this one.
        cells: all of them.
        config: of the network and its damage, with the sizes of its batches.
        select: examples of the select split in the largest batch of the experiment.
        test: the same for the test split; a note says if there are fewer.
    """
    import torch

    from frenet.network.measuring import measuring
    from frenet.network.tasks import evaluate

    shared = ("seed", "space")
    if cell != next(c for c in cells if all(c[key] == cell[key] for key in shared)):
        return
    keys: Row = {key: cell[key] for key in shared}
    for name, task in network.tasks.items():
        with measuring(network.model), torch.no_grad():
            result = evaluate(network.model, next(task.batches("test", EXAMPLES, 0)))
        context: Row = {"chance": network.chance, "guess": math.exp(-network.chance)}
        yield {"table": "learned", **keys, "task": name, **result._asdict(), **context}
    requested: dict[Split, int] = {
        "train": max(config.learn_batch, config.damage_batch, *config.minibatches.values()),
        "select": max(select, config.damage_batch),
        "test": test,
    }
    for text in (*network.notes, *_fewer(network, requested)):
        yield note(cell, text)


def _fewer(network: Network, requested: "dict[Split, int]") -> Iterator[str]:
    """A note on the measured tasks that have fewer examples than requested."""
    fewer = [
        f"{name} has {count} {split} rows, not {size}"
        for name in network.measured
        for split, size in requested.items()
        if (count := at_most(network.tasks[name], split, size)) < size
    ]
    if fewer:
        yield f"measured on fewer examples than requested: {'; '.join(fewer)}"


def note(cell: Cell, text: str) -> Row:
    """A row of the table notes."""
    return {"table": "notes", "seed": cell.seed, "space": cell["space"], "note": text}


def labelled_rows(rows: Rows, labels: Callable[[Row], Row], *, earlier: str) -> Rows:
    """Rows of earlier builds, with the coordinates of their lines.

    Args:
        rows: of a run; returned unchanged if one of them has coordinates.
        labels: the columns to add to a row.
        earlier: a note for every cell with LoRA.
    """
    labelled: list[Row] = [dict(row) for row in rows]
    measured = [row for row in labelled if row["table"] not in NETWORK_TABLES]
    if any("coordinates" in row for row in measured):
        return rows
    for row in measured:
        row |= labels(row)
    cells = dict.fromkeys((row["seed"], row["space"]) for row in measured if row["space"] == "lora")
    return labelled + [
        {"table": "notes", "seed": seed, "space": space, "note": earlier} for seed, space in cells
    ]
