"""Problems with known answers that look like a model and a task: a quadratic, and fixed rows."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from frenet.geometry import rng
from frenet.network.space import ParamSpace
from frenet.network.tasks import Batch, collate, evaluate, token_loss

# Rows of case S1: contexts of 3, 6 and 1 tokens, with 2, 3 and 1 targets.
ROWS = [([5, 9, 3], [4, 8]), ([7, 2, 8, 4, 6, 1], [6, 1, 3]), ([11], [2])]


class Point(nn.Module):
    """A point in R^d, spread over two parameters of unlike shapes; ``d`` is even."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        half = len(start) // 2
        self.first = nn.Parameter(start[:half].clone().reshape(-1, 1))
        self.second = nn.Parameter(start[half:].clone())

    def forward(self) -> Tensor:
        """The point, as one vector."""
        return torch.cat([self.first.flatten(), self.second])


@dataclass(frozen=True)
class Quadratic:
    """L = (x - m)^T H (x - m) / 2 + <s, x>, with a new random slope s for every batch."""

    H: Tensor
    minimum: Tensor
    noise: float = 0.0
    name: str = "quadratic"

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x = model()
        away = x - self.minimum.to(x.dtype)
        return away @ self.H.to(x.dtype) @ away / 2 + batch["slope"][0].to(x.dtype) @ x

    def batches(self, split: str, batch_size: int, seed: int) -> Iterator[Batch]:
        generator = rng.generator(seed, "quadratic", split)
        while True:
            slope = self.noise * torch.randn(1, len(self.minimum), generator=generator)
            yield {"slope": slope, "labels": torch.zeros(1, 1, dtype=torch.int64)}

    def score(self, model: nn.Module, split: str) -> dict[str, float]:
        return {}

    def shuffled(self, seed: int) -> "Quadratic":
        return replace(self, minimum=-self.minimum)

    def gradient(self, x: Tensor) -> Tensor:
        return self.H.double() @ (x.double() - self.minimum.double())


def spectrum_matrix(values: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A symmetric float64 matrix with these eigenvalues, and its eigenvectors as columns."""
    d = len(values)
    vectors = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]
    return vectors @ torch.diag(values.double()) @ vectors.T, vectors


def quadratic(
    values: Tensor, *, seed: int = 0, noise: float = 0.0
) -> tuple[Point, Quadratic, ParamSpace]:
    """Model, task and space of a quadratic with these curvatures, from a random point."""
    generator = torch.Generator().manual_seed(seed)
    H, _ = spectrum_matrix(values, generator)
    start, minimum = torch.randn(2, len(values), generator=generator)
    model = Point(start)
    return model, Quadratic(H, minimum, noise), ParamSpace.select(model)


@dataclass(frozen=True)
class RowsTask:
    """Fixed rows of token ids; a batch is ``batch_size`` of them, in a random order."""

    rows: tuple[tuple[list[int], list[int]], ...] = field(default=tuple(ROWS))
    padding_side: str = "left"
    name: str = "rows"

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return token_loss(model, batch)

    def batches(self, split: str, batch_size: int, seed: int) -> Iterator[Batch]:
        generator = rng.generator(seed, "rows", split)
        while True:
            order = torch.randperm(len(self.rows), generator=generator).tolist()
            yield self.collate([self.rows[i] for i in order[:batch_size]])

    def collate(self, rows) -> Batch:
        return collate(list(rows), padding_side=self.padding_side)

    def score(self, model: nn.Module, split: str) -> dict[str, float]:
        found = evaluate(model, self.collate(self.rows))
        return {"token_accuracy": found.token_accuracy, "exact_match": found.exact_match}

    def shuffled(self, seed: int) -> "RowsTask":
        contexts = [context for context, _ in self.rows]
        targets = [target for _, target in self.rows]
        return replace(self, rows=tuple(zip(contexts, targets[1:] + targets[:1], strict=True)))
