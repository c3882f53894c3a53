"""Candidates of a random search: Gaussian displacements that a seed and an index reproduce."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet.geometry import rng
from frenet.geometry.subspace import Basis
from frenet.network.space import ParamSpace

Where = ParamSpace | Basis


@dataclass(frozen=True)
class Noise:
    """How candidates are drawn: delta_i = sigma z_i, z_i ~ N(0, I), all coordinates independent.

    Attributes:
        sigma: standard deviation per coordinate, above 0; with ``relative``, in units of the root
            mean square of the coordinate's own tensor, so that ||delta|| is about sigma ||theta||.
        seed: of the whole search. A candidate is one draw over all coordinates that move, in the
            order of the space: a tensor gets other noise if other tensors move with it.
        relative: see ``sigma``. Tensors that are zero throughout do not move.
        antithetic: candidates 2j and 2j + 1 are +delta and -delta.
        tied: equal-shaped tensors share one draw, as published code does that re-seeds for every
            tensor. The first-order variance is then sigma^2 ||sum of their gradients||^2.

    Raises:
        ValueError: sigma is not a finite number above 0.
    """

    sigma: float
    seed: int = 0
    relative: bool = False
    antithetic: bool = False
    tied: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise UsageError(f"sigma={self.sigma}; pass a finite number above 0")


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
        self._normals = rng.Normals()
        self.parameters = self.space.parameters(model)
        self.saved = [p.detach().clone() for p in self.parameters]
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
        if self.noise.tied:
            return torch.stack([torch.cat([p.flatten() for p in self._parts(i)]) for i in indices])
        rows = np.empty((len(indices), self.space.dim), np.float32)
        scales = np.asarray(self.noise.sigma, np.float32)
        if self.noise.relative:
            scales = np.repeat(np.asarray(self.scales, np.float32), self.space.sizes)
        for row, index in zip(rows, indices, strict=True):
            sign, stream = self._stream(index)
            stream.fill(row)
            row *= np.float32(sign) * scales
        return torch.from_numpy(rows).to(self.saved[0].device)

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
            parts = zip(self.parameters, self.saved, self._parts(index), strict=True)
            for parameter, saved, part in parts:
                parameter.copy_(saved.float() + part)

    def unmoved(self, index: int) -> float:
        """Share of the displaced parameters that their dtype rounds back to the old value."""
        same = total = 0
        for saved, part in zip(self.saved, self._parts(index), strict=True):
            moved = (saved.float() + part).to(saved.dtype) != saved
            displaced = part != 0
            same += int((displaced & ~moved).sum())
            total += int(displaced.sum())
        return same / max(1, total)

    def _parts(self, index: int) -> Iterator[Tensor]:
        """The displacement, one parameter at a time: the whole may not fit into memory."""
        device = self.saved[0].device
        if isinstance(self.where, Basis):
            delta = self.where.expand(self._coordinates(index))
            yield from self.space.unflatten(delta.to(device)).values()
            return
        sign, stream = self._stream(index)
        for shape, scale in zip(self.space.shapes, self.scales, strict=True):
            if self.noise.tied:
                sign, stream = self._stream(index, str(shape))
            z = torch.from_numpy(stream.draw(math.prod(shape))).reshape(shape)
            yield z.mul_(sign * scale).to(device)

    def _coordinates(self, index: int) -> Tensor:
        """The displacement inside the basis."""
        assert isinstance(self.where, Basis)
        sign, stream = self._stream(index, "basis")
        z = torch.from_numpy(stream.draw(self.where.k))
        return z.mul_(sign * self.noise.sigma)

    def _stream(self, index: int, *names: str) -> tuple[float, rng.Normals]:
        """The sign of a candidate, and its random stream from the beginning."""
        sign, draw = 1.0, index
        if self.noise.antithetic:
            sign, draw = (-1.0 if index % 2 else 1.0), index // 2
        return sign, self._normals.start(self.noise.seed, "search", draw, *names)


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
