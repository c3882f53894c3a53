"""How reliable the contrast vector and the gradient step's shift are at one block."""

from typing import NamedTuple

import torch

from frenet.experiments.experiment import Row
from frenet.experiments.setup.contrasts import Steered, SteeringConfig
from frenet.geometry.resampling import MeanDifference, MeanShift, Splits, corrected, resamples
from frenet.methods.steering import group_shifts, push_items, shifted_prompts
from frenet.statistics.bootstrap import centred_ends


class Shifts(NamedTuple):
    """Shifts of the stream at several blocks by the gradients of groups of prompts.

    Attributes:
        each: (g, m, l, h), of each of m prompts by the step of each of g groups.
        counts: (g,), the prompts of each group.
    """

    each: torch.Tensor
    counts: torch.Tensor

    def at(self, index: int) -> MeanShift:
        """Those after one of the blocks, by its index."""
        return MeanShift(self.each[:, :, index].double(), self.counts.double())


def shifts_of(
    config: SteeringConfig,
    subject: Steered,
    blocks: tuple[int, ...],
    *,
    towards: bool = True,
    flipped: bool = False,
) -> Shifts:
    """Shifts of prompts of the other class, by steps towards one answer."""
    return Shifts(
        *group_shifts(
            subject.model,
            push_items(subject.parts["push"], towards=towards, flipped=flipped),
            shifted_prompts(subject.parts["moved"])[: config.shifted],
            space=subject.space,
            blocks=blocks,
            groups=config.groups,
            path=subject.path,
        )
    )


def ceilings(
    config: SteeringConfig,
    vector: MeanDifference,
    shift: MeanShift,
    draw: torch.Generator,
    *,
    intervals: bool = True,
) -> Row:
    """The columns ``CEILINGS``: split-half cosines of vector and shift, and what they allow.

    For intervals, prompts are resampled by weights within each half, so that no prompt is in both.
    """
    row: Row = {}
    product = 1.0
    for name, mean in (("ceiling", vector), ("ceiling_shift", shift)):
        splits = Splits.of(mean, config.halves, draw)
        row[name] = value = float(splits.cosines(mean))
        product *= corrected(max(value, 0.0))
        if intervals:
            drawn = splits.cosines(mean, resamples(mean, config.resamples, draw))
            row |= ends_of(name, value, drawn)
    return row | {"reach": product**0.5}


def ends_of(name: str, value: float, draws: torch.Tensor) -> Row:
    """The columns with the ends of a 95% interval."""
    low, high = centred_ends(value, draws.tolist())
    return {f"{name}_low": low, f"{name}_high": high}
