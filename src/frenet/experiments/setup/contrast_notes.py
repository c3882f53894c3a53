"""What the findings of the steering experiments share: units, premises, and what is left out."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from frenet.experiments.experiment import Breakdown, Row, Rows, finite, integer, number
from frenet.experiments.intervals import breakdown, estimate, judged, select
from frenet.experiments.setup.comparable import of
from frenet.experiments.setup.contrasts import FEW
from frenet.experiments.setup.knowledge import CHANCE, SWAPPED
from frenet.experiments.verdicts import Condition, Criterion, Requirement, every
from frenet.statistics.intervals import Estimate, student_factor

CONTRAST = ("behaviour", "space")
PUSHED = (*CONTRAST, "push")
# The case of a claim by the parameters that step: all weights are the claim itself.
CASES = {"full": "", "lora": "with LoRA"}

KNOWN = Criterion("the AUC (for choices, the accuracy) of the model's own answers", above=CHANCE)
VECTOR = Criterion("the split-half cosine of the contrast vector", above=0.3)
SHIFT = Criterion("the split-half cosine of the gradient step's shift", above=0.3)
PREMISES = (KNOWN, VECTOR, SHIFT)
MORE = "more --rows make it more reliable"


class Counted(NamedTuple):
    """The contrasts that a claim is judged on.

    Attributes:
        names: of the contrasts for which all premises hold; all contrasts if there is none.
        premises: what these contrasts say together.
        left: one sentence for each of the others.
    """

    names: tuple[str, ...]
    premises: dict[Requirement, Condition]
    left: tuple[str, ...]


def contrasts_that_count(conditions: Mapping[str, Mapping[Requirement, Condition]]) -> Counted:
    """Which contrasts count, from the premises of each.

    A contrast that the model does not know, or whose vectors are noise, says nothing about the
    claim in either direction. No premise looks at what the claim is about, so leaving a contrast
    out favours no verdict.
    """
    reasons = {
        name: next((c.why for c in each.values() if c.state != "holds"), "")
        for name, each in conditions.items()
    }
    held = tuple(name for name, why in reasons.items() if not why)
    names = held or tuple(conditions)
    requirements = list(next(iter(conditions.values()), {}))
    found = {one: every([conditions[name][one] for name in names]) for one in requirements}
    if not held:
        why = "; ".join(reasons.values())
        found = {
            one: condition._replace(why=why) if condition.counted else condition
            for one, condition in found.items()
        }
    left = tuple(
        f"{name} does not count: {reasons[name]}." for name in conditions if name not in names
    )
    return Counted(names, found, left)


def contrasts(rows: Rows, at: Rows) -> tuple[str, ...]:
    """The contrasts of some rows, also of those that were left out as unknown to the model."""
    there = (*at, *select(rows, table="behaviour"))
    return tuple(dict.fromkeys(str(row["behaviour"]) for row in there))


def premises(rows: Rows, at: Rows, name: str) -> dict[Requirement, Condition]:
    """Whether the model knows a contrast, and whether both of its vectors are reliable.

    Args:
        rows: of one space, with those of the table behaviour.
        at: the rows of all contrasts with ceilings.
        name: of the contrast.
    """
    runs = [
        {**row, "known": row["accuracy"] if row.get("separation") is None else row["separation"]}
        for row in select(rows, table="behaviour", behaviour=name)
    ]
    own, of_how_many = select(at, behaviour=name), len(contrasts(rows, at))
    known = widened(over_units(runs, "known", least=0.0), of_how_many, least=0.0)
    found: dict[Requirement, Condition] = {
        KNOWN: premise(KNOWN, known, name, "frenet steer screen shows which contrasts it knows")
    }
    if known is not None and judged(known)[1] < CHANCE:
        found[KNOWN] = Condition("fails", f"the model, asked about {name}, {SWAPPED} ({known})")
    for criterion, column in ((VECTOR, "ceiling"), (SHIFT, "ceiling_shift")):
        value = widened(over_units(own, column, least=-1.0), of_how_many, least=-1.0)
        found[criterion] = premise(criterion, value, name, MORE)
    return found


def premise(criterion: Criterion, value: Estimate | None, name: str, remedy: str) -> Condition:
    """A premise of one contrast, with a remedy if it does not hold."""
    found = criterion.of(value, case=f"for {name}")
    if found.state == "holds" or not found.counted:
        return found
    return found._replace(why=f"{found.why}; {remedy}")


def widened(
    value: Estimate | None, contrasts: int, *, least: float | None = None
) -> Estimate | None:
    """An estimate with the interval of level 1 - 0.05 / k, for one of k contrasts (Bonferroni).

    The claim is judged on the contrasts whose premises hold. Of many contrasts that a model does
    not know, some have a 95% interval above chance; none has this one, in 95% of runs.

    Args:
        value: with the interval of level 0.95; its ends move away from it by the ratio of the
            Student factors of both levels.
        contrasts: k.
        least: as for ``share``.
    """
    if value is None or value.low is None or contrasts < 2:
        return value
    levels = (1 - 0.05 / contrasts, 0.95)
    wide, usual = (student_factor(value.n, level) for level in levels)
    low, high = (value.value + (end - value.value) * wide / usual for end in judged(value))
    shown = (low, high) if least is None else (max(low, least), min(high, 1.0))
    return Estimate(value.value, *shown, value.n, value.unit, (low, high))


def by_prompts(rows: Rows) -> bool:
    """Whether the units are prompts of one network, not seeds."""
    return any(row.get("unit") == "prompt" for row in rows)


def over_units(
    rows: Rows, value: str, *, least: float | None = None, ends: str = ""
) -> Estimate | None:
    """Mean of a column over contrasts with its interval over units; None if no row has it.

    If seeds are the units, each seed gives one mean. Otherwise each row has the ends of its own
    interval over prompts. Contrasts have equal weight and independent prompts, so the distances of
    the ends from the value add up in squares.

    Args:
        rows: one for each contrast, and for each seed.
        value: the column.
        least: as for ``share``.
        ends: beginning of the names of the columns with the ends; empty: that of the value.

    Source: Zou and Donner (2008), Construction of confidence limits about effect measures: a
    general approach.
    """
    if not by_prompts(rows):
        return estimate(rows, value, least=least)
    columns = (value, f"{ends or value}_low", f"{ends or value}_high")
    known = [row for row in rows if all(finite(row.get(name)) is not None for name in columns)]
    if not known:
        return None
    k = len(known)
    values, lows, highs = ([number(row, name) for row in known] for name in columns)
    mean = sum(values) / k
    below = math.hypot(*(v - low for v, low in zip(values, lows, strict=True))) / k
    above = math.hypot(*(high - v for v, high in zip(values, highs, strict=True))) / k
    raw = (mean - below, mean + above)
    shown = raw if least is None else (max(raw[0], least), min(raw[1], 1.0))
    count = sum(integer(row, "prompts") for row in known)
    return Estimate(mean, *shown, count, "prompt", raw)


def by_space(rows: Rows) -> list[tuple[str, str]]:
    """Each space of the rows with the name of its case, the same on every network."""
    return [(space, CASES[space]) for space in dict.fromkeys(str(row["space"]) for row in rows)]


def cautions(rows: Rows, table: str, left: Sequence[str] = ()) -> list[str]:
    """Cautions about contrasts and prompts, the most important first.

    Args:
        rows: of one space.
        table: of the measurements.
        left: sentences on contrasts that do not count.
    """
    found = list(left)
    if select(rows, table=table) and (reasons := list(unmeasured(rows, table))):
        found.append(f"{'; '.join(reasons)}.")
    few = {
        str(row["behaviour"]): row["prompts"]
        for row in select(rows, table="behaviour", unit="prompt")
        if number(row, "prompts") < FEW
    }
    if few:
        names = ", ".join(f"{name} ({count})" for name, count in few.items())
        found.append(f"There are fewer than {FEW} reported prompts: {names}.")
    return found


def known_labels(rows: Rows) -> tuple[Breakdown, ...]:
    """Whether the model can tell the two sides of each contrast apart."""
    return breakdown(
        "Whether the model knows the labels",
        select(rows, table="behaviour"),
        by=CONTRAST,
        values={
            "accuracy": "accuracy",
            "separation": "pairs in the right order",
            "chance": "both by chance",
            "known_low": "from, over prompts",
            "known_high": "to, over prompts",
        },
        least=0.0,
    )


def unmeasured(rows: Rows, table: str) -> Iterator[str]:
    """Why contrasts have no rows in the table of measurements."""
    measured = {row["behaviour"] for row in select(rows, table=table)}
    # The reason is the last thing that is noted on a contrast that is given up.
    reasons = {row["behaviour"]: row["note"] for row in select(rows, table="notes")}
    for name, reason in reasons.items():
        if name not in measured:
            yield f"{name} was left out: {str(reason).removeprefix(f'{name}: ')}"


def with_blocks(rows: Rows) -> list[Row]:
    """The rows, with the chosen blocks of all seeds in the column ``blocks``."""
    chosen: dict[tuple[object, ...], set[int]] = {}
    for row in rows:
        chosen.setdefault(of(row, PUSHED), set()).add(integer(row, "block"))
    listed = {at: ", ".join(map(str, sorted(blocks))) for at, blocks in chosen.items()}
    return [dict(row) | {"blocks": listed[of(row, PUSHED)]} for row in rows]
