"""Gradients of LoRA's factors as the changes of the weights that steps along them make (M13)."""

from collections.abc import Iterator, Mapping

import torch

from frenet.experiments.experiment import Row
from frenet.geometry import energy
from frenet.network.checkpoints.low_rank_changes import LowRankChanges


def overlap_rows(tasks: Mapping[str, LowRankChanges], *, k: int, keys: Row) -> Iterator[Row]:
    """Overlap of the top bases of two tasks in the weights, halves of one on the diagonal.

    Args:
        tasks: the first-order changes by every task's gradients.
        k: dimension of the bases.
        keys: of every row.
    """
    groups = list(tasks.values())
    joint = [torch.cat([one.gram(other) for other in groups], dim=1) for one in groups]
    K = energy.unit_rows(torch.cat(joint))
    places = torch.arange(len(K)).split([len(group) for group in groups])
    halves = {name: part.tensor_split(2) for name, part in zip(tasks, places, strict=True)}
    for name, (first, _) in halves.items():
        for other, (_, second) in halves.items():
            pair: Row = {"task": name, "other": other, "k": k, "coordinates": "weights"}
            shared = energy.overlap(K, first, second, k)
            yield {
                "table": "overlap",
                **keys,
                **pair,
                "overlap": shared,
                "chance": k / groups[0].dim,
            }
