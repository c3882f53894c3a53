"""What is it worth to train k coordinates instead of all? (M4, questions S1 and S2)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from frenet.experiments.experiment import Cell, Experiment, Row
from frenet.experiments.setup.damage import LANGUAGE_MODEL, NotDamagedError, damaged, require_damage
from frenet.experiments.setup.describe import NETWORK_TABLES, describe
from frenet.experiments.setup.networks import SMALL_NETWORK, build, prepare
from frenet.experiments.setup.recovery import recovery_cells
from frenet.experiments.subspace_training.arms import Case, Config
from frenet.experiments.subspace_training.figures import FIGURES, TABLES
from frenet.experiments.subspace_training.findings import CHANCE, CLAIMS
from frenet.experiments.subspace_training.measure import damaged_rows

if TYPE_CHECKING:
    from frenet.network.tasks import Split


def cells(config: Config) -> list[Cell]:
    """The cells of a recovery.

    Raises:
        ValueError: an unknown basis, or a k that is too large.
    """
    if unknown := [name for name in config.bases if name not in CHANCE]:
        raise ValueError(f"no basis {unknown[0]!r}; there are {', '.join(CHANCE)}")
    return recovery_cells(config)


def run(config: Config, cell: Cell) -> Iterator[Row]:
    """Rows of the tables run, trained, curve and rate."""
    from frenet.measure.damage import fixed_loss
    from frenet.measure.recovery import recovered_loss

    network = build(config, space=cell["space"], seed=cell["seed"])
    yield from describe(
        network, cell, cells(config), config, select=config.probe_size, test=config.probe_size
    )
    task = network.tasks[cell["task"]]

    def loss(split: "Split") -> float:
        return fixed_loss(network.model, task, split=split, size=config.probe_size)

    before, select_before = loss("test"), loss("select")
    keys: Row = dict(cell.keys)
    try:
        with damaged(network, task, config, protocol=cell["protocol"], seed=cell["seed"]):
            after = loss("test")
            threshold = recovered_loss(select_before, loss("select"), network.chance)
            require_damage(task, before, after, depth=config.depth, chance=network.chance)
            yield from damaged_rows(Case(network, task, config, keys, before, after, threshold))
    except NotDamagedError as error:
        yield {"table": "run", **keys, "status": "not damaged", "why": str(error)}


EXPERIMENT = Experiment(
    name="subspace-training",
    question="What is it worth to train k coordinates instead of all?",
    claims=CLAIMS,
    config=Config,
    cells=cells,
    run=run,
    tables=TABLES | NETWORK_TABLES,
    figures=FIGURES,
    presets={
        "smoke": Config(
            only=("reverse",),
            protocols=("wrong-answers",),
            optimizers=("adam:1e-4",),
            steps=150,
            batch_size=16,
            damage_batch=16,
            ks=(2, 5),
            n=8,
            tries=3,
            looks=5,
            probe_size=32,
            **SMALL_NETWORK,
        ),
        "demo": Config(
            only=("reverse",),
            protocols=("relative-noise",),
            optimizers=("adam:3e-4",),
            batch_size=16,
            ks=(5,),
            n=8,
            factor=5.0,
            tries=3,
            looks=8,
            probe_size=64,
        ),
        "cpu": Config(spaces=("full", "lora"), max_tasks=2),
        "gpu": Config(spaces=("full", "lora"), seeds=(0, 1, 2, 3, 4)),
        "lm": Config(
            protocols=("wrong-answers", "absolute-noise"),
            lora_optimizers=("adamw:5e-4",),
            steps=200,
            batch_size=8,
            ks=(2, 5, 10),
            n=12,
            tries=4,
            looks=10,
            probe_size=16,
            **LANGUAGE_MODEL,
        ),
    },
    prepare=prepare,
    in_demo=False,
)
