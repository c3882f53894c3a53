"""What do task vectors do beyond where training ended, against it, and in sums? (M8)."""

from dataclasses import dataclass

from frenet.experiments.experiment import MODEL, Cell, Experiment, Later
from frenet.experiments.setup.damage import FEW, LANGUAGE_MODEL, DamageConfig, shown_settings
from frenet.experiments.setup.describe import NETWORK_TABLES
from frenet.experiments.setup.networks import SMALL_NETWORK, MinibatchConfig, network_cells, prepare
from frenet.experiments.task_vector_range.answers import sentences
from frenet.experiments.task_vector_range.figures import FIGURES, TABLES, labelled


@dataclass(frozen=True)
class Config(DamageConfig, MinibatchConfig):
    """Train on one task at a time from one point, and follow the task vectors."""

    protocol: str = "relative-noise"
    """Damage before training, aimed at the first task but with effects on all; 'none' starts from
    the undamaged network."""
    optimizer: str = "adam:3e-4"
    """Optimiser and rate for training all weights."""
    lora_optimizer: str = "adam:3e-3"
    """Optimiser and rate for training LoRA."""
    steps: int = 100
    """Steps of training on each task."""
    k: int = 10
    """Dimension of the bases."""
    scales: tuple[float, ...] = (-1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
    """Coefficients of the vector."""
    eval_size: int = 256
    """Held-out examples of each task; all of them if there are fewer."""


def cells(config: Config) -> list[Cell]:
    """One cell per seed and space."""
    return network_cells(config)


EXPERIMENT = Experiment(
    name="task-vector-range",
    question="What do task vectors do further on, backwards, and added to each other?",
    claims=(),
    config=Config,
    cells=cells,
    run=Later("frenet.experiments.task_vector_range.measure:run"),
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
    changes={
        MODEL: {
            "smoke": {"seeds": (0,), "max_tasks": 2, "steps": 20},
            "demo": {**FEW, "max_tasks": 2},
            "cpu": {"max_tasks": 2},
        },
    },
    reproduced={"cpu": {"max_tasks": 2}},
    shown_settings=shown_settings("protocol", full="optimizer", lora="lora_optimizer"),
    prepare=prepare,
    in_demo=False,
    reread=labelled,
    answers=sentences,
)  # fmt: skip
