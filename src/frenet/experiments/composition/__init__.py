"""Do two displacements of the weights compose, and where do they meet? (M11, claim C10)."""

from dataclasses import dataclass

from frenet._errors import UsageError
from frenet.experiments.composition.figures import FIGURES
from frenet.experiments.composition.findings import CLAIMS, FULL_SCALE
from frenet.experiments.composition.tables import TABLES
from frenet.experiments.experiment import MODEL, Cell, Experiment, Later
from frenet.experiments.setup.damage import FEW, LANGUAGE_MODEL, DamageConfig, shown_settings
from frenet.experiments.setup.describe import NETWORK_TABLES
from frenet.experiments.setup.networks import (
    SMALL_NETWORK,
    MinibatchConfig,
    network_cells,
    prepare,
    task_names,
)

# Passes over the test rows of a task for one pair of tasks, beside those that pairs share: at the
# scales, over the map, and with one block at a time.
PASSES = 150


@dataclass(frozen=True)
class Config(DamageConfig, MinibatchConfig):
    """Train on one task at a time from one point, and add the displacements two by two."""

    protocol: str = "relative-noise"
    """Damage before training, aimed at the first task but with effects on all; 'none' starts from
    the undamaged network."""
    optimizer: str = "adam:3e-4"
    """Optimiser and rate for training all weights."""
    lora_optimizer: str = "adam:3e-3"
    """Optimiser and rate for training LoRA."""
    steps: int = 100
    """Steps of training on each task."""
    n: int = 16
    """Minibatch gradients averaged in a first step."""
    scales: tuple[float, ...] = (
        0.03125, 0.0625, 0.125, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0,
    )  # fmt: skip
    """Common scales of both displacements. Those from 1/8 on also measure activations."""
    grid: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
    """Scales of each displacement in the map of losses."""
    eps: float = 0.2
    """Interaction up to which two displacements compose, as a share of both changes alone."""
    eval_size: int = 256
    """Held-out examples of each task; all of them if there are fewer."""
    prompts: int = 64
    """Prompts of each task whose activations are measured, from its held-out examples."""
    max_directions: int = 8
    """Most tasks whose displacements are paired; more are refused, with what they would cost."""
    path: str = ""
    """Dotted name of the list of blocks, if frenet does not detect it."""


def cells(config: Config) -> list[Cell]:
    """One cell per seed and space.

    Raises:
        ValueError: scales out of range or without 1, or more tasks than ``max_directions``.
    """
    if not config.scales or min(config.scales) <= 0 or FULL_SCALE not in config.scales:
        raise UsageError(
            f"--scales {' '.join(f'{s:g}' for s in config.scales)}: pass scales above 0, with 1 "
            "among them, at which the displacements have their full length"
        )
    if not {0.0, FULL_SCALE} <= set(config.grid):
        raise UsageError(
            f"--grid {' '.join(f'{s:g}' for s in config.grid)}: pass 0 and 1 among them, for each "
            "displacement without the other and with it"
        )
    if not 0 < config.eps < 1 or config.prompts < 2:
        raise UsageError(
            f"eps={config.eps:g}, prompts={config.prompts}; pass eps in (0, 1), and at least 2 "
            "prompts"
        )
    names = task_names(config)
    if len(names) > config.max_directions:
        from frenet.methods.composition import require_few

        require_few(
            names,
            PASSES,
            most=config.max_directions,
            remedy=f"pass --max-tasks {config.max_directions}, --only with the tasks to pair, or "
            f"--max-directions {len(names)} to measure all of them",
        )
    return network_cells(config)


EXPERIMENT = Experiment(
    name="composition",
    question="Do two displacements compose, in losses and in activations, and where do they meet?",
    claims=CLAIMS,
    config=Config,
    cells=cells,
    run=Later("frenet.experiments.composition.measure:run"),
    tables=TABLES | NETWORK_TABLES,
    figures=FIGURES,
    presets={
        "smoke": Config(
            only=("reverse", "copy"), steps=12, n=4, batch_size=16, eval_size=32, prompts=16,
            damage_batch=16, scales=(0.125, 0.25, 0.5, 1.0, 2.0), grid=(0.0, 0.5, 1.0, 1.5, 2.0),
            **SMALL_NETWORK,
        ),
        "demo": Config(only=("reverse", "parity")),
        "cpu": Config(spaces=("full", "lora"), max_tasks=4),
        "gpu": Config(spaces=("full", "lora"), seeds=(0, 1, 2, 3, 4)),
        "lm": Config(
            protocol="none", learn_steps=0, lora_optimizer="adamw:2e-3", batch_size=8, steps=60,
            n=8, eval_size=32, prompts=32, **LANGUAGE_MODEL,
        ),
    },
    changes={
        MODEL: {
            "smoke": {"seeds": (0,), "max_tasks": 2, "steps": 20},
            "demo": {**FEW, "max_tasks": 2},
        },
    },
    shown_settings=shown_settings("protocol", full="optimizer", lora="lora_optimizer"),
    prepare=prepare,
    in_demo=False,
)  # fmt: skip
