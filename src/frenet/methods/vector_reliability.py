"""How reliable a steering vector is."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from frenet.geometry import rng
from frenet.geometry.alignment import cosine, cosines, shuffled_differences
from frenet.geometry.resampling import MeanDifference, split_half_cosine
from frenet.methods.steering import Streams
from frenet.methods.steering_vector import SteeringVector


class Known(NamedTuple):
    """Reliability of the direction after one block.

    Attributes:
        block: 0-based.
        difference: norm of the contrast's mean difference over the stream's norm.
        shuffled: 95% quantile of the same with shuffled labels.
        cosine: of the direction with the mean difference.
        null: 95% quantile of ``cosine`` with shuffled labels.
        halves: r, the mean cosine between the mean differences of two random halves; the cosine
            between two full mean differences of the same kind is then about 2 r / (1 + r).
    """

    block: int
    difference: float
    shuffled: float
    cosine: float
    null: float
    halves: float


def known(
    vector: SteeringVector,
    streams: Streams,
    blocks: Sequence[int],
    *,
    shuffles: int = 400,
    seed: int = 0,
) -> list[Known]:
    """Reliability of a vector, block by block.

    Args:
        vector: any vector.
        streams: of the contrast to compare with, after the blocks.
        blocks: in the order of the streams.
        shuffles: of the labels.
        seed: of the halves and shuffles.
    """
    result = []
    for i, block in enumerate(blocks):
        draw = rng.generator(seed, "steering", "known", str(block))
        sides, direction = streams.at(i), vector.at(block)
        norm = float(sides.rows.norm(dim=1).square().mean().sqrt())
        shuffled = shuffled_differences(sides, shuffles, draw)
        result.append(
            Known(
                block,
                float(sides.difference().norm()) / norm,
                float(torch.quantile(shuffled.norm(dim=1), 0.95)) / norm,
                cosine(sides.difference(), direction),
                float(torch.quantile(cosines(shuffled, direction).abs(), 0.95)),
                split_half_cosine(MeanDifference(sides), repeats=20, generator=draw),
            )
        )
    return result
