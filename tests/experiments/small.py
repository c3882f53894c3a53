"""Settings with which every experiment takes seconds."""

import dataclasses
from typing import Any

from frenet.experiments import EXPERIMENTS

# Small enough for seconds, trained enough to be damaged and to recover.
SMALL: dict[str, Any] = {"width": 32, "train_steps": 250, "seeds": (0,)}
SETTINGS: dict[str, dict[str, Any]] = {
    "gradient-rank": SMALL | {"n": 12, "points": ("none", "wrong-answers")},
    "basis-drift": SMALL
    | {"modes": ("recovery", "finetune"), "n": 12, "lags": (1, 5, 60), "window": 12},
    "recovery-basis": SMALL
    | {
        "spaces": ("full", "lora"),
        "protocols": ("wrong-answers",),
        "lora_optimizers": ("adam:3e-3",),
        "batch_size": 32,
        "second_order": True,
        "probe_size": 32,
        "optimised": ("prefix", "random"),
    },
}


def small(name: str, **changes: Any) -> Any:
    """The smoke preset of an experiment with the settings above."""
    return dataclasses.replace(EXPERIMENTS[name].presets["smoke"], **SETTINGS[name] | changes)
