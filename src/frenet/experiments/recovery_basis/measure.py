"""Rows of `recovery_basis`: from a damaged network to what every basis holds of its recovery."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from frenet.experiments.experiment import Cell, Row, integer
from frenet.experiments.recovery_basis import Config
from frenet.experiments.setup.damage import NotDamagedError, damaged, require_damage
from frenet.experiments.setup.describe import describe
from frenet.experiments.setup.networks import Network, build
from frenet.experiments.setup.recovery import LONGEST_PREFIX, recovery_cells
from frenet.geometry.alignment import cosine
from frenet.geometry.basis import Basis, span_basis, svd_basis
from frenet.geometry.linalg import norm, norms
from frenet.measure.bases import Sampling, bases_at_damage, bases_at_start
from frenet.measure.damage import fixed_loss
from frenet.measure.recovery import (
    Recovery,
    evaluate_at,
    prefix_capture,
    recover,
    recovered_loss,
    regained,
)
from frenet.measure.trajectory import Training
from frenet.methods.subspace import train_in_basis
from frenet.network.tasks import Evaluation, Split, Task

Bases = dict[str, Basis]


@dataclass(frozen=True)
class Case:
    """One damaged task: what its rows share."""

    network: Network
    task: Task
    config: Config
    keys: Row
    loss_0: float
    loss_d: float
    threshold: float

    def training(self, steps: int, *, seed: int) -> Training:
        """The recovery's optimiser and batch size."""
        return Training(str(self.keys["optimizer"]), self.config.batch_size, steps, seed=seed)

    def regained(self, loss: float) -> float:
        """Share of the lost loss that is back."""
        return regained(loss, self.loss_0, self.loss_d, self.network.chance)


def damaged_rows(case: Case, bases: Bases, line: Tensor) -> Iterator[Row]:
    """Everything from the damaged point: two recoveries and what the bases hold of each."""
    config, network, seed = case.config, case.network, integer(case.keys, "seed")
    bases = bases | bases_at_damage(
        network.model,
        case.task,
        sampling=Sampling(max(config.ks), config.n, config.batch_size, seed),
        space=network.space,
        second_order=config.second_order,
    )
    if line.any():
        bases["damage direction"] = span_basis(
            line[None], space=network.space, origin="damage direction"
        )
    runs = [_recover(case, seed=1000 * (replicate + 1) + seed) for replicate in (0, 1)]
    for replicate, own in enumerate(runs):
        yield from _recovery_rows(case, own, runs[1 - replicate], replicate)
    if any(found.stop is None for found in runs):
        return
    for replicate, own in enumerate(runs):
        yield from _capture_rows(case, own, runs[1 - replicate], bases, replicate)


def _recover(case: Case, *, seed: int) -> Recovery:
    space, model = case.network.space, case.network.model
    with space.restored(model):
        return recover(
            model,
            case.task,
            case.training(case.config.steps, seed=seed),
            space=space,
            threshold=case.threshold,
            probe_size=case.config.probe_size,
            every=case.config.every,
        )


def _recovery_rows(case: Case, own: Recovery, other: Recovery, replicate: int) -> Iterator[Row]:
    """How one recovery went, and its loss against the step."""
    mine, its = own.trajectory.displacement(), other.trajectory.displacement()
    status = "not recovered" if own.stop is None else "shallow" if own.stop <= 2 else "recovered"
    yield {
        "table": "recovery",
        **case.keys,
        "replicate": replicate,
        "status": status,
        "stop": own.stop,
        "longest": case.config.steps,
        "loss_end": own.losses[-1][1],
        "threshold": own.threshold,
        "displacement": norm(mine),
        "path_length": float(norms(own.trajectory.steps).sum()),
        "replicate_cosine": cosine(mine, its),
        "cosine_chance": case.network.space.dim**-0.5,
    }
    # The same steps in every run, so that runs can be averaged; denser where the loss falls most.
    grid = {case.config.every * round(1.25**i) for i in range(40)} | {0, own.losses[-1][0]}
    for step, loss in (pair for pair in own.losses if pair[0] in grid):
        yield {
            "table": "curve",
            **case.keys,
            "replicate": replicate,
            "step": step,
            "loss": loss,
            "threshold": own.threshold,
        }


def _capture_rows(
    case: Case, own: Recovery, other: Recovery, bases: Bases, replicate: int
) -> Iterator[Row]:
    """What every basis holds of one recovery's displacement, and what that is worth."""
    assert own.stop is not None
    config, largest = case.config, max(case.config.ks)
    path, twin = own.trajectory, other.trajectory
    displacement = path.displacement()
    bases = bases | {
        "prefix": path.prefix(min(largest, len(path))),
        "prefix of replicate": twin.prefix(min(largest, len(twin))),
        "PCA of replicate": svd_basis(twin.steps, min(largest, len(twin)), unit_rows=False),
    }
    full = _function(case, displacement)
    for name, basis in bases.items():
        for k in (k for k in config.ks if k <= basis.k):
            ceiling = bases["PCA of replicate"]
            row: Row = {
                "table": "capture",
                **case.keys,
                "replicate": replicate,
                "basis": name,
                "k": k,
                "stop": own.stop,
                "k_over_stop": k / own.stop,
                "chance": k / case.network.space.dim,
            }
            if k <= LONGEST_PREFIX * own.stop:
                if name == "prefix":
                    row |= prefix_capture(path, k)
                else:
                    row["captured"] = float(basis.truncate(k).captured_fraction(displacement))
                row["ceiling"] = float(
                    ceiling.truncate(min(k, ceiling.k)).captured_fraction(displacement)
                )
                if k == min(config.function_k, basis.k):
                    # Dependent steps count as steps, though they add no direction.
                    part = path.prefix(k) if name == "prefix" else basis.truncate(k)
                    optimise = replicate == 0 and name in config.optimised
                    row |= _worth(case, part, own, full=full, optimise=optimise)
            yield row


def _function(case: Case, delta: Tensor) -> Evaluation:
    """Held-out loss and accuracy at the damaged point plus ``delta``."""
    batch = next(case.task.batches("test", case.config.probe_size, 0))
    network = case.network
    return evaluate_at(network.model, batch, space=network.space, delta=delta)


def _worth(case: Case, basis: Basis, own: Recovery, *, full: Evaluation, optimise: bool) -> Row:
    """What a basis is worth in function: the displacement projected on it, and training in it."""
    network = case.network
    projected = _function(case, basis.project(own.trajectory.displacement()))
    row: Row = {
        "regained": case.regained(projected.loss),
        "regained_full": case.regained(full.loss),
        "accuracy": projected.token_accuracy,
        "accuracy_full": full.token_accuracy,
    }
    if optimise:
        assert own.stop is not None
        training = case.training(own.stop, seed=integer(case.keys, "seed"))
        with network.space.restored(network.model):
            delta = train_in_basis(
                network.model, case.task, basis, space=network.space, training=training
            )
        row["optimised"] = case.regained(_function(case, delta).loss)
    return row


def run(config: Config, cell: Cell) -> Iterator[Row]:
    """Rows of the tables recovery, capture and curve."""
    network = build(config, space=cell["space"], seed=cell["seed"])
    yield from describe(
        network,
        cell,
        recovery_cells(config),
        config,
        select=config.probe_size,
        test=config.probe_size,
    )
    task, space = network.tasks[cell["task"]], network.space

    def loss(split: Split) -> float:
        return fixed_loss(network.model, task, split=split, size=config.probe_size)

    before, select_before, theta_0 = loss("test"), loss("select"), space.read(network.model)
    bases = _start_bases(network, task, config, cell)
    keys: Row = {**dict(cell.keys), "loss_0": before}
    try:
        with damaged(network, task, config, protocol=cell["protocol"], seed=cell["seed"]):
            after = loss("test")
            threshold = recovered_loss(select_before, loss("select"), network.chance)
            keys["loss_d"] = after
            require_damage(task, before, after, depth=config.depth, chance=network.chance)
            case = Case(network, task, config, keys, before, after, threshold)
            yield from damaged_rows(case, bases, theta_0 - space.read(network.model))
    except NotDamagedError as error:
        yield {"table": "recovery", **keys, "status": "not damaged", "why": str(error)}


def _start_bases(network: Network, task: Task, config: Config, cell: Cell) -> Bases:
    others = [other for name, other in network.tasks.items() if name != task.name]
    return bases_at_start(
        network.model,
        task,
        others,
        sampling=Sampling(max(config.ks), config.n, config.batch_size, cell["seed"]),
        space=network.space,
        training=Training(
            cell["optimizer"], config.batch_size, config.vector_steps, seed=cell["seed"]
        ),
    )
