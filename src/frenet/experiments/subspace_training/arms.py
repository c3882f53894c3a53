"""What `subspace_training` compares: the bases, and training in each at its best rate."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from frenet.experiments.setup.case import Case
from frenet.experiments.subspace_training.findings import ALL
from frenet.geometry.basis import Basis, random_basis
from frenet.geometry.rng import generator
from frenet.measure.bases import Sampling, bases_at_damage
from frenet.measure.recovery import Recovery
from frenet.methods.moving_basis import MovingBasis, moving_prefix
from frenet.methods.subspace import equal_steps, train_with
from frenet.methods.subspace_optimizer import SubspaceOptimizer
from frenet.network.measuring import measuring
from frenet.network.tasks import Evaluation, Split, evaluate


class Arm(NamedTuple):
    """Where to train: in which coordinates, and how many gradients it took to find them."""

    name: str
    k: int
    basis: Basis | MovingBasis | None
    spent: int


class Look(NamedTuple):
    """The held-out loss after a step, and how many numbers have moved by then."""

    step: int
    loss: float
    moved: int


@dataclass
class Trained:
    """One training at one rate, in units of the run's.

    Attributes:
        rate: factor on the run's learning rate, on top of the one that makes steps equally long.
        train_loss: mean over the minibatches of the last fifth; infinite if it diverged.
        looks: at the select loss, from step 0.
        loss: on the test split at the end.
        accuracy: of its tokens.
        full_steps: how many steps moved all coordinates.
    """

    rate: float
    train_loss: float = math.inf
    looks: list[Look] = field(default_factory=list)
    loss: float = math.inf
    accuracy: float = 0.0
    full_steps: int = 0


def run_seed(case: Case) -> int:
    """The seed of the minibatches, the same in the run and in every basis."""
    return 1000 + case.cell.seed


def _evaluated(case: Case, split: Split) -> Evaluation:
    """Current loss and accuracy of the network, on one fixed batch."""
    batch = next(case.task.batches(split, case.config.probe_size, 0))
    with measuring(case.network.model):
        return evaluate(case.network.model, batch)


def everything(case: Case) -> Arm:
    """All coordinates: the ceiling."""
    return Arm(ALL, case.network.space.dim, None, 0)


def arms(case: Case, run: Recovery, gradients: dict[str, Basis], k: int) -> list[Arm]:
    """The configured bases of dimension k."""
    space = case.network.space

    def random(*names: str | int) -> Basis:
        draw = generator(case.cell.seed, "subspace", *names)
        return random_basis(space.dim, k, draw, space=space)

    def moving_random(inside: int | None) -> MovingBasis:
        return MovingBasis(k, inside, lambda _, cycle: random("moving", cycle))

    known: dict[str, tuple[Basis | MovingBasis, int]] = {
        "random": (random("fixed"), 0),
        **{
            name: (basis.truncate(min(k, basis.k)), case.config.n)
            for name, basis in gradients.items()
        },
        "prefix": (run.trajectory.prefix(k), k),
        "random from step k": (moving_random(None), 0),
        "prefix from step k": (moving_prefix(k, inside=None, space=space), 0),
        "moving random": (moving_random(k), 0),
        "moving prefix": (moving_prefix(k, inside=k, space=space), 0),
    }
    return [Arm(name, k, *known[name]) for name in case.config.bases]


def gradient_bases(case: Case) -> dict[str, Basis]:
    """Of gradients at the damaged point, raw and in Adam's metric."""
    config, network = case.config, case.network
    bases = bases_at_damage(
        network.model,
        case.task,
        sampling=Sampling(max(config.ks), config.n, config.batch_size, case.cell.seed),
        space=network.space,
        second_order=(),
    )
    return {
        "gradients": bases["gradients at damage"],
        "Adam-scaled gradients": bases["Adam-scaled gradients"],
    }


def swept(case: Case, arm: Arm, steps: int) -> list[Trained]:
    """Training at every rate that hill-climbing from the run's rate tries."""
    by_exponent: dict[int, Trained] = {}

    def train_loss(exponent: int) -> float:
        by_exponent[exponent] = train(case, arm, steps, rate=case.config.factor**exponent)
        return by_exponent[exponent].train_loss

    climb(train_loss, tries=case.config.tries)
    return [by_exponent[exponent] for exponent in sorted(by_exponent)]


def climb(score: Callable[[int], float], *, tries: int) -> dict[int, float]:
    """Scores of 0 and of the neighbours of the lowest so far, until it lies between two.

    >>> climb(lambda i: (i - 2.0) ** 2, tries=9)
    {0: 4.0, 1: 1.0, 2: 0.0, 3: 1.0}
    """
    scores = {0: score(0)}
    while len(scores) < tries:
        # Of equal scores, the lower rate: if all diverge, go down.
        best = min(scores, key=lambda i: (scores[i], i))
        new = [i for i in (best + 1, best - 1) if i not in scores]
        if not new:
            break
        scores[new[0]] = score(new[0])
    return scores


def train(case: Case, arm: Arm, steps: int, *, rate: float) -> Trained:
    """Train from the damaged point, and put the weights back."""
    network, training = case.network, case.training(steps, seed=run_seed(case))
    looks = {round(steps * i / case.config.looks) for i in range(1, case.config.looks + 1)}
    trained = Trained(rate, looks=[Look(0, _evaluated(case, "select").loss, 0)])
    with network.space.restored(network.model):
        optimizer = SubspaceOptimizer(
            network.model,
            network.space,
            arm.basis,
            make=partial(training.make, scale=rate) if arm.basis is None else training.make,
            scale=rate * equal_steps(training, network.space.dim, arm.k),
            clip=training.clip,
        )

        def watch(step: int) -> None:
            if step in looks:
                full = optimizer.full_taken
                moved = full * network.space.dim + (step - full) * arm.k
                trained.looks.append(Look(step, _evaluated(case, "select").loss, moved))

        try:
            losses = train_with(network.model, case.task, optimizer, training=training, watch=watch)
        except FloatingPointError:
            return trained
        trained.train_loss = float(losses[-max(1, steps // 5) :].mean())
        trained.loss, trained.accuracy, _ = _evaluated(case, "test")
        trained.full_steps = optimizer.full_taken
    return trained
