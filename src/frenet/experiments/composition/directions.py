"""The displacements that `composition` pairs: one training and one first step for every task."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from frenet._errors import UsageError
from frenet.experiments.composition import Config
from frenet.experiments.composition.tables import STEPS, VECTORS
from frenet.experiments.experiment import Cell, Row
from frenet.experiments.setup.networks import Network, by_space
from frenet.geometry.linalg import norm
from frenet.measure.gradients import gradient_matrix
from frenet.measure.trajectory import Training, train_and_record
from frenet.methods.composition import by_block, joint, random_twin
from frenet.methods.search import drop_duplicates
from frenet.methods.task_vectors import TaskVector, from_step, from_training
from frenet.network.checkpoints.tensor_files import Read
from frenet.network.space import ParamSpace
from frenet.network.tasks import IGNORE, Batch, repeatable

# Length of a step at which the change of LoRA's product is that of its first order.
SHORT = 1e-6


class Pair(NamedTuple):
    """Two displacements, by the tasks that they are made from.

    Attributes:
        kind: of both.
        first: task of a.
        second: task of b.
    """

    kind: str
    first: str
    second: str

    @property
    def a(self) -> str:
        """Name of the first displacement."""
        return named(self.kind, self.first)

    @property
    def b(self) -> str:
        """Name of the second one."""
        return named(self.kind, self.second)


@dataclass(frozen=True)
class Spot:
    """A network at one point, with displacements from there.

    Attributes:
        config: settings.
        cell: keys of all rows.
        network: at the point.
        vectors: by name, a change of the weights.
        space: the weights that any of them changes.
        displacements: by name; also their random twins, and parts of both in one block.
        parts: by task vector, or its random twin, the names of its parts in each block.
        batches: held-out examples of each measured task.
    """

    config: Config
    cell: Cell
    network: Network
    vectors: Mapping[str, TaskVector]
    space: ParamSpace
    displacements: Mapping[str, Read]
    parts: Mapping[str, Mapping[str, str]]
    batches: Mapping[str, Batch]

    def pairs(self) -> Iterator[Pair]:
        """All pairs of two tasks, kind by kind."""
        for kind in (VECTORS, STEPS):
            for first, second in itertools.combinations(self.network.measured, 2):
                yield Pair(kind, first, second)

    def keys(self, pair: Pair) -> Row:
        """Keys of the rows of a pair."""
        return {**dict(self.cell.keys), **pair._asdict()}


def named(kind: str, task: str) -> str:
    """The name of a displacement."""
    return f"{kind}: {task}"


def twin(name: str) -> str:
    """The name of the random displacement as long as another in every tensor."""
    return f"random like {name}"


def spot_of(config: Config, cell: Cell, network: Network) -> Spot:
    """Train on each measured task, from the point where the network is, and take first steps."""
    vectors: dict[str, TaskVector] = {}
    for task in network.measured:
        whole = _trained(config, cell, network, task)
        step = _first_step(config, cell, network, task)
        vectors[named(VECTORS, task)] = whole
        vectors[named(STEPS, task)] = (whole.norm() / step.norm()) * step
    space, reads = joint(network.model, vectors)
    displacements = {
        **reads,
        **{twin(n): random_twin(r, space, seed=cell.seed, name=n) for n, r in reads.items()},
    }
    parts: dict[str, dict[str, str]] = {}
    for name, read in list(displacements.items()):
        if VECTORS not in name:
            continue
        found = by_block(network.model, read, space)
        parts[name] = {block: f"{name}, {block}" for block in found}
        displacements |= {parts[name][block]: part for block, part in found.items()}
    batches = {
        task: drop_duplicates(next(repeatable(network.tasks[task], "test", config.eval_size, 0)))
        for task in network.measured
    }
    return Spot(config, cell, network, vectors, space, displacements, parts, batches)


def _trained(config: Config, cell: Cell, network: Network, task: str) -> TaskVector:
    optimizer = by_space(cell["space"], config.optimizer, config.lora_optimizer)
    training = Training(optimizer, config.batch_size, config.steps, seed=cell.seed)
    with network.space.restored(network.model):
        path = train_and_record(network.model, network.tasks[task], training, space=network.space)
    return from_training(network.model, path)


def _first_step(config: Config, cell: Cell, network: Network, task: str) -> TaskVector:
    """The direction of a first step down the mean gradient, in the weights."""
    g = gradient_matrix(
        network.model, network.tasks[task], space=network.space, n=config.n,
        batch_size=config.batch_size, seed=cell.seed,
    ).mean(0)  # fmt: skip
    if not g.any():
        raise UsageError(f"the gradient of task {task} is zero, so that it has no first step")
    return from_step(network.model, g * (-SHORT / norm(g)), space=network.space)


def contexts(batch: Batch) -> list[list[int]]:
    """The tokens of every row before its first target, without padding; at least one."""
    found = []
    for i, (ids, labels) in enumerate(zip(batch["input_ids"], batch["labels"], strict=True)):
        real = torch.ones_like(ids, dtype=torch.bool)
        if "attention_mask" in batch:
            real = batch["attention_mask"][i].bool()
        targets = (labels[real] != IGNORE).nonzero()
        first = int(targets[0]) if len(targets) else int(real.sum())
        found.append(ids[real][: max(1, first)].tolist())
    return found
