"""For how many steps of training a direction holds what it held at the start."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import nn

from frenet._errors import UsageError
from frenet.geometry.basis import Basis
from frenet.geometry.linalg import dot
from frenet.geometry.subspace import require_same_space
from frenet.measure.bracket import Bracket
from frenet.measure.drift import half_life
from frenet.measure.gradients import gradient_rows
from frenet.measure.trajectory import Training, Trajectory, train_and_record
from frenet.network.space import ParamSpace
from frenet.network.tasks import Split, Task


class Lifetime(NamedTuple):
    """When a quantity of a direction first falls to half of what it was at the start.

    Attributes:
        steps: of training, the two looks between which it does.
        distance: from the start, the least and the greatest between those looks.
        longest: most steps that were looked at.
        farthest: greatest distance from the start within them.
    """

    steps: Bracket
    distance: Bracket
    longest: int
    farthest: float

    @classmethod
    def of(cls, ratios: Mapping[int, float], moved: Mapping[int, float]) -> "Lifetime":
        """The lifetime that ratios to the start say, at least one, each at its lag.

        Args:
            ratios: lag -> ratio.
            moved: lag -> distance from the start, of all these lags and perhaps others.
        """
        steps, distance = half_life(ratios), half_life(ratios, moved=moved)
        return cls(steps, distance, max(ratios), max(moved.values()))


def gradient_shares(
    model: nn.Module,
    task: Task,
    bases: Mapping[str, Basis],
    *,
    space: ParamSpace,
    n: int,
    batch_size: int,
    seed: int,
    split: Split = "train",
) -> dict[str, float]:
    """Mean of ||U^T g||^2 / ||g||^2 over n minibatch gradients at the present point.

    Of a random basis it is k / d.

    Args:
        model: left unchanged.
        task: whose gradients.
        bases: by name, of the d parameters.
        space: the d parameters.
        n: minibatches.
        batch_size: examples in each.
        seed: chooses them.
        split: which examples.
    """
    totals = dict.fromkeys(bases, 0.0)
    # One at a time: the weights that an adapter changes are many more than its factors.
    for row in gradient_rows(
        model, task, space=space, n=n, batch_size=batch_size, split=split, seed=seed
    ):
        whole = max(dot(row, row), 1e-30)
        for name, basis in bases.items():
            inside = basis.to(row.device).coordinates(row[None])[0]
            totals[name] += dot(inside, inside) / whole / n
    return totals


def watch_training(
    model: nn.Module,
    task: Task,
    training: Training,
    *,
    space: ParamSpace,
    lags: Sequence[int],
    look: Callable[[int], Mapping[str, float]],
) -> tuple[Trajectory, dict[str, dict[int, float]]]:
    """Train, and look at some quantities at the start and after every lag.

    Args:
        model: ends at the last step.
        task: trained on.
        training: with at least as many steps as the last lag.
        space: the parameters that train.
        lags: steps after which to look, each at least 1.
        look: gives the quantities, by name, at the present point; told the step.

    Returns:
        The trajectory, and of every quantity its values by lag, lag 0 included.
    """
    found = {0: look(0)}

    def watch(step: int) -> bool:
        if step in lags:
            found[step] = look(step)
        return False

    path = train_and_record(model, task, training, space=space, watch=watch)
    return path, {name: {lag: at[name] for lag, at in found.items()} for name in found[0]}


def follow(
    model: nn.Module,
    path: Trajectory,
    *,
    space: ParamSpace,
    lags: Sequence[int],
    look: Callable[[int], Mapping[str, float]],
) -> dict[str, dict[int, float]]:
    """Look at some quantities along a path that was recorded before.

    Args:
        model: restored bit for bit.
        path: of the parameters of ``space``.
        space: the parameters that moved.
        lags: steps after which to look, none beyond the path.
        look: gives the quantities, by name, at the present point; told the step.

    Returns:
        Of every quantity its values by lag, lag 0 included.

    Raises:
        ValueError: a path of other parameters, naming the first that differs, or one too short.
    """
    require_recorded(path, space=space, lags=lags)
    found = {}
    with space.restored(model):
        for lag in (0, *lags):
            space.write(model, path.theta(lag).to(next(model.parameters()).device))
            found[lag] = look(lag)
    return {name: {lag: at[name] for lag, at in found.items()} for name in found[0]}


def require_recorded(path: Trajectory, *, space: ParamSpace, lags: Sequence[int]) -> None:
    """Raise ValueError if a recorded path is of other parameters, or has too few steps.

    Args:
        path: recorded before.
        space: the parameters that it should be of.
        lags: steps after which to look.
    """
    require_same_space(space, path.space)
    if not lags or max(lags) > len(path):
        raise UsageError(
            f"the recorded training has {len(path)} steps; pass lags up to that, at least one"
        )


def lifetime(values: Mapping[int, float], distances: Sequence[float]) -> Lifetime:
    """When values, by lag, fall to half of the one at lag 0, in steps and in distance.

    Args:
        values: lag -> value, with lag 0 and at least one other.
        distances: from the start, after 0, 1, 2, ... steps, at least up to the last lag.

    Raises:
        ValueError: lag 0 or all others are missing, or the value at lag 0 is not above 0: there is
            nothing that could be halved.

    >>> found = lifetime({0: 2.0, 2: 1.5, 4: 0.5}, [0.0, 0.1, 0.2, 0.3, 0.4])
    >>> print(found.steps, found.distance, sep=", ")
    between 2 and 4, between 0.2 and 0.4
    """
    if len(values) < 2 or not values.get(0, 0.0) > 0:
        raise UsageError(
            f"values has {dict(values)}; pass the value at lag 0, which must be above 0, and at "
            "one later lag at least"
        )
    moved = dict(enumerate(distances[: max(values) + 1]))
    return Lifetime.of({lag: value / values[0] for lag, value in values.items()}, moved)
