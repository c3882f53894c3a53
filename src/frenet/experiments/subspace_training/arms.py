"""What `subspace_training` compares: the bases, and training in each at its own best rate."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from frenet.experiments.experiment import Row
from frenet.experiments.setup.damage import DamageConfig
from frenet.experiments.setup.networks import NetworkConfig
from frenet.experiments.subspace_training.findings import ALL, CHANCE

if TYPE_CHECKING:
    from frenet.experiments.setup.networks import Network
    from frenet.geometry.basis import Basis
    from frenet.measure.recovery import Recovery
    from frenet.measure.trajectory import Training
    from frenet.methods.moving_basis import MovingBasis
    from frenet.network.tasks import Evaluation, Split, Task


@dataclass(frozen=True)
class Config(DamageConfig, NetworkConfig):
    """Damage a task and recover it by moving k coordinates of a basis instead of all."""

    protocols: tuple[str, ...] = ("wrong-answers", "relative-noise")
    """Ways to damage the task."""
    optimizers: tuple[str, ...] = ("adam:3e-5", "sgd:0.01")
    """Optimisers of all weights, with the rate of the run whose first updates are the prefix."""
    lora_optimizers: tuple[str, ...] = ("adam:3e-4",)
    """The same for LoRA."""
    steps: int = 400
    """Most steps of that run; every other training takes as many as the run needed."""
    batch_size: int = 64
    """Examples in a minibatch, of training and of the sampled gradients."""
    ks: tuple[int, ...] = (2, 5, 10, 20)
    """Basis dimensions; those above 0.35 of the run's steps are left out."""
    n: int = 32
    """Gradients that a gradient basis is made of."""
    bases: tuple[str, ...] = tuple(CHANCE)
    """Where to train, beside all coordinates."""
    factor: float = 3.0
    """Neighbouring learning rates differ by this factor; the first is the run's own."""
    tries: int = 6
    """Most learning rates that are tried in each basis."""
    looks: int = 20
    """Looks at the held-out loss in each training."""
    probe_size: int = 128
    """Examples on which loss and accuracy are measured."""


@dataclass(frozen=True)
class Case:
    """One damaged task: what its rows share."""

    network: "Network"
    task: "Task"
    config: Config
    keys: Row
    loss_0: float
    loss_d: float
    threshold: float

    @property
    def seed(self) -> int:
        """The seed of the cell."""
        return int(str(self.keys["seed"]))

    def training(self, steps: int) -> "Training":
        """The run's optimiser and rate, and the same minibatches for all."""
        from frenet.measure.trajectory import Training

        optimizer = str(self.keys["optimizer"])
        return Training(optimizer, self.config.batch_size, steps, seed=1000 + self.seed)

    def regained(self, loss: float) -> float:
        """Share of the lost loss that is back."""
        from frenet.measure.recovery import regained

        return regained(loss, self.loss_0, self.loss_d, self.network.chance)

    def evaluate(self, split: "Split") -> "Evaluation":
        """Loss and accuracy of the network as it is, on one fixed batch."""
        from frenet.network.context import measuring
        from frenet.network.tasks import evaluate

        batch = next(self.task.batches(split, self.config.probe_size, 0))
        with measuring(self.network.model):
            return evaluate(self.network.model, batch)


class Arm(NamedTuple):
    """Where to train: in which coordinates, and how many gradients it took to find them."""

    name: str
    k: int
    basis: "Basis | MovingBasis | None"
    spent: int


class Look(NamedTuple):
    """The held-out loss after a step, and how many numbers have been moved until then."""

    step: int
    loss: float
    moved: int


@dataclass
class Trained:
    """One training at one rate, in units of the run's.

    Attributes:
        rate: factor on the run's learning rate, beside the one that makes steps equally long.
        train_loss: mean over the minibatches of the last fifth; infinite where it diverged.
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


def everything(case: Case) -> Arm:
    """All coordinates: the ceiling."""
    return Arm(ALL, case.network.space.dim, None, 0)


def arms(case: Case, run: "Recovery", gradients: "dict[str, Basis]", k: int) -> list[Arm]:
    """The bases of dimension k that the configuration asks for."""
    from frenet.geometry.basis import random_basis
    from frenet.geometry.rng import generator
    from frenet.methods.moving_basis import MovingBasis, moving_prefix

    space = case.network.space

    def random(*names: str | int) -> "Basis":
        draw = generator(case.seed, "subspace", *names)
        return random_basis(space.dim, k, draw, space=space)

    def moving_random(inside: int | None) -> MovingBasis:
        return MovingBasis(k, inside, lambda _, cycle: random("moving", cycle))

    known: dict[str, tuple[Basis | MovingBasis, int]] = {
        "random": (random("fixed"), 0),
        **{
            name: (found.truncate(min(k, found.k)), case.config.n)
            for name, found in gradients.items()
        },
        "prefix": (run.trajectory.prefix(k), k),
        "random from step k": (moving_random(None), 0),
        "prefix from step k": (moving_prefix(k, inside=None, space=space), 0),
        "moving random": (moving_random(k), 0),
        "moving prefix": (moving_prefix(k, inside=k, space=space), 0),
    }
    return [Arm(name, k, *known[name]) for name in case.config.bases]


def gradient_bases(case: Case) -> "dict[str, Basis]":
    """Of gradients at the damaged point, raw and in Adam's metric."""
    from frenet.measure.bases import Sampling, bases_at_damage

    config, network = case.config, case.network
    found = bases_at_damage(
        network.model,
        case.task,
        sampling=Sampling(max(config.ks), config.n, config.batch_size, case.seed),
        space=network.space,
        second_order=(),
    )
    return {
        "gradients": found["gradients at damage"],
        "Adam-scaled gradients": found["Adam-scaled gradients"],
    }


def swept(case: Case, arm: Arm, steps: int) -> list[Trained]:
    """Training at every rate that hill-climbing from the run's own rate tries."""
    found: dict[int, Trained] = {}

    def train_loss(exponent: int) -> float:
        found[exponent] = train(case, arm, steps, rate=case.config.factor**exponent)
        return found[exponent].train_loss

    climb(train_loss, tries=case.config.tries)
    return [found[exponent] for exponent in sorted(found)]


def climb(score: Callable[[int], float], *, tries: int) -> dict[int, float]:
    """Scores of 0 and of the neighbours of the lowest so far, until it lies between two.

    >>> climb(lambda i: (i - 2.0) ** 2, tries=9)
    {0: 4.0, 1: 1.0, 2: 0.0, 3: 1.0}
    """
    scores = {0: score(0)}
    while len(scores) < tries:
        # Of equal scores the smaller: where all diverge, go down.
        best = min(scores, key=lambda i: (scores[i], i))
        new = [i for i in (best + 1, best - 1) if i not in scores]
        if not new:
            break
        scores[new[0]] = score(new[0])
    return scores


def train(case: Case, arm: Arm, steps: int, *, rate: float) -> Trained:
    """Train from the damaged point, and put the weights back."""
    from frenet.methods.subspace import equal_steps, train_with
    from frenet.methods.subspace_optimizer import SubspaceOptimizer

    network, training = case.network, case.training(steps)
    looks = {round(steps * i / case.config.looks) for i in range(1, case.config.looks + 1)}
    trained = Trained(rate, looks=[Look(0, case.evaluate("select").loss, 0)])
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
                trained.looks.append(Look(step, case.evaluate("select").loss, moved))

        try:
            losses = train_with(network.model, case.task, optimizer, training=training, watch=watch)
        except FloatingPointError:
            return trained
        trained.train_loss = float(losses[-max(1, steps // 5) :].mean())
        trained.loss, trained.accuracy, _ = case.evaluate("test")
        trained.full_steps = optimizer.full_taken
    return trained
