"""Writes the cost of a cell of each experiment, from a reproduction, to `reproduce/costs.json`.

    python benchmarks/costs.py demo runs/reproduce-demo-1a2b3c4d

Costs are in training steps, and a step is timed now: run it on the machine of the reproduction,
under the same load. Of several networks of one kind the last one counts.

Two numbers do not come from a reproduction and are not changed in the file: `weights`, multiples
of the weights in memory (training of adapters 2.5, many candidates in one pass 4.2, steps in all
weights 5.2, the curvature along a line through adapted weights 7), and `longest`, the time for
each step of a recovery.

The costs of language models were measured on SmolLM2 with `cpu`, most at a step of 0.85 s, and on
`frenet:gpt2` with `smoke` and `demo`. Some were estimated:

- `task-vector-range`, and `subspace-training` of `frenet:gpt2`, from the seconds of their runs in
  docs/results and the step that the other experiments there imply;
- `subspace-training` and `task-vector-range` with `smoke` and `demo` from larger presets;
- `subspace-training` with `cpu` from runs with four dimensions (three on language models), in
  proportion to their number, which is two now;
- the preset gpu from cpu, times a factor for its larger cells: more candidates in `best-of-n` (6.7
  on the synthetic transformer, else 11.1), more tasks or gradients in a cell of `gradient-rank` (2
  and 3), more task vectors and pairs of them in `task-vector-range` (3.6 and 2).
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frenet.experiments.experiment import kind_of
from frenet.experiments.reproduce import PRESETS, Reproduction, folder_names, parts
from frenet.experiments.reproduce.costs import Cost, store, stored
from frenet.runs.forecast import Speed, network_speed


def main() -> None:
    """Store the costs of every part with timings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset", choices=list(PRESETS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--networks", nargs="*", help="those of the reproduction")
    chosen = parser.parse_args()
    reproduction = PRESETS[chosen.preset]
    if chosen.networks:
        reproduction = Reproduction(networks=tuple(chosen.networks))
    todo, costs = parts(reproduction, chosen.preset), dict(stored())
    speeds: dict[str, Speed] = {}
    for part, name in zip(todo, folder_names(todo), strict=True):
        file = chosen.folder / name / "timings.json"
        if not file.exists():
            continue
        if part.network not in speeds:
            speeds[part.network] = network_speed(part)
        key = kind_of(part.network), chosen.preset, part.experiment.name
        cells = json.loads(file.read_text("utf-8"))
        costs[key] = measured(cells, speeds[part.network], costs.get(key, Cost(0, 0)))
        print(*key, costs[key])
    store(costs)


def measured(cells: Sequence[dict[str, Any]], speed: Speed, before: Cost) -> Cost:
    """The cost of a cell with these timings, without the weights in memory."""
    steps = statistics.mean(cell["seconds"] for cell in cells) / speed.step
    mib = max(cell["peak_mib"] for cell in cells) - before.weights * speed.weights_mib
    return before._replace(steps=round(steps), mib=round(mib))


if __name__ == "__main__":
    main()
