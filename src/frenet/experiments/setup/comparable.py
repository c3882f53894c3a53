"""Which recoveries can be compared, and their space, damage and optimiser."""

import math
from collections.abc import Iterator, Mapping

from frenet.experiments.experiment import Row, Rows, Scalar, integer
from frenet.experiments.intervals import select
from frenet.experiments.setup.recovery import LONGEST_PREFIX

# The captures of LoRA in the weights that its factors make, as a space of their own.
WEIGHTS = "lora, in the weights"
CONDITION = ("space", "protocol", "optimizer")
CASE = ("seed", "task", *CONDITION)
RECOVERY = (*CASE, "replicate")
K = 10


def comparable(rows: Rows) -> list[Row]:
    """Captures at dimension k = 10 of the recoveries that are long enough for it.

    A space without such recoveries is compared at the largest dimension below 10 that it has. A
    smaller basis counts with all its dimensions. All bases are compared on the same recoveries:
    short recoveries have captures at few dimensions only, and would shift the mean of small bases.
    """
    captures = [r for r in captures_of(rows) if r.get("captured") is not None]
    small = [row for row in captures if _k(row) <= K]
    compared: list[Row] = []
    for space in dict.fromkeys(row["space"] for row in small):
        mine = select(small, space=space)
        k = reach(mine, 0)
        long = {of(row, RECOVERY) for row in select(mine, basis="prefix", k=k)}
        same = [r for r in mine if of(r, RECOVERY) in long and _k(r) <= k]
        for basis in dict.fromkeys(row["basis"] for row in same):
            part = select(same, basis=basis)
            compared += [dict(row) for row in select(part, k=max(map(_k, part)))]
    return compared


def captures_of(rows: Rows) -> list[Row]:
    """Rows of the table capture, those of LoRA in the weights under a space of their own."""
    return [
        {**row, "space": WEIGHTS}
        if (row["space"], row.get("coordinates")) == ("lora", "weights")
        else dict(row)
        for row in select(rows, table="capture")
    ]


def reach(captures: Rows, default: int = K) -> int:
    """The largest dimension of a prefix."""
    return max(map(_k, select(captures, basis="prefix")), default=default)


def of(row: Mapping[str, Scalar], keys: tuple[str, ...]) -> tuple[Scalar, ...]:
    """The values of some columns."""
    return tuple(row.get(key) for key in keys)


def by_condition(rows: Rows) -> Iterator[tuple[Row, Rows]]:
    """Rows of each space, damage protocol and optimiser, after the names of the three."""
    for values in dict.fromkeys(of(row, CONDITION) for row in rows):
        condition = dict(zip(CONDITION, values, strict=True))
        yield condition, select(rows, **condition)


def least_steps(k: int) -> int:
    """The shortest recovery that gives a capture at k."""
    return math.ceil(k / LONGEST_PREFIX)


def _k(row: Mapping[str, Scalar]) -> int:
    return integer(row, "k")
