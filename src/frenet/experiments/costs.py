"""What a cell of each experiment costs in a reproduction, as it was measured once."""

from typing import NamedTuple

MODEL = "language model"


class Cost(NamedTuple):
    """The cost of one cell.

    Attributes:
        steps: time, in training steps of the network in one thread (64 rows on the synthetic
            transformer, 8 rows on the adapters of a language model).
        memory: what a process holds at most beyond its libraries, in MiB for the synthetic
            transformer, in multiples of the float32 weights for a language model.
    """

    steps: float
    memory: float


COSTS: dict[str, dict[str, dict[str, Cost]]] = {}
