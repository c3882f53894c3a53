"""`frenet.probe` and `frenet.lifetime`: what the command `frenet probe` measures, from Python."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet._notebook import Fact, Shown, listed
from frenet.experiments.direction_scale import LAGS, PROBE, ProbeConfig, require_advice
from frenet.experiments.direction_scale.advice import Advising, Found
from frenet.experiments.direction_scale.advised import checks, sentences
from frenet.experiments.direction_scale.answers import NO_SHARE
from frenet.experiments.direction_scale.directions import Direction, Spot, direction_of
from frenet.experiments.direction_scale.kinds import KINDS
from frenet.experiments.direction_scale.measure import Measurement
from frenet.experiments.experiment import Cell, Row, Rows, number
from frenet.experiments.intervals import select
from frenet.experiments.setup.brackets import bracket_of
from frenet.experiments.setup.networks import Network, held_out
from frenet.measure.bracket import Bracket
from frenet.measure.lifetime import Lifetime, gradient_shares, watch_training
from frenet.measure.trajectory import Training
from frenet.methods.coefficient import Advice, Tried
from frenet.methods.merge_choice import Interval
from frenet.methods.rank_choice import RankAdvice
from frenet.methods.task_vectors import TaskVector
from frenet.methods.vector_files import check_sources, vectors_from_disk
from frenet.network.checkpoints.scaled_adapter import is_dora
from frenet.network.data.text import TextTask
from frenet.network.limits import context_length
from frenet.network.space import ParamSpace
from frenet.network.tasks import Task, base_model

Source = TaskVector | str | Path
# The settings of `frenet probe` that make sense for a model in memory.
SETTINGS = (
    "scales", "neutral", "ranks", "share", "eval_size", "eps", "lags", "optimizer", "batch_size",
    "n", "max_length",
)  # fmt: skip


@dataclass(frozen=True, repr=False)
class ProbedDirection(Shown):
    """What was measured of one direction.

    Attributes:
        name: of the direction.
        best: the coefficient to give it.
        cost: its loss on other text at 1, at 2 and at the advised coefficient; empty for a task
            that is no text.
        radius: how far the loss is linear along it, in its own lengths, with its 95% interval over
            examples; infinite ends are beyond what was tried. None: it has no straight line, or
            its slope cannot be distinguished from rounding.
        lifetime: after how many training steps its share of the gradient has halved; None: ``lags``
            asked for no training, or it has no share to lose.
        ranks: of its weights, if they were asked for and it has a low-rank form.
        answers: all of it in sentences, the advice first.
    """

    name: str
    best: Advice
    cost: tuple[Tried, ...]
    radius: Interval | None
    lifetime: Bracket | None
    ranks: RankAdvice | None
    answers: tuple[str, ...]

    def _summary(self) -> str:
        return f"{self.name}: {self.answers[0]}"

    def _entries(self) -> Iterator[Fact]:
        yield from self.best._entries()
        for tried in self.cost:
            without = f"{tried.without:.4g} without"
            yield f"loss on other text at {tried.scale:g} x", tried.loss.value, without
        if self.radius is not None:
            low, high = self.radius.low, self.radius.high
            yield (
                "radius in own lengths",
                self.radius.value,
                f"95% interval {low:.4g} to {high:.4g}",
            )
        if self.lifetime is not None:
            yield "lifetime in steps", str(self.lifetime), "half of its share of the gradient"
        if self.ranks is not None:
            yield "ranks", self.ranks._summary(), "see .ranks"


@dataclass(frozen=True, repr=False)
class Probed(Shown, Mapping[str, ProbedDirection]):
    """What was measured of some directions, by their names.

    Attributes:
        rows: all numbers, as `frenet probe` stores them; ``table`` names the table of a row.
        directions: by name.
    """

    rows: Rows
    directions: Mapping[str, ProbedDirection]

    def __getitem__(self, name: str) -> ProbedDirection:
        return self.directions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.directions)

    def __len__(self) -> int:
        return len(self.directions)

    @property
    def check(self) -> str:
        """How the task is read, and its loss without and with every direction."""
        return checks(self.rows)[0].sentence

    @property
    def notes(self) -> list[str]:
        """Caveats about the directions."""
        return [str(row["note"]) for row in select(self.rows, table="notes")]

    def _summary(self) -> str:
        return f"{listed(self.directions)}; {self.check}"

    def _entries(self) -> Iterator[Fact]:
        yield "check", self.check, ""
        for name, one in self.directions.items():
            yield name, one.answers[0], "random change of equal norm: in the sentence"


def probe(
    model: nn.Module,
    task: Task,
    directions: Mapping[str, Source],
    *,
    seed: int = 0,
    say: Callable[[str], None] | None = None,
    **settings: Any,
) -> Probed:
    """Which coefficient to give some directions in the weights, how far and how long they last.

    What `frenet probe --vectors` measures. The weights come back bit for bit.

    Args:
        model: the base of the directions, in float32.
        task: whose loss is measured, with select and test examples.
        directions: by name, a ``TaskVector``, or an adapter, a checkpoint or a saved task vector on
            disk.
        seed: of examples, random changes and resamples.
        say: takes a line before each long step.
        settings: as the options of `frenet probe`: ``scales``, ``neutral``, ``ranks``, ``share``,
            ``eval_size``, ``eps``, ``lags`` (training steps after which to measure how long each
            lasts; the training moves the model's trainable parameters), ``optimizer``,
            ``batch_size``, ``n``, ``max_length`` (of other text).

    Raises:
        ValueError: a direction does not fit the model, or changes nothing; a name is taken; or a
            setting is unknown or out of range.
        FileNotFoundError: there is no such file.
    """
    config = _config(settings)
    if taken := [name for name in directions if name in KINDS]:
        raise UsageError(f"the name {taken[0]!r} is that of a kind of direction; pass another")
    if not directions:
        raise UsageError("there is no direction to probe; pass at least one, by its name")
    task = _whole(task)
    cell = Cell.of(seed=seed, space="full", task=task.name)
    network = _network(model, task)
    spot = Spot(config, cell, network, task, network.space.read(model).cpu())
    on_disk = {
        name: Path(source).expanduser()
        for name, source in directions.items()
        if not isinstance(source, TaskVector)
    }
    check_sources([str(path) for path in on_disk.values()])
    bent = {name: path for name, path in on_disk.items() if is_dora(path)}

    def given(spot: Spot) -> Iterator[tuple[Direction, TaskVector]]:
        for name, source in directions.items():
            if name not in bent:
                vector = _vector(model, source)
                yield direction_of(spot, name, vector), vector

    advising = Advising(config, bent)
    measurement = Measurement(spot, say or (lambda _: None), advising.rows, given)
    rows: list[Row] = list(measurement.rows())
    found = {name: _direction(name, advising.found[name], rows) for name in directions}
    return Probed(rows, found)


def _config(settings: Mapping[str, Any]) -> ProbeConfig:
    """The configuration with these settings, checked."""
    if unknown := [name for name in settings if name not in SETTINGS]:
        raise UsageError(f"there is no setting {unknown[0]!r}; there are {listed(SETTINGS)}")
    chosen: dict[str, Any] = {
        key: tuple(value) if key in ("scales", "lags") else value for key, value in settings.items()
    }
    chosen |= {"model": "in memory", "spaces": ("full",), "directions": ("steering",)}
    config = replace(PROBE, **chosen)
    require_advice(config)
    return config


def _whole(task: Task) -> Task:
    """A task whose small splits are one batch, as experiments take it."""
    return replace(task, whole=True) if isinstance(task, TextTask) else task


def _vector(model: nn.Module, source: Source) -> TaskVector:
    if isinstance(source, TaskVector):
        return source
    return next(iter(vectors_from_disk(model, [str(source)])))


def _network(model: nn.Module, task: Task) -> Network:
    """A model in memory with one task, as experiments take it."""
    find = getattr(base_model(model), "get_output_embeddings", None)
    head = getattr(find() if find else None, "weight", None)
    space = ParamSpace.select(model)
    return Network(
        model=model, space=space, damage_space=space, tasks={task.name: task},
        measured=(task.name,), unseen={}, untrained=None,
        chance=0.0 if head is None else math.log(len(head)),
        tokenizer=getattr(task, "tokenizer", None), context_length=context_length(model),
    )  # fmt: skip


def _direction(name: str, found: Found, rows: Rows) -> ProbedDirection:
    """What the rows say about one direction."""
    radius, lifetime = None, None
    for row in select(rows, table="radius", direction=name, sign=1):
        length = number(row, "length")
        high = math.inf if row["high"] is None else number(row, "high")
        radius = Interval(number(row, "times"), number(row, "low") / length, high / length)
    for row in select(rows, table="lifetime", direction=name):
        lifetime = bracket_of(row) if row["has_share"] else None
    said = tuple(a.sentence for a in sentences(rows) if a.subject == name)
    return ProbedDirection(name, found.best, found.cost, radius, lifetime, found.ranks, said)


def lifetime(
    model: nn.Module,
    task: Task,
    direction: TaskVector | Float[Tensor, " d"],
    *,
    steps: int = 100,
    lags: Sequence[int] | None = None,
    space: ParamSpace | None = None,
    training: Training | None = None,
    n: int = 8,
) -> Lifetime | None:
    """After how many training steps a direction has lost half of its share of the gradient.

    The share is that of held-out minibatch gradients along the direction, over its share at the
    start. The model is trained on the task, and comes back bit for bit.

    Args:
        model: the start of the training.
        task: trained on; gradients are of its test examples, if it has a file of them.
        direction: a change of the weights, or (d,) in the coordinates of ``space``.
        steps: of the training.
        lags: steps after which to look; None: 1, 3, 10, 30, ... up to ``steps``.
        space: the parameters that train; None: all that require a gradient.
        training: optimiser, minibatches and seed; None: Adam at 1e-4 with minibatches of 8. Its
            number of steps is ``steps``.
        n: minibatch gradients at every look.

    Returns:
        The lifetime, between two looks; None if the direction holds less than ten times chance,
        1 / d, of the gradient at the start and has no share to lose.

    Raises:
        ValueError: the direction does not fit the model, or a lag is not within the training.
    """
    looks = sorted({*(lag for lag in LAGS if lag < steps), steps} if lags is None else {*lags})
    if not looks or looks[0] < 1 or looks[-1] > steps:
        raise UsageError(f"lags={looks}, steps={steps}; pass lags from 1 to the number of steps")
    task, moving = _whole(task), space or ParamSpace.select(model)
    run = replace(training or Training("adam:1e-4", batch_size=8), steps=steps)
    along = direction.space(model) if isinstance(direction, TaskVector) else moving
    read = (
        direction.read if isinstance(direction, TaskVector)
        else moving.unflatten(direction).__getitem__
    )  # fmt: skip

    def look(step: int) -> dict[str, float]:
        return gradient_shares(
            model, task, {"share": read}, space=along, n=n, batch_size=run.batch_size,
            split=held_out(task), seed=run.seed + 1_000_003 * (step + 1),
        )  # fmt: skip

    with moving.restored(model):
        path, values = watch_training(model, task, run, space=moving, lags=looks, look=look)
    shares = values["share"]
    if not shares[0] >= NO_SHARE / along.dim:
        return None
    ratios = {lag: share / shares[0] for lag, share in shares.items()}
    return Lifetime.of(ratios, dict(enumerate(path.distances(looks[-1]))))
