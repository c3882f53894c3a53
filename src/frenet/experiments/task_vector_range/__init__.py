"""What do task vectors do beyond where training ended, against it, and in sums? (M8)."""

import itertools
from collections.abc import Iterator

from frenet.experiments.experiment import Cell, Experiment, Row
from frenet.experiments.setup.damage import LANGUAGE_MODEL, NotDamagedError, damaged
from frenet.experiments.setup.describe import NETWORK_TABLES, describe, note
from frenet.experiments.setup.networks import SMALL_NETWORK, Network, build, prepare
from frenet.experiments.task_vector_range.figures import FIGURES, TABLES, labelled
from frenet.experiments.task_vector_range.measure import (
    Config,
    Range,
    along_rows,
    answer_rows,
    pair_rows,
    radius_rows,
    share_rows,
)


def cells(config: Config) -> list[Cell]:
    """One cell a seed and space."""
    return [Cell.of(seed=seed, space=space) for seed in config.seeds for space in config.spaces]


def run(config: Config, cell: Cell) -> Iterator[Row]:
    """Rows of the tables along, radius, pair, inside and answer."""
    network = build(config, space=cell["space"], seed=cell["seed"])
    yield from describe(network, cell, cells(config), config, test=config.eval_size)
    first = network.tasks[network.measured[0]]
    try:
        with damaged(network, first, config, protocol=config.protocol, seed=cell["seed"]):
            spot = _trained(config, cell, network)
            rows: list[Row] = []
            tables = (along_rows, radius_rows, pair_rows, share_rows)
            for row in itertools.chain.from_iterable(table(spot) for table in tables):
                rows.append(row)
                yield row
            yield from answer_rows(rows)
    except NotDamagedError as error:
        yield note(cell, f"{config.protocol} left out: {error}")


def _trained(config: Config, cell: Cell, network: Network) -> Range:
    """The vectors of all measured tasks, twice."""
    from frenet.measure.trajectory import Training, train_and_record
    from frenet.methods.task_vectors import from_training

    model, space, seed = network.model, network.space, int(cell["seed"])
    optimizer = config.lora_optimizer if cell["space"] == "lora" else config.optimizer
    paths, vectors = {}, {}
    for name in network.measured:
        found = []
        for replicate in (0, 1):
            training = Training(
                optimizer, config.batch_size, config.steps, seed=seed + 7919 * replicate
            )
            with space.restored(model):
                found.append(train_and_record(model, network.tasks[name], training, space=space))
        paths[name] = (found[0], found[1])
        weights = from_training(model, found[0]).space(model)
        taus = [from_training(model, path).flat(weights) for path in found]
        vectors[name] = (taus[0], taus[1])
    return Range(config, cell, network, paths, weights, vectors)


EXPERIMENT = Experiment(
    name="task-vector-range",
    question="What do task vectors do further on, backwards, and added to each other?",
    claims=(),
    config=Config,
    cells=cells,
    run=run,
    tables=TABLES | NETWORK_TABLES,
    figures=FIGURES,
    presets={
        "smoke": Config(
            only=("reverse", "copy"), steps=12, k=4, batch_size=16, eval_size=32, damage_batch=16,
            scales=(-1.0, 0.0, 0.5, 1.0, 2.0), **SMALL_NETWORK,
        ),
        "demo": Config(only=("reverse", "parity")),
        "cpu": Config(spaces=("full", "lora"), max_tasks=4),
        "gpu": Config(spaces=("full", "lora"), seeds=(0, 1, 2, 3, 4)),
        "lm": Config(
            protocol="none", learn_steps=0, lora_optimizer="adamw:2e-3", batch_size=8, steps=60,
            k=8, eval_size=32, **LANGUAGE_MODEL,
        ),
    },
    prepare=prepare,
    in_demo=False,
    reread=labelled,
)  # fmt: skip
