"""Does the order of two updates matter? The Lie bracket of the gradient fields of two tasks."""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet._notebook import Fact, Shown
from frenet.geometry.linalg import norm
from frenet.geometry.nulls import gaussian_like
from frenet.measure.curvature import hessian_product
from frenet.measure.gradients import gradient
from frenet.measure.rounding import UnknownRoundingError, in_float64, norm_over_rounding
from frenet.network.adapters import structural_zeros
from frenet.network.memory import require_memory
from frenet.network.space import ParamSpace
from frenet.network.tasks import Batch, Task

# The order matters from the step size on at which two orders end this share of their step apart.
ONSET = 0.10
# A number counts if it is at least this many times its rounding error.
CLEAR = 10.0
# Rounding of a Hessian product, in units of the last place of its norm.
LAST_PLACES = 32
# What float64 gains over float32.
GAIN = torch.finfo(torch.float32).eps / torch.finfo(torch.float64).eps
# Pairs of more tasks than this are announced with their cost.
MANY = 8


class Minibatch(NamedTuple):
    """A task on one fixed batch, which makes its loss a function of the weights alone."""

    task: Task
    batch: Batch

    @property
    def name(self) -> str:
        """The task's name."""
        return self.task.name

    @property
    def examples(self) -> int:
        """Number of rows."""
        return len(self.batch["labels"])

    def turned(self) -> "Minibatch":
        """The same rows in reverse order: the same loss, with other rounding."""
        return Minibatch(self.task, {key: value.flip(0) for key, value in self.batch.items()})

    def same_as(self, other: "Minibatch") -> bool:
        """Whether both are the same rows of the same task, in the same order."""
        one, two = self.batch, other.batch
        return (self.name, one.keys()) == (other.name, two.keys()) and all(
            torch.equal(one[key], two[key]) for key in one
        )


@dataclass(frozen=True, repr=False)
class LieBracket(Shown):
    r"""The Lie bracket of two tasks' gradient fields at a point.

    $$b = H_B g_A - H_A g_B, \qquad
      \theta_{AB} - \theta_{BA} = \eta^2 b + O(\eta^3)$$

    theta_AB is reached by a gradient step of size eta on A and then one on B, theta_BA by B first.

    Attributes:
        names: of the tasks A and B.
        gradients: g_A and g_B, each (d,), float32, in nats per token per unit of parameter.
        vector: b, (d,), float32.
        rounding: bound of the norm of its rounding error.
        clear: norm of each gradient over its rounding error; None: not known.
        null: the same with random steps in place of both gradients, of their norms in every tensor,
            (d,): how much steps that know nothing of the tasks would change each other's gradients.
            None: not measured.
    """

    names: tuple[str, str]
    gradients: tuple[Float[Tensor, " d"], Float[Tensor, " d"]]
    vector: Float[Tensor, " d"]
    rounding: float
    clear: tuple[float | None, float | None]
    null: Float[Tensor, " d"] | None = None

    def _summary(self) -> str:
        first, second = self.names
        return f"{first} and {second}, the order matters from step size {self.onset:.4g} on"

    def _entries(self) -> Iterator[Fact]:
        beside = f"{self.rounding / self.length:.2g} from rounding"
        if self.null_kappa is not None:
            beside += f", {self.null_kappa:.4g} by random steps"
        yield "kappa", self.kappa, beside
        yield "onset", self.onset, f"{self.least_step:.4g} is lost in rounding"
        yield "norm of the Lie bracket", norm(self.vector), f"{self.rounding:.4g} from rounding"

    @property
    def length(self) -> float:
        """||g_A + g_B||, by which a step size becomes the length of both steps together."""
        return norm(self.gradients[0] + self.gradients[1])

    @property
    def kappa(self) -> float:
        """||b|| / ||g_A + g_B||, so that two orders of step size eta differ by eta kappa."""
        return norm(self.vector) / self.length

    @property
    def null_kappa(self) -> float | None:
        """Kappa by the random steps; None: not measured."""
        return None if self.null is None else norm(self.null) / self.length

    @property
    def onset(self) -> float:
        """The step size 0.10 / kappa at which two orders end 10% of their step apart.

        Infinite if the bracket is zero, as for commuting tasks: then the order never matters to
        this order of the step size.
        """
        return ONSET / self.kappa if self.kappa else math.inf

    @property
    def order_rounding(self) -> float:
        """Rounding of a measured ||theta_AB - theta_BA|| as a share of ||eta (g_A + g_B)||.

        It does not depend on eta. 0 if the rounding of the gradients is not known.
        """
        errors = [
            norm(g) / clear for g, clear in zip(self.gradients, self.clear, strict=True) if clear
        ]
        # Each gradient is taken at two points.
        return 2**0.5 * math.hypot(*errors) / self.length

    @property
    def least_step(self) -> float:
        """The step size from which on the difference is ten times its rounding error."""
        return CLEAR * self.order_rounding / self.kappa if self.kappa else math.inf

    def predicted(self, eta: float) -> float:
        """||theta_AB - theta_BA|| / ||eta (g_A + g_B)|| to leading order, eta kappa."""
        return eta * self.kappa

    @property
    def is_clear(self) -> bool:
        """Whether the bracket is at least ten times its rounding error."""
        return norm(self.vector) >= CLEAR * self.rounding

    def require_clear(self) -> None:
        """Raise ValueError if the bracket is below ten times its rounding error."""
        if not self.is_clear:
            least = ONSET * self.length / (CLEAR * self.rounding)
            raise UsageError(
                f"the Lie bracket of {self.names[0]} and {self.names[1]} has norm "
                f"{norm(self.vector):.3g}, below {CLEAR:g} times its rounding error of "
                f"{self.rounding:.3g}: the order does not matter below step size {least:.3g}, and "
                "nothing more is known; measure in float64"
            )


def lie_bracket(
    model: nn.Module,
    first: Minibatch,
    second: Minibatch,
    *,
    space: ParamSpace,
    float64: bool = False,
    check: bool = True,
    null: torch.Generator | None = None,
) -> LieBracket:
    """The Lie bracket of two tasks' gradient fields, by two gradients and two Hessian products.

    Args:
        model: the network; left unchanged.
        first: task A on a fixed batch.
        second: task B on a fixed batch.
        space: the d parameters that move. For LoRA its factors, at a point where no half is zero:
            an adapter that has been trained, best on both tasks.
        float64: run the model with its weights in float64, which take 8 bytes each.
        check: measure the rounding error of both gradients, by two more in float64 each.
        null: draws random steps, for the null of the bracket, by two more products.

    Raises:
        ValueError: both are the same rows; a gradient is zero, or below ten times its rounding
            error, or both cancel; half of an adapter is zero; a layer of the model has no Hessian
            product.
        FloatingPointError: a gradient or a product is not finite; names the parameter.

    Source: Piontkovskaia and Nikolenko 2026, arXiv 2607.16821, which uses it for the order of
    updates.
    """
    clear = None if check else (None, None)
    found = lie_brackets(
        model, (first, second), space=space, float64=float64, clear=clear, null=null
    )
    return found[0, 1]


def lie_brackets(
    model: nn.Module,
    minibatches: Sequence[Minibatch],
    *,
    space: ParamSpace,
    float64: bool = False,
    clear: Sequence[float | None] | None = None,
    null: torch.Generator | None = None,
) -> dict[tuple[int, int], LieBracket]:
    """The Lie bracket of every pair of n tasks, by n gradients and n (n - 1) Hessian products.

    Args:
        model: the network; left unchanged.
        minibatches: n of them, at least 2, no two of them the same rows.
        space: as for ``lie_bracket``.
        float64: as for ``lie_bracket``.
        clear: what ``above_rounding`` gave for each; None: it is measured.
        null: as for ``lie_bracket``, for n (n - 1) more products.

    Returns:
        By the places of the two in ``minibatches``, the smaller one first.

    Raises:
        ValueError: as for ``lie_bracket``.
        MemoryError: the n^2 vectors do not fit; raised before any is computed.

    Warns:
        RuntimeWarning: n is above 8; says what it costs.
    """
    count = len(minibatches)
    _require_unlike(minibatches)
    require_trained_adapter(model, space)
    if count > MANY:
        warnings.warn(cost_of_pairs(count), RuntimeWarning, stacklevel=2)
    require_memory(
        4 * count * (count + 1) * space.dim * (1 if null is None else 2),
        f"the gradients and Hessian products of {count} tasks in {space.dim:,} parameters",
        device=space.parameters(model)[0].device,
        remedy="pass fewer tasks, or select fewer parameters (LoRA)",
    )
    if clear is None:
        clear = [above_rounding(model, m, space=space, float64=float64) for m in minibatches]
    with precision(model, float64=float64):
        gradients = [gradient(model, m.task, m.batch, space=space) for m in minibatches]
        for minibatch, g in zip(minibatches, gradients, strict=True):
            if not g.any():
                raise UsageError(_zero(minibatch))
        steps = [torch.stack(gradients)]
        if null is not None:
            steps.append(gaussian_like(steps[0], space.sizes, null))
        images = [_images(model, m, steps, i, space) for i, m in enumerate(minibatches)]
        places = LAST_PLACES * torch.finfo(space.parameters(model)[0].dtype).eps
    found = {}
    for i, j in combinations(range(count), 2):
        names = minibatches[i].name, minibatches[j].name
        both = gradients[i], gradients[j]
        _require_step(names, both, places)
        own, *random = (
            there[i] - here[j] for there, here in zip(images[j], images[i], strict=True)
        )
        known = clear[i], clear[j]
        rounding = sum(
            norm(image) * (places + torch.finfo(torch.float32).eps + (1 / c if c else 0.0))
            for image, c in zip((images[j][0][i], images[i][0][j]), known, strict=True)
        )
        found[i, j] = LieBracket(names, both, own, rounding, known, *random)
    return found


def _require_step(names: tuple[str, str], gradients: tuple[Tensor, Tensor], places: float) -> None:
    """Raise ValueError if two gradients cancel."""
    first, second = gradients
    if norm(first + second) <= places * (norm(first) + norm(second)):
        raise UsageError(
            f"the gradients of {names[0]} and {names[1]} are opposite, so that both steps "
            "together lead nowhere; leave one of them out"
        )


def cost_of_pairs(count: int) -> str:
    """What the Lie brackets of all pairs of some tasks cost, in a sentence.

    >>> cost_of_pairs(10)
    'the order of 10 tasks: 45 pairs take 10 gradients and 90 Hessian products'
    """
    pairs = count * (count - 1)
    return (
        f"the order of {count} tasks: {pairs // 2} pairs take {count} gradients and {pairs} "
        "Hessian products"
    )


def precision(model: nn.Module, *, float64: bool) -> AbstractContextManager[None]:
    """The model in float64, restored bit for bit afterwards, or as it is."""
    return in_float64(model) if float64 else nullcontext()


def above_rounding(
    model: nn.Module, minibatch: Minibatch, *, space: ParamSpace, float64: bool = False
) -> float | None:
    """The norm of a gradient over its rounding error, which must be at least 10.

    Returns:
        None if it is not known, because the model does not run in float64.

    Raises:
        ValueError: it is below; names a dtype and a size of the batch that would be enough.
    """
    task, batch = minibatch
    try:
        single = norm_over_rounding(model, task, batch, space=space)
    except UnknownRoundingError:
        return None
    if single == 0:
        raise UsageError(_zero(minibatch))
    clear = single * GAIN if float64 else single
    if clear < CLEAR:
        size = math.ceil(minibatch.examples * (CLEAR / clear) ** 2)
        better = "" if float64 else f"in float64, where it is about {single * GAIN:.1g} times, or "
        raise UsageError(
            f"the gradient of task {task.name} on {minibatch.examples} examples is only "
            f"{clear:.2g} times its rounding error, and the order of two updates needs {CLEAR:g} "
            f"times; measure {better}on about {size:,} examples, over which rounding averages out "
            "and a shared gradient does not"
        )
    return clear


def rounding_floor(
    model: nn.Module, minibatch: Minibatch, *, space: ParamSpace, float64: bool = False
) -> float:
    """The norm of the Lie bracket of a batch with itself in another order of its rows.

    It is zero but for rounding in the sums over rows, so it is a lower bound of the rounding of
    another bracket; ``LieBracket.rounding`` is an upper one.
    """
    pair = minibatch, minibatch.turned()
    with precision(model, float64=float64):
        steps = [torch.stack([gradient(model, m.task, m.batch, space=space) for m in pair])]
        one, other = (_images(model, m, steps, i, space) for i, m in enumerate(pair))
    return norm(other[0][0] - one[0][1])


def require_trained_adapter(model: nn.Module, space: ParamSpace) -> None:
    """Raise ValueError if half of an adapter is zero, as before its training."""
    zeros = structural_zeros(model, space)
    if zeros.zero:
        raise UsageError(
            f"{zeros}, so that a step on one task first of all switches on what the other task "
            "moves; train the adapter, best on all tasks together, and measure there"
        )


def _require_unlike(minibatches: Sequence[Minibatch]) -> None:
    if len(minibatches) < 2:
        raise UsageError(f"{len(minibatches)} task has no order; pass at least two")
    for first, second in combinations(minibatches, 2):
        if first.same_as(second):
            raise UsageError(
                f"both updates are of the same rows of task {first.name}, and have no order; pass "
                "another task, or other rows"
            )


def _zero(minibatch: Minibatch) -> str:
    return (
        f"the gradient of task {minibatch.name} on {minibatch.examples} examples is zero, so that "
        "there is no step; measure where the task is not yet learned"
    )


def _images(
    model: nn.Module,
    minibatch: Minibatch,
    steps: Sequence[Float[Tensor, "n d"]],
    i: int,
    space: ParamSpace,
) -> list[dict[int, Float[Tensor, " d"]]]:
    """H_i u_j for every j but i, of each set of steps u."""
    others = [j for j in range(len(steps[0])) if j != i]
    product = hessian_product(model, minibatch.task, minibatch.batch, space=space)
    images = product(torch.cat([rows[others] for rows in steps]))
    return [dict(zip(others, part, strict=True)) for part in images.split(len(others))]
