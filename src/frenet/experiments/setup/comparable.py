"""Which recoveries can be compared, and their space, damage and optimiser."""

import math
from collections.abc import Iterator, Mapping

from frenet.experiments.experiment import Breakdown, Row, Rows, Scalar, integer, number
from frenet.experiments.intervals import breakdown, seed_means, select
from frenet.experiments.setup.recovery import LONGEST_PREFIX

# The case of a finding about LoRA in the weights that its factors make.
IN_WEIGHTS = "in the weights"
# The captures of LoRA in these weights, as a space of their own.
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
        {**row, "space": WEIGHTS} if in_weights(row) else dict(row)
        for row in select(rows, table="capture")
    ]


def in_weights(row: Mapping[str, Scalar]) -> bool:
    """Whether a row measures LoRA in the weights; rows of all weights, and old rows, do not."""
    return (row.get("space"), row.get("coordinates")) == ("lora", "weights")


def by_coordinates(rows: Rows) -> dict[str, Rows]:
    """The rows of each case: all but those of LoRA in the weights, and these, if there are any."""
    found: dict[str, Rows] = {"": [row for row in rows if not in_weights(row)]}
    shared = [row for row in rows if row.get("coordinates") is None]
    inside = [row for row in rows if in_weights(row)]
    return found | ({IN_WEIGHTS: [*shared, *inside]} if inside else {})


def factors_and_weights(lora: Rows, value: str, name: str) -> tuple[Breakdown, ...]:
    """A column of LoRA's rows in the factors and in the weights, and the difference by seed.

    Args:
        lora: comparable rows of LoRA.
        value: the column.
        name: of the quantity, for the title.
    """
    factors, weights = (
        {row["seed"]: number(row, value) for row in seed_means(part, by=(), value=value)}
        if (part := select(lora, coordinates=where))
        else {}
        for where in ("factors", "weights")
    )
    both: list[Row] = [
        {"seed": seed, "margin": one - weights[seed], "factors": one, "weights": weights[seed]}
        for seed, one in factors.items()
        if seed in weights
    ]
    return breakdown(
        f"LoRA: {name} in the factors minus in the weights, paired by seed",
        both,
        by=(),
        values={"margin": "difference", "factors": "in the factors", "weights": "in the weights"},
    )


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
