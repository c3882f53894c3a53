"""How far and for how long can each direction be followed? (M9): radius and lifetime."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from frenet.experiments.damaged import LANGUAGE_MODEL, NotDamagedError, damaged
from frenet.experiments.experiment import Cell, Experiment, Row
from frenet.experiments.network_rows import NETWORK_TABLES, describe, note
from frenet.experiments.networks import SMALL_NETWORK, build, prepare, task_names
from frenet.experiments.scale_directions import (
    KINDS,
    Config,
    Direction,
    Spot,
    Steering,
    source_names,
    steering_direction,
    weight_directions,
)
from frenet.experiments.scale_findings import FIGURES, TABLES, labelled
from frenet.experiments.scale_rows import (
    answer_rows,
    lifetime_rows,
    radius_rows,
    reread,
    share_looks,
    steering_rows,
)

if TYPE_CHECKING:
    from frenet.measure.trajectory import Trajectory


def cells(config: Config) -> list[Cell]:
    """One cell a seed, space and task.

    Raises:
        ValueError: an unknown kind of direction, a prefix as long as the training, or a steering
            vector without the prompts that it steers.
        FileNotFoundError: a vector, contrast or training that is not there.
    """
    from frenet.network.hub_data import is_path

    if unknown := [name for name in config.directions if name not in KINDS]:
        raise ValueError(f"no direction {unknown[0]!r}; there are {', '.join(KINDS)}")
    steps = max(config.lags)
    if "prefix" in config.directions and config.k >= steps:
        remedy = f"--k {steps - 1} or less" if steps > 1 else "--directions without prefix"
        raise ValueError(
            f"a prefix of k={config.k} steps is all of a training of {steps}, the last of --lags; "
            f"pass {remedy}, or a last of --lags above {config.k}"
        )
    if config.vectors:
        from frenet.methods.vector_files import check_sources

        if config.dtype != "float32":
            raise ValueError(
                f"--vectors are lines in the weights, whose small steps {config.dtype} rounds "
                "away; pass --dtype float32"
            )
        check_sources(config.vectors)
    # Contrasts may be those of a data set on the hub.
    contrasts = (config.contrasts,) if is_path(config.contrasts) else ()
    for source in (*contrasts, config.steering, config.trajectory):
        if source and not Path(source).expanduser().exists():
            raise FileNotFoundError(f"there is no file or folder {source}")
    if config.steering and not config.contrasts and config.model != "synthetic":
        raise ValueError(
            f"--steering {config.steering} needs prompts that it steers; pass --contrasts FILE"
        )
    return [
        Cell.of(seed=seed, space=space, task=task)
        for seed in config.seeds
        for space in config.spaces
        for task in task_names(config)
    ]


def run(config: Config, cell: Cell) -> Iterator[Row]:
    """Rows of the tables radius, line, share, lifetime and answer."""
    network = build(config, space=cell["space"], seed=cell["seed"])
    size = config.batch_size
    select = size if "search winner" in config.directions else 0
    test = max(size, config.eval_size)
    yield from describe(network, cell, cells(config), config, select=select, test=test)
    task = network.tasks[cell["task"]]
    spot = Spot(config, cell, network, task, network.space.read(network.model).cpu())
    try:
        with damaged(network, task, config, protocol=config.protocol, seed=cell["seed"]):
            rows = list(_measured(spot))
    except NotDamagedError as error:
        yield note(cell, f"{config.protocol} left out: {error}")
        return
    yield from rows
    yield from answer_rows(spot, rows)


def _measured(spot: Spot) -> Iterator[Row]:
    from frenet.measure.lifetime import require_recorded
    from frenet.measure.trajectory import train_and_record
    from frenet.measure.trajectory_files import read_steps
    from frenet.methods.vector_files import vectors_from_disk
    from frenet.network.contrast import UnansweredError

    model, space, config = spot.network.model, spot.network.space, spot.config
    # What may be wrong with the user's files is said before anything is trained.
    given = []
    names = source_names(config.vectors)
    for name, vector in zip(names, vectors_from_disk(model, config.vectors), strict=True):
        yield from (note(spot.cell, f"{name}: {text}") for text in vector.notes)
        own = vector.space(model)
        given.append(Direction(name, vector.flat(own), own, vector.norm()))
    with space.restored(model):
        if config.trajectory:
            path = read_steps(config.trajectory)
            require_recorded(path, space=space, lags=config.lags)
            space.write(model, path.start)
        try:
            steering = steering_direction(spot)
        except UnansweredError as error:
            if config.steering:
                raise
            steering = None
            remedy = "write such words into the file of --contrasts"
            yield note(spot.cell, f"the steering vector was left out: {error}; {remedy}")
        if not config.trajectory:
            with space.restored(model):
                path = train_and_record(model, spot.task, spot.training(), space=space)
        found = []
        for direction in (*weight_directions(spot, path), *given):
            if config.dtype == "float32" or direction.coordinates == "factors":
                found.append(direction)
                continue
            why = f"it is a line in the weights, which are in {config.dtype}"
            yield note(spot.cell, f"{direction.name} left out: {why}; pass --dtype float32")
        yield from _rows(spot, path, found, steering)


def _rows(
    spot: Spot, path: "Trajectory", found: list[Direction], steering: Steering | None
) -> Iterator[Row]:
    """Radii at the present point, and lifetimes along a training from there."""
    from frenet.measure.lifetime import follow, watch_training

    model, space, config = spot.network.model, spot.network.space, spot.config

    def look(step: int) -> dict[str, float]:
        return share_looks(spot, found, steering, step)

    rows = [row for direction in found for row in radius_rows(spot, direction)]
    dims = {direction.name: direction.space.dim for direction in found}
    coordinates: dict[str, str] = {direction.name: direction.coordinates for direction in found}
    if steering is not None:
        rows += steering_rows(spot, steering)
        dims["steering"], coordinates["steering"] = len(steering.vector), "stream"
    reach = {
        str(row["direction"]): float(str(row["relative"]))
        for row in rows
        if row["table"] == "radius" and row["sign"] == 1
    }
    yield from rows
    if config.trajectory:
        values = follow(model, path, space=space, lags=config.lags, look=look)
    else:
        # Along the path that made them, prefix and task vector would have seen the minibatches.
        with space.restored(model):
            path, values = watch_training(
                model, spot.task, spot.training(replicate=1),
                space=space, lags=config.lags, look=look,
            )  # fmt: skip
    yield from lifetime_rows(spot, values, path, dims, reach, coordinates)


# What `frenet probe` starts from: the user's own weights as they are, and one training run.
PROBE = Config(
    lora_optimizer="adamw:5e-4", batch_size=8, n=8, eval_size=32, lags=(1, 3, 10, 30, 100),
    seeds=(0,), protocol="none", learn_steps=0,
    directions=("gradient", "Adam step", "prefix", "task vector", "random", "steering"),
    **{**LANGUAGE_MODEL, "max_tasks": 1},
)  # fmt: skip

EXPERIMENT = Experiment(
    name="direction-scale",
    question="How far, and for how long, can each direction be followed?",
    claims=(),
    config=Config,
    cells=cells,
    run=run,
    tables=TABLES | NETWORK_TABLES,
    figures=FIGURES,
    presets={
        "smoke": Config(
            only=("reverse",), n=4, batch_size=16, eval_size=16, lags=(1, 3, 12), candidates=8,
            probes=2, prompts=16, damage_batch=16, **SMALL_NETWORK,
        ),
        "demo": Config(
            only=("reverse",), eval_size=64, candidates=32, probes=2, prompts=32,
            lags=(3, 10, 30, 100),
        ),
        "cpu": Config(spaces=("full", "lora"), max_tasks=3),
        "gpu": Config(spaces=("full", "lora"), seeds=(0, 1, 2, 3, 4)),
        "lm": Config(
            lora_optimizer="adamw:5e-4", batch_size=8, n=8, eval_size=32, lags=(1, 3, 10, 30),
            candidates=32, prompts=16, **{**LANGUAGE_MODEL, "max_tasks": 1},
        ),
    },
    prepare=prepare,
    reread=lambda rows: labelled(reread(rows)),
)  # fmt: skip
