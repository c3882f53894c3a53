"""Does one gradient step move activations along the labelled-contrast vector? (M6, claim C6)."""

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
from frenet.experiments.step_vs_vector.findings import CLAIMS, FIGURES, TABLES


@dataclass(frozen=True)
class Config(SteeringConfig):
    """Cosine between the shift by a gradient step and the contrast of activations, by block."""

    shuffles: int = 1000
    """Draws of each null."""


def passes(config: Config, texts: Texts) -> float:
    """Streams of two parts, the model's own answers, and the shifts towards both answers."""
    choose, tested = prompts_of_parts(config, texts.rows)
    return choose + 2 * tested + 2 * shift_passes(config, tested)


EXPERIMENT = Experiment(
    name="step-vs-vector",
    question="Does one gradient step move activations along the labelled-contrast vector?",
    claims=CLAIMS,
    config=Config,
    cells=cells,
    run=Later("frenet.experiments.step_vs_vector.measure:run"),
    tables=TABLES | BEHAVIOUR_TABLES,
    figures=FIGURES,
    presets={
        "smoke": Config(
            seeds=(0, 1), width=32, train_steps=300, rows=32, only=("parity",), shuffles=200,
            resamples=200,
        ),
        "demo": Config(pushes=("own",), **DEMO_NETWORK),
        "cpu": Config(rows=192, spaces=("full", "lora")),
        "gpu": Config(rows=192, spaces=("full", "lora"), seeds=(0, 1, 2, 3, 4)),
        "lm": Config(seeds=(0,), pushes=("own",), shifted=24),
    },
    changes={
        MODEL: {
            "smoke": {"rows": 16, "shuffles": 100, "resamples": 200},
        },
    },
    prepare=prepare,
    passes=passes,
)  # fmt: skip
