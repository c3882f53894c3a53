"""How long does a gradient basis stay useful while training moves on? (M3, claim C3)."""

from dataclasses import dataclass

from frenet.experiments.basis_drift.findings import CLAIMS, FIGURES, TABLES, reread
from frenet.experiments.experiment import (
    MADE,
    MODEL,
    SYNTHETIC,
    USUAL_PRESETS,
    Cell,
    Experiment,
    Later,
)
from frenet.experiments.setup.damage import (
    DEMO_DAMAGE,
    FEW,
    LANGUAGE_MODEL,
    DamageConfig,
    shown_settings,
)
from frenet.experiments.setup.describe import NETWORK_TABLES
from frenet.experiments.setup.networks import (
    DEMO_NETWORK,
    SMALL_NETWORK,
    MinibatchConfig,
    by_space,
    network_cells,
    prepare,
    require_values,
    task_names,
)


@dataclass(frozen=True)
class Config(DamageConfig, MinibatchConfig):
    """Train, sample gradients along the way, and compare old bases with fresh ones."""

    modes: tuple[str, ...] = ("recovery", "finetune")
    """'recovery' retrains a damaged task, 'finetune' learns one that the network has not seen."""
    optimizers: tuple[str, ...] = ("adam:3e-5", "adam:3e-4", "adam:1e-3", "sgd:0.01")
    """Optimisers for all weights, with their rates: drift depends on the step size."""
    lora_optimizers: tuple[str, ...] = ("adam:3e-4", "adam:1e-3", "adam:3e-3")
    """Optimisers for LoRA, with their rates."""
    protocol: str = "wrong-answers"
    """Damage before recovery."""
    k: int = 10
    """Basis dimension."""
    n: int = 48
    """Gradients in each of the three sets drawn at every measured step."""
    eval_size: int = 64
    """Held-out examples on which the loss is measured; all of them if there are fewer."""
    lags: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100, 200)
    """Training steps after which to measure."""
    window: int = 30
    """Updates in a window, for the drift of a basis made from updates."""


def cells(config: Config) -> list[Cell]:
    """One cell per seed, space, mode, task and optimiser."""
    require_values(config, "lags")
    return network_cells(
        config,
        mode=config.modes,
        task=lambda cell: _names(config, cell["mode"]),
        optimizer=lambda cell: by_space(cell["space"], config.optimizers, config.lora_optimizers),
    )


def _names(config: Config, mode: str) -> tuple[str, ...]:
    """Fine-tuning uses tasks that the synthetic network has not learned."""
    if mode == "finetune" and config.model == SYNTHETIC:
        return ("predecessor",)
    return task_names(config)


EXPERIMENT = Experiment(
    name="basis-drift",
    question="How long does a gradient basis stay useful while training moves on?",
    claims=CLAIMS,
    config=Config,
    cells=cells,
    run=Later("frenet.experiments.basis_drift.measure:run"),
    tables=TABLES | NETWORK_TABLES,
    figures=FIGURES,
    presets={
        "smoke": Config(
            only=("reverse",),
            modes=("recovery",),
            optimizers=("adam:3e-4",),
            n=8,
            k=4,
            batch_size=16,
            lags=(1, 10, 100),
            damage_batch=16,
            **SMALL_NETWORK,
        ),
        "demo": Config(
            only=("reverse",),
            modes=("recovery",),
            optimizers=("adam:3e-5",),
            n=24,
            lags=(1, 10, 30, 100),
            **DEMO_NETWORK,
            **DEMO_DAMAGE,
        ),
        "cpu": Config(spaces=("full", "lora")),
        "gpu": Config(spaces=("full", "lora"), seeds=(0, 1, 2, 3, 4)),
        "lm": Config(
            lora_optimizers=("adamw:1e-3",),
            batch_size=8,
            # The frozen control must come out clearly above 0.95. On a small model it is 0.96 with
            # 32, as the two halves of a small sample have less in common, and 0.99 with 48.
            n=48,
            eval_size=32,
            k=8,
            lags=(1, 3, 10, 30, 100),
            window=24,
            **LANGUAGE_MODEL,
        ),
    },
    changes={
        MODEL: {
            "smoke": {"seeds": (0,), "max_tasks": 1, "n": 8, "lags": (1, 3, 10), "window": 8},
            "demo": {**FEW, "n": 16},
            # Wrong answers hardly damage a small model that has only just learned its tasks.
            "cpu": {"max_tasks": 1, "modes": ("recovery",), "protocol": "absolute-noise"},
        },
        # It is made by a training on these tasks, so there is none that it has not seen.
        MADE: {preset: {"modes": ("recovery",)} for preset in USUAL_PRESETS},
    },
    reproduced={
        "cpu": {
            "max_tasks": 1,
            "optimizers": ("adam:3e-4", "sgd:0.01"),
            "lora_optimizers": ("adam:1e-3",),
        },
    },
    shown_settings=shown_settings("protocol", full="optimizers", lora="lora_optimizers"),
    prepare=prepare,
    reread=reread,
)
