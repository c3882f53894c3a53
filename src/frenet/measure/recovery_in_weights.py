"""A recovery of LoRA's factors in the weights: what some changes span of it (M13)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet.geometry.energy import captured_energy, spanned_energy, unit_rows
from frenet.geometry.nulls import random_walk_share
from frenet.measure.trajectory import Trajectory
from frenet.network.checkpoints.low_rank_changes import LowRankChanges

# Eigenvalues below this share of the largest are dropped; a cut 100 times larger must give the same
# share to three digits.
CUT = 1e-10
DIGITS = 5e-4


@dataclass(frozen=True, eq=False)
class PathInWeights:
    """A path of LoRA's factors as a path of the weights.

    Attributes:
        model: has the adapters.
        path: of the factors.
        updates: the exact change of the weights by each of the T steps.
        whole: the change by all of them, n = 1.
        K: (T, T), the Gram matrix of the updates, float64.
    """

    model: nn.Module
    path: Trajectory
    updates: LowRankChanges
    whole: LowRankChanges
    K: Float[Tensor, "T T"]

    @classmethod
    def of(cls, model: nn.Module, path: Trajectory) -> "PathInWeights":
        """The updates of a path of factors, which is at most 2r T large in a module.

        Raises:
            ValueError: the path has a parameter that is no factor of LoRA.
        """
        space = path.space
        updates = LowRankChanges.of(model, space, path.steps, start=path.start, kind="path")
        moved = path.displacement()[None]
        whole = LowRankChanges.of(model, space, moved, start=path.start, kind="exact")
        return cls(model, path, updates, whole, updates.gram())

    def prefix_capture(self, k: int) -> dict[str, float | None]:
        """As :func:`frenet.measure.recovery.prefix_capture`, in the weights."""
        walk = random_walk_share(self.K.diagonal().clamp(min=0).sqrt(), k)
        (captured,) = self.spanned_by(self.updates, [k], K=self.K)
        left = self.path.displacement(k)[None]
        rest = LowRankChanges.of(
            self.model, self.path.space, left, start=self.path.theta(k), kind="exact"
        )
        (of_rest,) = _spanned(self.K, self.updates, rest, [k]) if left.any() else (None,)
        lift = captured / walk if captured is not None and walk else None
        return {"captured": captured, "walk_share": walk, "lift": lift, "rest": of_rest}

    def spanned_by(
        self,
        changes: LowRankChanges,
        ks: Sequence[int],
        *,
        K: Float[Tensor, "n n"] | None = None,
    ) -> list[float | None]:
        """Share of the whole change in the span of the first k of some changes, for every k.

        Args:
            changes: of the same modules.
            ks: dimensions, each between 1 and the number of changes.
            K: Gram matrix of the changes, if it is known.

        Returns:
            Shares in [0, 1]; None if the share depends on where eigenvalues count as zero.
        """
        return _spanned(changes.gram() if K is None else K, changes, self.whole, ks)

    def led_by(
        self,
        changes: LowRankChanges,
        ks: Sequence[int],
        *,
        K: Float[Tensor, "n n"] | None = None,
    ) -> list[float]:
        """Share of the whole change in the leading k directions of some changes, for every k.

        ``changes`` and ``K`` are as for :meth:`spanned_by`. Without ``K`` the changes are scaled to
        unit norm first, as gradients are for their basis.
        """
        joint = _joined(changes.gram() if K is None else K, changes, self.whole)
        n = len(changes)
        rows = unit_rows(joint) if K is None else joint
        return captured_energy(rows, torch.arange(n), torch.tensor([n]), ks).tolist()


def _spanned(
    K: Float[Tensor, "n n"], changes: LowRankChanges, one: LowRankChanges, ks: Sequence[int]
) -> list[float | None]:
    n, joint = len(changes), _joined(K, changes, one)
    fine, coarse = (
        spanned_energy(joint, torch.arange(n), torch.tensor([n]), ks, cut=cut).tolist()
        for cut in (CUT, 100 * CUT)
    )
    return [a if abs(a - b) < DIGITS else None for a, b in zip(fine, coarse, strict=True)]


def _joined(
    K: Float[Tensor, "n n"], changes: LowRankChanges, one: LowRankChanges
) -> Float[Tensor, "m m"]:
    """The Gram matrix of some changes and of one more."""
    inner = changes.gram(one)
    return torch.cat([torch.cat([K, inner], dim=1), torch.cat([inner.T, one.gram()], dim=1)])
