"""Are task gradients locally low-rank, and is it the task that is? (M1, claim C1)."""

from dataclasses import dataclass

from frenet.experiments.experiment import MODEL, Cell, Experiment, Later, Setting
from frenet.experiments.gradient_rank.findings import CLAIMS, FIGURES, TABLES
from frenet.experiments.setup.damage import FEW, LANGUAGE_MODEL, DamageConfig
from frenet.experiments.setup.describe import NETWORK_TABLES
from frenet.experiments.setup.networks import (
    DEMO_NETWORK,
    SMALL_NETWORK,
    NetworkConfig,
    network_cells,
    prepare,
    require_values,
)


@dataclass(frozen=True)
class Config(DamageConfig, NetworkConfig):
    """Gradients of every task at one point: how much of a half a basis of the other half holds."""

    n: int = 64
    """Gradients in each half."""
    batch_sizes: tuple[int, ...] = (16, 64)
    """Examples in a minibatch; the apparent rank falls as it grows."""
    ks: tuple[int, ...] = (1, 2, 5, 10, 20, 32)
    """Basis dimensions."""
    points: tuple[str, ...] = ("none", "wrong-answers")
    """Where to measure: 'none' is the trained network, a damage protocol the network after it."""
    repeats: int = 20
    """Random splits into halves."""
    nulls: int = 4
    """Draws of each null."""

    @property
    def minibatches(self) -> dict[str, int]:
        """The largest of several sizes."""
        return {"batch_sizes": max(self.batch_sizes, default=0)}


def cells(config: Config) -> list[Cell]:
    """One cell per seed, space and point: overlaps need all tasks together."""
    require_values(config, "ks", "batch_sizes")
    return network_cells(config, point=config.points)


EXPERIMENT = Experiment(
    name="gradient-rank",
    question="Are task gradients locally low-rank, and is it the task that is?",
    claims=CLAIMS,
    config=Config,
    cells=cells,
    run=Later("frenet.experiments.gradient_rank.measure:run"),
    tables=TABLES | NETWORK_TABLES,
    figures=FIGURES,
    presets={
        "smoke": Config(
            only=("reverse", "sort"),
            n=12,
            batch_sizes=(16,),
            nulls=1,
            repeats=4,
            ks=(1, 5, 10),
            points=("none",),
            **SMALL_NETWORK,
        ),
        "demo": Config(only=("reverse", "sort"), points=("none",), n=32, nulls=1, **DEMO_NETWORK),
        "cpu": Config(spaces=("full", "lora")),
        "gpu": Config(spaces=("full", "lora"), seeds=(0, 1, 2, 3, 4)),
        "lm": Config(n=32, batch_sizes=(8,), **LANGUAGE_MODEL),
    },
    changes={
        MODEL: {
            "smoke": {"seeds": (0,), "max_tasks": 2, "n": 8, "points": ("none",)},
            "demo": {**FEW, "max_tasks": 2, "n": 16},
            "cpu": {"max_tasks": 2, "n": 16},
        },
    },
    reproduced={"cpu": {"max_tasks": 4}},
    shown_settings=(Setting("points", "points"),),
    prepare=prepare,
)
