"""The directions that `direction_scale` measures, at one point."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from frenet._errors import UsageError
from frenet._notebook import listed
from frenet.experiments.direction_scale import Config
from frenet.experiments.direction_scale.kinds import FRESH, KINDS
from frenet.experiments.experiment import Cell
from frenet.experiments.setup.networks import Network, by_space, only_first
from frenet.geometry import rng
from frenet.geometry.linalg import norm
from frenet.geometry.nulls import gaussian_matrix
from frenet.measure.gradients import adam_scale, gradient_matrix
from frenet.measure.trajectory import Training, Trajectory
from frenet.methods.candidates import Candidates, Noise
from frenet.methods.effect_line import effect_line
from frenet.methods.local_model import Effort, survey
from frenet.methods.plan import plan
from frenet.methods.search import Selection, drop_duplicates, random_search
from frenet.methods.steering import contrast_streams
from frenet.methods.steering_effect import Prompted, prompted
from frenet.methods.steering_vector import load_vector
from frenet.methods.task_vectors import TaskVector, from_step, from_training
from frenet.methods.vector_files import vectors_from_disk
from frenet.network.blocks import residual_blocks
from frenet.network.checkpoints.weight_space import Coordinates, coordinates_of
from frenet.network.data.contrast import Contrast
from frenet.network.data.contrasts import contrasts
from frenet.network.space import ParamSpace
from frenet.network.synthetic.contrasts import synthetic_contrast
from frenet.network.tasks import Batch, Split, Task, repeatable


def source_names(sources: Sequence[str]) -> list[str]:
    """Names of directions from disk: the last part of the path, or all of it if several share that.

    >>> source_names(["run/adapter", "tau.safetensors"])
    ['adapter', 'tau.safetensors']
    >>> source_names(["a/adapter", "b/adapter", "c/random"])
    ['a/adapter', 'b/adapter', 'c/random']
    """
    taken = Counter([*KINDS, *(Path(source).name for source in sources)])
    return [source if taken[Path(source).name] > 1 else Path(source).name for source in sources]


class Direction(NamedTuple):
    """A direction in weights, or in the factors of LoRA.

    Attributes:
        name: its kind, or the file that it comes from.
        delta: (d,) in the coordinates of ``space``, or a change of the weights, which is computed
            weight by weight when it is read.
        space: the parameters that it moves.
        length: its length, if it has one; a gradient has none.
    """

    name: str
    delta: torch.Tensor | TaskVector
    space: ParamSpace
    length: float | None

    def read(self, parameter: str) -> torch.Tensor:
        """Its part in a parameter."""
        if isinstance(self.delta, TaskVector):
            return self.delta.read(parameter)
        return self.space.unflatten(self.delta)[parameter]

    @property
    def coordinates(self) -> Coordinates:
        """The coordinates in which its line is straight."""
        return coordinates_of(self.space)


@dataclass(frozen=True)
class Spot:
    """Where directions are made: a network at theta_d, a task, and settings."""

    config: Config
    cell: Cell
    network: Network
    task: Task
    start: torch.Tensor  # of the undamaged network, in the network's space

    @property
    def optimizer(self) -> str:
        """Optimiser and rate of the space."""
        config = self.config
        return by_space(self.cell["space"], config.optimizer, config.lora_optimizer)

    def training(self, replicate: int = 0) -> Training:
        """A training run on the task; replicates see other minibatches."""
        steps = max(self.config.lags)
        seed = self.seed + 7919 * replicate
        return Training(self.optimizer, self.config.batch_size, steps, seed=seed)

    @property
    def seed(self) -> int:
        """Seed of all random draws."""
        return int(self.cell.seed)

    def examples(self, split: Split) -> Batch:
        """The examples of a split on which losses are measured, each once."""
        return drop_duplicates(next(repeatable(self.task, split, self.config.eval_size, self.seed)))


def given_directions(spot: Spot) -> list[tuple[Direction, TaskVector]]:
    """The directions from disk, each with its vector."""
    model, vectors = spot.network.model, spot.config.vectors
    found = []
    for name, vector in zip(source_names(vectors), vectors_from_disk(model, vectors), strict=True):
        found.append((direction_of(spot, name, vector), vector))
    return found


def random_like(spot: Spot, direction: Direction) -> Direction:
    """A random change of the same weights, of equal norm.

    Matrices are products of Gaussian factors: their entries are uncorrelated and of one variance,
    so that slope and curvature have the variance and the mean of those along Gaussian noise, and
    no vector over all weights is kept.
    """
    shapes = dict(zip(direction.space.names, direction.space.shapes, strict=True))

    def draw(name: str) -> torch.Tensor:
        draws = rng.generator(spot.seed, "direction-scale", "random like", name)
        return gaussian_matrix(shapes[name], draws)

    drawn = TaskVector(shapes, draw, "random")
    length = direction.length or 1.0
    vector = length / drawn.norm() * drawn
    return Direction(f"random like {direction.name}", vector, direction.space, length)


def weight_directions(
    spot: Spot, path: Trajectory | None, kinds: Collection[str] = KINDS
) -> Iterator[Direction]:
    """Directions in parameters, in the order of KINDS.

    Gradient, Adam step, search winner and random direction are lines in the trained parameters
    (with LoRA, the factors). The others are changes of the weights, like an adapter from disk.

    Args:
        spot: the network, at theta_d.
        path: a training run from there, with other minibatches than the run that gives lifetimes;
            None is enough if ``kinds`` has none that a training makes.
        kinds: only these, of those in the configuration.
    """
    model, space = spot.network.model, spot.network.space

    def back() -> TaskVector:
        return from_step(model, spot.start - space.read(model).cpu(), space=space)

    def trained(stop: int | None) -> TaskVector | None:
        return None if path is None else from_training(model, path, stop=stop)

    makers: dict[str, Callable[[], torch.Tensor | TaskVector | None]] = {
        "gradient": lambda: -mean_gradient(spot, scaled=False),
        "Adam step": lambda: -mean_gradient(spot, scaled=True),
        "prefix": lambda: trained(spot.config.k),
        "task vector": lambda: trained(None),
        "damage line": back,
        "search winner": lambda: _winner(spot),
        "random": lambda: _random(spot),
    }
    for name, make in makers.items():
        if name in spot.config.directions and name in kinds and (made := make()) is not None:
            direction = direction_of(spot, name, made)
            if any(direction.read(weight).any() for weight in direction.space.names):
                yield direction


def direction_of(spot: Spot, name: str, made: torch.Tensor | TaskVector) -> Direction:
    """A vector as a direction, in the trained parameters or in the weights."""
    if isinstance(made, torch.Tensor):
        length = None if name in (*FRESH, "random") else norm(made)
        return Direction(name, made, spot.network.space, length)
    space = made.space(spot.network.model)
    return Direction(name, made, space, made.norm())


def mean_gradient(spot: Spot, *, scaled: bool, seed: int | None = None) -> torch.Tensor:
    """Mean of n minibatch gradients at the current point; ``scaled``: in Adam's metric."""
    rows = gradient_matrix(
        spot.network.model,
        spot.task,
        space=spot.network.space,
        n=spot.config.n,
        batch_size=spot.config.batch_size,
        seed=spot.seed if seed is None else seed,
    )
    mean = rows.mean(0)
    return (mean / adam_scale(rows) if scaled else mean).cpu()


def _random(spot: Spot) -> torch.Tensor:
    draw = rng.generator(spot.seed, "direction-scale", "random")
    return torch.randn(spot.network.space.dim, generator=draw)


def _winner(spot: Spot) -> torch.Tensor | None:
    """The best of some Gaussian candidates at the sigma that the plan advises."""
    network, config = spot.network, spot.config
    selection = Selection(
        select_size=config.batch_size, test_size=config.batch_size, seed=spot.seed
    )
    local_model = survey(
        network.model, spot.task, network.space,
        selection=selection, effort=Effort(config.probes), seed=spot.seed,
    )  # fmt: skip
    advised = plan(local_model, budget=config.candidates)
    if advised.best is None:
        return None
    noise = Noise(advised.best.sigma, seed=spot.seed)
    result = random_search(
        network.model, spot.task, network.space,
        noise=noise, num_candidates=config.candidates, selection=selection,
    )  # fmt: skip
    with Candidates(network.model, network.space, noise) as candidates:
        return candidates.delta(result.winner).cpu()


class Steering(NamedTuple):
    """A contrast vector of activations.

    Attributes:
        vector: (h,), made from one part of the prompts at the start.
        block: after which it is added; the one with the largest effect on a second part.
        fresh: a third part, for fresh vectors and for the measured effect.
        prompts: of that part.
    """

    vector: torch.Tensor
    block: int
    fresh: Contrast
    prompts: list[Prompted]


def steering_direction(spot: Spot) -> Steering | None:
    """The contrast vector of the configured behaviour; None if there is none.

    Raises:
        UnansweredError: one answer is the beginning of the other.
    """
    contrast = _contrast(spot)
    if contrast is None or "steering" not in spot.config.directions:
        return None
    contrast.require_answers()
    contrast = replace(contrast, notes=contrast.notes + contrast.answer_notes)
    own, choose, fresh = contrast.divided(3, seed=spot.seed, rows=spot.config.prompts)
    model = spot.network.model
    path = spot.config.path or None
    blocks = list(range(len(residual_blocks(model, path)[1])))
    if spot.config.steering:
        saved = load_vector(spot.config.steering)
        saved.require_fits(model, saved.model, path=path)
        vectors = dict(saved.directions)
    else:
        streams = contrast_streams(model, own, blocks, path=path)
        vectors = {i: streams.at(i).difference().float() for i in blocks}
    few = prompted(choose.items)[:: max(1, len(choose.items) // 8)]
    slopes = {
        i: effect_line(model, few, v, block=i, path=path).slope * float(v.norm())
        if v.any()
        else 0.0
        for i, v in vectors.items()
    }
    block = max(slopes, key=lambda i: slopes[i])
    return Steering(vectors[block], block, fresh, prompted(fresh.items))


def _contrast(spot: Spot) -> Contrast | None:
    config = spot.config
    if config.model == "synthetic":
        rows = 4 * config.prompts
        return synthetic_contrast(config.behaviour or "count", rows=rows, seed=spot.seed)
    if not config.contrasts:
        return None
    network = spot.network
    longest = min(config.max_length, network.context_length or config.max_length)
    available = contrasts(
        config.contrasts, network.tokenizer, max_length=longest, chat=config.chat,
        columns=config.contrast_columns or None, prompt=config.contrast_prompt or None,
    )  # fmt: skip
    name = config.behaviour or next(iter(available))
    if name not in available:
        raise UsageError(f"no contrast {name!r} in {config.contrasts}; it has {listed(available)}")
    first = only_first((name,), available, "contrasts", "--behaviour names another")
    return replace(available[name], notes=(*available[name].reading_notes, *first))
