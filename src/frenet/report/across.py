"""Claims over several networks: one pooled line for each, and the networks in one figure."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from markupsafe import Markup

from frenet._notebook import one_line
from frenet.experiments.experiment import (
    VERDICTS,
    Across,
    Claim,
    Figure,
    Finding,
    Row,
    Rows,
    claim_order,
    finite,
)
from frenet.experiments.figures.charts import Axis, Rule, dots
from frenet.report import figures
from frenet.report.claims import ICONS, Entry
from frenet.report.markup import tag, user_text
from frenet.report.numbers import NONE, estimate, join_words
from frenet.report.numbers import figure as number
from frenet.report.sections import framed, slug
from frenet.statistics.intervals import Estimate, standard_error
from frenet.statistics.pooled import pool

TITLE = "The claims over all networks"
EXPLAINED = (
    "Mean over the networks with its 95% interval (random effects, Hartung and Knapp), standard "
    "deviation between them, and the 95% prediction interval for the next network. Intervals over "
    "few networks are wide: their half widths are 12.7 standard errors for 2 networks, 4.3 for 3 "
    "and 3.2 for 4. These lines decide nothing: every verdict is about one network."
)
HEADINGS = (
    "Claim",
    "Networks",
    "Mean over networks",
    "Between networks",
    "Next network",
    "Left out",
)
TABLE = "networks"
# In the figures: the series of estimates, the line of the prediction interval, and how much longer
# the axis is than the estimates.
OWN, NEXT, MORE = "estimate", "next network\nprediction", 1.04
# Larger numbers have no exponential.
LARGEST = 700.0


class Pool(NamedTuple):
    """One claim over several networks.

    Attributes:
        name: the claim, and which of its cases.
        claim: the claim itself.
        across: how its estimates are shown together.
        entries: what the networks say, one each.
        counted: the networks that the mean is over.
        left_out: network -> why the mean is without it.
        mean: over networks, as it is shown; n counts networks. None: there is none.
        between: standard deviation between networks; of logarithms if ``across`` says so.
        next: the prediction interval for the next network; None for fewer than three.
    """

    name: str
    claim: Claim
    across: Across
    entries: tuple[Entry, ...]
    counted: tuple[str, ...]
    left_out: Mapping[str, str]
    mean: Estimate | None = None
    between: float | None = None
    next: tuple[float, float] | None = None

    @property
    def id(self) -> str:
        """A name for anchors and files."""
        return f"{TABLE}-{slug(self.name)}"


def pools(decisions: Sequence[Entry]) -> list[Pool]:
    """Every claim that several networks have and that can be shown together, by name."""
    by_name: dict[str, list[Entry]] = {}
    for decision in decisions:
        by_name.setdefault(decision.finding.name, []).append(decision)
    return [
        _pooled(name, across, entries)
        for name, entries in sorted(by_name.items(), key=lambda item: claim_order(item[0]))
        if (across := entries[0].claim.across) is not None
        and len({entry.model for entry in entries}) > 1
    ]


def _pooled(name: str, across: Across, entries: Sequence[Entry]) -> Pool:
    """The mean over the networks with an estimate and its error."""
    samples: dict[str, tuple[float, float]] = {}
    left_out: dict[str, str] = {}
    models: set[str] = set()
    for entry in entries:
        reason = _unusable(entry.finding, across)
        if not reason and entry.model in models:
            reason = "another run on this network is counted"
        if reason:
            left_out[entry.run] = reason
        else:
            models.add(entry.model)
            samples[entry.run] = _judged(entry.finding, across)
    found = Pool(name, entries[0].claim, across, tuple(entries), tuple(samples), left_out)
    if len(samples) < 2 or across.apart:
        return found
    mean, between, low, high = pool(*zip(*samples.values(), strict=True))
    ends = _interval(mean.low, mean.high, across) or (None, None)
    shown = mean._replace(value=_shown(mean.value, across), low=ends[0], high=ends[1])
    return found._replace(mean=shown, between=between, next=_interval(low, high, across))


def _unusable(finding: Finding, across: Across) -> str:
    """Why the mean over networks is without this one; empty if it counts.

    An error of 0, from equal values, would give its network all the weight.
    """
    value = finding.estimate
    if finding.verdict == "not testable":
        return "not testable"
    if value is None or not math.isfinite(value.value):
        return "nothing was measured"
    if value.low is None or value.high is None:
        return f"only one {value.unit}"
    if across.log and min(value.value, value.low) <= 0:
        return "not above 0, so it has no logarithm"
    _, error = _judged(finding, across)
    return "" if 0 < error < math.inf else "its interval has no finite width above 0"


def _judged(finding: Finding, across: Across) -> tuple[float, float]:
    """The estimate and its standard error on the scale that is judged."""
    value = finding.estimate
    assert value is not None
    if across.log:
        assert value.low is not None
        assert value.high is not None
        low, high = math.log(value.low), math.log(value.high)
        value = Estimate(math.log(value.value), low, high, value.n)
    return value.value, standard_error(value)


def _shown(value: float, across: Across) -> float:
    """A number of the pooled line as it is shown: inside the possible range."""
    least, most = across.limits
    value = math.exp(min(value, LARGEST)) if across.log else value
    return min(max(value, least), most)


def _interval(low: float | None, high: float | None, across: Across) -> tuple[float, float] | None:
    return None if low is None or high is None else (_shown(low, across), _shown(high, across))


def cells(found: Pool) -> tuple[str, ...]:
    """The line of a table after its claim, in the order of ``HEADINGS``."""
    left = "; ".join(_left(found)) or NONE
    counted = f"{len(found.counted)} of {len(found.entries)}"
    if found.mean is None or found.between is None:
        return counted, f"{NONE} ({_no_mean(found)})", NONE, NONE, left
    between = number(math.exp(found.between) if found.across.log else found.between, 3)
    between = f"a factor of {between}" if found.across.log else between
    reach = NONE if found.next is None else _in_brackets(found.next)
    return counted, estimate(found.mean._replace(n=0)), between, reach, left


def _left(found: Pool) -> list[str]:
    """The networks that the mean is without, by reason."""
    reasons = dict.fromkeys(found.left_out.values())
    return [
        f"{join_words([name for name, why in found.left_out.items() if why == reason])} ({reason})"
        for reason in reasons
    ]


def _no_mean(found: Pool) -> str:
    """Why there is no mean."""
    return found.across.apart or f"{'one' if found.counted else 'no'} network counts"


def _in_brackets(ends: tuple[float, float]) -> str:
    return f"[{number(ends[0], 3)}, {number(ends[1], 3)}]"


def section(found: Sequence[Pool], *, static: bool) -> Markup:
    """The part of the page with a table of all pooled lines and a figure for each."""
    head = tag("header", tag("p", "all networks", class_="eyebrow"), tag("h2", TITLE))
    numbers = tag("a", "the table above", href=f"#{TABLE}-table")
    drawn = (framed(one.id, *forest(one), numbers, static=static) for one in found)
    forests = tag("div", *drawn, class_="forests")
    inside = (head, tag("p", EXPLAINED), _table(found), forests)
    return tag("section", *inside, id=TABLE, class_="chapter")


def _table(found: Sequence[Pool]) -> Markup:
    head = tag("thead", tag("tr", *(tag("th", text, scope="col") for text in HEADINGS)))
    rows = []
    for one in found:
        name = tag("a", tag("b", one.name, class_="id"), href=f"#{one.id}")
        first = tag("th", name, " ", one.claim.statement, scope="row")
        line = zip(HEADINGS[1:], cells(one), strict=True)
        rows.append(tag("tr", first, *(tag("td", user_text(t), data_label=h) for h, t in line)))
    caption = tag("caption", TITLE, class_="hidden")
    body = tag("tbody", *rows)
    return tag("table", caption, head, body, class_="claims matrix pooled", id=f"{TABLE}-table")


def forest(found: Pool) -> tuple[Figure, Rows]:
    """The networks of one claim, with their mean, as a figure and its rows."""
    title = f"{found.name}. {found.claim.statement}"
    rows = _rows(found)
    axis = _axis(found, rows)
    figure = Figure(
        found.id, title, _caption(found, axis), TABLE, partial(_chart, found, axis),
        finds=partial(_verdicts, found),
    )  # fmt: skip
    return figure, figures.rows_of(figure, rows)


def _verdicts(found: Pool, rows: Rows) -> str:
    """On how many networks each verdict was given."""
    del rows
    counts = Counter(entry.finding.verdict for entry in found.entries)
    said = [f"{verdict} on {counts[verdict]}" for verdict in VERDICTS if counts[verdict]]
    text = ", ".join([f"{said[0]} of {len(found.entries)} networks", *said[1:]])
    return f"{text[0].upper()}{text[1:]}."


def _caption(found: Pool, axis: Axis) -> str:
    quantity = found.across.quantity
    parts = [f"{quantity[:1].upper()}{quantity[1:]}: every network with its 95% interval."]
    if found.mean is None:
        parts.append(f"There is no mean: {_no_mean(found)}.")
    else:
        parts.append("The diamond is the mean on its 95% interval; it decides nothing.")
    if found.next is not None:
        parts.append("Below it is the 95% prediction interval for the next network.")
    if found.mean is not None and _cut(found, axis):
        parts.append("Intervals that are wider than the frame are cut.")
    if found.left_out and not found.across.apart:
        parts.append(f"Left out of the mean: {'; '.join(_left(found))}.")
    return " ".join(parts)


def _cut(found: Pool, axis: Axis) -> bool:
    """Whether the interval of the mean or of the next network does not fit into the frame."""
    least, most = axis.domain or found.across.limits
    mean = found.mean or Estimate(math.nan)
    ends = [end for end in (mean.low, mean.high, *(found.next or ())) if end is not None]
    return any(not least <= end <= most for end in ends)


def _rows(found: Pool) -> list[Row]:
    """Rows of the figure: the networks, the mean, the next network, and the references."""
    rows: list[Row] = []
    for entry in found.entries:
        finding = entry.finding
        value, reference = finding.estimate, finding.reference_estimate
        verdict = f"{ICONS[finding.verdict]} {finding.verdict}"
        label = f"{one_line(entry.run)}\n{verdict}"
        rows.append(_row(label, OWN, value))
        if found.across.reference and reference is not None:
            rows.append(
                _row(label, found.across.reference, reference._replace(low=None, high=None))
            )
    if found.mean is not None:
        rows.append(_row(_mean_label(found), OWN, found.mean))
    if found.next is not None:
        low, high = found.next
        rows.append({**_row(NEXT, OWN, None), "low": low, "high": high})
    return rows


def _mean_label(found: Pool) -> str:
    return f"mean of {len(found.counted)} networks\ndecides nothing"


def _row(label: str, series: str, value: Estimate | None) -> Row:
    numbers = (None, None, None) if value is None else value[:3]
    names = ("value", "low", "high")
    return {"table": TABLE, "network": label, "series": series} | dict(
        zip(names, numbers, strict=True)
    )


def _chart(found: Pool, axis: Axis, rows: Rows) -> Any:
    across = found.across
    rules = [Rule(f"the rule: {label}", *ends) for label, ends in across.levels.items()]
    chart = dots(
        rows,
        x=axis,
        row=Axis("network"),
        colour="series",
        rules=[*([across.reference] if across.reference else []), *rules],
        bold=[_mean_label(found), NEXT],
    )
    return chart.properties(description=_words(found))


def _axis(found: Pool, rows: Rows) -> Axis:
    """The axis over the networks and the levels; the mean's wide intervals end at the frame."""
    across = found.across
    own = [row for row in rows if row["network"] not in (_mean_label(found), NEXT)]
    numbers = [finite(row[name]) for row in own for name in ("value", "low", "high")]
    numbers += [end for level in across.levels.values() for end in level]
    ends = [end for end in numbers if end is not None]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    if across.log and low > 0:
        return Axis("value", across.quantity, log=True, domain=(low / MORE, high * MORE))
    room = (MORE - 1) * (high - low)
    return Axis("value", across.quantity, domain=(low - room, high + room))


def _words(found: Pool) -> str:
    """The figure as text."""
    parts = [f"{e.run}: {estimate(e.finding.estimate)}, {e.finding.verdict}" for e in found.entries]
    if found.mean is not None:
        parts.append(f"mean: {estimate(found.mean._replace(n=0))}")
    if found.next is not None:
        parts.append(f"next network: {_in_brackets(found.next)}")
    return f"{found.across.quantity}. {'; '.join(parts)}."


def as_dict(found: Pool) -> dict[str, Any]:
    """A pooled line as JSON values."""
    mean = found.mean
    return {
        "claim": found.claim.id,
        "case": found.entries[0].finding.case,
        "quantity": found.across.quantity,
        "scale": "log" if found.across.log else "raw",
        "networks": list(found.counted),
        "left_out": dict(found.left_out),
        "mean": mean and {"value": mean.value, "low": mean.low, "high": mean.high, "n": mean.n},
        "between": found.between,
        "next": found.next and list(found.next),
        "apart": found.across.apart,
    }
