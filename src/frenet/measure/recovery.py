"""Recovery after damage: train to a loss, and measure how much of the path a basis captures."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet.geometry.linalg import norms
from frenet.geometry.nulls import random_walk_share
from frenet.measure.damage import fixed_loss
from frenet.measure.trajectory import Training, Trajectory, train_and_record
from frenet.network.measuring import measuring
from frenet.network.space import ParamSpace
from frenet.network.tasks import Batch, Evaluation, Task, evaluate


def recovered_loss(loss_0: float, loss_d: float, chance: float) -> float:
    """The loss that counts as recovered: 5% of min(loss_d, chance) above loss_0.

    >>> round(recovered_loss(0.1, 2.0, 3.0), 6)
    0.2
    """
    return loss_0 + 0.05 * min(loss_d, chance)


@dataclass(frozen=True)
class Recovery:
    """One recovery run.

    Attributes:
        trajectory: the path from the damaged point to T_stop, or to the last step.
        stop: T_stop, the first measured step with a loss below ``threshold``, at which training
            ends; None: not recovered.
        threshold: see ``recovered_loss``.
        losses: (step, loss on the fixed select batch) pairs, from step 0.
    """

    trajectory: Trajectory
    stop: int | None
    threshold: float
    losses: tuple[tuple[int, float], ...]


def recover(
    model: nn.Module,
    task: Task,
    training: Training,
    *,
    space: ParamSpace,
    threshold: float,
    probe_size: int = 128,
    every: int = 1,
) -> Recovery:
    """Train on the task from the current, damaged point until its loss is below ``threshold``.

    A fixed number of steps would also measure how the optimiser wanders after the recovery.

    Args:
        model: the network; stays at T_stop.
        task: its train split is trained on, its select split decides when to stop.
        training: optimiser and maximum number of steps.
        space: the d parameters that move.
        threshold: loss in nats per token.
        probe_size: examples of the select split for the loss.
        every: steps between two measurements of the loss.

    Returns:
        The recovery; ``stop`` is None if the loss does not reach the threshold.
    """
    losses = [(0, fixed_loss(model, task, size=probe_size))]

    def watch(step: int) -> bool:
        if step % every:
            return False
        losses.append((step, fixed_loss(model, task, size=probe_size)))
        return losses[-1][1] <= threshold

    trajectory = train_and_record(model, task, training, space=space, watch=watch)
    stop = losses[-1][0] if losses[-1][1] <= threshold else None
    return Recovery(trajectory, stop, threshold, tuple(losses))


def regained(loss: float, loss_0: float, loss_d: float, chance: float) -> float:
    """Share of the damage that is recovered, with the damaged loss at most ``chance``.

    Without that limit any displacement would "recover" a loss above chance.

    Raises:
        ValueError: the damaged loss, or chance, is not above the loss before.

    >>> regained(1.0, 0.0, 5.0, 2.0)
    0.5
    """
    top = min(loss_d, chance)
    if not top > loss_0:
        raise UsageError(
            f"there is nothing to recover: the loss is {loss_d:.4g} after the damage, "
            f"{chance:.4g} by chance and {loss_0:.4g} before; use a larger depth, or a task "
            "that the network has learned"
        )
    return (top - loss) / (top - loss_0)


def evaluate_at(
    model: nn.Module, batch: Batch, *, space: ParamSpace, delta: Float[Tensor, " d"]
) -> Evaluation:
    """Loss and accuracy of a batch at the current point plus ``delta``."""
    with space.displaced(model, delta), measuring(model):
        return evaluate(model, batch)


def prefix_capture(trajectory: Trajectory, k: int) -> dict[str, float | None]:
    """Share of the displacement in the span of the first k steps, and what to compare it with.

    ``walk_share`` is the first k steps' share of the summed squared step norms: a random walk's
    prefix captures that much. ``lift`` is the capture over it, None if the first k steps are zero.
    ``rest`` is the capture of theta_T - theta_k, None without movement after k; a random walk's
    prefix captures k / d of it.
    """
    basis = trajectory.prefix(k)
    share = float(random_walk_share(norms(trajectory.steps), k))
    captured = float(basis.captured_fraction(trajectory.displacement()))
    rest = trajectory.displacement(k)
    return {
        "captured": captured,
        "walk_share": share,
        "lift": captured / share if share else None,
        "rest": float(basis.captured_fraction(rest)) if rest.any() else None,
    }
