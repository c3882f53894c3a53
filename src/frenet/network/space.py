"""The measured parameters as a vector; moving them, and restoring them bit for bit."""

import difflib
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet._notebook import Fact, Shown
from frenet.geometry.linalg import norm
from frenet.network.blocks import unread

Where = str | Callable[[str, nn.Parameter], bool] | None


@dataclass(frozen=True, repr=False)
class ParamSpace(Shown):
    """The selected parameters of a model, flattened in a fixed order into R^d.

    Tied parameters count once, under the first name that the model lists.

    >>> space = ParamSpace.select(nn.Linear(3, 2))
    >>> space.names, space.dim
    (('weight', 'bias'), 8)
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def select(cls, model: nn.Module, where: Where = None) -> "ParamSpace":
        """The parameters of ``model`` that ``where`` selects, in the model's order.

        Args:
            model: any module.
            where: a regular expression to search for in the name, a predicate of name and
                parameter, or None for all floating-point parameters that require a gradient,
                except in towers that no text reaches (see ``blocks.text_reach``).

        Raises:
            ValueError: nothing matches (the message lists the nearest names), or a selected
                parameter shares its memory with another: each would have a part of the gradient.
        """
        chosen: list[tuple[str, nn.Parameter]] = []
        places: dict[tuple[int, int], list[str]] = {}
        for name, parameter in model.named_parameters():
            place = (_address(parameter), int(parameter.storage_offset()))
            places.setdefault(place, []).append(name)
        left_out = unread(model) if where is None else set()
        shared = {name: names for names in places.values() if len(names) > 1 for name in names}
        for name, parameter in model.named_parameters():
            if not selects(where, name, parameter) or id(parameter) in left_out:
                continue
            if name in shared:
                first, second, *_ = shared[name]
                raise UsageError(
                    f"{first} and {second} are two parameters on one memory, and each has only a "
                    "part of the gradient; tie the parameter, so that both modules hold the same "
                    "object"
                )
            if not parameter.is_floating_point():
                raise UsageError(
                    f"parameter {name} has dtype {parameter.dtype}, which has no gradient; "
                    "load the model without quantisation, or leave the parameter out"
                )
            chosen.append((name, parameter))
        if not chosen:
            raise UsageError(_nothing_matches(model, where))
        return cls(tuple(n for n, _ in chosen), tuple(tuple(p.shape) for _, p in chosen))

    def _summary(self) -> str:
        ends = " to ".join(dict.fromkeys((self.names[0], self.names[-1])))
        return f"{self.dim} coordinates in {len(self.names)} parameters, {ends}"

    def _entries(self) -> Iterator[Fact]:
        chance = f"cosines of random vectors are about {self.dim**-0.5:.3g}"
        yield "coordinates", self.dim, chance

    @functools.cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of coordinates of each parameter."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @functools.cached_property
    def dim(self) -> int:
        """d, the number of coordinates."""
        return sum(self.sizes)

    def parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """The selected parameters of ``model``, in order.

        Raises:
            ValueError: the model has other parameters, or one has no values (on the meta device).
        """
        parameters: list[nn.Parameter] = []
        for name, shape in zip(self.names, self.shapes, strict=True):
            try:
                parameters.append(model.get_parameter(name))
            except AttributeError:
                actual = "does not exist"
            else:
                if tuple(parameters[-1].shape) == shape:
                    _require_values(name, parameters[-1])
                    continue
                actual = f"has shape {tuple(parameters[-1].shape)}"
            raise UsageError(
                f"the model does not fit this parameter space: {name} should have shape "
                f"{shape}, but {actual}; select the space on this model"
            )
        return parameters

    def flatten(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, " d"]:
        """A dict of tensors as one float32 vector in R^d."""
        if missing := [name for name in self.names if name not in tensors]:
            raise UsageError(f"no tensor for {missing[0]} ({len(missing)} of them missing)")
        return torch.cat([tensors[n].detach().reshape(-1).float() for n in self.names])

    def unflatten(self, vector: Float[Tensor, "*n d"]) -> dict[str, Tensor]:
        """Views of the last axis, one tensor per parameter; leading axes stay."""
        if vector.shape[-1] != self.dim:
            raise UsageError(f"the vector has {vector.shape[-1]} coordinates, the space {self.dim}")
        lead = vector.shape[:-1]
        parts = vector.split(self.sizes, dim=-1)
        named = zip(self.names, parts, self.shapes, strict=True)
        return {name: part.reshape(*lead, *shape) for name, part, shape in named}

    def read(self, model: nn.Module) -> Float[Tensor, " d"]:
        """The current parameters as one float32 vector (a copy)."""
        parameters = self.parameters(model)
        return torch.cat([p.detach().reshape(-1).float() for p in parameters])

    def write(self, model: nn.Module, vector: Float[Tensor, " d"]) -> None:
        """Set the parameters, rounded to the model's dtype; ``restored`` undoes it."""
        parts = self.unflatten(vector)
        with torch.no_grad():
            for parameter, part in zip(self.parameters(model), parts.values(), strict=True):
                parameter.copy_(part)

    @contextmanager
    def restored(self, model: nn.Module) -> Iterator[list[Tensor]]:
        """Restore the parameters bit for bit from saved copies, whatever happens inside.

        Yields:
            The copies, in order; not to be changed.
        """
        parameters = self.parameters(model)
        saved = [p.detach().clone() for p in parameters]
        try:
            yield saved
        finally:
            with torch.no_grad():
                for parameter, copy in zip(parameters, saved, strict=True):
                    parameter.copy_(copy)

    @contextmanager
    def displaced(
        self, model: nn.Module, delta: Float[Tensor, " d"], times: float = 1.0
    ) -> Iterator[None]:
        """Move the model to theta + times * delta, and restore theta afterwards, bit for bit.

        Sums are float32, tensor by tensor, so that it holds only one copy of the weights.
        """
        parts = self.unflatten(delta).values()
        with self.restored(model):
            with torch.no_grad():
                for parameter, part in zip(self.parameters(model), parts, strict=True):
                    moved = part.to(parameter.device, torch.float32) * times
                    parameter.copy_(moved.add_(parameter))
            yield

    def norm(self, model: nn.Module) -> float:
        """The 2-norm of the current parameters, one tensor at a time."""
        return math.hypot(*(norm(p.detach().float()) for p in self.parameters(model)))

    def require_float32(self, model: nn.Module, what: str) -> None:
        """Raise ValueError if the parameters' dtype would round a small step to zero."""
        for name, parameter in zip(self.names, self.parameters(model), strict=True):
            if torch.finfo(parameter.dtype).bits < 32:
                raise UsageError(
                    f"{what} moves the weights by less than {parameter.dtype} rounds {name} to; "
                    "measure in float32 (--dtype float32, or model.float()), or move a LoRA "
                    "adapter, which stays in float32 (--spaces lora, or attach_lora)"
                )

    def locate(self, index: int) -> str:
        """The name of the parameter that holds coordinate ``index``."""
        for name, size in zip(self.names, self.sizes, strict=True):
            if index < size:
                return name
            index -= size
        raise UsageError(f"coordinate beyond the {self.dim} of this space")

    def check_finite(self, vector: Float[Tensor, "*n d"], what: str) -> None:
        """Raise FloatingPointError naming the first parameter with a NaN or an infinity."""
        # A finite sum means finite numbers, and takes no memory, which a large model needs. Finite
        # numbers may overflow in the sum: then every parameter is checked.
        if torch.isfinite(vector.sum()):
            return
        for name, part in zip(self.names, vector.split(self.sizes, dim=-1), strict=True):
            if not torch.isfinite(part).all():
                raise FloatingPointError(
                    f"{what} is not finite in parameter {name}; "
                    "measure in float32, or lower the step size"
                )


def _require_values(name: str, parameter: Tensor) -> None:
    if parameter.is_meta:
        raise UsageError(
            f"parameter {name} is on the meta device and has no values: the model was created "
            "without memory or is on disk (device_map); load it into memory"
        )


def _address(parameter: Tensor) -> int:
    """An identity of the storage."""
    if parameter.device.type == "meta" or parameter.numel() == 0:
        return id(parameter)
    return parameter.untyped_storage().data_ptr()


def selects(where: Where, name: str, parameter: nn.Parameter) -> bool:
    """Whether ``where`` chooses a parameter, as in ``ParamSpace.select``."""
    if where is None:
        return parameter.requires_grad and parameter.is_floating_point()
    if isinstance(where, str):
        return re.search(where, name) is not None
    return where(name, parameter)


def _nothing_matches(model: nn.Module, where: Where) -> str:
    names = [name for name, _ in model.named_parameters()]
    if where is None:
        return "no parameter requires a gradient; pass where=, or load the adapter as trainable"
    if not isinstance(where, str):
        return f"the predicate matches none of the {len(names)} parameters"
    near = _nearest(where, names)
    return f"no parameter matches {where!r}; the nearest names are {', '.join(near)}"


def _nearest(pattern: str, names: Sequence[str]) -> list[str]:
    near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.2)
    return near or list(names[:3])
