"""Gradients of every task at one point, their held-out energy, ranks and overlaps."""

from collections.abc import Iterator, Mapping

import torch

from frenet.experiments.experiment import Cell, Row, integer
from frenet.experiments.gradient_rank import Config, cells
from frenet.experiments.gradient_rank.findings import SAME_EXAMPLES, K
from frenet.experiments.setup.damage import NotDamagedError, damaged
from frenet.experiments.setup.describe import describe, note
from frenet.experiments.setup.networks import Network, at_most, build
from frenet.geometry import rng
from frenet.geometry.basis import svd_basis
from frenet.geometry.energy import half_splits
from frenet.geometry.linalg import subspace_overlap
from frenet.measure.gradients import gradient_matrix
from frenet.measure.rounding import UnknownRoundingError, norm_over_rounding
from frenet.measure.spectra import NullSpectra, effective_ranks, held_out_energy
from frenet.network.space import ParamSpace
from frenet.network.tasks import Task

# Keys that name the random stream of one task's nulls and splits; further keys do not change it.
STREAM = ("seed", "space", "point", "batch_size", "task")


def run(config: Config, cell: Cell) -> Iterator[Row]:
    """Rows of the tables energy, spectrum and overlap."""
    network = build(config, space=cell["space"], seed=cell.seed)
    yield from describe(network, cell, cells(config), config)
    yield from _shared_examples(network, config, cell)
    sampled: dict[int, dict[str, torch.Tensor]] = {size: {} for size in config.batch_sizes}
    for name in network.measured:
        task = network.tasks[name]
        pair = task, task.shuffled(cell.seed)
        try:
            # Damage by training is slow: both kinds of gradients, at every batch size, at once.
            with damaged(network, task, config, protocol=cell["point"], seed=cell.seed):
                pairs = {
                    size: [_sample(network, one, config, size, cell.seed) for one in pair]
                    for size in config.batch_sizes
                }
                clear, unknown = _clear(network, task, config, cell.seed)
        except NotDamagedError as error:
            yield note(cell, f"{cell['point']} left out: {error}")
            continue
        if unknown:
            yield note(cell, unknown)
        for size, (gradients, shuffled) in pairs.items():
            keys: Row = {**dict(cell.keys), "batch_size": size, "task": name}
            yield from _spectra(network.space, config, keys, gradients, shuffled, clear=clear[size])
            sampled[size][name] = gradients
    for size, tasks in sampled.items():
        yield from _overlaps(tasks, config, {**dict(cell.keys), "batch_size": size})


def _shared_examples(network: Network, config: Config, cell: Cell) -> Iterator[Row]:
    """Notes if both halves of the gradients come from the same examples, once per network."""
    if cell["point"] != config.points[0]:
        return
    for name in network.measured:
        for size in config.batch_sizes:
            taken = 2 * config.n * size
            rows = at_most(network.tasks[name], "train", taken)
            if rows < taken:
                yield note(
                    cell,
                    f"{name}: {2 * config.n} batches of {size} go {taken / rows:.1f} times through "
                    f"{rows} training rows, so that {SAME_EXAMPLES} and part of the held-out "
                    "energy comes from this overlap, as in the label-shuffled task; Gaussian and "
                    "shuffle nulls lack it",
                )


def _sample(
    network: Network, task: Task, config: Config, batch_size: int, seed: int
) -> torch.Tensor:
    """2n gradients of the task at the current point."""
    return gradient_matrix(
        network.model,
        task,
        space=network.space,
        n=2 * config.n,
        batch_size=batch_size,
        seed=seed,
    )


def _clear(
    network: Network, task: Task, config: Config, seed: int
) -> tuple[Mapping[int, float | None], str]:
    """Norm over rounding error of the first gradient of every size, or why they are not known."""
    sizes = config.batch_sizes
    batches = {size: next(task.batches("train", size, seed)) for size in sizes}
    try:
        return {
            size: norm_over_rounding(network.model, task, batch, space=network.space)
            for size, batch in batches.items()
        }, ""
    except UnknownRoundingError as error:
        return dict.fromkeys(sizes), str(error)


def _spectra(
    space: ParamSpace,
    config: Config,
    keys: Row,
    gradients: torch.Tensor,
    shuffled: torch.Tensor,
    *,
    clear: float | None = None,
) -> Iterator[Row]:
    """Held-out energy at every k, and effective ranks, of one task's gradients."""
    names = (str(keys[part]) for part in STREAM)
    draw = rng.generator(integer(keys, "seed"), "gradient-rank", *names)
    draws = [NullSpectra.draw(gradients, space.sizes, draw) for _ in range(config.nulls)]
    splits = half_splits(2 * config.n, config.repeats, draw)
    table = held_out_energy(gradients, shuffled, splits=splits, draws=draws, ks=config.ks)
    for i, k in enumerate(config.ks):
        measured: Row = {column: values[i] for column, values in table.items()}
        measured |= {"chance": k / space.dim, "clear": clear}
        yield {"table": "energy", **keys, "k": k, **measured}
    yield {"table": "spectrum", **keys, **effective_ranks(gradients, draws[0])}


def _overlaps(gradients: dict[str, torch.Tensor], config: Config, keys: Row) -> Iterator[Row]:
    """Overlap of the top bases of two tasks; of the two halves of one task on the diagonal."""
    k = min(K, config.n)
    halves = {n: [svd_basis(h, k) for h in rows.split(config.n)] for n, rows in gradients.items()}
    for name, (first, _) in halves.items():
        for other, (_, second) in halves.items():
            overlap = subspace_overlap(first.U, second.U)
            pair: Row = {"task": name, "other": other, "k": k, "overlap": overlap}
            yield {"table": "overlap", **keys, **pair, "chance": k / first.d}
