"""For how many training steps a direction stays useful."""

import math
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
from frenet.network.checkpoints.tensor_files import Read
from frenet.network.space import ParamSpace
from frenet.network.tasks import Split, Task


class Lifetime(NamedTuple):
    """When a quantity of a direction first falls to half of its initial value.

    Attributes:
        steps: of training, between two measurements.
        distance: from the start, the least and the greatest between those measurements.
        longest: the last step that was measured.
        farthest: greatest distance from the start within them.
    """

    steps: Bracket
    distance: Bracket
    longest: int
    farthest: float

    @classmethod
    def of(cls, ratios: Mapping[int, float], moved: Mapping[int, float]) -> "Lifetime":
        """The lifetime from ratios to the initial value, at least one, by lag.

        Args:
            ratios: lag -> ratio.
            moved: lag -> distance from the start, of all these lags and perhaps others.
        """
        steps, distance = half_life(ratios), half_life(ratios, moved=moved)
        return cls(steps, distance, max(ratios), max(moved.values()))


def gradient_shares(
    model: nn.Module,
    task: Task,
    bases: Mapping[str, Basis | Read],
    *,
    space: ParamSpace,
    n: int,
    batch_size: int,
    seed: int,
    split: Split = "train",
) -> dict[str, float]:
    """Mean of ||U^T g||^2 / ||g||^2 over n minibatch gradients at the current point.

    A random basis has k / d.

    Args:
        model: left unchanged.
        task: gives the gradients.
        bases: by name, of the d parameters; or single directions, as functions that return the part
            in a parameter by its name, so that no vector over all weights is kept for each.
        space: the d parameters.
        n: minibatches.
        batch_size: examples in each.
        seed: of the minibatches.
        split: of the examples.
    """
    totals = dict.fromkeys(bases, 0.0)
    squares = {
        name: math.fsum(dot(part, part) for part in map(basis, space.names))
        for name, basis in bases.items()
        if not isinstance(basis, Basis)
    }
    # One at a time: an adapter changes many more weights than its factors have.
    for row in gradient_rows(
        model, task, space=space, n=n, batch_size=batch_size, split=split, seed=seed
    ):
        whole = max(dot(row, row), 1e-30)
        parts = space.unflatten(row)
        for name, basis in bases.items():
            if isinstance(basis, Basis):
                inside = basis.to(row.device).coordinates(row[None])[0]
                captured = dot(inside, inside)
            else:
                along = math.fsum(dot(part, basis(at).to(part)) for at, part in parts.items())
                captured = along**2 / max(squares[name], 1e-30)
            totals[name] += captured / whole / n
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
    """Train, and measure some quantities at the start and after every lag.

    Args:
        model: stays at the last step.
        task: trained on.
        training: with at least as many steps as the last lag.
        space: the parameters that train.
        lags: steps after which to measure, each at least 1.
        look: called with the step; returns the quantities by name at the current point.

    Returns:
        The trajectory, and for every quantity its values by lag, including lag 0.
    """
    measured = {0: look(0)}

    def watch(step: int) -> bool:
        if step in lags:
            measured[step] = look(step)
        return False

    path = train_and_record(model, task, training, space=space, watch=watch)
    return path, {name: {lag: at[name] for lag, at in measured.items()} for name in measured[0]}


def follow(
    model: nn.Module,
    path: Trajectory,
    *,
    space: ParamSpace,
    lags: Sequence[int],
    look: Callable[[int], Mapping[str, float]],
) -> dict[str, dict[int, float]]:
    """Measure some quantities along a recorded path.

    Args:
        model: restored bit for bit.
        path: of the parameters of ``space``.
        space: the parameters that moved.
        lags: optimiser steps after which to measure, within the path; of a path of checkpoints
            some of ``path.lags``.
        look: called with the step; returns the quantities by name at the current point.

    Returns:
        For every quantity its values by lag, including lag 0.

    Raises:
        ValueError: the path has other parameters (names the first that differs), or is too short.
    """
    require_recorded(path, space=space, lags=lags)
    measured = {}
    with space.restored(model):
        for lag in (0, *lags):
            space.write(model, path.theta(path.lags.index(lag)).to(next(model.parameters()).device))
            measured[lag] = look(lag)
    return {name: {lag: at[name] for lag, at in measured.items()} for name in measured[0]}


def require_recorded(path: Trajectory, *, space: ParamSpace, lags: Sequence[int]) -> None:
    """Raise ValueError if a recorded path has other parameters, or not all lags.

    Args:
        path: recorded before.
        space: the parameters that it should have.
        lags: steps after which to measure.
    """
    require_same_space(space, path.space)
    last = path.lags[-1]
    if not lags or max(lags) > last:
        raise UsageError(
            f"the recorded training has {last} steps; pass at least one lag, up to that"
        )
    if path.numbers and (between := sorted({*lags} - {*path.lags})):
        raise UsageError(
            f"nothing is known of the training after {between[0]} steps, which is between two "
            f"checkpoints; those are {', '.join(map(str, path.lags[1:]))} steps after the first"
        )


def lifetime(
    values: Mapping[int, float], distances: Sequence[float] | Mapping[int, float]
) -> Lifetime:
    """When values by lag fall to half of the value at lag 0, in steps and in distance.

    Args:
        values: lag -> value, with lag 0 and at least one other.
        distances: from the start, after 0, 1, 2, ... steps, at least up to the last lag; or by lag,
            as ``Trajectory.moved`` gives them.

    Raises:
        ValueError: lag 0 or all others are missing, or the value at lag 0 is not above 0 and has
            no half.

    >>> found = lifetime({0: 2.0, 2: 1.5, 4: 0.5}, [0.0, 0.1, 0.2, 0.3, 0.4])
    >>> print(found.steps, found.distance, sep=", ")
    between 2 and 4, between 0.2 and 0.4
    """
    if len(values) < 2 or not values.get(0, 0.0) > 0:
        raise UsageError(
            f"values has {dict(values)}; pass the value at lag 0, which must be above 0, and at "
            "least one at a later lag"
        )
    known = distances if isinstance(distances, Mapping) else dict(enumerate(distances))
    moved = {lag: at for lag, at in known.items() if lag <= max(values)}
    return Lifetime.of({lag: value / values[0] for lag, value in values.items()}, moved)
