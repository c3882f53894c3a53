"""A torch optimiser that moves a network inside a basis, fixed or moving."""

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet.geometry.basis import Basis
from frenet.geometry.blocks import combine, gram, work_device
from frenet.geometry.subspace import require_same_space
from frenet.methods.moving_basis import MovingBasis
from frenet.network.memory import require_memory
from frenet.network.space import ParamSpace

Make = Callable[[list[Tensor]], torch.optim.Optimizer]


class SubspaceOptimizer(torch.optim.Optimizer):
    """Steps of any torch optimiser in the coordinates c of a basis: theta = anchor + U c.

    A step takes the ``.grad`` of the selected parameters as g, passes U^T g to the inner optimiser,
    which holds c, and writes anchor + U c into the parameters, rounded to their dtype. c and anchor
    are float64, so that steps below the rounding of bf16 add up.

    It replaces the optimiser in any training loop. Schedulers act on its ``param_groups``, and the
    inner optimiser follows their settings. Weight decay pulls c to zero, and so the parameters to
    the anchor. A missing gradient counts as zero.

    Whenever the basis changes, by a ``MovingBasis`` or by ``rebase``, the anchor moves to the
    current point, c = 0, and a new inner optimiser starts: momentum and moments belong to the old
    coordinates and are dropped.

    Args:
        model: the network, at the first anchor.
        space: the d parameters; no others are moved.
        basis: U, shape (d, k), a moving one, or None for all d coordinates.
        make: returns the inner optimiser for a list of tensors.
        scale: multiplies the learning rate of ``make`` inside a basis. Adam moves every coordinate
            by about its rate, so ``(d / k) ** 0.5`` gives steps as long as in all d.
        clip: largest norm of the gradient that the inner optimiser gets; None: no limit.

    Attributes:
        basis: of the next step; None: all d coordinates.
        taken: steps so far.
        full_taken: how many of them moved all d coordinates.
        coordinates: c, shape (k,), or the point itself if all d coordinates move; float64.

    Raises:
        ValueError: the basis belongs to other parameters (names the first that differs), or
            ``make`` returns more than one group of parameters.
        MemoryError: the points do not fit into memory; raised before any allocation.

    >>> from frenet.geometry.basis import span_basis
    >>> model = nn.Linear(2, 1, bias=False)
    >>> _ = model.weight.data.zero_()
    >>> diagonal = span_basis(torch.ones(1, 2))
    >>> optimizer = SubspaceOptimizer(
    ...     model, ParamSpace.select(model), diagonal, make=lambda p: torch.optim.SGD(p, lr=0.5)
    ... )
    >>> model(torch.tensor([2.0, 0.0])).backward()
    >>> optimizer.step()
    >>> model.weight
    Parameter containing:
    tensor([[-0.5000, -0.5000]], requires_grad=True)
    """

    inner: torch.optim.Optimizer
    _rows: list[Tensor]

    def __init__(
        self,
        model: nn.Module,
        space: ParamSpace,
        basis: Basis | MovingBasis | None,
        *,
        make: Make,
        scale: float = 1.0,
        clip: float | None = None,
    ) -> None:
        parameters = space.parameters(model)
        self.space, self._parameters, self._make = space, parameters, make
        self._moving = basis if isinstance(basis, MovingBasis) else None
        self._scale, self._clip = scale, clip
        self._device = work_device(parameters[0])
        self._require_memory(basis)
        self.taken = self.full_taken = self._cycle = 0
        self._point = self._read()
        self._enter(basis if isinstance(basis, Basis) else None)
        if len(groups := self.inner.param_groups) != 1:
            raise UsageError(
                f"make gives an optimiser with {len(groups)} parameter groups for one list of "
                "tensors; pass one like lambda p: torch.optim.Adam(p, lr=1e-3)"
            )
        super().__init__(parameters, self.inner.defaults)
        self.param_groups[0].update(_settings(groups[0]))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the inner optimiser; the parameters are then at anchor + U c.

        Raises:
            FloatingPointError: a gradient is not finite; names the parameter.
            ValueError: no selected parameter has a gradient, or something else has moved one since
                the last step.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._require_unmoved()
        inside = self.basis is not None
        for key, value in _settings(self.param_groups[0]).items():
            factor = self._scale if key == "lr" and inside else 1.0
            self.inner.param_groups[0][key] = value * factor if key == "lr" else value
        gradient = self._inside(self._gradient())
        if self._clip is not None:
            gradient = gradient * (self._clip / gradient.norm().clamp(min=1e-30)).clamp(max=1.0)
        self.coordinates.grad = gradient
        before = None if inside or self._moving is None else self._point.clone()
        self.inner.step()
        if inside:
            self._point = self._anchor + self.displacement()
        if before is not None:
            self._rows.append((self._point - before).float())
        self._write()
        self._count()
        return loss

    def displacement(self) -> Float[Tensor, " d"]:
        """Current point minus anchor, in float32, or in float64 if a parameter is."""
        exact = reduce(torch.promote_types, (p.dtype for p in self._parameters), torch.float32)
        if self.basis is None:
            return (self._point - self._anchor).to(exact)
        out = torch.zeros(1, self.space.dim, dtype=exact, device=self._device)
        if self.basis.k:
            combine(self.coordinates[None], self.basis.U.T, out=out)
        return out[0]

    def rebase(self, basis: Basis | None) -> None:
        """Continue from the current parameters inside another basis (None: in all coordinates).

        A new inner optimiser starts. Parameters that something else has moved since the last step
        keep their current values.
        """
        if self._moved() is not None:
            self._point = self._read()
        self._enter(basis)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue: settings, inner optimiser, basis, anchor, coordinates."""
        basis = None
        if self.basis is not None:
            basis = {key: getattr(self.basis, key) for key in ("U", "S", "origin", "rank")}
        state = {
            "inner": self.inner.state_dict(),
            "basis": basis,
            "anchor": self._anchor,
            "point": self._point,
            "coordinates": self.coordinates,
            "rows": list(self._rows),
            "counts": [self.taken, self.full_taken, self._cycle, self._inside_taken],
        }
        indices = list(range(len(self._parameters)))
        groups = [{**_settings(self.param_groups[0]), "params": indices}]
        return {"state": state, "param_groups": groups}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a saved state. Load the model's parameters separately.

        Raises:
            ValueError: the state has another number of parameters.
        """
        state = state_dict["state"]
        if len(state["point"]) != self.space.dim:
            raise UsageError(
                f"the state has {len(state['point'])} coordinates, the space has "
                f"{self.space.dim}; select the parameters that it was saved with"
            )
        basis = state["basis"]
        if basis is not None:
            basis = Basis(space=self.space, **basis)
        self._point = state["point"].to(self._device, copy=True)
        self._enter(basis)
        self._anchor = state["anchor"].to(self._device, copy=True)
        self.coordinates.copy_(state["coordinates"])
        self.inner.load_state_dict(state["inner"])
        self._rows = [row.to(self._device, copy=True) for row in state["rows"]]
        self.taken, self.full_taken, self._cycle, self._inside_taken = state["counts"]
        self.param_groups[0].update(_settings(state_dict["param_groups"][0]))

    def _enter(self, basis: Basis | None) -> None:
        """Make the current point the anchor of other coordinates, with a new inner optimiser."""
        if basis is not None:
            if basis.space is not None:
                require_same_space(self.space, basis.space)
            if basis.d != self.space.dim:
                raise UsageError(
                    f"the parameters have {self.space.dim} coordinates, the basis has d = {basis.d}"
                )
            basis = basis.to(self._parameters[0].device)
        self.basis, self._anchor = basis, self._point.clone()
        self.coordinates = (
            self._point if basis is None else torch.zeros(basis.k, dtype=torch.float64)
        )
        self._rows = []
        self._inside_taken = 0
        self.inner = self._make([self.coordinates])

    def _count(self) -> None:
        """Count the step, and change the coordinates if a moving basis says so."""
        self.taken += 1
        self.full_taken += self.basis is None
        self._inside_taken += self.basis is not None
        if self._moving is None:
            return
        if len(self._rows) == self._moving.full:
            self._enter(self._moving.build(torch.stack(self._rows), self._cycle))
            self._cycle += 1
        elif self._inside_taken == self._moving.inside:
            self._enter(None)

    def _gradient(self) -> Float[Tensor, " d"]:
        """The gradients of the parameters as one vector, checked."""
        if all(parameter.grad is None for parameter in self._parameters):
            raise UsageError(
                f"none of the {len(self._parameters)} selected parameters has a gradient; call "
                "backward() before step(), and leave their requires_grad on"
            )
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        exact = reduce(torch.promote_types, (p.dtype for p in parts), torch.float32)
        flat = torch.cat([part.reshape(-1).to(exact) for part in parts]).to(self._device)
        self.space.check_finite(flat, f"the gradient of step {self.taken + 1}")
        return flat

    def _inside(self, gradient: Float[Tensor, " d"]) -> Float[Tensor, " j"]:
        """The gradient in the current coordinates, float64."""
        if self.basis is None:
            return gradient.double()
        return gram(gradient[None], self.basis.U.T)[0]

    def _read(self) -> Float[Tensor, " d"]:
        parts = [p.detach().reshape(-1).to(self._device).double() for p in self._parameters]
        return torch.cat(parts)

    def _write(self) -> None:
        for parameter, part in zip(self._parameters, self._parts(), strict=True):
            parameter.copy_(part)

    def _parts(self) -> list[Tensor]:
        """The point, parameter by parameter, in float64."""
        return list(self.space.unflatten(self._point).values())

    def _moved(self) -> str | None:
        """The first parameter that has changed since the last step."""
        for name, p, part in zip(self.space.names, self._parameters, self._parts(), strict=True):
            if not torch.equal(p.detach(), part.to(p)):
                return name
        return None

    def _require_unmoved(self) -> None:
        if (name := self._moved()) is not None:
            raise UsageError(
                f"parameter {name} has changed since the last step, and this step would undo the "
                "change; call rebase(basis) after loading or changing weights"
            )

    def _require_memory(self, basis: Basis | MovingBasis | None) -> None:
        # Point, anchor, displacement, gradient in float64.
        numbers = 8 * 4
        if not isinstance(basis, Basis):
            # Two moments, and the point before a step.
            numbers += 8 * 3
        if isinstance(basis, MovingBasis):
            # The full steps and their directions, in float32.
            numbers += 4 * 2 * basis.full
        require_memory(
            numbers * self.space.dim,
            f"training {self.space.dim:,} parameters inside a basis",
            device=self._device,
            remedy="select fewer parameters (LoRA), or a smaller k",
        )


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}
