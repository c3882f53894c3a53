"""Rows that every experiment gives about its networks: what they know, what must be known."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from frenet.experiments.experiment import Cell, Column, Row, Rows
from frenet.experiments.setup import columns
from frenet.experiments.setup.networks import Network, at_most

if TYPE_CHECKING:
    from frenet.network.tasks import Split

# Held-out examples that say how well a task is known.
EXAMPLES = 32

NETWORK_TABLES = {
    "learned": (
        columns.SEED,
        columns.SPACE,
        columns.TASK,
        Column("loss", "nats/token", "held-out loss before anything is done", "measure", "chance"),
        Column("chance", "nats/token", "ln V, a uniform guess over the vocabulary", "reference"),
        Column("token_accuracy", "fraction", "held-out tokens", "measure", "guess"),
        Column("exact_match", "fraction", "held-out answers, whole", "measure", "guess"),
        Column("guess", "fraction", "1 / V", "reference"),
    ),
    "notes": (
        columns.SEED,
        columns.SPACE,
        Column("note", "", "what must be known about the network and its data", "key"),
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
        config: of the network and its damage; says how many examples a batch has.
        select: examples of the select split that the experiment asks for at once.
        test: the same of the test split; a note says where there are fewer.
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
            found = evaluate(network.model, next(task.batches("test", EXAMPLES, 0)))
        context: Row = {"chance": network.chance, "guess": math.exp(-network.chance)}
        yield {"table": "learned", **keys, "task": name, **found._asdict(), **context}
    asked: dict[Split, int] = {
        "train": max(config.learn_batch, config.damage_batch, *config.minibatches.values()),
        "select": max(select, config.damage_batch),
        "test": test,
    }
    for text in (*network.notes, *_fewer(network, asked)):
        yield note(cell, text)


def _fewer(network: Network, asked: "dict[Split, int]") -> Iterator[str]:
    """A note on the measured tasks that have fewer examples than are asked for."""
    fewer = [
        f"{name} has {count} {split} rows, not {wanted}"
        for name in network.measured
        for split, wanted in asked.items()
        if (count := at_most(network.tasks[name], split, wanted)) < wanted
    ]
    if fewer:
        yield f"measured on fewer examples than asked for: {'; '.join(fewer)}"


def note(cell: Cell, text: str) -> Row:
    """A row of the table notes."""
    return {"table": "notes", "seed": cell.seed, "space": cell["space"], "note": text}


def labelled_rows(rows: Rows, labels: Callable[[Row], Row], *, earlier: str) -> Rows:
    """Rows of builds that went along the factors of LoRA without saying so, with the labels.

    Args:
        rows: of a run; returned as they are if one of them says its coordinates.
        labels: the columns that a row gets or that change.
        earlier: a note for every cell with LoRA.
    """
    found: list[Row] = [dict(row) for row in rows]
    own = [row for row in found if row["table"] not in NETWORK_TABLES]
    if any("coordinates" in row for row in own):
        return rows
    for row in own:
        row |= labels(row)
    cells = dict.fromkeys((row["seed"], row["space"]) for row in own if row["space"] == "lora")
    return found + [
        {"table": "notes", "seed": seed, "space": space, "note": earlier} for seed, space in cells
    ]
