"""Positions in prompts, and their columns in a forward pass."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from frenet._errors import UsageError

Position = Literal["last", "all", "generated"] | tuple[int, ...] | Bool[Tensor, "r p"]
POSITIONS = ("last", "all", "generated")


@dataclass(frozen=True)
class Prompt:
    """The prompts of some rows.

    Attributes:
        real: (b, p), False at padding; None if that is not known.
        shape: (b, p).
        kept: number of first columns with keys and values, or states, from an earlier pass.
        seen: whether the context has seen the passes that computed them.
    """

    real: Bool[Tensor, "b p"] | None
    shape: tuple[int, int]
    kept: int = 0
    seen: bool = True

    def counted(self, positions: tuple[int, ...]) -> Bool[Tensor, "b p"]:
        """True at the given positions, counted over the real tokens of each row.

        Raises:
            ValueError: a row has no such position, or the padding is not known.
        """
        real = self.known()
        counts = real.sum(1, keepdim=True)
        order = real.long().cumsum(1) - 1
        chosen = torch.zeros_like(real)
        for position in positions:
            index = counts + position if position < 0 else torch.full_like(counts, position)
            outside = ((index < 0) | (index >= counts)).flatten()
            if outside.any():
                row = int(outside.nonzero()[0])
                raise UsageError(
                    f"row {row} has {int(counts[row])} tokens, so there is no position {position}"
                )
            chosen |= real & (order == index)
        return chosen

    def known(self) -> Bool[Tensor, "b p"]:
        """True at real tokens, False at padding.

        Raises:
            ValueError: that is not known.
        """
        if self.real is None:
            raise UsageError(
                "the attention mask is no (batch, tokens) mask of all tokens, so the padding is "
                "not known; pass such a mask to the model or to generate, or use a mask as the "
                "position of the site"
            )
        return self.real


@dataclass(frozen=True)
class Pass:
    """One forward pass over the columns ``past`` to ``past + t`` of some rows.

    Attributes:
        prompt: the prompt of these rows; None if it is not known.
        shape: (b, t).
        past: number of columns before this pass.
        real: (b, t), False at padding; None if that is not known.
        copies: rows of this pass for each prompt of the caller, as in a beam search.
        generation: whether ``generate`` runs the pass.
        again: whether a backward pass runs it a second time.
        found: the columns of positions that a site has already asked for.
    """

    prompt: Prompt | None
    shape: tuple[int, int]
    past: int
    real: Bool[Tensor, "b t"] | None
    copies: int = 1
    generation: bool = False
    again: bool = False
    found: dict[Any, Tensor] = field(default_factory=dict, compare=False)

    def chosen(self, position: Position, device: torch.device) -> Bool[Tensor, "b t"]:
        """The columns of this pass that belong to a position.

        Raises:
            ValueError: a prompt does not have the position, or it was computed before; the mask
                has a wrong shape; or the prompt is not known.
        """
        if isinstance(position, Tensor):
            return self._chosen(position, device)
        # Most often, the sites of all blocks have the same position.
        key = position, device
        if key not in self.found:
            self.found[key] = self._chosen(position, device)
        return self.found[key]

    def _chosen(self, position: Position, device: torch.device) -> Bool[Tensor, "b t"]:
        if not isinstance(position, Tensor | tuple) and position not in POSITIONS:
            raise UsageError(
                f"no position {position!r}; there are last, all, generated, a tuple of positions "
                "and a mask"
            )
        if self.prompt is None:
            raise UsageError(
                "the end of the prompt is not known in this way of generating; call generate of "
                "transformers with input_ids or inputs_embeds"
            )
        if isinstance(position, Tensor):
            return self._masked(position).to(device)
        if position == "all":
            return self._all().to(device)
        end = self.prompt.shape[1]
        if position == "generated" and self.past >= end:
            return self._real().to(device)
        if self.past >= end:
            return torch.zeros(self.shape, dtype=torch.bool, device=device)
        if isinstance(position, tuple):
            return self._window(self.prompt.counted(position), position).to(device)
        last = self.prompt.counted((-1,))
        if position == "last":
            return self._window(last, position).to(device)
        self._window(last, position)
        columns = self.past + torch.arange(self.shape[1], device=last.device)
        from_last = columns[None] >= last.int().argmax(1, keepdim=True)
        return (from_last & self._real().to(last.device)).to(device)

    def _real(self) -> Bool[Tensor, "b t"]:
        if self.real is None:
            assert self.prompt is not None
            return self.prompt.known()  # raises
        return self.real

    def _all(self) -> Bool[Tensor, "b t"]:
        assert self.prompt is not None
        if self.prompt.kept and not self.prompt.seen:
            raise UsageError(
                f"the first {self.prompt.kept} tokens of the prompt were computed before and "
                "cannot be reached; run the whole prompt inside the context, or choose later "
                "positions"
            )
        return self._real()

    def _masked(self, mask: Bool[Tensor, "r p"]) -> Bool[Tensor, "b t"]:
        """A mask of the caller's prompts, for the rows of this pass."""
        assert self.prompt is not None
        rows, width = self.prompt.shape
        shape = (rows // self.copies, width)
        if mask.shape != shape:
            raise UsageError(
                f"the mask of a site has shape {tuple(mask.shape)}, the prompts {shape}"
            )
        return self._window(mask.bool().repeat_interleave(self.copies, 0), "of the mask")

    def _window(self, chosen: Bool[Tensor, "b p"], position: object) -> Bool[Tensor, "b t"]:
        """Columns of the prompt that are in this pass."""
        assert self.prompt is not None
        kept = self.prompt.kept
        if kept and chosen[:, :kept].any():
            row = int(chosen[:, :kept].any(1).nonzero()[0])
            raise UsageError(
                f"position {position} of row {row} is among the first {kept} tokens, which were "
                "computed before and are read from a cache; run the whole prompt inside the "
                "context, or choose a later position"
            )
        whole = torch.zeros(self.shape, dtype=torch.bool, device=chosen.device)
        present = chosen[:, self.past : self.past + self.shape[1]]
        whole[:, : present.shape[1]] = present
        return whole
