"""Rows of `steering_effect`: dose-response, slopes, and costs at equal effect."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import optimize, stats

from frenet._errors import UsageError
from frenet.experiments.experiment import Cell, Row
from frenet.experiments.setup.ceilings import Shifts, ceilings, shifts_of
from frenet.experiments.setup.contrasts import Steered, describe, left_out, steered
from frenet.experiments.steering_effect import Config
from frenet.geometry import rng
from frenet.geometry.alignment import Contrasted, matched_vectors, shuffled_differences
from frenet.geometry.resampling import MeanDifference, mean_of
from frenet.measure.activations import add
from frenet.methods.steering import Streams, contrast_streams, push_gradient, push_items
from frenet.methods.steering_effect import (
    Prefixes,
    Prompted,
    answer_differences,
    neutral_cost,
    prefixes,
    prompted,
    steered_differences,
)
from frenet.network.data.contrast import UnansweredError
from frenet.network.data.neutral_texts import NEUTRAL, neutral_tokens
from frenet.network.hooks.sites import Site
from frenet.network.limits import context_length
from frenet.network.synthetic.contrasts import neutral_rows

SHOWN = ("contrast", "gradient")


CONTROLS = ("random", "matched", "shuffled", "unrelated")


# The largest dose to try: the added vector is then as long as the stream.
MOST = 1.0


@dataclass(frozen=True)
class Dosed:
    """Unit vectors at one block, and what a dose of one is.

    Attributes:
        cell: of the experiment.
        subject: model and prompts.
        block: where the vectors are added.
        norm: root mean square norm of the stream there.
        doses: lengths of the added vector, in units of ``norm``.
        vectors: by kind, (m, h), of norm 1.
        step: the weight step, minus the gradient.
        shift: norm of the mean shift of the stream by the whole step.
        ceilings: of contrast vector and shift, the columns ``CEILINGS``.
    """

    cell: Cell
    subject: Steered
    block: int
    norm: float
    doses: tuple[float, ...]
    vectors: dict[str, torch.Tensor]
    step: torch.Tensor
    shift: float
    ceilings: Row

    @property
    def keys(self) -> Row:
        """Keys of all rows."""
        return {**dict(self.cell.keys), "block": self.block, "unit": self.subject.unit}

    def added(self, vector: torch.Tensor, dose: float) -> torch.Tensor:
        """The vector to add at a dose."""
        return (dose * self.norm * vector).float()


@dataclass(frozen=True)
class Effects:
    """What vectors do to the answers of n prompts.

    Attributes:
        prompts: the reported prompts.
        kept: the ``prefixes`` of the prompts.
        before: (n,), log-odds of the answers without a vector.
        after: by kind of vector, (n, m, 2 doses), the same with each of m vectors.
        labels: (n,), whether the positive answer is right.
    """

    prompts: list[Prompted]
    kept: Prefixes
    before: np.ndarray
    after: dict[str, np.ndarray]
    labels: np.ndarray

    def mixed(self, most: int) -> list[int]:
        """Indices of at most this many prompts, the classes in turn."""
        count = len(self.prompts)
        half = (count + 1) // 2
        pairs = zip(range(half), range(half, count), strict=False)
        return [i for pair in pairs for i in pair][:most]


def effects_of(dosed: Dosed) -> Effects:
    """All vectors at all doses of both signs, dose by dose: -a, +a, -2a, +2a, ..."""
    rows = [torch.zeros(1, next(iter(dosed.vectors.values())).shape[1])]
    for vectors in dosed.vectors.values():
        for vector in vectors:
            rows += [dosed.added(vector, s * a)[None] for a in dosed.doses for s in (-1, 1)]
    items, model = dosed.subject.parts["report"].items, dosed.subject.model
    prompts = prompted(items)
    # The search for sizes of equal effect needs the prefixes again: only the last token differs.
    kept = prefixes(model, prompts, path=dosed.subject.path)
    differences = steered_differences(
        model, prompts, {dosed.block: torch.cat(rows)}, kept=kept, path=dosed.subject.path
    ).double()
    after, start, width = {}, 1, 2 * len(dosed.doses)
    for name, vectors in dosed.vectors.items():
        stop = start + width * len(vectors)
        after[name] = differences[:, start:stop].reshape(len(items), len(vectors), width).numpy()
        start = stop
    labels = np.array([item.label is not False for item in items])
    return Effects(prompts, kept, differences[:, 0].numpy(), after, labels)


def dose_rows(dosed: Dosed, effects: Effects) -> Iterator[Row]:
    """Mean log-odds of the answers and accuracy at every dose."""
    right = float(((effects.before > 0) == effects.labels).mean())
    before = float(effects.before.mean())
    for name, after in effects.after.items():
        for i, dose in enumerate(s * a for a in dosed.doses for s in (-1, 1)):
            at = after[:, :, i]
            yield {
                "table": "dose",
                **dosed.keys,
                "vector": name,
                "dose": dose,
                "difference": float(at.mean()),
                "before": before,
                "accuracy": float(((at > 0) == effects.labels[:, None]).mean()),
                "accuracy_before": right,
            }


def slopes_of(dosed: Dosed, effects: Effects) -> dict[str, np.ndarray]:
    """The slope at dose 0 of every vector for every prompt, (n, m), by kind of vector."""
    return {
        name: (after[:, :, 1] - after[:, :, 0]) / (2 * dosed.doses[0])
        for name, after in effects.after.items()
    }


def prompt_rows(dosed: Dosed, slopes: dict[str, np.ndarray]) -> Iterator[Row]:
    """The slopes of every prompt; of random vectors, the one that steers most.

    Its sign is that with which it steers towards the positive answer on the whole: as the largest
    of several and in its better direction, it is a strict reference.
    """
    columns = {name: slopes[name][:, 0] for name in SHOWN}
    for name in CONTROLS:
        if name in slopes:
            means = slopes[name].mean(0)
            largest = int(np.abs(means).argmax())
            columns[name] = slopes[name][:, largest] * np.sign(means[largest])
    for i, values in enumerate(zip(*columns.values(), strict=True)):
        named = dict(zip(columns, map(float, values), strict=True))
        yield {"table": "prompt", **dosed.keys, "prompt": i, **named}


def slope_rows(dosed: Dosed, slopes: dict[str, np.ndarray], *, resamples: int) -> Iterator[Row]:
    """Slopes at dose 0 with intervals over prompts, and their ratio."""
    control: Row = {
        name: float(np.abs(slopes[name].mean(0)).max()) if name in slopes else None
        for name in CONTROLS
    }
    keys = {**dosed.keys, "prompts": len(slopes[SHOWN[0]])}
    seed = int(dosed.cell.seed)

    def interval(parts: list[Any], statistic: Callable[..., Any]) -> tuple[float, float]:
        ends = stats.bootstrap(
            parts, statistic, paired=True, vectorized=True, n_resamples=resamples,
            method="percentile", rng=np.random.default_rng(seed),
        ).confidence_interval  # fmt: skip
        return float(ends.low), float(ends.high)

    for name in SHOWN:
        low, high = interval([slopes[name][:, 0]], partial(np.mean))
        yield {
            "table": "slope",
            **keys,
            "vector": name,
            "slope": float(slopes[name].mean()),
            "low": low,
            "high": high,
            **control,
            **dosed.ceilings,
        }
    vector, shift = (slopes[name][:, 0] for name in SHOWN)

    def ratio(a: np.ndarray, b: np.ndarray, axis: int = -1) -> Any:
        return a.mean(axis) / b.mean(axis)

    low, high = interval([shift, vector], ratio)
    yield {
        "table": "ratio",
        **keys,
        "ratio": float(ratio(shift, vector)),
        "ratio_low": low,
        "ratio_high": high,
        "lower": 0.5,
        "upper": 2.0,
    }


class Way(NamedTuple):
    """One way to change answers.

    Attributes:
        name: in rows.
        value: the mean log-odds of the answers to some prompts at a size.
        change: the context in which the model is changed by a size, at every token.
    """

    name: str
    value: Callable[[float], float]
    change: Callable[[float], Callable[[], Any]]


def ways(dosed: Dosed, prompts: Sequence[Prompted], kept: Prefixes) -> list[Way]:
    """Both vectors, and the weight step in units of its own mean shift at the block."""
    model, space, path = dosed.subject.model, dosed.subject.space, dosed.subject.path

    def by_vector(name: str, size: float) -> float:
        added = {dosed.block: dosed.added(dosed.vectors[name][0], size)[None]}
        return float(steered_differences(model, prompts, added, kept=kept, path=path).mean())

    def vector_change(name: str, size: float) -> Callable[[], Any]:
        added = dosed.added(dosed.vectors[name][0], size)
        return partial(add, model, {Site(dosed.block, "all"): added}, path=path)

    def weight_change(size: float) -> Callable[[], Any]:
        return partial(space.displaced, model, dosed.step, size * dosed.norm / dosed.shift)

    def by_weights(size: float) -> float:
        with weight_change(size)():
            return float(answer_differences(model, prompts).mean())

    by_vectors = [
        Way(f"{name} vector", partial(by_vector, name), partial(vector_change, name))
        for name in ("contrast", "gradient", "random")
    ]
    return [*by_vectors, Way("weight step", by_weights, weight_change)]


def equal_rows(
    dosed: Dosed, effects: Effects, *, dose: float, most: int, neutral: int
) -> Iterator[Row]:
    """The cost of the effect of one dose of the contrast vector, in three ways."""
    chosen = effects.mixed(most)
    prompts = [effects.prompts[i] for i in chosen]
    kept = effects.kept._replace(caches=[effects.kept.caches[i] for i in chosen])
    before = float(effects.before[chosen].mean())
    contrast, gradient, random, weights = ways(dosed, prompts, kept)
    target = contrast.value(dose) - before
    sizes: dict[str, float | None] = {contrast.name: dose}
    for way in (gradient, weights):
        sizes[way.name] = equal_size(way.value, target, dose, before=before)
    reached = {
        way.name: way.change(size)
        for way in (contrast, gradient, weights)
        if (size := sizes[way.name]) is not None
    }
    texts = neutral_texts(dosed.subject, neutral, seed=int(dosed.cell.seed))
    *costs, idle = neutral_cost(
        dosed.subject.model, texts, [*reached.values(), random.change(dose)]
    )
    by_name = dict(zip(reached, costs, strict=True))
    for name, size in sizes.items():
        cost = by_name.get(name)
        yield {
            "table": "equal",
            **dosed.keys,
            "way": name,
            "size": size,
            "target": target,
            "kl": cost.kl if cost else None,
            "kl_random": idle.kl,
            "perplexity": cost.perplexity if cost else None,
            "perplexity_before": idle.before,
        }


def equal_size(
    value: Callable[[float], float], target: float, guess: float, *, before: float = 0.0
) -> float | None:
    """The size in (0, 1] at which an effect reaches its target, to 2%; None if it never does.

    >>> round(equal_size(lambda a: 3 * a, 0.6, 0.1), 2)
    0.2
    """

    # brentq evaluates the ends of the bracket again, and a weight step is slow.
    @cache
    def effect(size: float) -> float:
        return value(size) - before if size else 0.0

    low, high = 0.0, min(guess, MOST)
    sign = 1 if target >= 0 else -1
    while sign * effect(high) < sign * target:
        if high >= MOST:
            return None
        low, high = high, min(2 * high, MOST)
    return float(optimize.brentq(lambda a: effect(a) - target, low, high, rtol=0.02))


def neutral_texts(subject: Steered, count: int, *, seed: int) -> list[tuple[list[int], list[int]]]:
    """Token ids of neutral texts: the given part, and the predicted part."""
    if subject.tokenizer is None:
        return neutral_rows(count, seed=seed)
    return neutral_tokens(subject.tokenizer, NEUTRAL[:count], longest=context_length(subject.model))


def run(config: Config, cell: Cell) -> Iterator[Row]:
    """Rows of the tables behaviour, dose, prompt, slope, ratio and equal."""
    try:
        subject = steered(config, cell)
    except UnansweredError as error:
        yield from left_out(cell, error)
        return
    described = describe(config, subject, cell)
    yield from described.rows
    if not described.measured:
        return
    dosed = _dosed(config, cell, subject)
    effects = effects_of(dosed)
    yield from dose_rows(dosed, effects)
    slopes = slopes_of(dosed, effects)
    yield from prompt_rows(dosed, slopes)
    yield from slope_rows(dosed, slopes, resamples=config.resamples)
    yield from equal_rows(
        dosed,
        effects,
        dose=config.equal_dose,
        most=config.equal_rows,
        neutral=config.neutral_rows,
    )


def _dosed(config: Config, cell: Cell, subject: Steered) -> Dosed:
    """Unit vectors at the block where the contrast vector steers best on other prompts."""
    model, parts, path = subject.model, subject.parts, subject.path
    streams = contrast_streams(model, parts["push"], subject.blocks, path=path)
    norms = streams.norms()
    index = _steerable(subject, streams, norms, dose=config.doses[0])
    block, flipped = subject.blocks[index], cell["push"] == "flipped"
    pushed = push_items(parts["push"], flipped=flipped)
    # In place: memory holds few copies of a large model's weights.
    step = push_gradient(model, pushed, space=subject.space).neg_()
    shifts = shifts_of(config, subject, (block,), flipped=flipped)
    shift, at_block = mean_of(shifts.at(0)), streams.at(index)
    vectors = _vectors(config, cell, subject, block, at_block, shift)
    for name in SHOWN:
        if not vectors[name].any():
            raise UsageError(
                f"the {name} vector of {cell['behaviour']} is zero after block {block}, so it has "
                "no direction to steer along; use prompts that differ between the sides by then"
            )
    return Dosed(
        cell=cell,
        subject=subject,
        block=block,
        norm=float(norms[index]),
        doses=config.doses,
        vectors={name: v / v.norm(dim=1, keepdim=True) for name, v in vectors.items()},
        step=step,
        shift=float(shift.norm()),
        ceilings=_reliability(config, cell, at_block, shifts),
    )


def _vectors(
    config: Config,
    cell: Cell,
    subject: Steered,
    block: int,
    streams: Contrasted,
    shift: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Contrast vector, shift and controls by kind, (m, h)."""
    draw = rng.generator(cell.seed, "steering-effect", cell["behaviour"])
    vectors = {
        "contrast": streams.difference()[None],
        "gradient": shift[None],
        "shuffled": shuffled_differences(streams, config.draws, draw),
        "random": torch.randn(config.draws, len(shift), generator=draw, dtype=torch.float64),
        "matched": matched_vectors(streams.rows, config.draws, draw),
    }
    if unrelated := _unrelated(config, cell, subject, block):
        vectors["unrelated"] = torch.stack(unrelated)
    return vectors


def _unrelated(config: Config, cell: Cell, subject: Steered, block: int) -> list[torch.Tensor]:
    """Contrast vectors of the other contrasts, at most as many as there are draws of the others."""
    vectors = []
    for other in subject.others[: config.draws]:
        (part,) = other.divided(1, seed=cell.seed, rows=config.rows)
        streams = contrast_streams(subject.model, part, [block], path=subject.path)
        vectors.append(streams.at(0).difference())
    return [v for v in vectors if v.any()]


def _reliability(config: Config, cell: Cell, streams: Contrasted, shifts: Shifts) -> Row:
    draw = rng.generator(cell.seed, "steering-effect ceilings", cell["behaviour"])
    return ceilings(config, MeanDifference(streams), shifts.at(0), draw)


def _steerable(subject: Steered, streams: Streams, norms: torch.Tensor, *, dose: float) -> int:
    """Index of the block at which the contrast vector has the largest slope on other prompts."""
    count, width = len(subject.blocks), streams.positive.shape[2]
    variants = {}
    for i, block in enumerate(subject.blocks):
        v = streams.at(i).difference().float()
        unit = dose * norms[i] * v / v.norm().clamp_min(1e-30)
        rows = torch.zeros(2 * count, width)
        rows[2 * i], rows[2 * i + 1] = unit, -unit
        variants[block] = rows
    prompts = prompted(subject.parts["choose"].items)
    effects = steered_differences(subject.model, prompts, variants, path=subject.path).mean(0)
    return int((effects[0::2] - effects[1::2]).argmax())
