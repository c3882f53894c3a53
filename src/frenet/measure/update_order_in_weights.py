"""The order of two updates of LoRA's factors in the weights that the factors make (M13)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet.measure.lie_bracket import ONSET, LieBracket
from frenet.measure.update_order import OrderDifference
from frenet.network.checkpoints.low_rank_changes import Kind, LowRankChanges
from frenet.network.space import ParamSpace


@dataclass(frozen=True, eq=False)
class OrderInWeights:
    r"""The Lie bracket of two steps of LoRA's factors as a change of the weights.

    $$\Delta W = s\,(\delta B\, A + B\, \delta A)$$

    The steps are those of the factors, so it still depends on their gauge: the same network with
    other factors is trained along another path. Only the lengths are those of the network.

    Attributes:
        model: has the adapters, at the point of the bracket.
        space: their factors.
        start: (d,), the point.
        images: of the bracket and of g_A + g_B, to first order.
    """

    model: nn.Module
    space: ParamSpace
    start: Float[Tensor, " d"]
    images: LowRankChanges

    @classmethod
    def of(cls, model: nn.Module, bracket: LieBracket, *, space: ParamSpace) -> "OrderInWeights":
        """The image of a bracket at the current point.

        Raises:
            ValueError: the space has a parameter that is no factor of LoRA.
        """
        start = space.read(model).cpu()
        rows = torch.stack([bracket.vector, bracket.gradients[0] + bracket.gradients[1]])
        images = LowRankChanges.of(model, space, rows, start=start, kind="first order")
        return cls(model, space, start, images)

    @property
    def kappa(self) -> float:
        """The norm of the bracket's image over that of g_A + g_B."""
        bracket, both = self.images.gram().diagonal().sqrt().tolist()
        return float(bracket / both)

    @property
    def onset(self) -> float:
        """The step size at which the two ends are 10% of the step apart, in the weights."""
        return ONSET / self.kappa if self.kappa else float("inf")

    def kappa_of(self, vector: Float[Tensor, " d"]) -> float:
        """The same with another vector in place of the bracket, such as that of a null."""
        image = self._changes(vector, self.start, "first order")
        return float(image.gram() / self.images.gram()[1, 1]) ** 0.5

    def relative(self, difference: OrderDifference) -> float:
        """||W_AB - W_BA|| over the length of the step with frozen gradients, to first order."""
        step = self._changes(difference.step, self.start, "first order")
        return float(self._apart(difference).gram() / step.gram()) ** 0.5

    def cosine(self, difference: OrderDifference, vector: Float[Tensor, " d"]) -> float:
        """Of W_AB - W_BA with the image of the bracket, or of a null; 0 if one of them is zero."""
        apart, image = self._apart(difference), self._changes(vector, self.start, "first order")
        norms = float(apart.gram() * image.gram()) ** 0.5
        return float(apart.gram(image)) / norms if norms else 0.0

    def _apart(self, difference: OrderDifference) -> LowRankChanges:
        """The exact W_AB - W_BA, as a step from the end of the second order."""
        return self._changes(difference.vector, self.start + difference.end.cpu(), "exact")

    def _changes(
        self, step: Float[Tensor, " d"], start: Float[Tensor, " d"], kind: Kind
    ) -> LowRankChanges:
        return LowRankChanges.of(self.model, self.space, step[None], start=start, kind=kind)
