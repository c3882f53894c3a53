"""The shift of one gradient step at every block, compared with contrast vectors and their nulls."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from frenet.experiments.experiment import Cell, Row, number
from frenet.experiments.setup.ceilings import Shifts, ceilings, ends_of, shifts_of
from frenet.experiments.setup.contrasts import Steered, describe, left_out, steered
from frenet.experiments.step_vs_vector import Config
from frenet.experiments.step_vs_vector.findings import LIMIT
from frenet.geometry import rng
from frenet.geometry.alignment import (
    Contrasted,
    adjusted,
    cosine,
    cosines,
    matched_cosines,
    shuffled_differences,
    whitened_cosines,
    without,
)
from frenet.geometry.resampling import (
    MeanDifference,
    mean_of,
    resamples,
    row_cosines,
    split_half_cosine,
    weighted,
)
from frenet.methods.steering import contrast_streams
from frenet.methods.steering_effect import answer_directions, prompted
from frenet.network.data.contrast import UnansweredError
from frenet.statistics.permutation import p_of_draws


class Measured(NamedTuple):
    """What the numbers of every block are made of.

    Attributes:
        config: of the run.
        cell: of the run.
        own: shifts by the step towards the answer.
        other: those by the step towards the other answer.
        answers: the directions that write the two answers.
    """

    config: Config
    cell: Cell
    own: Shifts
    other: Shifts
    answers: torch.Tensor


def run(config: Config, cell: Cell) -> Iterator[Row]:
    """Rows of the tables behaviour and layer."""
    try:
        subject = steered(config, cell)
    except UnansweredError as error:
        yield from left_out(cell, error)
        return
    described = describe(config, subject, cell)
    yield from described.rows
    if not described.measured:
        return
    choose = _choose(config, cell, subject)
    best = max(choose, key=lambda row: number(row, "ceiling"))["block"]
    for row in choose + _report(config, cell, subject, best):
        yield {**row, "chosen": row["block"] == best}


def _choose(config: Config, cell: Cell, subject: Steered) -> list[Row]:
    """The reliability of the contrast vector at every block, on the prompts that choose one.

    It knows nothing of the shift, so the choice favours no cosine.
    """
    streams = contrast_streams(
        subject.model, subject.parts["choose"], subject.blocks, path=subject.path
    )
    draw = rng.generator(cell.seed, "step-vs-vector choose", cell["behaviour"])
    keys: Row = {"table": "layer", **dict(cell.keys), "part": "choose", "unit": subject.unit}
    return [
        {
            **keys,
            "block": block,
            "ceiling": split_half_cosine(
                MeanDifference(streams.at(i)), repeats=config.halves, generator=draw
            ),
        }
        for i, block in enumerate(subject.blocks)
    ]


def _report(config: Config, cell: Cell, subject: Steered, best: object) -> list[Row]:
    """The rows of the reported prompts, one per block."""
    streams = contrast_streams(
        subject.model, subject.parts["report"], subject.blocks, path=subject.path
    )
    flipped = cell["push"] == "flipped"
    measured = Measured(
        config,
        cell,
        shifts_of(config, subject, subject.blocks, flipped=flipped),
        shifts_of(config, subject, subject.blocks, towards=False, flipped=flipped),
        answer_directions(
            subject.model, prompted(subject.parts["choose"].items), path=subject.path
        ),
    )
    by_block = []
    for i, block in enumerate(subject.blocks):
        numbers = _numbers(measured, streams.at(i), i)
        by_block.append(numbers | _resampled(measured, streams.at(i), i, numbers, block == best))
    q = adjusted([number(numbers, "p_shuffled") for numbers in by_block])
    keys: Row = {"table": "layer", **dict(cell.keys), "part": "report", "unit": subject.unit}
    keys["prompts"] = subject.tested
    return [
        {**keys, "block": block, **numbers, "p_adjusted": q[i], "p_limit": LIMIT}
        for i, (block, numbers) in enumerate(zip(subject.blocks, by_block, strict=True))
    ]


def _numbers(measured: Measured, streams: Contrasted, index: int) -> Row:
    """The cosine at one block with its nulls."""
    config, cell = measured.config, measured.cell
    # The nulls shuffle all blocks alike, as the blocks belong together.
    draw = rng.generator(cell.seed, "step-vs-vector report", cell["behaviour"])
    v, own = streams.difference(), mean_of(measured.own.at(index))
    value, other = cosine(v, own), cosine(v, mean_of(measured.other.at(index)))
    differences = shuffled_differences(streams, config.shuffles, draw)
    shuffled = cosines(differences, own)
    matched = matched_cosines(streams.rows, own, draws=config.shuffles, generator=draw)
    whitened, *rest = whitened_cosines(streams, torch.cat([v[None], differences]), own).tolist()
    q95 = [float(torch.quantile(null.abs(), 0.95)) for null in (shuffled, matched)]
    null_mean = max(float(null.mean()) for null in (shuffled, matched))
    return {
        "cosine": value,
        "shuffled": q95[0],
        "matched": q95[1],
        "null": max(q95),
        "null_mean": null_mean,
        "lead": value - null_mean,
        "p_shuffled": p_of_draws(value, shuffled.tolist()),
        "p_matched": p_of_draws(value, matched.tolist()),
        "other": other,
        "lead_other": value - other,
        "without_answer": cosine(without(v, measured.answers), without(own, measured.answers)),
        "whitened": whitened,
        "whitened_null": float(torch.tensor(rest).abs().quantile(0.95)),
        "p_whitened": p_of_draws(whitened, rest),
        "isotropic": float(len(v)) ** -0.5,
    }


def _resampled(
    measured: Measured, streams: Contrasted, index: int, numbers: Row, best: bool
) -> Row:
    """How reliable both vectors are; at the chosen block also the intervals over prompts.

    Shuffled labels and random vectors have the mean cosine 0 whatever the prompts, since a
    labelling and its opposite are as likely. So the null mean is a constant in the bootstrap.
    """
    config, cell = measured.config, measured.cell
    draw = rng.generator(cell.seed, "step-vs-vector resamples", cell["behaviour"])
    vector = MeanDifference(streams)
    own, other = measured.own.at(index), measured.other.at(index)
    row = ceilings(config, vector, own, draw, intervals=best)
    if not best:
        return row
    v, (groups, moved) = (resamples(each, config.resamples, draw) for each in (vector, own))
    drawn = weighted(vector, v)
    along = row_cosines(drawn, weighted(own, [groups, moved]))
    # The same prompts are shifted by both steps.
    against = weighted(other, [resamples(other, config.resamples, draw)[0], moved])
    apart = along - row_cosines(drawn, against)
    for name, draws in (("cosine", along), ("lead", along), ("lead_other", apart)):
        row |= ends_of(name, number(numbers, name), draws)
    return row
