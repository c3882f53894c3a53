"""Many changes of the weights by LoRA's factors, as products of small matrices."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet.network.adapters import other_half
from frenet.network.checkpoints.weight_space import AdaptedModule, adapted_modules
from frenet.network.space import ParamSpace

# How a step of the factors changes the weights: to first order; exactly; or exactly, each step
# from the end of the one before it.
Kind = Literal["first order", "exact", "path"]


@dataclass(frozen=True, eq=False)
class LowRankChanges:
    r"""n changes of the weights, one for each step of LoRA's factors.

    $$\Delta W = s\,(\delta B\, A' + B\, \delta A)$$

    A and B are the factors before the step. A' is A after the step, or A itself to first order.
    The rank is at most 2r in a module, and no matrix of the size of a weight is made.

    Attributes:
        modules: the adapted ones.
        space: of the steps; factors of LoRA.
        steps: (n, d).
        start: (d,), or (n, d) with one start for each step; that of the first step of a path.
        fixed: the factors of the modules that are not in the space.
        kind: of change.
        dim: number of weights that can change.
    """

    modules: tuple[AdaptedModule, ...]
    space: ParamSpace
    steps: Float[Tensor, "n d"]
    start: Float[Tensor, "*n d"]
    fixed: Mapping[str, Tensor]
    kind: Kind
    dim: int

    @classmethod
    def of(
        cls,
        model: nn.Module,
        space: ParamSpace,
        steps: Float[Tensor, "n d"],
        *,
        start: Float[Tensor, "*n d"],
        kind: Kind,
    ) -> "LowRankChanges":
        """The changes by some steps.

        Args:
            model: has the adapters; only their factors outside the space are read.
            space: the factors that move.
            steps: n steps or directions.
            start: where they start; see the attribute.
            kind: of change.

        Raises:
            ValueError: the space has a parameter that is no factor, or an adapter that is no plain
                LoRA.
        """
        if others := [name for name in space.names if not other_half(name)]:
            raise UsageError(
                f"{others[0]} is no factor of a LoRA adapter; select the factors alone, "
                "such as ParamSpace.select(model, 'lora_')"
            )
        modules = tuple(adapted_modules(model, space, kinds=("lora_A", "lora_embedding_A")))
        values = dict(model.named_parameters(remove_duplicate=False))
        dim = sum(len(values[m.B]) * values[m.A].shape[1] for m in modules)
        names = {name for m in modules for name in (m.A, m.B)} - set(space.names)
        fixed = {name: values[name].detach().double().cpu() for name in names}
        return cls(modules, space, steps.cpu(), start.cpu(), fixed, kind, dim)

    def __len__(self) -> int:
        return len(self.steps)

    def products(self) -> Iterator[tuple[Float[Tensor, "n o q"], Float[Tensor, "n q i"]]]:
        """For each module the two factors of the n changes, q = 2r, float64."""
        starts, steps = self.space.unflatten(self.start), self.space.unflatten(self.steps)
        for m in self.modules:
            (A, a_step), (B, b_step) = (
                self._moving(starts.get(name), steps.get(name), name) for name in (m.A, m.B)
            )
            after = A if self.kind == "first order" else A + a_step
            yield m.scale * torch.cat([b_step, B], dim=2), torch.cat([after, a_step], dim=1)

    def _moving(
        self, start: Tensor | None, step: Tensor | None, name: str
    ) -> tuple[Float[Tensor, "n p q"], Float[Tensor, "n p q"]]:
        """A factor before each step, and the steps."""
        if start is None or step is None:
            before = self.fixed[name].expand(len(self), *self.fixed[name].shape)
            return before, torch.zeros_like(before)
        step, before = step.double(), start.double()
        if self.kind == "path":
            before = before + step.cumsum(0) - step
        return before.expand(step.shape), step

    def gram(self, other: "LowRankChanges | None" = None) -> Float[Tensor, "n m"]:
        r"""Inner products with other changes of the same modules, or with each other, float64.

        $$\langle L_t R_t, L_u R_u \rangle = \sum (L_t^\top L_u) \circ (R_t R_u^\top)$$
        """
        other = self if other is None else other
        K = torch.zeros(len(self), len(other), dtype=torch.float64)
        for (L, R), (M, S) in zip(self.products(), other.products(), strict=True):
            left = L.transpose(0, 1).flatten(1).T @ M.transpose(0, 1).flatten(1)
            inner = left * (R.flatten(0, 1) @ S.flatten(0, 1).T)
            K += inner.reshape(len(self), L.shape[2], len(other), M.shape[2]).sum((1, 3))
        return K
