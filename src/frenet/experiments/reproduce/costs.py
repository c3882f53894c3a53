"""What a cell of each experiment costs in a reproduction, as it was measured once.

``benchmarks/costs.py`` writes ``costs.json``. An experiment that has no costs there can be run all
the same: what it takes is not known yet.
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


# Kind of network, preset and experiment.
Key = tuple[str, str, str]


@functools.cache
def stored() -> dict[Key, Cost]:
    """All costs that are known."""
    found = {}
    for row in json.loads(FILE.read_text("utf-8")):
        key = row.pop("network"), row.pop("preset"), row.pop("experiment")
        found[key] = Cost(**row)
    return found


def store(costs: Mapping[Key, Cost]) -> None:
    """Write the file anew, one line for each cost."""
    names = ("network", "preset", "experiment")
    rows = [dict(zip(names, key, strict=True)) | cost._asdict() for key, cost in costs.items()]
    lines = ",\n".join(map(json.dumps, rows))
    FILE.write_text(f"[\n{lines}\n]\n", "utf-8", newline="\n")
    stored.cache_clear()
