"""What the rows of `frenet steer recommend` say, in sentences."""

from collections.abc import Iterator, Mapping

from frenet.experiments.experiment import Answer, Row, Rows, Scalar, integer, number
from frenet.experiments.intervals import select
from frenet.experiments.setup.knowledge import known_state, known_text

KEYS: Row = {}


def sentences(rows: Rows) -> list[Answer]:
    """The advice first, then how far it reaches."""
    return [answer for row in select(rows, table="advice") for answer in _of(row)]


def advised(rows: Rows) -> Mapping[str, Scalar] | None:
    """The row of the advice; None: no dose is advised."""
    found = [row for row in select(rows, table="advice") if not row["reason"]]
    return found[0] if found else None


def _of(row: Mapping[str, Scalar]) -> Iterator[Answer]:
    name = str(row["contrast"])
    known = f"the model {known_state(row)} ({known_text(row)})"
    if row["reason"]:
        yield Answer(name, KEYS, f"no dose: {_why(row)}; {known}")
        return
    yield Answer(name, KEYS, f"{_where(row)}: {_effect(row)}; {_costs(row)}; {known}")
    said = (
        f"from {number(row, 'dose_low'):g} to {number(row, 'dose_high'):g} the vector exceeds "
        "every null vector within the limit of the cost"
    )
    if row["at_edge"]:
        said += "; the advised dose is the largest that was tried, so pass larger --doses"
    yield Answer("dose range", KEYS, said)
    yield Answer(
        "at every token", KEYS,
        f"P({row['answer']}) {number(row, 'before'):.2f} -> {number(row, 'served'):.2f} if the "
        "vector is added at every token, as llama.cpp and plugins of vLLM add it",
    )  # fmt: skip


def _where(row: Mapping[str, Scalar]) -> str:
    return f"block {integer(row, 'block')}, dose {number(row, 'dose'):g}"


def _effect(row: Mapping[str, Scalar]) -> str:
    """P(answer) without and with the vector, and with the largest null vector."""
    change = _interval(row, "change", "+.2f")
    return (
        f"P({row['answer']}) {number(row, 'before'):.2f} -> {number(row, 'share'):.2f} ({change}); "
        f"largest of {integer(row, 'nulls')} null vectors {number(row, 'null'):.2f} "
        f"({row['null_kind']})"
    )


def _costs(row: Mapping[str, Scalar]) -> str:
    return (
        f"cost {_interval(row, 'cost', '.2g')} nats per token on neutral text (limit "
        f"{number(row, 'max_cost'):g}; a random vector of this length "
        f"{number(row, 'cost_random'):.2g})"
    )


def _why(row: Mapping[str, Scalar]) -> str:
    """Why no dose is advised."""
    if row["reason"] == "cost":
        return (
            f"at every block that was tried the smallest dose, {number(row, 'least_dose'):g}, may "
            f"cost more than {number(row, 'max_cost'):g} nats per token on neutral text; pass "
            "smaller --doses, or a larger --max-cost"
        )
    best = f"the best of those tried, {_where(row)}"
    if row["reason"] == "held-out cost":
        return (
            f"{best}, costs more on held-out neutral text than on the text it was chosen on: "
            f"{_costs(row)}"
        )
    return (
        f"{best}, does not clearly exceed every null vector: {_effect(row)}; lead "
        f"{_interval(row, 'lead', '+.2f')}"
    )


def _interval(row: Mapping[str, Scalar], name: str, form: str) -> str:
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    if low is None or high is None:
        return f"{value:{form}}"
    return f"{value:{form}} [{low:{form.lstrip('+')}}, {high:{form.lstrip('+')}}]"
