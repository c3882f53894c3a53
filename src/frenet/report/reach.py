"""How far and for how long directions can be followed: the first figure of a page, and in words."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from frenet.experiments.experiment import Reach
from frenet.experiments.figures.landscape import landscape
from frenet.experiments.figures.names import label
from frenet.experiments.figures.series import Series
from frenet.experiments.figures.wording import two
from frenet.report.drawn import SMALL, Scale, bar, beside, canvas, mark, upright, words
from frenet.report.glossary import TERMS, explained
from frenet.report.markup import tag, user_text
from frenet.report.numbers import join_words, percent

ROW, MIDDLE = 22, 11.0
# What the change of a distance is a share of, in words; the heading of each group of directions.
NORMS = {
    "weights": ("in the weights", "the weights’ norm"),
    "factors": ("in its factors (earlier build)", "the factors’ norm"),
    "stream": ("in the activations", "the activations’ norm"),
}
NO_SHARE = "holds no more of the gradient than chance"
NOT_ASKED = "For how long was not measured; frenet probe does so with --lags 1 3 10 30 100."
# The command that measures a direction, which a page keeps in one line.
PROBE = "frenet probe --vectors"
NO_RADIUS = "its slope cannot be told from rounding"
# Directions that the first sentence names at most, and those that are kinds, not names of files.
NAMED, COMMON = 3, frozenset({"gradient", "task vector", "steering vector"})


class Followed(NamedTuple):
    """One direction over all seeds.

    Attributes:
        name: its label.
        share_of: the norm that distances are a share of.
        seeds: of each seed.
        leads: whether the first sentence is about it.
    """

    name: str
    share_of: str
    seeds: tuple[Reach, ...]

    @property
    def leads(self) -> bool:
        """Whether the first sentence is about it."""
        return self.seeds[0].leads

    @property
    def far(self) -> float | None:
        """The geometric mean over seeds."""
        return _mean([one.far for one in self.seeds])

    @property
    def times(self) -> float | None:
        """The same in units of its own length."""
        return _mean([one.times for one in self.seeds])

    @property
    def lived(self) -> list[Reach]:
        """The seeds that have a lifetime."""
        return [one for one in self.seeds if one.life is not None and one.has_share]

    @property
    def lives(self) -> list[tuple[float, float | None]]:
        """Their brackets."""
        return [one.life for one in self.lived if one.life is not None]

    @property
    def least(self) -> bool:
        """Whether the mean lifetime is a lower bound, as that of a seed is."""
        return any(high is None for _, high in self.lives)

    @property
    def outlives(self) -> bool:
        """Whether it is still good at the end of the run, on every seed."""
        return all(life == (self.longest, None) for life in self.lives)

    @property
    def life(self) -> float | None:
        """The geometric mean of the middles of the brackets."""
        return _mean([middle(life) for life in self.lives])

    @property
    def longest(self) -> float:
        """The last step at which any seed was looked at."""
        return max(one.longest for one in self.seeds)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [math.log(value) for value in values if value is not None and value > 0]
    return math.exp(sum(known) / len(known)) if known else None


def middle(life: tuple[float, float | None]) -> float:
    """The geometric middle of a bracket; its only end if it has one."""
    low, high = life
    return low if high is None else math.sqrt(max(low, 0.5) * high)


def followed(reaches: Sequence[Reach], space: str) -> list[Followed]:
    """The directions of one space by group, those that last longest last."""
    mine = [one for one in reaches if one.space == space]
    groups = dict.fromkeys((one.direction, one.share_of) for one in mine)
    found = [
        Followed(
            label(name),
            share_of,
            tuple(one for one in mine if (one.direction, one.share_of) == (name, share_of)),
        )
        for name, share_of in groups
    ]
    order = list(NORMS)
    return sorted(found, key=lambda one: (order.index(one.share_of), *_lasting(one)))


def _lasting(one: Followed) -> tuple[float, float]:
    return one.life or math.inf, one.far or math.inf


def spaces(reaches: Sequence[Reach]) -> list[str]:
    """The spaces, in the order of the rows."""
    return list(dict.fromkeys(one.space for one in reaches))


def far_words(one: Followed) -> str:
    """How far, as a share of a norm and in its own length."""
    if one.far is None:
        return NO_RADIUS
    least = any(seed.unbounded for seed in one.seeds)
    text = f"{'≥ ' if least else ''}{percent(one.far)}"
    return text if one.times is None else f"{text} · {two(one.times)} × its length"


def long_words(one: Followed) -> str:
    """For how long, in steps: from the least to the largest end of the brackets of its seeds."""
    if not one.lives:
        return NO_SHARE if not any(seed.has_share for seed in one.seeds) else "not known"
    counted = len(one.lives)
    some = "" if counted == len(one.seeds) else f" on {counted} of {len(one.seeds)} seeds"
    return f"{_bracket(one)}{some}"


def _bracket(one: Followed) -> str:
    low = min(low for low, _ in one.lives)
    ends = [high for _, high in one.lives if high is not None]
    beyond = [low for low, high in one.lives if high is None]
    if beyond:
        start = "" if low == min(beyond) else f"{two(low)} to "
        return f"{start}> {two(min(beyond))} steps"
    if low <= 0:
        return f"≤ {two(max(ends))} step{'' if max(ends) == 1 else 's'}"
    return f"{two(low)} to {two(max(ends))} steps"


def sentence(reaches: Sequence[Reach]) -> str:
    """The answer to the title in one sentence; empty if no direction was followed."""
    if not reaches:
        return ""
    every = followed(reaches, spaces(reaches)[0])
    known = [one for one in every if one.far is not None]
    chosen = [one for one in known if one.leads][:NAMED] or known[:NAMED]
    if not chosen:
        return f"No direction has a measured radius: {NO_RADIUS}."
    lived = [one for one in every if one.lives]
    stale = not lived or not all(one.outlives for one in lived)
    clauses = [_clause(one, chosen[:index], stale) for index, one in enumerate(chosen)]
    if not stale:
        steps = two(max(one.longest for one in every))
        clauses.append(f"no direction went stale within the {steps} steps of the run")
    return f"{_capital('; '.join(clauses))}."


def advice(reaches: Sequence[Reach]) -> str:
    """What follows for the reader: which direction lasts longest, and what to do with two kinds.

    Beyond its radius a task vector may still help, so that its best coefficient has to be measured.
    Empty if no direction has a lifetime or a length.
    """
    if not reaches:
        return ""
    every = followed(reaches, spaces(reaches)[0])
    parts = []
    if lived := [one for one in every if one.lives and len(one.lives) == len(one.seeds)]:
        last = max(lived, key=lambda one: (one.outlives, one.life or 0.0))
        parts.append(f"Lasts longest: {last.name} ({long_words(last)}).")
    for one in every:
        if one.name == "gradient" and one.lives and not one.outlives:
            parts.append(f"Make a gradient or its basis anew every {_renewal(one)}.")
        if one.name == "task vector" and one.times is not None:
            parts.append(
                f"Beyond {two(one.times)} × its length, measure a task vector with {PROBE} "
                "instead of trusting its slope."
            )
    return " ".join(parts)


def _renewal(one: Followed) -> str:
    """The last step at which every seed still held half."""
    least = min(low for low, _ in one.lives)
    return f"{two(least)} steps" if least > 1 else "step"


def _clause(one: Followed, before: Sequence[Followed], stale: bool) -> str:
    """How far, and if any direction went stale, how long; what was said before is left out."""
    assert one.far is not None
    norms = {other.share_of for other in before}
    is_good = "" if before else " is good"
    far = f"{_article(one)}{is_good} up to {percent(one.far)}"
    if one.times is not None and one.name not in COMMON:
        far = f"{one.name}{is_good} up to {two(one.times)} times its length"
    elif one.share_of not in norms:
        far += f" of {NORMS[one.share_of][1]}"
    if not one.longest or not stale:
        return far
    if not one.lives:
        return f"{far}, but it {long_words(one)}"
    if one.outlives:
        some = long_words(one).partition(" steps")[2]
        return f"{far} and beyond the run of {two(one.longest)} steps{some}"
    steps = _in_steps(long_words(one))
    return f"{far} and for {steps if before else steps.replace(' step', ' training step')}"


def _in_steps(text: str) -> str:
    return text.replace("≤", "at most").replace(">", "more than")


def _article(one: Followed) -> str:
    if one.name not in COMMON:
        return one.name
    return f"a{'n' if one.name[0] in 'aeiouAEIOU' else ''} {one.name}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def together(by_network: Mapping[str, Sequence[Reach]]) -> str:
    """What a gradient does on each network, in one sentence; empty if none was followed."""
    every = {name: _gradient(reaches) for name, reaches in by_network.items() if reaches}
    parts = [
        f"for {_in_steps(long_words(one))} on {name}"
        for name, one in every.items()
        if one is not None and one.lives and not one.outlives
    ]
    beyond = [name for name, one in every.items() if one and one.lives and one.outlives]
    parts += [f"beyond the run on {join_words(beyond)}"] if beyond else []
    return f"A gradient is good {join_words(parts)}." if parts else ""


def _gradient(reaches: Sequence[Reach]) -> Followed | None:
    every = followed(reaches, spaces(reaches)[0])
    return next((one for one in every if one.name == "gradient"), None)


def on_common_axes(by_network: Mapping[str, Sequence[Reach]]) -> Iterator[tuple[str, str, Any]]:
    """The maps of several networks on common axes: an anchor, a caption and a chart.

    They show the first space of each network. Networks on which no direction went stale are in the
    caption.
    """
    for title in ("weights", "activations"):
        panelled, stale = [], []
        moved = title == "activations"
        for name, reaches in by_network.items():
            mine = [one for one in reaches if (one.share_of == "stream") == moved]
            mine = [one for one in mine if one.space == mine[0].space]
            lived = [one for one in mine if one.life is not None and one.far]
            if lived and all(one.life is not None and one.life[1] is None for one in lived):
                stale.append(name)
                continue
            panelled += [(name if moved else _panel(name, one), one) for one in mine]
        if not panelled and not stale:
            continue
        left = f" No direction went stale on {join_words(stale)}." if stale else ""
        yield title, f"Common axes for all networks.{left}", landscape(panelled, shared=True)


def _panel(name: str, one: Reach) -> str:
    factors = ", norm of factors" if one.share_of == "factors" else ""
    return f"{name}\n{label(one.space)}{factors}"


def figure(reaches: Sequence[Reach], anchor: str) -> Markup:
    """The two columns of dots of the first space, and those of the other spaces when opened."""
    parts = [_plot(followed(reaches, space), space) for space in spaces(reaches)]
    if not parts:
        return Markup("")
    others = [
        tag("details", tag("summary", f"The same for {label(space)}"), part)
        for space, part in zip(spaces(reaches)[1:], parts[1:], strict=True)
    ]
    below = tag("div", _key(reaches), *others, class_="below")
    return tag("figure", parts[0], below, class_="reach", id=anchor)


def _key(reaches: Sequence[Reach]) -> Markup:
    seeds = len({one.seed for one in reaches})
    dots = (
        f"Large mark: geometric mean of {seeds} seeds; small marks: seeds. "
        if seeds > 1
        else "One seed; the line is the 95% interval over examples. "
    )
    bars = "Half is lost between the two measured steps that a bar joins; hollow: at least so long."
    if not max(one.longest for one in reaches):
        bars = NOT_ASKED
    return tag("figcaption", dots, bars)


def _plot(every: Sequence[Followed], space: str) -> Markup:
    far, long = _far_scale(every), _long_scale(every)
    series = Series("", None, [one.name for one in every], [], [], {})
    groups = list(dict.fromkeys(one.share_of for one in every))
    headings = [
        tag("th", _capital(moved(space, groups[0])), scope="col"),
        _heading("How far", "loss follows its slope up to this share of the norm"),
    ]
    if long:
        headings.append(_heading("For how long", "steps until half of what it held is gone"))
    body: list[Markup] = []
    for share_of in groups:
        if share_of != groups[0]:
            group = tag(
                "th", _capital(NORMS[share_of][0]), scope="rowgroup", colspan=2 + bool(long)
            )
            body.append(tag("tr", group, class_="group"))
        body += [
            _row(one, series.place(one.name), far, long)
            for one in every
            if one.share_of == share_of
        ]
    body.append(_axis(far, long))
    head = tag("thead", tag("tr", *headings))
    caption = tag("caption", "How far and for how long each direction is good", class_="hidden")
    return tag("table", caption, head, tag("tbody", *body))


def moved(space: str, share_of: str) -> str:
    """What the directions of a space move, in words."""
    if share_of == "stream":
        return NORMS[share_of][0]
    return label(space) if space == "full" else f"{label(space)}, {NORMS[share_of][0]}"


def _heading(name: str, meaning: str) -> Markup:
    return tag("th", tag("b", name), " ", tag("span", meaning), scope="col")


def _name(name: str) -> Markup:
    """A direction's name, explained if the glossary has it, and otherwise as a user gave it."""
    return explained(name, set()) if name in TERMS else user_text(name)


def _row(one: Followed, turn: int, far: Scale, long: Scale | None) -> Markup:
    sign = tag("svg", mark(50.0, 7.0, turn=turn), width=14, height=14, aria_hidden="true")
    cells = [
        tag("th", sign, " ", _name(one.name), scope="row"),
        tag("td", _far(one, turn, far), tag("span", far_words(one), class_="said")),
    ]
    if long:
        cells.append(tag("td", _long(one, turn, long), tag("span", long_words(one), class_="said")))
    return tag("tr", *cells)


def _far_scale(every: Sequence[Followed]) -> Scale:
    values = [seed.far for one in every for seed in one.seeds if seed.far]
    values += [end for one in every for seed in one.seeds for end in seed.ends if end]
    low, high = min(values, default=0.01), max(values, default=1.0)
    return Scale(_decade(low, math.floor), _decade(high, math.ceil), log=True)


def _decade(value: float, round_to: Callable[[float], int]) -> float:
    """The power of ten on one side; a half decade if that is nearer."""
    for step in (1.0, 3.0):
        exponent = round_to(math.log10(value / step))
        if abs(math.log10(value / step) - exponent) <= 0.52:
            return step * 10.0**exponent
    return 10.0 ** round_to(math.log10(value))


def _long_scale(every: Sequence[Followed]) -> Scale | None:
    longest = max(one.longest for one in every)
    if not longest:
        return None
    lows = [max(low, 0.5) for one in every for low, _ in one.lives]
    return Scale(min([1.0, *lows]), max(longest, 2.0) * 1.6, log=True)


def _grid(scale: Scale) -> list[Markup]:
    return [upright(scale.at(at), 0.0, float(ROW), "grid") for at in scale.decades()]


def _far(one: Followed, turn: int, scale: Scale) -> Markup:
    parts = _grid(scale)
    if one.far is None:
        return canvas(*parts, words(1.0, MIDDLE + 4, NO_RADIUS), height=ROW, kind="far")
    seeds = [seed for seed in one.seeds if seed.far]
    places = [scale.at(seed.far) for seed in seeds if seed.far]
    ends = [scale.at(end) for end in one.seeds[0].ends if end] if len(seeds) == 1 else []
    span = [*places, *ends]
    parts.append(bar(min(span), max(span), MIDDLE, f"span {_colour(turn)}"))
    if len(seeds) > 1:
        parts += [
            mark(
                place, MIDDLE, turn=turn, half=SMALL, hollow=seed.unbounded, says=_far_of(one, seed)
            )
            for place, seed in zip(places, seeds, strict=True)
        ]
    hollow = all(seed.unbounded for seed in seeds)
    says = _far_of(one, *seeds)
    parts.append(mark(scale.at(one.far), MIDDLE, turn=turn, hollow=hollow, says=says))
    return canvas(*parts, beside(span, MIDDLE + 4, far_words(one)), height=ROW, kind="far")


def _long(one: Followed, turn: int, scale: Scale) -> Markup:
    end = scale.at(one.longest)
    parts = [*_grid(scale), upright(end, 0.0, float(ROW), "end")]
    if one.life is None:
        return canvas(*parts, words(1.0, MIDDLE + 4, long_words(one)), height=ROW, kind="long")
    places: list[float] = []
    several = len(one.lives) > 1
    for index, (seed, (low, high)) in enumerate(zip(one.lived, one.lives, strict=True)):
        y = MIDDLE + (2.6 * (index - (len(one.lives) - 1) / 2) if several else 0)
        if high is not None:
            ends = scale.at(max(low, 0.5)), scale.at(high)
            parts.append(bar(*ends, y, f"span {_colour(turn)}"))
            places += ends
        if several:
            at = scale.at(middle((low, high)))
            places.append(at)
            says = _long_of(one, seed)
            parts.append(mark(at, y, turn=turn, half=SMALL, hollow=high is None, says=says))
    says = _long_of(one, *one.seeds)
    parts.append(mark(scale.at(one.life), MIDDLE, turn=turn, hollow=one.least, says=says))
    places.append(scale.at(one.life))
    return canvas(*parts, beside(places, MIDDLE + 4, long_words(one)), height=ROW, kind="long")


def _far_of(one: Followed, *seeds: Reach) -> str:
    """The tooltip of how far."""
    words = far_words(one._replace(seeds=seeds))
    return f"{one.name}, {_which(seeds)}, as a share of {NORMS[one.share_of][1]}: {words}"


def _long_of(one: Followed, *seeds: Reach) -> str:
    """The tooltip of for how long."""
    return f"{one.name}, {_which(seeds)}: {long_words(one._replace(seeds=seeds))}"


def _which(seeds: Sequence[Reach]) -> str:
    return f"seed {seeds[0].seed}" if len(seeds) == 1 else f"{len(seeds)} seeds"


def _colour(turn: int) -> str:
    return f"series-{turn % 8 + 1}"


def _axis(far: Scale, long: Scale | None) -> Markup:
    # A narrow window has room for every second number.
    ticks = [
        words(far.at(at), 13.0, percent(at), anchor="middle", kind="wide" if index % 2 else None)
        for index, at in enumerate(far.decades())
    ]
    cells = [tag("td", ""), tag("td", canvas(*ticks, height=18, kind="axis"))]
    if long:
        last = long.high / 1.6
        # A narrow window has no room for a number just before the last one.
        ticks = [
            words(
                long.at(at), 13.0, f"{at:g}", anchor="middle",
                kind="wide" if at > 0.3 * last else None,
            )
            for at in long.decades()
            if at < 0.6 * last
        ]  # fmt: skip
        ticks.append(words(100.0, 13.0, f"{last:g}, end of run", anchor="end"))
        cells.append(tag("td", canvas(*ticks, height=18, kind="axis")))
    return tag("tr", *cells, class_="axis", aria_hidden="true")
