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
    """

    steps: float
    mib: float
    weights: float = 0.0


# Multiples of the weights on SmolLM2: adapters that train, and steps in all weights.
_ADAPTERS, _ALL = 2.5, 4.5

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
        },
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
        },
    },
}
