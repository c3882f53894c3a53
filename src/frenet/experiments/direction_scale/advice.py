"""Rows of `frenet probe` before how far and how long: which coefficient, its cost, which ranks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch

from frenet._errors import UsageError
from frenet.experiments.direction_scale import ProbeConfig, measure, resolved
from frenet.experiments.direction_scale.advised import (
    BY_EFFECT,
    BY_NORM,
    CHOOSE,
    JUDGE,
    OTHER,
    OWN,
    RANDOM,
    WHOLE,
    check_losses,
)
from frenet.experiments.direction_scale.directions import Direction, Spot, source_names
from frenet.experiments.experiment import Cell, Row, finite
from frenet.experiments.setup.check import check_row, check_sentence
from frenet.experiments.setup.describe import note
from frenet.geometry import rng
from frenet.measure.displaced import DisplacedLosses, LossCurve, adapter_curve, moving
from frenet.methods.coefficient import HALVINGS, USUAL, Advice, Tried, best_coefficient, judged
from frenet.methods.merge_choice import Interval
from frenet.methods.rank_choice import (
    CutLosses,
    Held,
    RankAdvice,
    choose_ranks,
    cut_losses,
    factored_parts,
    held,
    random_parts,
)
from frenet.methods.task_vectors import TaskVector
from frenet.methods.vector_files import plain_base
from frenet.network.checkpoints.scaled_adapter import ScaledAdapter, is_dora
from frenet.network.data.neutral_texts import neutral_tokens
from frenet.network.data.text import text_tasks
from frenet.network.measuring import measuring
from frenet.network.tasks import Batch, collate, example_losses

# The cost on other text is also given at this coefficient.
TWICE = 2.0
NEUTRAL = "neutral text"


def run(config: ProbeConfig, cell: Cell, say: Callable[[str], None] | None = None) -> Iterator[Row]:
    """Rows of all tables of `frenet probe`.

    Args:
        config: what to measure.
        cell: seed, space and task.
        say: takes what a person should know before a long step: its cost, and the answers so far.
    """
    config = resolved(config)
    named = dict(zip(source_names(config.vectors), config.vectors, strict=True))
    bent = {name: Path(source) for name, source in named.items() if is_dora(source)}
    straight = tuple(source for name, source in named.items() if name not in bent)
    advise = Advising(config, bent).rows
    yield from measure.run(replace(config, vectors=straight), cell, say, advise)


class Found(NamedTuple):
    """What is advised about one direction.

    Attributes:
        best: its coefficient.
        cost: its loss on other text at some coefficients.
        ranks: of an adapter, if they were asked for.
    """

    best: Advice
    cost: tuple[Tried, ...]
    ranks: RankAdvice | None


class Curves(NamedTuple):
    """Losses of one direction over its coefficient.

    Attributes:
        own: with the direction, by the examples.
        random: of the examples that judge, with a random change of equal norm; None: there is none.
    """

    own: Mapping[str, LossCurve]
    random: LossCurve | None


@dataclass
class Advising:
    """Advice about directions.

    Attributes:
        config: with the coefficients, the other text and what is asked about ranks.
        bent: folders of DoRA adapters by name, whose lines in the weights are not straight.
        found: the advice so far, by the name of the direction.
    """

    config: ProbeConfig
    bent: Mapping[str, Path] = field(default_factory=dict)
    found: dict[str, Found] = field(default_factory=dict)

    def rows(
        self,
        spot: Spot,
        own: Sequence[tuple[Direction, Direction]],
        say: Callable[[str], None],
    ) -> Iterator[Row]:
        """Rows about directions, each with its random twin, and about DoRA adapters."""
        examples = self._examples(spot)
        if not own and not self.bent:
            yield self._check(spot, "", example_curve(spot, examples[JUDGE]), say)
            return
        for name, folder in self.bent.items():
            adapter = ScaledAdapter(plain_base(spot.network.model), folder.expanduser())
            yield from (note(spot.cell, f"{name}: {text}") for text in (*adapter.notes, *BENT))
            curves = {which: adapter_curve(adapter, batch) for which, batch in examples.items()}
            yield from self._advice(spot, name, Curves(curves, None), say)
        for direction, twin in own:
            with straight_curves(spot, direction, twin, examples) as curves_of:
                yield from self._advice(spot, direction.name, curves_of, say)
            if self.config.ranks:
                yield from self._ranks(spot, direction, examples, say)

    def _examples(self, spot: Spot) -> dict[str, Batch]:
        batches = {CHOOSE: spot.examples("select"), JUDGE: spot.examples("test")}
        other = other_text(self.config, spot)
        return batches if other is None else {**batches, OTHER: other}

    def _check(self, spot: Spot, name: str, curve: LossCurve, say: Callable[[str], None]) -> Row:
        """How the task is read, and its loss; said before the long part."""
        row: Row = {
            "table": "check", **dict(spot.cell.keys), "direction": name, **check_row(spot.task),
            "rows": len(curve.counts), "without": curve.mean(0.0),
        }  # fmt: skip
        if name:
            row["with"] = finite(curve.mean(USUAL))
        say(f"check: {check_sentence(row, check_losses([row]))}")
        return row

    def _advice(
        self, spot: Spot, name: str, curves: Curves, say: Callable[[str], None]
    ) -> Iterator[Row]:
        """Rows of the tables check, coefficient and advice."""
        scales = self.config.scales
        keys: Row = {**dict(spot.cell.keys), "direction": name}
        yield self._check(spot, name, curves.own[JUDGE], say)
        passes = 2 * len(scales) + 5 + HALVINGS
        say(f"coefficients of {name}: about {passes} forward passes of {spot.config.eval_size} "
            "examples, and 4 of other text")  # fmt: skip
        draw = rng.generator(spot.seed, "probe", "coefficient", name)
        best = best_coefficient(
            curves.own[CHOOSE], curves.own[JUDGE], scales=scales, generator=draw
        )
        cost: tuple[Tried, ...] = ()
        shown = sorted({USUAL, TWICE, best.scale or USUAL})
        if OTHER in curves.own:
            cost = judged(curves.own[OTHER], shown, generator=draw)
        random: tuple[Tried, ...] = ()
        if curves.random is not None:
            scale = best.best.scale if best.scale is None else best.scale
            random = judged(curves.random, [scale], generator=draw)
        self.found[name] = Found(best, cost, None)
        yield from _selected_rows(best, keys)
        for which, change, several in (
            (JUDGE, OWN, best.curve), (JUDGE, RANDOM, random), (OTHER, OWN, cost),
        ):  # fmt: skip
            yield from (_tried_row(one, {**keys, "change": change, "examples": which})
                        for one in several)  # fmt: skip
        yield _advice_row(best, scales, keys) | {"other": self.config.neutral or NEUTRAL}

    def _ranks(
        self, spot: Spot, direction: Direction, examples: Mapping[str, Batch],
        say: Callable[[str], None],
    ) -> Iterator[Row]:  # fmt: skip
        """Rows of the tables rank and held."""
        model, share, vector = spot.network.model, self.config.share, direction.delta
        try:
            if not isinstance(vector, TaskVector):
                raise UsageError("it is no change of the weights")
            parts = factored_parts(vector)
        except UsageError as error:
            yield note(spot.cell, f"{direction.name}: no ranks: {error}")
            return
        sizes = [len(part.S) for part in parts.values()]
        passes = 2 + len(parts) + sum(sizes).bit_length() + max(sizes).bit_length()
        say(f"ranks of {direction.name}: about {passes} forward passes of "
            f"{spot.config.eval_size} examples for {len(parts)} weights")  # fmt: skip
        keys = {**dict(spot.cell.keys), "direction": direction.name}
        with cut_losses(model, parts, examples[CHOOSE]) as losses:
            advice = choose_ranks(losses, share=share, seed=spot.seed)
        self.found[direction.name] = self.found[direction.name]._replace(ranks=advice)
        for one in advice.weights:
            yield {
                "table": "rank", **keys, "weight": one.name, "by_effect": one.by_effect,
                "by_norm": one.by_norm, "by_norm_random": one.by_norm_random, "whole": one.whole,
                **_interval("effect", one.effect), "none": 0.0,
            }  # fmt: skip
        about: Row = {
            "table": "held", **keys, "share": share, **_interval("gain", advice.gain), "none": 0.0,
        }  # fmt: skip
        if not advice.weights:
            yield {**about, "ranks": BY_EFFECT, "change": OWN, "total": None}
            return
        ranks = {
            WHOLE: advice.whole, BY_EFFECT: advice.ranks,
            BY_NORM: {one.name: one.by_norm for one in advice.weights},
        }  # fmt: skip
        with cut_losses(model, parts, examples[JUDGE]) as losses:
            at = {(how, OWN): losses.at(chosen) for how, chosen in ranks.items()}
            losses.at(losses.whole)
        twin = random_parts(parts, seed=spot.seed)
        with cut_losses(model, twin, examples[JUDGE]) as random:
            at[BY_EFFECT, RANDOM] = random.at(advice.ranks)
        for (how, change), after in at.items():
            left = held(after, losses, seed=spot.seed)
            yield {**about, **_held(left, losses, ranks[how]), "ranks": how, "change": change}


# What to know about an adapter whose line is not straight.
BENT = (
    "a DoRA adapter, scaled as PEFT scales it; its line in the weights is not straight, so it has "
    "no radius, lifetime or ranks; merge it into its base and pass that for them",
)


def example_curve(spot: Spot, batch: Batch) -> LossCurve:
    """The losses of some examples without any change."""
    with torch.no_grad(), measuring(spot.network.model):
        losses, counts = example_losses(spot.network.model, batch)
    return LossCurve(lambda _: losses.double().cpu(), counts.double().cpu())


@contextmanager
def straight_curves(
    spot: Spot, direction: Direction, twin: Direction, examples: Mapping[str, Batch]
) -> Iterator[Curves]:
    """Losses along a direction and along its random twin; the weights come back bit for bit."""
    reads = {OWN: direction.read, RANDOM: twin.read}
    with moving(spot.network.model, reads, space=direction.space) as mover:
        losses = DisplacedLosses(mover, examples)
        own = {which: losses.curve(which, OWN) for which in examples}
        yield Curves(own, losses.curve(JUDGE, RANDOM))


def other_text(config: ProbeConfig, spot: Spot) -> Batch | None:
    """The text whose loss is the cost of a change; None for a network that reads no text."""
    network = spot.network
    if network.tokenizer is None:
        return None
    if not config.neutral:
        return collate(neutral_tokens(network.tokenizer, longest=network.context_length))
    longest = min(config.max_length, network.context_length or config.max_length)
    tasks = text_tasks(config.neutral, network.tokenizer, max_length=longest)
    rows = [row for task in tasks.values() for row in task.examples["test"]][: config.eval_size]
    return next(iter(tasks.values())).collate(rows)


def _selected_rows(best: Advice, keys: Row) -> Iterator[Row]:
    for scale, loss in best.selected.items():
        if scale:
            without = best.selected[0.0]
            yield {
                "table": "coefficient", **keys, "scale": scale, "change": OWN, "examples": CHOOSE,
                "loss": finite(loss), "without": without, "gain": finite(without - loss),
                "none": 0.0,
            }  # fmt: skip


def _tried_row(one: Tried, keys: Row) -> Row:
    return {
        "table": "coefficient", **keys, "scale": one.scale, **_interval("loss", one.loss),
        "without": one.without, **_interval("gain", one.gain), "none": 0.0,
    }  # fmt: skip


def _advice_row(best: Advice, scales: Sequence[float], keys: Row) -> Row:
    select, test = best.rows
    reach = best.reach
    return {
        "table": "advice", **keys, "advised": best.scale, "usual": USUAL, "why": best.why,
        "best": best.best.scale, **_interval("over_usual", best.over_usual), "none": 0.0,
        "helps_from": best.least, "helps_to": None if reach is None else reach.low,
        "helps_not": None if reach is None else reach.high,
        "least": min(scales), "most": max(scales), "edge": best.edge,
        "select_rows": select, "test_rows": test,
    }  # fmt: skip


def _held(left: Held, losses: CutLosses, ranks: Mapping[str, int]) -> Row:
    """Cells of a row of the table held."""
    without = float(losses.at({}).sum() / losses.counts.sum())
    return {
        "total": sum(ranks.values()), "total_whole": sum(losses.whole.values()),
        "loss": left.loss.value, "without": without, **_interval("held", left.share),
        "test_rows": len(losses.counts),
    }  # fmt: skip


def _interval(name: str, interval: Interval) -> Row:
    """The cells of a number with its interval."""
    ends = {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return {key: finite(value) for key, value in ends.items()}
