"""The drift of bases of LoRA's factors in the weights that the factors make (M13)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet.geometry.energy import unit_rows
from frenet.measure.drift import Drift, Vectors, gram_drift
from frenet.network.checkpoints.low_rank_changes import LowRankChanges
from frenet.network.space import ParamSpace


class GradientDrift:
    """Drift of gradients' images in the weights; an observer of ``train_and_compare``.

    Args:
        model: has the adapters; each look reads the factors at which the gradients were taken.
        space: the factors.
        k: basis dimension.

    Attributes:
        by_lag: the drift from the first look to every later one.
    """

    def __init__(self, model: nn.Module, space: ParamSpace, k: int) -> None:
        self.model, self.space, self.k = model, space, k
        self.by_lag: dict[int, Drift] = {}
        self._start: LowRankChanges | None = None

    @property
    def dim(self) -> int:
        """Number of adapted weights, known after the first look."""
        assert self._start is not None
        return self._start.dim

    def __call__(self, step: int, gradients: Vectors) -> None:
        """Look at the gradients of a step, with the adapter as it is now."""
        sizes, point = [len(part) for part in gradients], self.space.read(self.model)
        now = LowRankChanges.of(
            self.model, self.space, torch.cat(gradients), start=point, kind="first order"
        )
        if self._start is None:
            self._start = now
            return
        inner = self._start.gram(now)
        above = torch.cat([self._start.gram(), inner], dim=1)
        K = unit_rows(torch.cat([above, torch.cat([inner.T, now.gram()], dim=1)]))
        self.by_lag[step] = gram_drift(K, [*sizes, *sizes], self.k)


def update_drift(K: Float[Tensor, "T T"], *, window: int, k: int) -> dict[int, Drift]:
    """As :func:`frenet.measure.drift.update_drift`, from the Gram matrix of T updates."""
    unit = unit_rows(K)
    windows = [part for part in torch.arange(len(K)).split(window) if len(part) == window]
    thirds = [(part[0::3], part[1::3], part[2::3]) for part in windows]
    found = {}
    for i in range(1, len(thirds)):
        sets = [*thirds[0], *thirds[i]]
        rows = torch.cat(sets)
        found[i * window] = gram_drift(unit[rows][:, rows], [len(part) for part in sets], k)
    return found


def distances(K: Float[Tensor, "T T"]) -> list[float]:
    """||W_t - W_0|| for t = 0 .. T, from the Gram matrix of T updates of the weights.

    >>> distances(torch.tensor([[9.0, 0.0], [0.0, 16.0]]))
    [0.0, 3.0, 5.0]
    """
    return [0.0, *K.cumsum(0).cumsum(1).diagonal().clamp(min=0).sqrt().tolist()]
