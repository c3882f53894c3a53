"""For how many steps of training a direction holds what it held at the start."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import nn

from frenet.geometry.basis import Basis
from frenet.geometry.subspace import require_same_space
from frenet.measure.drift import half_life
from frenet.measure.gradients import gradient_rows
from frenet.measure.trajectory import Training, Trajectory, train_and_record
from frenet.network.space import ParamSpace
from frenet.network.tasks import Split, Task


class Lifetime(NamedTuple):
    """When a quantity of a direction first falls to half of what it was at the start.

    Attributes:
        steps: of training, interpolated; None where it does not within those looked at.
        distance: the same as a distance travelled.
        longest: most steps that were looked at.
        farthest: distance travelled by then.
    """

    steps: float | None
    distance: float | None
    longest: int
    farthest: float


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
        model: left as it is.
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
        whole = row.square().sum().clamp(min=1e-30)
        for name, basis in bases.items():
            inside = basis.to(row.device).coordinates(row[None]).square().sum()
            totals[name] += float(inside / whole) / n
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
        model: comes back bit for bit.
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
    """Raise ValueError where a recorded path is of other parameters, or has too few steps.

    Args:
        path: recorded before.
        space: the parameters that it should be of.
        lags: steps after which to look.
    """
    require_same_space(space, path.space)
    if not lags or max(lags) > len(path):
        raise ValueError(
            f"the recorded training has {len(path)} steps; pass lags up to that, at least one"
        )


def lifetime(values: Mapping[int, float], path: Trajectory) -> Lifetime:
    """When values, by lag, fall to half of the one at lag 0, in steps and in distance.

    >>> import torch
    >>> path = Trajectory(torch.zeros(1), torch.ones(4, 1), torch.zeros(4), None,
    ...                   ParamSpace(("w",), ((1,),)))
    >>> lifetime({0: 2.0, 2: 1.5, 4: 0.5}, path)
    Lifetime(steps=3.0, distance=3.0, longest=4, farthest=4.0)
    """
    start = values[0]
    moved = {lag: float(path.displacement(0, lag).norm()) for lag in values}
    ratios = {lag: value / start if start > 0 else 0.0 for lag, value in values.items()}
    longest = max(values)
    return Lifetime(half_life(ratios), half_life(ratios, moved=moved), longest, moved[longest])
