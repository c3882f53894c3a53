"""The shift of one gradient step at every block, compared with contrast vectors and their nulls."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from frenet.experiments.experiment import Cell, Row, number
from frenet.experiments.setup.contrasts import Steered, describe, left_out, skipped, steered
from frenet.experiments.step_vs_vector import Config
from frenet.geometry import rng
from frenet.geometry.alignment import (
    Contrasted,
    adjusted,
    cosine,
    matched_cosines,
    shuffled_cosines,
    significance,
    split_half_cosine,
    whitened_cosine,
    without,
)
from frenet.measure.activation_shift import activation_shift
from frenet.methods.steering import contrast_streams, push_gradient, push_items, shifted_prompts
from frenet.methods.steering_effect import answer_directions, prompted
from frenet.network.data.contrast import UnansweredError


@dataclass(frozen=True)
class Shifts:
    """Mean shifts of the stream after each block, (l, h), by a gradient step towards an answer.

    Attributes:
        choose: of the prompts that choose the block.
        report: of the reported prompts.
        other: of the reported prompts, by a step towards the other answer.
    """

    choose: torch.Tensor
    report: torch.Tensor
    other: torch.Tensor


def run(config: Config, cell: Cell) -> Iterator[Row]:
    """Rows of the tables behaviour and layer."""
    try:
        subject = steered(config, cell)
    except UnansweredError as error:
        yield from left_out(cell, error)
        return
    yield from describe(subject, cell)
    if skipped(subject, cell):
        return
    shifts = _shifts(subject, flipped=cell["push"] == "flipped")
    answers = answer_directions(
        subject.model, prompted(subject.parts["choose"].items), path=subject.path
    )
    choose = _layers(config, cell, subject, "choose", shifts, answers)
    chosen = max(choose, key=lambda row: number(row, "z"))["block"]
    for row in choose + _layers(config, cell, subject, "report", shifts, answers):
        yield {**row, "chosen": row["block"] == chosen}


def _shifts(subject: Steered, *, flipped: bool) -> Shifts:
    """Shifts of prompts of the other class."""
    model, space = subject.model, subject.space

    def moved(rows: list[list[int]], *, towards: bool) -> torch.Tensor:
        pushed = push_items(subject.parts["push"], towards=towards, flipped=flipped)
        # In place: memory holds few copies of a large model's weights.
        step = push_gradient(model, pushed, space=space).neg_()
        return activation_shift(
            model, rows, step, space=space, blocks=subject.blocks, path=subject.path
        )

    rows = shifted_prompts(subject.parts["moved"])
    half = (len(rows) + 1) // 2
    choose, report = (part.mean(0).cpu() for part in moved(rows, towards=True).tensor_split([half]))
    return Shifts(choose, report, moved(rows[half:], towards=False).mean(0).cpu())


def _layers(
    config: Config,
    cell: Cell,
    subject: Steered,
    part: str,
    shifts: Shifts,
    answers: torch.Tensor,
) -> list[Row]:
    """Rows of one part of the prompts, choose or report, one per block."""
    streams = contrast_streams(
        subject.model, subject.parts[part], subject.blocks, path=subject.path
    )
    # The nulls of one part shuffle all blocks alike, as the blocks belong together.
    name = f"step-vs-vector {part}"
    own = shifts.report if part == "report" else shifts.choose
    by_block = [
        _numbers(config, cell, streams.at(i), own[i], answers, name)
        for i in range(len(subject.blocks))
    ]
    if part == "report":
        for i, numbers in enumerate(by_block):
            numbers["other"] = cosine(streams.at(i).difference(), shifts.other[i])
    q = adjusted([number(numbers, "p") for numbers in by_block])
    keys: Row = {"table": "layer", **dict(cell.keys), "part": part}
    return [
        {**keys, "block": block, **numbers, "p_adjusted": q[i], "p_limit": 0.05}
        for i, (block, numbers) in enumerate(zip(subject.blocks, by_block, strict=True))
    ]


def _numbers(
    config: Config,
    cell: Cell,
    streams: Contrasted,
    own: torch.Tensor,
    answers: torch.Tensor,
    draws: str,
) -> Row:
    """Everything about one block."""
    draw = rng.generator(cell.seed, draws, cell["behaviour"])
    v = streams.difference()
    value = cosine(v, own)
    shuffled = shuffled_cosines(streams, own, shuffles=config.shuffles, generator=draw)
    matched = matched_cosines(streams.rows, own, draws=config.shuffles, generator=draw)
    against = significance(value, shuffled)
    q95 = significance(value, matched).q95
    return {
        "cosine": value,
        "shuffled": against.q95,
        "matched": q95,
        "null": max(against.q95, q95),
        "p": against.p,
        "z": against.z,
        "z_limit": 2.0,
        "ceiling": split_half_cosine(streams, repeats=config.halves, generator=draw),
        "without_answer": cosine(without(v, answers), without(own, answers)),
        "whitened": whitened_cosine(streams, v, own),
        "isotropic": float(len(v)) ** -0.5,
    }
