"""Which bases hold a recovery: fixed ones, or its own first updates? (M2 and M4, claims C2, C4)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from frenet.experiments.experiment import Cell, Experiment, Row
from frenet.experiments.recovery_basis.figures import FIGURES, TABLES
from frenet.experiments.recovery_basis.findings import CLAIMS
from frenet.experiments.recovery_basis.measure import Case, Config, damaged_rows
from frenet.experiments.setup.damage import LANGUAGE_MODEL, NotDamagedError, damaged, require_damage
from frenet.experiments.setup.describe import NETWORK_TABLES, describe
from frenet.experiments.setup.networks import SMALL_NETWORK, build, prepare
from frenet.experiments.setup.recovery import recovery_cells

if TYPE_CHECKING:
    from frenet.experiments.setup.networks import Network
    from frenet.geometry.basis import Basis
    from frenet.network.tasks import Split, Task

    Bases = dict[str, Basis]


def run(config: Config, cell: Cell) -> Iterator[Row]:
    """Rows of the tables recovery, capture and curve."""
    from frenet.measure.damage import fixed_loss
    from frenet.measure.recovery import recovered_loss

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

    def loss(split: "Split") -> float:
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


def _start_bases(network: "Network", task: "Task", config: Config, cell: Cell) -> "Bases":
    from frenet.measure.bases import Sampling, bases_at_start
    from frenet.measure.trajectory import Training

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


EXPERIMENT = Experiment(
    name="recovery-basis",
    question="Which bases hold a recovery: fixed ones, or its own first updates?",
    claims=CLAIMS,
    config=Config,
    cells=recovery_cells,
    run=run,
    tables=TABLES | NETWORK_TABLES,
    figures=FIGURES,
    presets={
        "smoke": Config(
            only=("reverse",),
            protocols=("wrong-answers",),
            optimizers=("adam:3e-4",),
            steps=150,
            n=12,
            batch_size=16,
            ks=(1, 5, 10),
            second_order=(),
            vector_steps=3,
            optimised=("prefix",),
            **SMALL_NETWORK,
        ),
        "demo": Config(
            only=("reverse",),
            spaces=("full", "lora"),
            protocols=("wrong-answers", "relative-noise"),
            optimizers=("adam:3e-5", "adam:1e-4"),
            lora_optimizers=("adam:3e-4",),
            ks=(1, 2, 5, 10),
            n=32,
            every=2,
            second_order=("Krylov",),
            vector_steps=10,
            optimised=("prefix", "random"),
            probe_size=64,
        ),
        "cpu": Config(spaces=("full", "lora")),
        "gpu": Config(spaces=("full", "lora"), seeds=(0, 1, 2, 3, 4)),
        "lm": Config(
            protocols=("wrong-answers", "absolute-noise"),
            lora_optimizers=("adamw:5e-4",),
            steps=80,
            batch_size=8,
            every=2,
            ks=(1, 2, 5, 10, 16),
            n=12,
            second_order=(),
            vector_steps=5,
            optimised=("prefix",),
            probe_size=16,
            **LANGUAGE_MODEL,
        ),
    },
    prepare=prepare,
)
