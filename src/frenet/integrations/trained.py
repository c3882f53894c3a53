"""Whether what a recording holds is all that trains, and which of its gradients can be seen."""

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
# Whole numbers of the size of an entry: a sum of them is exact, and sees a change of any bit.
_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class LeftOutError(Exception):
    """A weight trains, or changes, that the recording does not hold."""


def trained_space(model: nn.Module, where: Where, optimizer: Any = None) -> ParamSpace:
    """The parameters that a training may move, which are on one device.

    Without ``where`` these are all that require a gradient or are in a group of the optimiser: what
    is frozen at the start and in the optimiser may train later, as in LISA or gradual unfreezing.

    Args:
        model: as the training begins.
        where: as in ``ParamSpace.select``.
        optimizer: of the training; None where it is not known.

    Raises:
        ValueError: no parameter is trained, a selected one is frozen and in no group of the
            optimiser, or quantised, or they are on several devices.
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
            f"the trained parameters are on {', '.join(sorted(devices))}; a step can be recorded "
            "from one device: select the parameters of one with where="
        )
    return space


def optimised(optimizer: Any) -> set[int]:
    """Identities of all parameters in the groups of an optimiser."""
    groups = getattr(optimizer, "param_groups", None) or ()
    return {id(parameter) for group in groups for parameter in group["params"]}


class Trained:
    """The recorded parameters of a model, and a watch on all others.

    Args:
        model: that trains.
        space: the recorded parameters.
        where: how they were selected. What a selection leaves out may train; without one all that
            trains is recorded.
    """

    def __init__(self, model: nn.Module, space: ParamSpace, where: Where) -> None:
        self.model, self.space, self.where = model, space, where
        self.parameters = space.parameters(model)
        self._remember()
        self._sums = self._outside_sums()

    @property
    def frozen(self) -> int:
        """How many of the recorded parameters do not require a gradient at present."""
        return sum(not parameter.requires_grad for parameter in self.parameters)

    def follow(self, *, thorough: bool = False) -> list[str]:
        """Take up parameters that stand where recorded ones stood; the names of these.

        Args:
            thorough: also see what was put into modules that were empty before.

        Raises:
            LeftOutError: a recorded parameter is gone or has another shape, or one that is not
                recorded has begun to train.
        """
        held = self._held()
        same = len(held) == len(self._known) and all(map(operator.is_, held, self._known))
        same = same and [parameter.requires_grad for parameter in self._all] == self._flags
        # Resizing embeddings puts other data into the same parameter.
        same = same and not thorough
        if same and [parameter.shape for parameter in self.parameters] == list(self.space.shapes):
            return []
        named = dict(self.model.named_parameters(remove_duplicate=False))
        replaced = []
        for i, (name, shape) in enumerate(zip(self.space.names, self.space.shapes, strict=True)):
            own = named.get(name)
            if own is None or tuple(own.shape) != shape:
                now = "is no longer in the model" if own is None else f"has shape {(*own.shape,)}"
                raise LeftOutError(
                    f"{name}, which is recorded with shape {shape}, {now}: it was merged, resized "
                    "or replaced"
                )
            if own is not self.parameters[i]:
                replaced.append(name)
                self.parameters[i] = own
        for name, parameter in self.model.named_parameters():
            new = name not in self.space.names and not self._aliased(parameter)
            if new and selects(self.where, name, parameter):
                raise LeftOutError(
                    f"{name} is not recorded: at the start it was not there, or neither trained "
                    "nor in the optimiser, and now it trains"
                )
        self._remember()
        return replaced

    def check_outside(self) -> None:
        """See that no other weight has changed since the look before.

        Raises:
            LeftOutError: one has, without being trained: an adapter was merged into it, say.
        """
        now = self._outside_sums()
        changed = [name for name, found in now.items() if self._sums.get(name, found) != found]
        if changed:
            raise LeftOutError(
                f"{len(changed)} weights that are not recorded have changed (the first is "
                f"{changed[0]}), as by merging an adapter into them"
            )
        self._sums = now

    def _aliased(self, parameter: nn.Parameter) -> bool:
        """Whether it is a recorded one, under another name."""
        return any(parameter is own for own in self.parameters)

    def _remember(self) -> None:
        modules = list(self.model.modules())
        held = [d for module in modules for d in (module._parameters, module._modules)]
        self._dicts = [d for d in held if d]
        self._known, self._all = self._held(), list(self.model.parameters())
        self._flags = [parameter.requires_grad for parameter in self._all]

    def _held(self) -> list[object]:
        """All modules and parameters, as the known modules hold them.

        Their own dicts, since walking through a model with an adapter on each of its layers takes
        ten times as long, and this is done at every step.
        """
        return list(itertools.chain.from_iterable(map(_values, self._dicts)))

    def _outside_sums(self) -> Mapping[str, int]:
        """A number for every weight that is not recorded; nothing under a selection."""
        if self.where is not None:
            return {}
        own = set(map(id, self.parameters))
        others = [(n, p) for n, p in self.model.named_parameters() if id(p) not in own]
        plain = [(n, p) for n, p in others if _readable(p)]
        return dict(zip([n for n, _ in plain], _sums(p for _, p in plain), strict=True))


class Seen(NamedTuple):
    """Of one step: coordinates whose gradient was zero, and those without one to see."""

    zeros: int
    unseen: int


class Gradients:
    """The gradients that an optimiser is about to use, as far as they are there to see.

    One is not there for a parameter that is frozen, or where the optimiser steps inside the
    backward pass and has used it up: then it is missing, or set to zero.

    Args:
        trained: whose gradients.
        keep: hold the whole gradient of the last step in ``vector``, NaN where there was none.
    """

    def __init__(self, trained: Trained, *, keep: bool) -> None:
        self.trained, self.keep = trained, keep
        self.vector: Float[Tensor, " d"] | None = None
        # Indices of parameters whose gradients are used up before anyone sees them.
        self.gone: set[int] = set()
        self._missing: list[int] = []
        self._seen = Seen(0, 0)
        self._arrived: dict[int, Tensor] = {}
        self._hooks: list[RemovableHandle] = []
        self.watch()

    def watch(self) -> None:
        """See in the backward passes before the next step which gradients arrive and are not zero.

        A hook on a tensor has its gradient before an optimiser within the backward pass does.
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
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def note(self) -> None:
        """Look at the gradients, just before the optimiser's step."""
        found = [parameter.grad for parameter in self.trained.parameters]
        if self._hooks:
            self._compare(found)
        self._missing = [i for i, grad in enumerate(found) if grad is None]
        there = [g for i, g in enumerate(found) if g is not None and i not in self.gone]
        size = sum(gradient.numel() for gradient in there)
        nonzero = int(flat(there).count_nonzero()) if there else 0
        self._seen = Seen(size - nonzero, self.trained.space.dim - size)
        if self.keep:
            parts = [
                torch.full_like(parameter, math.nan) if g is None or i in self.gone else g
                for i, (parameter, g) in enumerate(zip(self.trained.parameters, found, strict=True))
            ]
            self.vector = flat(parts).cpu()

    def _compare(self, found: Sequence[Tensor | None]) -> None:
        """Which of the gradients that arrived are still there; all answers in one transfer."""
        self.close()
        if not self._arrived:
            return
        answers = torch.stack([self._arrived[index].cpu() for index in self._arrived]).tolist()
        for index, arrived in zip(self._arrived, answers, strict=True):
            gradient = found[index]
            if arrived and (gradient is None or not bool(gradient.any())):
                self.gone.add(index)
            elif arrived:
                self.gone.discard(index)
        self._arrived.clear()

    def counted(self, step: Float[Tensor, " d"]) -> Seen:
        """The counts of this step, whose moves say which missing gradients had been used up."""
        if self._missing:
            parts = step.split(self.trained.space.sizes)
            self.gone.update(i for i in self._missing if bool(parts[i].any()))
        return self._seen


def flat(tensors: Sequence[Tensor]) -> Float[Tensor, " d"]:
    """A float32 copy of all entries, in order."""
    with torch.no_grad():
        # At every step, of hundreds of small tensors: a loop of views here took twice the time.
        joined = _flatten_dense_tensors(tensors)
        return joined.to(torch.float32, copy=len(tensors) == 1)


def _readable(parameter: Tensor) -> bool:
    """Whether its bits can be read as they are."""
    hidden = parameter.device.type == "meta" or is_traceable_wrapper_subclass(parameter)
    return not hidden and parameter.element_size() in _WHOLE and parameter.numel() > 0


def _sums(parameters: Iterable[Tensor]) -> list[int]:
    """The sum of the entries of each, read as whole numbers, modulo 2^64."""
    with torch.no_grad():
        found = [
            p.detach().view(_WHOLE[p.element_size()]).sum(dtype=torch.int64) for p in parameters
        ]
    return [int(total) for total in found]
