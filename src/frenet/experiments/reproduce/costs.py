"""What a cell of each experiment costs in a reproduction, as it was measured once."""

from typing import NamedTuple

from frenet.experiments.reproduce import MADE, SYNTHETIC

MODEL = "language model"


class Cost(NamedTuple):
    """The cost of one cell.

    Attributes:
        steps: time, in training steps of the network in one thread (64 rows on the synthetic
            transformer, 8 rows on the adapters of a language model).
        mib: what its process holds at most, in MiB, with a network of negligible size.
        weights: what it holds besides, in multiples of the network's float32 weights.
        longest: time for each step that a recovery takes where it takes many; 0: what a cell
            takes hangs little on it.
    """

    steps: float
    mib: float
    weights: float = 0.0
    longest: float = 0.0


# Multiples of the weights: adapters that train (SmolLM2: 1.9), many candidates in one pass (4.1),
# steps in all weights (5.1), and the curvature along a line through adapted weights (6.9).
_ADAPTERS, _SEARCH, _ALL, _LINES = 2.5, 4.2, 5.2, 7.0

# task-vector-range here, and subspace-training of frenet:gpt2 below, are reckoned from the seconds
# of their runs in docs/results and the step that the other experiments there imply.
_SYNTHETIC_WHOLE = {
    "gradient-rank": Cost(3374, 1140),
    "recovery-basis": Cost(2118, 1140),
    "basis-drift": Cost(2234, 1140),
    "best-of-n": Cost(4675, 1140),
    "step-vs-vector": Cost(23, 1140),
    "steering-effect": Cost(450, 1140),
    "direction-scale": Cost(1567, 1140),
    "subspace-training": Cost(20545, 1140, longest=342),
    "task-vector-range": Cost(36000, 1140),
}
# SmolLM2's, most at a step of 0.85 s. Its recoveries took 10 to 24 steps; for each step of them
# subspace-training costs what it did on frenet:gpt2.
_MODEL_WHOLE = {
    "gradient-rank": Cost(426, 600, _ADAPTERS),
    "recovery-basis": Cost(329, 600, _ADAPTERS),
    "basis-drift": Cost(920, 600, _ADAPTERS),
    "best-of-n": Cost(1408, 600, _SEARCH),
    "step-vs-vector": Cost(34, 600, _ALL),
    "steering-effect": Cost(91, 600, _ALL),
    "direction-scale": Cost(1188, 650, _LINES),
    "subspace-training": Cost(1570, 600, _ADAPTERS, longest=263),
    "task-vector-range": Cost(880, 650, _LINES),
}
# Much of a step of a small network is overhead, and its recoveries take 240 to 352 steps.
_MADE_WHOLE = {
    "gradient-rank": Cost(310, 600, _ADAPTERS),
    "recovery-basis": Cost(1188, 600, _ADAPTERS),
    "basis-drift": Cost(567, 600, _ADAPTERS),
    "best-of-n": Cost(929, 600, _SEARCH),
    "step-vs-vector": Cost(39, 600, _ALL),
    "steering-effect": Cost(71, 600, _ALL),
    "direction-scale": Cost(1183, 650, _LINES),
    "subspace-training": Cost(31000, 600, _ADAPTERS, longest=263),
    "task-vector-range": Cost(600, 650, _LINES),
}


def _on_gpu(whole: dict[str, Cost], **more: float) -> dict[str, Cost]:
    """Costs of the preset gpu: those of cpu, times what the cells of some experiments do more."""
    factors = {name.replace("_", "-"): factor for name, factor in more.items()}
    return {
        name: cost._replace(steps=cost.steps * factors.get(name, 1.0))
        for name, cost in whole.items()
    }


# More candidates (12,800 for 1,920, and 6,400 for 576), more tasks in a cell (8 for 4, and 3 for 2,
# of twice as many gradients), and more task vectors with pairs of them (36 for 10, and 6 for 3).
_SYNTHETIC_GPU = _on_gpu(_SYNTHETIC_WHOLE, best_of_n=6.7, gradient_rank=2.0, task_vector_range=3.6)
_MADE_GPU, _MODEL_GPU = (
    _on_gpu(whole, best_of_n=11.1, gradient_rank=3.0, task_vector_range=2.0)
    for whole in (_MADE_WHOLE, _MODEL_WHOLE)
)
_MADE_SMOKE = {
    "gradient-rank": Cost(122, 540, _ADAPTERS),
    "recovery-basis": Cost(224, 540, _ADAPTERS),
    "basis-drift": Cost(269, 540, _ADAPTERS),
    "best-of-n": Cost(3097, 550, _SEARCH),
    "step-vs-vector": Cost(36, 550, _ALL),
    "steering-effect": Cost(72, 550, _ALL),
    "direction-scale": Cost(1607, 630, _LINES),
    "subspace-training": _MODEL_WHOLE["subspace-training"],
    "task-vector-range": _MODEL_WHOLE["task-vector-range"],
}
_MADE_DEMO = {
    "gradient-rank": Cost(324, 540, _ADAPTERS),
    "recovery-basis": Cost(494, 550, _ADAPTERS),
    "basis-drift": Cost(479, 550, _ADAPTERS),
    "best-of-n": Cost(2341, 550, _SEARCH),
    "step-vs-vector": Cost(27, 550, _ALL),
    "steering-effect": Cost(64, 550, _ALL),
    "direction-scale": Cost(1085, 650, _LINES),
    "subspace-training": _MODEL_WHOLE["subspace-training"],
    "task-vector-range": _MODEL_WHOLE["task-vector-range"],
}

# By kind of network and preset.
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
            "task-vector-range": Cost(2430, 1140),
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
            "task-vector-range": Cost(2430, 1140),
        },
        "cpu": _SYNTHETIC_WHOLE,
        "gpu": _SYNTHETIC_GPU,
    },
    MADE: {"smoke": _MADE_SMOKE, "demo": _MADE_DEMO, "cpu": _MADE_WHOLE, "gpu": _MADE_GPU},
    MODEL: {"smoke": _MADE_SMOKE, "demo": _MADE_DEMO, "cpu": _MODEL_WHOLE, "gpu": _MODEL_GPU},
}


def kind_of(network: str) -> str:
    """Whose costs a network's are."""
    return network if network in (SYNTHETIC, MADE) else MODEL
