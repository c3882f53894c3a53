"""Trains from the start of a recovery or a fine-tuning, and compares old bases with fresh ones."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from frenet.experiments.basis_drift import Config, cells
from frenet.experiments.basis_drift.findings import LEFT_OUT
from frenet.experiments.experiment import Cell, Row
from frenet.experiments.setup.brackets import life_cells
from frenet.experiments.setup.damage import NotDamagedError, damaged
from frenet.experiments.setup.describe import describe, note
from frenet.experiments.setup.networks import Network, build
from frenet.measure.drift import Losses, train_and_compare, update_drift
from frenet.measure.lifetime import lifetime
from frenet.measure.trajectory import Training
from frenet.network.tasks import Task


def run(config: Config, cell: Cell) -> Iterator[Row]:
    """Rows of the tables drift and half_life."""
    network = build(config, space=cell["space"], seed=cell.seed)
    yield from describe(network, cell, cells(config), config)
    steps = max(config.lags)
    training = Training(cell["optimizer"], config.batch_size, steps, seed=cell.seed)
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
    for kind, (dimension, by_lag) in kinds.items():
        keys: Row = {"table": "drift", **dict(cell.keys), "kind": kind, "k": dimension}
        moved = path.distances(max(by_lag, default=0))
        for lag, drift in by_lag.items():
            measured: Row = {**drift._asdict(), "displacement": moved[lag]}
            measured["chance"] = dimension / network.space.dim / drift.fresh
            yield {**keys, "lag": lag, **measured, **_loss_cells(losses, lag)}
        # Nothing is measured within the first window, so nothing is known about updates, either,
        # between lag 0 and the first lag.
        ratios = {0: 1.0, **{lag: drift.ratio for lag, drift in by_lag.items()}}
        life = life_cells(lifetime(ratios, moved) if by_lag else None)
        ends: Row = {"longest": max(ratios), "farthest": max(moved)}
        yield {**keys, "table": "half_life", **life, **ends}


def _loss_cells(losses: Mapping[int, Losses], lag: int) -> Row:
    """The loss after a lag and at the start, and whether it moved by more than its noise."""
    before, after = losses[0], losses.get(lag)
    cells: Row = {"loss": None, "loss_0": before.mean, "moved": None}
    if after is None:
        return cells
    change, low, high, *_ = after.change_from(before)
    moved = None if low is None or high is None else _over(abs(change), (high - low) / 2)
    return cells | {"loss": after.mean, "moved": moved}


def _over(change: float, half: float) -> float | None:
    """The ratio; 0 without any change, even without any noise."""
    return 0.0 if change == 0 else change / half if half else None


@contextmanager
def _start(network: Network, config: Config, cell: Cell) -> Iterator[Task]:
    """The network at the start of training, and the task; the weights are restored at the end."""
    task = {**network.tasks, **network.unseen}[cell["task"]]
    with network.space.restored(network.model):
        if cell["mode"] == "recovery":
            with damaged(network, task, config, protocol=config.protocol, seed=cell.seed):
                yield task
            return
        if network.untrained is not None:
            network.space.write(network.model, network.untrained)
        yield task
