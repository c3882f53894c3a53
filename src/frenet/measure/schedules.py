"""Several tasks as one, in a stated order: first one and then the other, or both in every step."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor, nn

from frenet.network.tasks import Batch, Split, Task


@dataclass(frozen=True)
class InTurn:
    """Some batches of each task, one task after the other; then the last one for ever.

    Attributes:
        tasks: in order.
        steps: batches of each.
    """

    tasks: tuple[Task, ...]
    steps: int

    @property
    def name(self) -> str:
        """The names, in order."""
        return ", then ".join(task.name for task in self.tasks)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean loss in nats per target token, by the first task's loss."""
        return self.tasks[0].loss(model, batch)

    def batches(self, split: Split, batch_size: int, seed: int) -> Iterator[Batch]:
        """Of each task the first batches that it gives alone."""
        for task in self.tasks:
            for _, batch in zip(
                range(self.steps), task.batches(split, batch_size, seed), strict=False
            ):
                yield batch
        yield from self.tasks[-1].batches(split, batch_size, seed)

    def score(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Those of the last task."""
        return self.tasks[-1].score(model, split)

    def shuffled(self, seed: int) -> "InTurn":
        """The tasks with shuffled answers."""
        return replace(self, tasks=tuple(task.shuffled(seed) for task in self.tasks))


@dataclass(frozen=True)
class Together:
    """Two tasks in every batch, half of the rows of each; the loss is the mean of both losses."""

    first: Task
    second: Task

    @property
    def name(self) -> str:
        """Both names."""
        return f"{self.first.name} with {self.second.name}"

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Mean of the two mean losses in nats per target token."""
        losses = [
            task.loss(model, {key[2:]: rows for key, rows in batch.items() if key[0] == place})
            for place, task in (("0", self.first), ("1", self.second))
        ]
        return (losses[0] + losses[1]) / 2

    def batches(self, split: Split, batch_size: int, seed: int) -> Iterator[Batch]:
        """Both tasks' rows, whose columns are named by the place of the task."""
        half = max(1, batch_size // 2)
        pairs = zip(
            self.first.batches(split, half, seed), self.second.batches(split, half, seed),
            strict=False,
        )  # fmt: skip
        for pair in pairs:
            yield {f"{i} {key}": rows for i, part in enumerate(pair) for key, rows in part.items()}

    def score(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Mean of the scores that both have."""
        one, other = self.first.score(model, split), self.second.score(model, split)
        return {key: (one[key] + other[key]) / 2 for key in one if key in other}

    def shuffled(self, seed: int) -> "Together":
        """Both with shuffled answers."""
        return Together(self.first.shuffled(seed), self.second.shuffled(seed))
