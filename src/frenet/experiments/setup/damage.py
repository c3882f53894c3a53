"""A network at the point where an experiment measures: trained, or after damage."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from frenet._errors import UsageError
from frenet.experiments.experiment import Scalar, Setting

if TYPE_CHECKING:
    from frenet.experiments.setup.networks import Network
    from frenet.network.tasks import Task


@dataclass(frozen=True)
class DamageConfig:
    """How a task is damaged."""

    depth: float = 1.0
    """Target loss after damage: 0 is the loss before it, 1 a uniform guess over the vocabulary."""
    damage_optimizer: str = "adam:3e-4"
    """Optimiser and rate of the protocols that train."""
    damage_steps: int = 400
    """Most steps of the protocols that train."""
    damage_batch: int = 64
    """Examples in a batch of damage."""


# Changes of the presets "demo" for language models.
FEW: dict[str, Any] = {"seeds": (0, 1), "max_tasks": 1}
# Damage in the presets "demo", to what wrong answers can do: a guess among ten digits is at 0.76 of
# one over the vocabulary. Where answers are easier to guess, the loss is level after 100 steps.
DEMO_DAMAGE: dict[str, Any] = {"depth": 0.7, "damage_steps": 100}
# Network and damage in the presets "lm", for language models.
LANGUAGE_MODEL: dict[str, Any] = {
    "spaces": ("lora",),
    "max_tasks": 3,
    "damage_optimizer": "adamw:2e-3",
    "damage_batch": 8,
    "damage_steps": 60,
    "depth": 0.5,
}


def shown_settings(damage: str, **trained: str) -> tuple[Setting, ...]:
    """The settings to show for an experiment that damages a task.

    Args:
        damage: the setting that names its protocols.
        trained: the settings that name the optimisers, by the space that they train.
    """
    moved = [Setting(f"{space} space trained by", name, space) for space, name in trained.items()]
    return (Setting("damage by", damage), *moved)


class NotDamagedError(UsageError):
    """A protocol did not raise the task's loss; ``losses`` are the measured held-out losses."""

    losses: Mapping[str, Scalar] = MappingProxyType({})


@contextmanager
def damaged(
    network: "Network",
    task: "Task",
    config: DamageConfig,
    *,
    protocol: str,
    seed: int,
) -> Iterator[None]:
    """The network after one damage protocol (``none``: no damage); restores its weights at the end.

    Raises:
        NotDamagedError: the loss rose by less than a tenth of the target.
        ValueError: an unknown protocol.
    """
    from frenet.measure.damage import PROTOCOLS, Damage, fixed_loss
    from frenet.measure.trajectory import Training

    if protocol == "none":
        yield
        return
    if protocol not in PROTOCOLS:
        raise UsageError(f"no damage protocol {protocol!r}; there are {', '.join(PROTOCOLS)}")
    training = Training(config.damage_optimizer, config.damage_batch, config.damage_steps)
    before = fixed_loss(network.model, task, size=config.damage_batch)
    others = network.unseen or {n: t for n, t in network.tasks.items() if n != task.name}
    damage = Damage(
        task=task,
        others=tuple(others.values()),
        space=network.damage_space,
        loss=before + config.depth * (network.chance - before),
        training=training,
        seed=seed,
    )
    with network.damage_space.restored(network.model):
        PROTOCOLS[protocol](network.model, damage)
        after = damage.probe(network.model)
        require_damage(task, before, after, depth=config.depth, chance=network.chance)
        yield


def require_damage(
    task: "Task", before: float, after: float, *, depth: float, chance: float
) -> None:
    """Raise NotDamagedError if the loss rose by less than a tenth of the way to its target.

    The regained share would be a ratio of noise.
    """
    if after - before < 0.1 * depth * (chance - before):
        raise NotDamagedError(
            f"the loss of task {task.name} went from {before:.3g} to {after:.3g} nats per token; "
            "raise --damage-steps, or the rate of --damage-optimizer, of frenet run"
        )
