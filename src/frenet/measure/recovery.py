"""Recovery after damage: run it to a loss, and see what a basis holds of its displacement."""

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
        stop: T_stop, the first step looked at with the loss below ``threshold``, where training
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
    """Train on the task from the present, damaged point until its loss is below ``threshold``.

    A fixed end point would measure the optimiser wandering after it has recovered.

    Args:
        model: the network; ends at T_stop.
        task: its train split is trained on, its select split decides when to stop.
        training: optimiser and the most steps to take.
        space: the d parameters that move.
        threshold: loss in nats per token.
        probe_size: examples of the select split in each look at the loss.
        every: steps between looks.

    Returns:
        The recovery; ``stop`` is None where it did not get there.
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
    """Share of the lost loss that is back, the loss being counted from min(loss_d, chance).

    Otherwise any displacement would "recover" a loss above chance.

    Raises:
        ValueError: the damaged loss, or chance, is not above the loss before.

    >>> regained(1.0, 0.0, 5.0, 2.0)
    0.5
    """
    top = min(loss_d, chance)
    if not top > loss_0:
        raise UsageError(
            f"the damage lost nothing that could be regained: the loss is {loss_d:.4g} after it, "
            f"{chance:.4g} by chance and {loss_0:.4g} before it; take a larger depth, or a task "
            "that the network has learned"
        )
    return (top - loss) / (top - loss_0)


def evaluate_at(
    model: nn.Module, batch: Batch, *, space: ParamSpace, delta: Float[Tensor, " d"]
) -> Evaluation:
    """Loss and accuracy of a batch at the present point plus ``delta``."""
    with space.displaced(model, delta), measuring(model):
        return evaluate(model, batch)


def prefix_capture(trajectory: Trajectory, k: int) -> dict[str, float | None]:
    """What the span of the first k steps holds of the whole displacement, and its context.

    ``walk_share`` is the share of the summed squared step norms that falls in the first k steps: a
    random walk's prefix captures that much. ``lift`` is the capture over it. ``rest`` is the
    capture of theta_T - theta_k, of which a random walk's prefix holds k / d. None stands for the
    lift where the first k steps are zero, and for the rest where nothing moved after them.
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
