"""How long does a gradient basis stay useful while training moves on? (M3, claim C3)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from frenet.experiments.basis_drift.findings import CLAIMS, FIGURES, LEFT_OUT, TABLES, reread
from frenet.experiments.experiment import Cell, Experiment, Row
from frenet.experiments.setup.damage import LANGUAGE_MODEL, DamageConfig, NotDamagedError, damaged
from frenet.experiments.setup.describe import NETWORK_TABLES, describe, note
from frenet.experiments.setup.networks import (
    SMALL_NETWORK,
    NetworkConfig,
    build,
    prepare,
    task_names,
)

if TYPE_CHECKING:
    from frenet.experiments.setup.networks import Network
    from frenet.network.tasks import Task


@dataclass(frozen=True)
class Config(DamageConfig, NetworkConfig):
    """Train, sample gradients along the way, and compare old bases with fresh ones."""

    modes: tuple[str, ...] = ("recovery", "finetune")
    """'recovery' retrains a damaged task, 'finetune' learns one that the network has not seen."""
    optimizers: tuple[str, ...] = ("adam:3e-5", "adam:3e-4", "adam:1e-3", "sgd:0.01")
    """Optimisers of all weights, with their rates: drift depends on the step size."""
    lora_optimizers: tuple[str, ...] = ("adam:3e-4", "adam:1e-3", "adam:3e-3")
    """Optimisers of LoRA, with their rates."""
    protocol: str = "wrong-answers"
    """Damage before recovery."""
    k: int = 10
    """Basis dimension."""
    n: int = 48
    """Gradients in each of three sets at every step that is looked at."""
    batch_size: int = 64
    """Examples in a minibatch, of training and of the sampled gradients."""
    lags: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100, 200)
    """Steps after the start at which to look."""
    window: int = 30
    """Steps in a window of updates, for the drift of the updates' own basis."""


def cells(config: Config) -> list[Cell]:
    """One cell a seed, space, mode, task and optimiser."""
    return [
        Cell.of(seed=seed, space=space, mode=mode, task=task, optimizer=optimizer)
        for seed in config.seeds
        for space in config.spaces
        for mode in config.modes
        for task in _names(config, mode)
        for optimizer in (config.lora_optimizers if space == "lora" else config.optimizers)
    ]


def _names(config: Config, mode: str) -> tuple[str, ...]:
    """Fine-tuning the synthetic network is on tasks that it has not learned."""
    if mode == "finetune" and config.model == "synthetic":
        return ("predecessor",)
    return task_names(config)


def run(config: Config, cell: Cell) -> Iterator[Row]:
    """Rows of the tables drift and half_life."""
    from frenet.experiments.brackets import life_cells
    from frenet.measure.drift import train_and_compare, update_drift
    from frenet.measure.lifetime import lifetime
    from frenet.measure.trajectory import Training

    network = build(config, space=cell["space"], seed=cell["seed"])
    yield from describe(network, cell, cells(config), config)
    steps = max(config.lags)
    training = Training(cell["optimizer"], config.batch_size, steps, seed=cell["seed"])
    try:
        with _start(network, config, cell) as task:
            path, drifts, losses = train_and_compare(
                network.model,
                task,
                training,
                space=network.space,
                lags=config.lags,
                n=config.n,
                k=config.k,
            )
    except NotDamagedError as error:
        yield note(cell, f"{config.protocol}{LEFT_OUT}{error}")
        return
    k = min(config.k, config.window // 3)
    kinds = {
        "gradients": (config.k, drifts),
        "updates": (k, update_drift(path.steps, window=config.window, k=k)),
    }
    for kind, (dimension, found) in kinds.items():
        keys: Row = {"table": "drift", **dict(cell.keys), "kind": kind, "k": dimension}
        moved = path.distances(max(found, default=0))
        for lag, drift in found.items():
            measured: Row = {**drift._asdict(), "displacement": moved[lag]}
            measured["chance"] = dimension / network.space.dim / drift.fresh
            yield {**keys, "lag": lag, **measured, "loss": losses.get(lag), "loss_0": losses[0]}
        # What happens within the first window of updates is not seen: of them, too, nothing is
        # known between lag 0 and the first lag.
        ratios = {0: 1.0, **{lag: drift.ratio for lag, drift in found.items()}}
        life = life_cells(lifetime(ratios, path) if found else None)
        ends: Row = {"longest": max(ratios), "farthest": max(moved)}
        yield {**keys, "table": "half_life", **life, **ends}


@contextmanager
def _start(network: "Network", config: Config, cell: Cell) -> "Iterator[Task]":
    """The network where training begins, and the task to train on; all is put back after."""
    task = {**network.tasks, **network.unseen}[cell["task"]]
    with network.space.restored(network.model):
        if cell["mode"] == "recovery":
            with damaged(network, task, config, protocol=config.protocol, seed=cell["seed"]):
                yield task
            return
        if network.untrained is not None:
            network.space.write(network.model, network.untrained)
        yield task


EXPERIMENT = Experiment(
    name="basis-drift",
    question="How long does a gradient basis stay useful while training moves on?",
    claims=CLAIMS,
    config=Config,
    cells=cells,
    run=run,
    tables=TABLES | NETWORK_TABLES,
    figures=FIGURES,
    presets={
        "smoke": Config(
            only=("reverse",),
            modes=("recovery",),
            optimizers=("adam:3e-4",),
            n=8,
            k=4,
            batch_size=16,
            lags=(1, 10, 100),
            damage_batch=16,
            **SMALL_NETWORK,
        ),
        "demo": Config(
            only=("reverse",),
            modes=("recovery",),
            optimizers=("adam:3e-5", "adam:3e-4"),
            n=24,
            lags=(1, 10, 30, 100),
        ),
        "cpu": Config(spaces=("full", "lora")),
        "gpu": Config(spaces=("full", "lora"), seeds=(0, 1, 2, 3, 4)),
        "lm": Config(
            lora_optimizers=("adamw:1e-3",),
            batch_size=8,
            n=16,
            k=8,
            lags=(1, 3, 10, 30, 100),
            window=24,
            **LANGUAGE_MODEL,
        ),
    },
    prepare=prepare,
    reread=reread,
)
