"""Measured costs of a cell of each experiment in a reproduction.

``benchmarks/costs.py`` writes ``costs.json``. An experiment without costs there runs, too; its time
is unknown.
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).with_name("costs.json")


class Cost(NamedTuple):
    """The cost of one cell.

    Attributes:
        steps: time, in training steps of the network in one thread (64 rows on the synthetic
            transformer, 8 rows of the cell's own texts on the adapters of a language model).
        mib: peak memory of its process in MiB, with a network of negligible size.
        weights: further memory, in multiples of the network's float32 weights.
        longest: time for each step of a long recovery; 0: the time of a cell hardly depends on it.
        passes: work of the cell in which this was measured, by ``Experiment.passes`` or in tasks.
        tokens: mean length of the texts of that cell; 0 on the synthetic transformer.
    """

    steps: float
    mib: float
    weights: float = 0.0
    longest: float = 0.0
    passes: float = 1.0
    tokens: float = 0.0


# Kind of network, preset and experiment.
Key = tuple[str, str, str]


@functools.cache
def stored() -> dict[Key, Cost]:
    """All measured costs."""
    costs = {}
    for row in json.loads(FILE.read_text("utf-8")):
        key = row.pop("network"), row.pop("preset"), row.pop("experiment")
        costs[key] = Cost(**row)
    return costs


def store(costs: Mapping[Key, Cost]) -> None:
    """Rewrite the file, one line per cost."""
    names = ("network", "preset", "experiment")
    rows = [dict(zip(names, key, strict=True)) | cost._asdict() for key, cost in costs.items()]
    lines = ",\n".join(map(json.dumps, rows))
    FILE.write_text(f"[\n{lines}\n]\n", "utf-8", newline="\n")
    stored.cache_clear()
