"""Settings with which every experiment takes seconds."""

import dataclasses
from typing import Any

from frenet.experiments import EXPERIMENTS

# Small enough for seconds, trained enough to be damaged and to recover.
SMALL: dict[str, Any] = {
    "width": 32,
    "train_steps": 250,
    "seeds": (0,),
    "only": ("copy",),
    "damage_steps": 60,
    "depth": 0.5,
}
STEERED: dict[str, Any] = {
    "width": 32,
    "train_steps": 250,
    "seeds": (0,),
    "only": ("parity",),
    "rows": 16,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "gradient-rank": SMALL
    | {"n": 12, "points": ("none", "wrong-answers"), "only": ("copy", "sort")},
    "basis-drift": SMALL
    | {
        "modes": ("recovery", "finetune"),
        "n": 12,
        "eval_size": 16,
        "lags": (1, 5, 40),
        "window": 12,
    },
    "best-of-n": SMALL
    | {
        "places": ("all", "random:4", "gradients:3", "prefix:3", "name:embed"),
        "protocols": ("wrong-answers",),
        "searches": 1,
        "candidates": 16,
        "factors": (0.25, 1.0),
        "select_size": 16,
        "test_size": 16,
        "probes": 2,
        "damage_batch": 16,
    },
    "direction-scale": SMALL
    | {
        "n": 4,
        "k": 2,
        "batch_size": 16,
        "damage_batch": 16,
        "eval_size": 16,
        "lags": (1, 10, 30),
        "optimizer": "adam:1e-3",
        "candidates": 8,
        "probes": 2,
        "prompts": 16,
        "protocol": "relative-noise",
    },
    "task-vector-range": SMALL
    | {
        "only": ("copy", "sort"),
        "steps": 6,
        "k": 3,
        "batch_size": 16,
        "damage_batch": 16,
        "eval_size": 16,
        "scales": (-1.0, 0.0, 1.0),
    },
    "composition": SMALL
    | {
        "only": ("copy", "sort"),
        "steps": 20,
        "optimizer": "adam:1e-3",
        "n": 2,
        "batch_size": 16,
        "damage_batch": 16,
        "eval_size": 16,
        "prompts": 8,
        "scales": (0.125, 0.5, 1.0),
        "grid": (0.0, 1.0),
    },
    "step-vs-vector": STEERED | {"shuffles": 50, "halves": 2},
    "steering-effect": STEERED | {"draws": 2, "resamples": 50, "equal_rows": 8},
    "recovery-basis": SMALL
    | {
        "spaces": ("full", "lora"),
        "protocols": ("wrong-answers",),
        "lora_optimizers": ("adam:3e-3",),
        "batch_size": 16,
        "damage_batch": 16,
        "ks": (1, 4),
        "function_k": 4,
        "vector_steps": 1,
        "second_order": ("Krylov", "Hessian"),
        "probe_size": 32,
        "optimised": ("prefix", "random"),
    },
    "subspace-training": SMALL | {"ks": (3,), "looks": 4, "optimizers": ("adam:1e-3",)},
}


def small(name: str, **changes: Any) -> Any:
    """The smoke preset of an experiment with the settings above."""
    return dataclasses.replace(EXPERIMENTS[name].presets["smoke"], **SETTINGS[name] | changes)
