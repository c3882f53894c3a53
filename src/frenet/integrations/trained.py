"""Checks that all trained parameters are recorded, and counts the gradients that can be seen."""

import itertools
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.hooks import RemovableHandle

from frenet._errors import UsageError
from frenet.network.space import ParamSpace, Where, selects

_values = operator.methodcaller("values")
# Integers of the size of an entry: their sum is exact, and detects a change of any bit.
_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class LeftOutError(Exception):
    """A weight that is not recorded trains or changes."""


def trained_space(model: nn.Module, where: Where, optimizer: Any = None) -> ParamSpace:
    """The parameters that a training may move; they must be on one device.

    Without ``where`` these are all that require a gradient or are in a group of the optimiser:
    parameters that are frozen at the start may train later, as in LISA or gradual unfreezing.

    Args:
        model: at the start of the training.
        where: as in ``ParamSpace.select``.
        optimizer: of the training; None if unknown.

    Raises:
        ValueError: no parameter is trained, a selected one is quantised or is frozen and not in
            the optimiser, or they are on several devices.
    """
    given = optimised(optimizer)

    def may_train(name: str, p: nn.Parameter) -> bool:
        return selects(None, name, p) or (id(p) in given and p.is_floating_point())

    if where is None and any(may_train(name, p) for name, p in model.named_parameters()):
        space = ParamSpace.select(model, may_train)
    else:
        space = ParamSpace.select(model, where)
    parameters = space.parameters(model)
    frozen = [
        name
        for name, p in zip(space.names, parameters, strict=True)
        if not p.requires_grad and id(p) not in given
    ]
    if frozen:
        raise UsageError(
            f"{len(frozen)} of the parameters that where= selects are not trained (the first is "
            f"{frozen[0]}); select others, or leave where= out"
        )
    devices = {str(parameter.device) for parameter in parameters}
    if len(devices) > 1:
        raise UsageError(
            f"the trained parameters are on {', '.join(sorted(devices))}; frenet records steps on "
            "one device: select its parameters with where="
        )
    return space


def optimised(optimizer: Any) -> set[int]:
    """The ids of all parameters in the groups of an optimiser."""
    groups = getattr(optimizer, "param_groups", None) or ()
    return {id(parameter) for group in groups for parameter in group["params"]}


class Trained:
    """The recorded parameters of a model, and checks on all others.

    Args:
        model: in training.
        space: the recorded parameters.
        where: how they were selected. With a selection, other parameters may train; without one,
            all that train must be recorded.
    """

    def __init__(self, model: nn.Module, space: ParamSpace, where: Where) -> None:
        self.model, self.space, self.where = model, space, where
        self.parameters = space.parameters(model)
        self._kinds = [kind_of(parameter) for parameter in self.parameters]
        self._remember()
        self._sums = self._outside_sums()

    @property
    def frozen(self) -> int:
        """How many of the recorded parameters do not require a gradient now."""
        return sum(not parameter.requires_grad for parameter in self.parameters)

    def follow(self, *, thorough: bool = False) -> list[str]:
        """Replace recorded parameters by those that now have their names; returns these names.

        Args:
            thorough: also look into modules that were empty before.

        Raises:
            LeftOutError: a recorded parameter is missing or has another shape, dtype or device, or
                another one has begun to train.
        """
        held = self._held()
        same = len(held) == len(self._known) and all(map(operator.is_, held, self._known))
        same = same and [parameter.requires_grad for parameter in self._all] == self._flags
        # Resizing embeddings puts other data into the same parameter.
        same = same and not thorough
        same = same and [kind_of(parameter) for parameter in self.parameters] == self._kinds
        if same and [parameter.shape for parameter in self.parameters] == list(self.space.shapes):
            return []
        named = dict(self.model.named_parameters(remove_duplicate=False))
        replaced: list[str] = []
        for i, (name, shape) in enumerate(zip(self.space.names, self.space.shapes, strict=True)):
            p = named.get(name)
            if p is None or tuple(p.shape) != shape:
                now = "is no longer in the model" if p is None else f"has shape {(*p.shape,)}"
                raise LeftOutError(
                    f"{name}, recorded with shape {shape}, {now}: it was merged, resized or "
                    "replaced"
                )
            if (kind := kind_of(p)) != self._kinds[i]:
                raise LeftOutError(
                    f"{name} is now in {kind[0]} on {kind[1]}, and was in {self._kinds[i][0]} on "
                    f"{self._kinds[i][1]}; convert the model before it is watched"
                )
            if p is not self.parameters[i]:
                replaced.append(name)
                self.parameters[i] = p
        for name, parameter in self.model.named_parameters():
            new = name not in self.space.names and not self._aliased(parameter)
            if new and selects(self.where, name, parameter):
                raise LeftOutError(
                    f"{name} trains now and is not recorded: at the start it did not exist, or was "
                    "neither trained nor in the optimiser"
                )
        self._remember()
        return replaced

    def check_outside(self) -> None:
        """Check that no other weight has changed since the last measurement.

        Raises:
            LeftOutError: one has, although it is not trained: an adapter was merged, for example.
        """
        now = self._outside_sums()
        changed = [name for name, total in now.items() if self._sums.get(name, total) != total]
        if changed:
            raise LeftOutError(
                f"{len(changed)} weights that are not recorded have changed (the first is "
                f"{changed[0]}), for example by merging an adapter"
            )
        self._sums = now

    def _aliased(self, parameter: nn.Parameter) -> bool:
        """Whether it is a recorded parameter under another name."""
        return any(parameter is own for own in self.parameters)

    def _remember(self) -> None:
        modules = list(self.model.modules())
        held = [d for module in modules for d in (module._parameters, module._modules)]
        self._dicts = [d for d in held if d]
        self._known, self._all = self._held(), list(self.model.parameters())
        self._flags = [parameter.requires_grad for parameter in self._all]

    def _held(self) -> list[object]:
        """All modules and parameters that the known modules hold.

        Read from their dicts at every step: a walk through a model with an adapter on each layer
        takes ten times as long.
        """
        return list(itertools.chain.from_iterable(map(_values, self._dicts)))

    def _outside_sums(self) -> Mapping[str, int]:
        """A checksum for every weight that is not recorded; empty with a selection."""
        if self.where is not None:
            return {}
        recorded = set(map(id, self.parameters))
        others = [(n, p) for n, p in self.model.named_parameters() if id(p) not in recorded]
        plain = [(n, p) for n, p in others if _readable(p)]
        return dict(zip([n for n, _ in plain], _sums(p for _, p in plain), strict=True))


def kind_of(parameter: Tensor) -> tuple[torch.dtype, torch.device]:
    """Dtype and device."""
    return parameter.dtype, parameter.device


class Seen(NamedTuple):
    """Of one step: coordinates with a zero gradient, and those without a visible one."""

    zeros: int
    unseen: int


class Gradients:
    """The gradients that an optimiser is about to use, if they are visible.

    A frozen parameter has none. An optimiser that steps inside the backward pass removes them, or
    sets them to zero.

    Args:
        trained: the parameters.
        keep: store the whole gradient of the last step in ``vector``, NaN for a missing one.
    """

    def __init__(self, trained: Trained, *, keep: bool) -> None:
        self.trained, self.keep = trained, keep
        self.vector: Float[Tensor, " d"] | None = None
        # Indices of parameters whose gradients the optimiser removes before they are visible.
        self.gone: set[int] = set()
        self._missing: list[int] = []
        self._seen = Seen(0, 0)
        self._arrived: dict[int, Tensor] = {}
        self._hooks: list[RemovableHandle] = []
        self.watch()

    def watch(self) -> None:
        """Find out, in the backward passes before the next step, which gradients are not zero.

        A hook on a tensor gets its gradient before an optimiser inside the backward pass does.
        """
        self.close()
        self._arrived.clear()
        for index, parameter in enumerate(self.trained.parameters):
            if parameter.requires_grad:
                self._hooks.append(parameter.register_hook(partial(self._arrive, index)))

    def _arrive(self, index: int, gradient: Tensor) -> None:
        now, before = gradient.detach().any(), self._arrived.get(index)
        self._arrived[index] = now if before is None else before | now

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def note(self) -> None:
        """Read the gradients, just before the optimiser's step."""
        gradients = [parameter.grad for parameter in self.trained.parameters]
        if self._hooks:
            self._compare(gradients)
        self._missing = [i for i, grad in enumerate(gradients) if grad is None]
        there = [g for i, g in enumerate(gradients) if g is not None and i not in self.gone]
        size = sum(gradient.numel() for gradient in there)
        nonzero = int(flat(there).count_nonzero()) if there else 0
        self._seen = Seen(size - nonzero, self.trained.space.dim - size)
        if self.keep:
            parts = [
                torch.full_like(parameter, math.nan) if g is None or i in self.gone else g
                for i, (parameter, g) in enumerate(
                    zip(self.trained.parameters, gradients, strict=True)
                )
            ]
            self.vector = flat(parts).cpu()

    def _compare(self, gradients: Sequence[Tensor | None]) -> None:
        """Which of the gradients that arrived are still there, in one transfer."""
        self.close()
        if not self._arrived:
            return
        answers = torch.stack([self._arrived[index].cpu() for index in self._arrived]).tolist()
        for index, arrived in zip(self._arrived, answers, strict=True):
            gradient = gradients[index]
            if arrived and (gradient is None or not bool(gradient.any())):
                self.gone.add(index)
            elif arrived:
                self.gone.discard(index)
        self._arrived.clear()

    def counted(self, step: Float[Tensor, " d"]) -> Seen:
        """The counts of this step. A parameter that moved without a gradient had one removed."""
        if self._missing:
            parts = step.split(self.trained.space.sizes)
            self.gone.update(i for i in self._missing if bool(parts[i].any()))
        return self._seen


def flat(tensors: Sequence[Tensor]) -> Float[Tensor, " d"]:
    """A float32 copy of all entries, in order."""
    with torch.no_grad():
        # Runs at every step on hundreds of small tensors: a loop of views took twice the time.
        joined = _flatten_dense_tensors(tensors)
        return joined.to(torch.float32, copy=len(tensors) == 1)


def _readable(parameter: Tensor) -> bool:
    """Whether its bits can be read directly."""
    hidden = parameter.device.type == "meta" or is_traceable_wrapper_subclass(parameter)
    return not hidden and parameter.element_size() in _WHOLE and parameter.numel() > 0


def _sums(parameters: Iterable[Tensor]) -> list[int]:
    """The sum of the entries of each, read as integers, modulo 2^64."""
    with torch.no_grad():
        totals = [
            p.detach().view(_WHOLE[p.element_size()]).sum(dtype=torch.int64) for p in parameters
        ]
    return [int(total) for total in totals]
