"""Candidates of a random search: displacements that a seed and an index reproduce."""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet.geometry import rng
from frenet.geometry.subspace import Basis
from frenet.network.space import ParamSpace

Where = ParamSpace | Basis
Kind = Literal["normal", "signs"]


@dataclass(frozen=True)
class Noise:
    """How candidates are drawn: delta_i = sigma z_i, all coordinates of z_i independent.

    z_i ~ N(0, I), up to 4.3 standard deviations (see ``rng.table``); with ``kind="signs"`` its
    coordinates are +1 or -1. Mean and variance are the same, so a linear loss is spread alike. The
    diagonal of the Hessian then adds the same to every candidate, and nothing to the spread.

    Attributes:
        sigma: standard deviation per coordinate, above 0; with ``relative``, in units of the root
            mean square of the coordinate's own tensor, so that ||delta|| is about sigma ||theta||.
        seed: of the whole search. A candidate is one draw over all coordinates that move, in the
            order of the space: a tensor gets other noise if other tensors move with it.
        relative: see ``sigma``. Tensors that are zero throughout do not move.
        antithetic: candidates 2j and 2j + 1 are +delta and -delta.
        tied: equal-shaped tensors share one draw, as published code does that re-seeds for every
            tensor. The first-order variance is then sigma^2 ||sum of their gradients||^2.
        kind: "normal" or "signs".

    Raises:
        ValueError: sigma is not a finite number above 0, or there is no such kind.
    """

    sigma: float
    seed: int = 0
    relative: bool = False
    antithetic: bool = False
    tied: bool = False
    kind: Kind = "normal"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise UsageError(f"sigma={self.sigma}; pass a finite number above 0")
        if self.kind not in get_args(Kind):
            raise UsageError(f"kind={self.kind!r}; pass {' or '.join(get_args(Kind))}")


class _Piece(NamedTuple):
    """A stretch of a random stream, and the entries of tensors that it displaces."""

    names: tuple[str, ...]
    start: int
    parts: list[tuple[int, slice]]

    @property
    def stop(self) -> int:
        return self.start + sum(part.stop - part.start for _, part in self.parts)


class Candidates:
    """The candidates of a search around a model's current parameters: a context manager.

    On leaving it, the parameters are restored bit for bit, from copies.

    Args:
        model: the network.
        where: the parameters that move, or a basis with the directions in which they move.
        noise: how candidates are drawn.

    Raises:
        ValueError: a basis that does not know its parameters, relative or tied noise inside a
            basis, relative noise when every tensor is zero, or another model's parameters.
    """

    def __init__(self, model: nn.Module, where: Where, noise: Noise) -> None:
        self.model, self.where, self.noise = model, placed(where, model), noise
        self.space = space_of(where)
        if isinstance(where, Basis) and (noise.relative or noise.tied):
            kind = "relative" if noise.relative else "tied"
            raise UsageError(f"{kind} noise is defined by tensors; a basis has only directions")
        self.parameters = self.space.parameters(model)
        self.saved = [
            p.detach().clone(memory_format=torch.contiguous_format) for p in self.parameters
        ]
        # NumPy adds in the thread that draws; torch would start threads in every thread.
        self._threaded = not isinstance(where, Basis) and all(
            p.device.type == "cpu" and p.dtype == torch.float32 for p in self.saved
        )
        self._values = [p.view(-1).numpy() for p in self.saved] if self._threaded else []
        self.scales = [noise.sigma] * len(self.saved)
        if noise.relative:
            self.scales = [
                noise.sigma * float(p.float().square().mean().sqrt()) for p in self.saved
            ]
            if not any(self.scales):
                raise UsageError("every selected tensor is zero, so relative noise moves nothing")

    def __enter__(self) -> "Candidates":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.put(None)

    def delta(self, index: int) -> Float[Tensor, " d"]:
        """The displacement of one candidate, float32, on the device of the parameters."""
        return self.deltas([index])[0]

    def deltas(self, indices: Sequence[int]) -> Float[Tensor, "n d"]:
        """The displacements of several candidates; in a basis by one product for all of them."""
        if isinstance(self.where, Basis):
            return self.where.expand(torch.stack([self._coordinates(i) for i in indices]))
        rows = torch.empty(len(indices), self.space.dim, device=self.saved[0].device)
        if self.noise.relative or self.noise.tied:
            for row, index in zip(rows, indices, strict=True):
                parts = row.split(self.space.sizes)
                for i, part, step in self._steps(index):
                    parts[i][part] = step
            return rows
        drawn = [self._stream(index) for index in indices]
        rng.fill_rows([stream for _, stream in drawn], rows)
        signs = torch.tensor([sign for sign, _ in drawn], device=rows.device)
        return rows.mul_(signs[:, None] * self.noise.sigma)

    def thetas(self, indices: Sequence[int]) -> Float[Tensor, "n d"]:
        """The parameters of several candidates, float32."""
        return torch.cat([p.reshape(-1).float() for p in self.saved]) + self.deltas(indices)

    def put(self, index: int | None) -> None:
        """Set the parameters to those of a candidate, or restore them (None)."""
        with torch.no_grad():
            if index is None:
                for parameter, saved in zip(self.parameters, self.saved, strict=True):
                    parameter.copy_(saved)
                return
            # Entries in another order than the memory's have no flat view, but a flat copy.
            flat = [p.detach().reshape(-1) for p in self.parameters]
            if self._threaded:
                targets = [values.numpy() for values in flat]
                pieces = [(index, piece, targets) for piece in self._pieces]
                rng.side_by_side(self._displace, pieces)
            else:
                for i, part, step in self._steps(index):
                    flat[i][part] = self.saved[i].view(-1)[part].float() + step
            for parameter, values in zip(self.parameters, flat, strict=True):
                if not parameter.is_contiguous():
                    parameter.copy_(values.view_as(parameter))

    def _displace(self, index: int, piece: _Piece, targets: list[np.ndarray]) -> None:
        """Write saved values plus noise into the entries of a piece, in this thread."""
        sign, stream = self._stream(index, *piece.names)
        relative = self.noise.relative
        scale = 1.0 if relative else sign * self.noise.sigma
        steps = stream.block(piece.start, piece.stop, scale)
        done = 0
        for i, part in piece.parts:
            step = steps[done : done + part.stop - part.start]
            done += len(step)
            if relative:
                step *= np.float32(sign * self.scales[i])
            np.add(self._values[i][part], step, out=targets[i][part])

    def unmoved(self, index: int) -> float:
        """Share of the displaced parameters that their dtype rounds back to the old value."""
        same = total = 0
        for i, part, step in self._steps(index):
            saved, displaced = self.saved[i].view(-1)[part], step != 0
            moved = (saved.float() + step).to(saved.dtype) != saved
            same += int((displaced & ~moved).sum())
            total += int(displaced.sum())
        return same / max(1, total)

    def _steps(self, index: int) -> Iterator[tuple[int, slice, Tensor]]:
        """The displacement of entries of tensors, piece by piece: all may not fit into memory."""
        if isinstance(self.where, Basis):
            delta = self.where.expand(self._coordinates(index))
            for i, step in enumerate(delta.split(self.space.sizes)):
                yield i, slice(0, len(step)), step
            return
        for piece in self._pieces:
            sign, stream = self._stream(index, *piece.names)
            steps = torch.empty(piece.stop - piece.start, device=self.saved[0].device)
            stream.fill(steps, piece.start)
            sizes = [part.stop - part.start for _, part in piece.parts]
            for (i, part), step in zip(piece.parts, steps.split(sizes), strict=True):
                yield i, part, step.mul_(sign * self.scales[i])

    @functools.cached_property
    def _pieces(self) -> list[_Piece]:
        """All entries, in stretches of their streams that are drawn at once."""
        most = rng.BLOCK if self._threaded else rng.DEVICE_BLOCK
        pieces: list[_Piece] = []
        for i, (shape, size) in enumerate(zip(self.space.shapes, self.space.sizes, strict=True)):
            if self.noise.tied or not pieces:
                pieces.append(_Piece((str(shape),) if self.noise.tied else (), 0, []))
            done = 0
            while done < size:
                last = pieces[-1]
                take = min(size - done, most - (last.stop - last.start))
                last.parts.append((i, slice(done, done + take)))
                done += take
                if last.stop - last.start == most:
                    pieces.append(_Piece(last.names, last.stop, []))
        return [piece for piece in pieces if piece.parts]

    def _coordinates(self, index: int) -> Tensor:
        """The displacement inside the basis."""
        assert isinstance(self.where, Basis)
        sign, stream = self._stream(index, "basis")
        z = torch.empty(self.where.k, device=self.saved[0].device)
        stream.fill(z)
        return z.mul_(sign * self.noise.sigma)

    def _stream(self, index: int, *names: str) -> tuple[float, rng.Stream]:
        """The sign of a candidate, and its random stream."""
        sign, draw = 1.0, index
        if self.noise.antithetic:
            sign, draw = (-1.0 if index % 2 else 1.0), index // 2
        signs = self.noise.kind == "signs"
        return sign, rng.stream(self.noise.seed, "search", draw, *names, signs=signs)


def placed(where: Where, model: nn.Module) -> Where:
    """``where``, with a basis moved to the device of the model's parameters."""
    if isinstance(where, Basis):
        return where.to(space_of(where).parameters(model)[0].device)
    return where


def space_of(where: Where) -> ParamSpace:
    """The parameters that move.

    Raises:
        ValueError: the basis does not name them.
    """
    space = where if isinstance(where, ParamSpace) else where.space
    if not isinstance(space, ParamSpace):
        raise UsageError("the basis does not name its parameters; build it with space=")
    return space
