"""What a cell of each experiment costs in a reproduction, as it was measured once."""

from typing import NamedTuple

from frenet.experiments.reproduction import SYNTHETIC

MODEL = "language model"


class Cost(NamedTuple):
    """The cost of one cell.

    Attributes:
        steps: time, in training steps of the network in one thread (64 rows on the synthetic
            transformer, 8 rows on the adapters of a language model).
        mib: what its process holds at most, in MiB, with a network of negligible size.
        weights: what it holds besides, in multiples of the network's float32 weights.
        longest: time for each step that a recovery takes where it takes many; 0: what a cell
            takes does not depend on it.
    """

    steps: float
    mib: float
    weights: float = 0.0
    longest: float = 0.0


# Multiples of the weights: adapters that train (SmolLM2: 1.9), and steps in all weights (5.1).
_ADAPTERS, _ALL = 2.5, 5.2

_SYNTHETIC_WHOLE = {
    "gradient-rank": Cost(3374, 1140),
    "recovery-basis": Cost(2118, 1140),
    "basis-drift": Cost(2234, 1140),
    "best-of-n": Cost(4675, 1140),
    "step-vs-vector": Cost(23, 1140),
    "steering-effect": Cost(450, 1140),
    "direction-scale": Cost(1567, 1140),
    "subspace-training": Cost(20545, 1140),
    "task-vector-range": Cost(2430, 1140),
}
# Cells of a small network, where much of a step is overhead: for a large one they are too high.
# Only subspace-training's are SmolLM2's, whose recoveries took 10 to 24 steps, and for each step
# those of frenet:gpt2, whose took 240 to 352. Three searches of best-of-n: of five it was 2226.
_MODEL_WHOLE = {
    "gradient-rank": Cost(321, 600, _ADAPTERS),
    "recovery-basis": Cost(403, 600, _ADAPTERS),
    "basis-drift": Cost(458, 600, _ADAPTERS),
    "best-of-n": Cost(1336, 600, _ADAPTERS),
    "step-vs-vector": Cost(33, 600, _ALL),
    "steering-effect": Cost(72, 600, _ALL),
    "direction-scale": Cost(1094, 650, _ALL),
    "subspace-training": Cost(1570, 600, _ADAPTERS, longest=263),
    "task-vector-range": Cost(419, 650, _ADAPTERS),
}

# By kind of network and preset; a cell of the preset gpu is one of cpu.
COSTS: dict[str, dict[str, dict[str, Cost]]] = {
    SYNTHETIC: {
        "smoke": {
            "gradient-rank": Cost(87, 320),
            "recovery-basis": Cost(913, 450),
            "basis-drift": Cost(779, 470),
            "best-of-n": Cost(439, 490),
            "step-vs-vector": Cost(7, 490),
            "steering-effect": Cost(19, 490),
            "direction-scale": Cost(712, 530),
            "subspace-training": _SYNTHETIC_WHOLE["subspace-training"],
            "task-vector-range": _SYNTHETIC_WHOLE["task-vector-range"],
        },
        "demo": {
            "gradient-rank": Cost(1194, 790),
            "recovery-basis": Cost(1148, 860),
            "basis-drift": Cost(524, 860),
            "best-of-n": Cost(1370, 860),
            "step-vs-vector": Cost(9, 860),
            "steering-effect": Cost(170, 860),
            "direction-scale": Cost(839, 860),
            "subspace-training": _SYNTHETIC_WHOLE["subspace-training"],
            "task-vector-range": _SYNTHETIC_WHOLE["task-vector-range"],
        },
        "cpu": _SYNTHETIC_WHOLE,
        "gpu": _SYNTHETIC_WHOLE,
    },
    MODEL: {
        "smoke": {
            "gradient-rank": Cost(122, 540, _ADAPTERS),
            "recovery-basis": Cost(224, 540, _ADAPTERS),
            "basis-drift": Cost(269, 540, _ADAPTERS),
            "best-of-n": Cost(3097, 550, _ADAPTERS),
            "step-vs-vector": Cost(36, 550, _ALL),
            "steering-effect": Cost(72, 550, _ALL),
            "direction-scale": Cost(1607, 630, _ALL),
            "subspace-training": _MODEL_WHOLE["subspace-training"],
            "task-vector-range": _MODEL_WHOLE["task-vector-range"],
        },
        "demo": {
            "gradient-rank": Cost(324, 540, _ADAPTERS),
            "recovery-basis": Cost(494, 550, _ADAPTERS),
            "basis-drift": Cost(479, 550, _ADAPTERS),
            "best-of-n": Cost(2341, 550, _ADAPTERS),
            "step-vs-vector": Cost(27, 550, _ALL),
            "steering-effect": Cost(64, 550, _ALL),
            "direction-scale": Cost(1085, 650, _ALL),
            "subspace-training": _MODEL_WHOLE["subspace-training"],
            "task-vector-range": _MODEL_WHOLE["task-vector-range"],
        },
        "cpu": _MODEL_WHOLE,
        "gpu": _MODEL_WHOLE,
    },
}
