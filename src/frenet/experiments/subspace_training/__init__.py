"""What is it worth to train k coordinates instead of all? (M4, questions S1 and S2)."""

from dataclasses import dataclass
from operator import attrgetter

from frenet._errors import UsageError
from frenet.experiments.experiment import MADE, MODEL, Cell, Experiment, Later
from frenet.experiments.setup.damage import FEW, LANGUAGE_MODEL, DamageConfig
from frenet.experiments.setup.describe import NETWORK_TABLES
from frenet.experiments.setup.networks import SMALL_NETWORK, MinibatchConfig, prepare
from frenet.experiments.setup.recovery import RECOVERED, recovery_cells
from frenet.experiments.subspace_training.figures import FIGURES, TABLES
from frenet.experiments.subspace_training.findings import CHANCE, CLAIMS


@dataclass(frozen=True)
class Config(DamageConfig, MinibatchConfig):
    """Damage a task and recover it by moving k coordinates of a basis instead of all."""

    protocols: tuple[str, ...] = ("wrong-answers", "relative-noise")
    """Ways to damage the task."""
    optimizers: tuple[str, ...] = ("adam:3e-5", "sgd:0.01")
    """Optimisers for all weights, with the rate of the run that gives the prefix."""
    lora_optimizers: tuple[str, ...] = ("adam:3e-4",)
    """The same for LoRA."""
    steps: int = 400
    """Most steps of that run; every other training takes as many as the run needed."""
    ks: tuple[int, ...] = (2, 5, 10, 20)
    """Basis dimensions; those above 0.35 of the run's steps are left out."""
    n: int = 32
    """Gradients in a gradient basis."""
    bases: tuple[str, ...] = tuple(CHANCE)
    """Bases to train in, in addition to all coordinates."""
    factor: float = 3.0
    """Neighbouring learning rates differ by this factor; the first is that of the run."""
    tries: int = 6
    """Most learning rates to try in each basis."""
    looks: int = 20
    """Measurements of the held-out loss in each training run."""
    probe_size: int = 128
    """Examples on which loss and accuracy are measured."""


def cells(config: Config) -> list[Cell]:
    """The cells of a recovery.

    Raises:
        ValueError: an unknown basis, or a k that is too large.
    """
    if unknown := [name for name in config.bases if name not in CHANCE]:
        raise UsageError(f"no basis {unknown[0]!r}; there are {', '.join(CHANCE)}")
    return recovery_cells(config)


EXPERIMENT = Experiment(
    name="subspace-training",
    question="What is it worth to train k coordinates instead of all?",
    claims=CLAIMS,
    config=Config,
    cells=cells,
    run=Later("frenet.experiments.subspace_training.measure:run"),
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
    changes={
        MODEL: {
            "smoke": {"seeds": (0,), "max_tasks": 1, "steps": 40, "ks": (2, 5)},
            "demo": FEW,
            "cpu": {"max_tasks": 1, "protocols": ("absolute-noise",), "ks": (5, 10)},
        },
        MADE: {"cpu": {"steps": 400}, "gpu": {"steps": 400}},
    },
    reproduced={"cpu": {"max_tasks": 1, "protocols": ("wrong-answers",), "ks": (5, 10)}},
    shown_settings=RECOVERED,
    longest_recovery=attrgetter("steps"),
    prepare=prepare,
    in_demo=False,
)
