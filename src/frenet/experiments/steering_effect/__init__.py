"""Does the shift by a gradient step steer as the contrast vector does? (M7, claim C7)."""

from dataclasses import dataclass

from frenet.experiments.experiment import MODEL, Experiment, Later, Texts
from frenet.experiments.setup.contrasts import (
    BEHAVIOUR_TABLES,
    SteeringConfig,
    cells,
    prepare,
    prompts_of_parts,
    shift_passes,
)
from frenet.experiments.setup.networks import DEMO_NETWORK
from frenet.experiments.steering_effect.figures import FIGURES
from frenet.experiments.steering_effect.findings import CLAIMS, TABLES


@dataclass(frozen=True)
class Config(SteeringConfig):
    """Dose-response of answers to vectors of equal norm, and what the vectors cost."""

    doses: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.4)
    """Lengths of the added vector, in units of the stream's root mean square norm; both signs."""
    draws: int = 8
    """Random, covariance-matched and label-shuffled vectors of each kind; of other contrasts, at
    most as many."""
    equal_dose: float = 0.1
    """Dose of the contrast vector at which costs are compared; the others are scaled to its effect.
    """
    equal_rows: int = 24
    """Most prompts in that comparison; its weight steps need whole forward passes."""
    neutral_rows: int = 8
    """Neutral texts for KL divergence and perplexity."""


def passes(config: Config, texts: Texts) -> float:
    """Prompts that are read once, the gradient and its shifts, and every vector at every dose.

    With a cache, a vector at a dose takes the time of one token of each prompt.
    """
    choose, tested = prompts_of_parts(config, texts.rows)
    read = choose + 3 * tested + 3 * (tested // 2)
    # Contrast vector and shift; shuffled, random and matched vectors.
    vectors = 2 + 3 * config.draws
    doses = 2 * len(config.doses) * vectors * tested / texts.tokens
    return read + shift_passes(config, tested) + doses


EXPERIMENT = Experiment(
    name="steering-effect",
    question="Does the shift by a gradient step steer answers as the contrast vector does?",
    claims=CLAIMS,
    config=Config,
    cells=cells,
    run=Later("frenet.experiments.steering_effect.measure:run"),
    tables=TABLES | BEHAVIOUR_TABLES,
    figures=FIGURES,
    presets={
        "smoke": Config(
            seeds=(0, 1), width=32, train_steps=300, rows=32, only=("parity",), draws=3,
            resamples=200, doses=(0.05, 0.2), equal_dose=0.2,
        ),
        "demo": Config(pushes=("own",), **DEMO_NETWORK),
        "cpu": Config(rows=192, spaces=("full", "lora")),
        "gpu": Config(rows=192, spaces=("full", "lora"), seeds=(0, 1, 2, 3, 4)),
        "lm": Config(
            seeds=(0,), pushes=("own",), shifted=24, draws=4, doses=(0.02, 0.05, 0.1, 0.3),
            equal_rows=12,
        ),
    },
    changes={
        MODEL: {
            "smoke": {"rows": 16, "draws": 2, "resamples": 200, "doses": (0.05, 0.2)},
        },
    },
    prepare=prepare,
    passes=passes,
)  # fmt: skip
