"""Rows of `recovery_basis`: from a damaged network to what every basis holds of its recovery."""

from collections.abc import Iterator, Mapping

from torch import Tensor

from frenet.experiments.experiment import Cell, Row
from frenet.experiments.recovery_basis import Config
from frenet.experiments.recovery_basis.in_weights import images, weight_rows
from frenet.experiments.setup.case import Case, damaged_case
from frenet.experiments.setup.damage import NotDamagedError
from frenet.experiments.setup.describe import describe, note
from frenet.experiments.setup.networks import Network, build
from frenet.experiments.setup.recovery import HOPELESS, LONGEST_PREFIX, recovery_cells
from frenet.geometry.alignment import cosine
from frenet.geometry.basis import Basis, svd_basis
from frenet.geometry.linalg import norm, norms
from frenet.measure.bases import (
    Sampling,
    Vectors,
    second_order_bases,
    vectors_at_damage,
    vectors_at_start,
)
from frenet.measure.recovery import Recovery, prefix_capture
from frenet.measure.recovery_in_weights import PathInWeights
from frenet.measure.trajectory import Training
from frenet.methods.subspace import train_in_basis
from frenet.network.checkpoints.weight_space import coordinates_of
from frenet.network.tasks import Evaluation

Bases = dict[str, Basis]


def damaged_rows(case: Case, before: Mapping[str, Vectors], start: Tensor) -> Iterator[Row]:
    """Everything from the damaged point: two recoveries and what the bases hold of each.

    Args:
        case: the damaged task.
        before: the vectors behind the bases from before the damage.
        start: (d,), theta_0.
    """
    config, network, seed = case.config, case.network, case.cell.seed
    model, space, here = network.model, network.space, network.space.read(network.model)
    sampling = _sampling(config, case.cell)
    after = vectors_at_damage(model, case.task, sampling=sampling, space=space)
    if (line := start - here).any():
        after["damage direction"] = Vectors(line[None], "displacements", "damage direction")
    bases = {n: v.basis(sampling.k, space) for n, v in {**before, **after}.items()}
    bases |= second_order_bases(
        model, case.task, sampling=sampling, space=space, which=config.second_order
    )
    runs = [
        case.recover(
            seed=1000 * (replicate + 1) + seed, most=HOPELESS * config.steps, every=config.every
        )
        for replicate in (0, 1)
    ]
    for replicate, own in enumerate(runs):
        yield from _recovery_rows(case, own, runs[1 - replicate], replicate)
    for replicate, own in enumerate(runs):
        if own.stop is not None:
            yield from _capture_rows(case, own, runs[1 - replicate], bases, replicate)
    if coordinates_of(space) == "factors":
        held = images(network, before, start) | images(network, after, here)
        paths = [
            None if run.stop is None else PathInWeights.of(model, run.trajectory) for run in runs
        ]
        for replicate, path in enumerate(paths):
            keys: Row = {"table": "capture", **_keys(case), "replicate": replicate}
            if path is not None:
                yield from weight_rows(path, paths[1 - replicate], held, ks=config.ks, keys=keys)


def _recovery_rows(case: Case, own: Recovery, other: Recovery, replicate: int) -> Iterator[Row]:
    """How one recovery went, and its loss against the step."""
    mine, its = own.trajectory.displacement(), other.trajectory.displacement()
    status, why = "recovered", None
    if own.stop is None:
        status = "not recovered"
        why = (
            f"{case.task.name} did not recover from {case.cell['protocol']} by "
            f"{case.cell['optimizer']}: its loss was {own.losses[-1][1]:.3g} nats per token after "
            f"{len(own.trajectory)} steps, and {own.threshold:.3g} counts as recovered"
        )
        yield note(case.cell, why)
    elif own.stop <= 2:
        status = "shallow"
    yield {
        "table": "recovery",
        **_keys(case),
        "replicate": replicate,
        "status": status,
        "stop": own.stop,
        "longest": HOPELESS * case.config.steps,
        "loss_end": own.losses[-1][1],
        "threshold": own.threshold,
        "displacement": norm(mine),
        "path_length": float(norms(own.trajectory.steps).sum()),
        "replicate_cosine": cosine(mine, its),
        "cosine_chance": case.network.space.dim**-0.5,
        "why": why,
    }
    # The same steps in every run, so that runs can be averaged; denser where the loss falls most.
    grid = {case.config.every * round(1.25**i) for i in range(40)} | {0, own.losses[-1][0]}
    for step, loss in (pair for pair in own.losses if pair[0] in grid):
        yield {
            "table": "curve",
            **_keys(case),
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
    bases = bases | {"prefix": path.prefix(min(largest, len(path)))}
    ceiling = None
    if other.stop is not None:
        bases["prefix of replicate"] = twin.prefix(min(largest, len(twin)))
        ceiling = svd_basis(twin.steps, min(largest, len(twin)), unit_rows=False)
        bases["PCA of replicate"] = ceiling
    full = case.evaluate_at(displacement)
    for name, basis in bases.items():
        for k in (k for k in config.ks if k <= basis.k):
            row: Row = {
                "table": "capture",
                **_keys(case),
                "replicate": replicate,
                "coordinates": coordinates_of(case.network.space),
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
                if ceiling is not None:
                    top = ceiling.truncate(min(k, ceiling.k))
                    row["ceiling"] = float(top.captured_fraction(displacement))
                if k == min(config.function_k, basis.k):
                    # Dependent steps count as steps, though they add no direction.
                    part = path.prefix(k) if name == "prefix" else basis.truncate(k)
                    optimise = replicate == 0 and name in config.optimised
                    row |= _worth(case, part, own, full=full, optimise=optimise)
            yield row


def _worth(case: Case, basis: Basis, own: Recovery, *, full: Evaluation, optimise: bool) -> Row:
    """What a basis is worth in function: the displacement projected on it, and training in it."""
    network = case.network
    projected = case.evaluate_at(basis.project(own.trajectory.displacement()))
    row: Row = {
        "regained": case.regained(projected.loss),
        "regained_full": case.regained(full.loss),
        "accuracy": projected.token_accuracy,
        "accuracy_full": full.token_accuracy,
    }
    if optimise:
        assert own.stop is not None
        training = case.training(own.stop, seed=case.cell.seed)
        with network.space.restored(network.model):
            delta = train_in_basis(
                network.model, case.task, basis, space=network.space, training=training
            )
        row["optimised"] = case.regained(case.evaluate_at(delta).loss)
    return row


def run(config: Config, cell: Cell) -> Iterator[Row]:
    """Rows of the tables recovery, capture and curve."""
    network = build(config, space=cell["space"], seed=cell.seed)
    yield from describe(
        network,
        cell,
        recovery_cells(config),
        config,
        select=config.probe_size,
        test=config.probe_size,
    )
    start = network.space.read(network.model)
    vectors = _start_vectors(network, config, cell)
    try:
        with damaged_case(network, config, cell) as case:
            yield from damaged_rows(case, vectors, start)
    except NotDamagedError as error:
        keys = dict(cell.keys) | dict(error.losses)
        yield {"table": "recovery", **keys, "status": "not damaged", "why": str(error)}


def _keys(case: Case) -> Row:
    return dict(case.cell.keys) | case.losses


def _sampling(config: Config, cell: Cell) -> Sampling:
    return Sampling(max(config.ks), config.n, config.batch_size, cell.seed)


def _start_vectors(network: Network, config: Config, cell: Cell) -> dict[str, Vectors]:
    task = network.tasks[cell["task"]]
    others = [other for name, other in network.tasks.items() if name != task.name]
    return vectors_at_start(
        network.model,
        task,
        others,
        sampling=_sampling(config, cell),
        space=network.space,
        training=Training(
            cell["optimizer"], config.batch_size, config.vector_steps, seed=cell.seed
        ),
    )
