"""Damage protocols: ways to lose a task that the network has learned.

A protocol is a function ``(model, damage) -> None`` that moves the model's parameters; wrap the
call in ``damage.space.restored(model)`` to restore them.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet.geometry import rng
from frenet.measure.trajectory import Training, train_and_record
from frenet.network.measuring import measuring
from frenet.network.space import ParamSpace
from frenet.network.tasks import Batch, Split, Task, base_model

# The projection itself, also with an adapter: a slice of a factor is not a head of the product.
_OWN = r"\b(?!.*lora_).*weight$"


@dataclass(frozen=True)
class Damage:
    """The settings of a protocol.

    Attributes:
        task: the task to lose.
        others: tasks to train on instead.
        space: the parameters that the damage may move.
        loss: the target loss of the task, in nats per token.
        training: optimiser and steps for the protocols that train.
        seed: fixes noise, wrong answers and minibatches.
    """

    task: Task
    others: tuple[Task, ...]
    space: ParamSpace
    loss: float
    training: Training
    seed: int = 0

    def probe(self, model: nn.Module) -> float:
        """Loss of the task on one fixed select batch."""
        return fixed_loss(model, self.task, size=self.training.batch_size)


Protocol = Callable[[nn.Module, Damage], None]


def fixed_loss(model: nn.Module, task: Task, *, split: Split = "select", size: int) -> float:
    """Mean loss in nats per token on the split's first batch with seed 0."""
    batch = next(task.batches(split, size, 0))
    with measuring(model), torch.no_grad():
        return float(task.loss(model, batch))


def relative_noise(model: nn.Module, damage: Damage) -> None:
    """Gaussian noise in proportion to each tensor's root mean square, scaled to the target loss.

    A zero tensor (the B of a new LoRA) gets none.
    """
    parameters = damage.space.parameters(model)
    rms = [p.detach().float().square().mean().sqrt() for p in parameters]
    sizes = [r.expand(p.numel()) for r, p in zip(rms, parameters, strict=True)]
    _bisect_noise(model, damage, torch.cat(sizes))


def absolute_noise(model: nn.Module, damage: Damage) -> None:
    """Gaussian noise of one standard deviation, scaled to the target loss."""
    _bisect_noise(model, damage, torch.ones(damage.space.dim))


def wrong_answers(model: nn.Module, damage: Damage) -> None:
    """Train on the task with its answers shuffled among the questions."""
    _train_away(model, damage, damage.task.shuffled(damage.seed))


def forgetting(model: nn.Module, damage: Damage) -> None:
    """Train on other tasks, ideally ones not yet learned, until this one is forgotten."""
    if not damage.others:
        raise UsageError(f"forgetting {damage.task.name} needs at least one other task")
    _train_away(model, damage, Mixture(damage.others))


def ascent(model: nn.Module, damage: Damage) -> None:
    """Gradient ascent on the task's loss."""
    _train_away(model, damage, Negated(damage.task))


def zeroed_head(model: nn.Module, damage: Damage) -> None:
    """Zero the output projection's input from the head that the task needs most."""
    _zero_worst(model, damage, list(_heads(model, damage.space)))


def zeroed_mlp(model: nn.Module, damage: Damage) -> None:
    """Zero the output weights of the MLP that the task needs most; its bias stays."""
    names = [n for n in damage.space.names if re.search(rf"(down_proj|mlp\.c_proj){_OWN}", n)]
    _zero_worst(model, damage, [(name, slice(None), slice(None)) for name in names])


PROTOCOLS: Mapping[str, Protocol] = {
    "wrong-answers": wrong_answers,
    "relative-noise": relative_noise,
    "absolute-noise": absolute_noise,
    "forgetting": forgetting,
    "ascent": ascent,
    "zeroed-head": zeroed_head,
    "zeroed-mlp": zeroed_mlp,
}


@dataclass(frozen=True)
class Mixture:
    """Batches of several tasks in turn."""

    tasks: tuple[Task, ...]

    @property
    def name(self) -> str:
        """The names, joined."""
        return "+".join(task.name for task in self.tasks)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean loss in nats per target token, by the first task's loss."""
        return self.tasks[0].loss(model, batch)

    def batches(self, split: Split, batch_size: int, seed: int) -> Iterator[Batch]:
        """One batch of each task in turn, repeatedly."""
        streams = [task.batches(split, batch_size, seed) for task in self.tasks]
        while True:
            for stream in streams:
                yield next(stream)

    def score(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Mean of the scores that all tasks have."""
        scores = [task.score(model, split) for task in self.tasks]
        shared = set.intersection(*(set(score) for score in scores))
        return {key: sum(s[key] for s in scores) / len(scores) for key in sorted(shared)}

    def shuffled(self, seed: int) -> "Mixture":
        """The mixture of the tasks with shuffled answers."""
        return Mixture(tuple(task.shuffled(seed) for task in self.tasks))


@dataclass(frozen=True)
class Negated:
    """A task with the negative loss of another: its descent is the other's ascent."""

    task: Task

    @property
    def name(self) -> str:
        """The other task's name with a minus."""
        return f"-{self.task.name}"

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Minus the loss in nats per target token."""
        return -self.task.loss(model, batch)

    def batches(self, split: Split, batch_size: int, seed: int) -> Iterator[Batch]:
        """The other task's batches."""
        return self.task.batches(split, batch_size, seed)

    def score(self, model: nn.Module, split: Split) -> dict[str, float]:
        """The other task's scores."""
        return self.task.score(model, split)

    def shuffled(self, seed: int) -> "Negated":
        """The negative of the shuffled task."""
        return Negated(self.task.shuffled(seed))


def _train_away(model: nn.Module, damage: Damage, lesson: Task) -> None:
    """Train on ``lesson`` until the task's loss reaches the target."""
    training = replace(damage.training, seed=damage.seed)
    train_and_record(
        model,
        lesson,
        training,
        space=damage.space,
        watch=lambda _: damage.probe(model) >= damage.loss,
    )


def _bisect_noise(model: nn.Module, damage: Damage, scale: Float[Tensor, " d"]) -> None:
    """Add c * scale * z for one draw z, with c bisected (on its logarithm) to the target loss."""
    start = damage.space.read(model)
    noise = torch.randn(damage.space.dim, generator=rng.generator(damage.seed, "damage", "noise"))
    direction = (scale.cpu() * noise).to(start)
    low, high = 1e-4, 1e-4
    damage.space.write(model, start + high * direction)
    while damage.probe(model) < damage.loss and high < 1e4:
        low, high = high, high * 2
        damage.space.write(model, start + high * direction)
    for _ in range(12):
        middle = (low * high) ** 0.5
        damage.space.write(model, start + middle * direction)
        low, high = (middle, high) if damage.probe(model) < damage.loss else (low, middle)
    damage.space.write(model, start + high * direction)


Place = tuple[str, slice, slice]


def _heads(model: nn.Module, space: ParamSpace) -> Iterator[Place]:
    """The slice of each attention output projection that one head feeds."""
    inner = base_model(model)
    config = getattr(inner, "config", None) or inner.shape
    count = getattr(config, "num_attention_heads", None) or config.heads
    shapes = dict(zip(space.names, space.shapes, strict=True))
    for name in space.names:
        if not re.search(rf"(o_proj|attn\.c_proj){_OWN}", name):
            continue
        transposed = "c_proj" in name
        size = shapes[name][0 if transposed else 1] // count
        for head in range(count):
            part = slice(head * size, (head + 1) * size)
            yield (name, part, slice(None)) if transposed else (name, slice(None), part)


def _zero_worst(model: nn.Module, damage: Damage, places: list[Place]) -> None:
    """Zero the place that raises the task's loss most."""
    if not places:
        raise UsageError(
            "the space has no attention or MLP output projection to zero; damage the full "
            "weights, or choose another protocol"
        )
    parameters = dict(model.named_parameters())

    def zero(place: Place) -> None:
        name, rows, columns = place
        with torch.no_grad():
            parameters[name][rows, columns] = 0.0

    def cost(place: Place) -> float:
        with damage.space.restored(model):
            zero(place)
            return damage.probe(model)

    zero(max(places, key=cost))
