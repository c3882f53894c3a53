"""Writes the cost of a cell of each experiment, from a reproduction, to `reproduce/costs.json`.

    python benchmarks/costs.py demo runs/reproduce-demo-1a2b3c4d

Costs are in training steps, for language models on the texts of the cell, and a step is timed now:
run it on the machine of the reproduction, under the same load. Of several networks of one kind the
last one counts. Leave out runs of contrasts that the model does not know: their cells end early.

Two numbers do not come from a reproduction and are not changed in the file: `weights`, multiples
of the weights in memory (training of adapters 2.5, in float64 5, many candidates in one pass 4.2,
steps in all weights 5.2, the curvature along a line through adapted weights 7), and `longest`, the
time for each step of a recovery.

The costs of language models were measured on SmolLM2 with `cpu`, most at a step of 0.85 s, and on
`frenet:gpt2` with `smoke` and `demo`; with `cpu` there `gradient-rank`, `step-vs-vector`,
`steering-effect`, `update-order` and `composition`. Some were estimated:

- `step-vs-vector` of SmolLM2 from a cell of 310 s, with prompts of 21 tokens, at a step of 0.77 s;
- `steering-effect` of SmolLM2 from a run with a quarter of the prompts, times four, and half of the
  cost of `step-vs-vector` for its shifts, which that run did not have;
- `basis-drift` of SmolLM2 from a run with a third of the gradients, times three, which is the most
  that it can be; `direction-scale` of SmolLM2 from that of `frenet:gpt2`;
- of `frenet:gpt2` with `cpu`, `basis-drift`, `best-of-n`, `direction-scale`, `subspace-training`
  and `task-vector-range`, and `task-vector-range` of SmolLM2, from the seconds of their runs in
  docs/results and the step that other experiments there imply, such as `recovery-basis`;
- `subspace-training` and `task-vector-range` with `smoke` and `demo` from larger presets;
- `subspace-training` with `cpu` from runs with four dimensions (three on language models), in
  proportion to their number, which is two now;
- the preset gpu from cpu, times a factor for its larger cells: more candidates in `best-of-n` (6.7
  on the synthetic transformer, 11.1 on SmolLM2, 6.25 on `frenet:gpt2`), more tasks or gradients in
  a cell of `gradient-rank` (2 and 3), more task vectors and pairs of them in `task-vector-range`
  (3.6 and 2).
"""

import argparse
import itertools
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frenet.experiments.experiment import Cell, kind_of
from frenet.experiments.reproduce import PRESETS, Part, Reproduction, folder_names, parts
from frenet.experiments.reproduce.costs import Cost, store, stored
from frenet.runs.forecast import Speed, network_speed, texts_of, work_of


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
    files = [chosen.folder / name / "timings.json" for name in folder_names(todo)]
    timed = [(part, file) for part, file in zip(todo, files, strict=True) if file.exists()]
    for network, mine in itertools.groupby(timed, key=lambda pair: pair[0].network):
        of_network = list(mine)
        speed = network_speed([part for part, _ in of_network])
        for part, file in of_network:
            key = kind_of(network), chosen.preset, part.experiment.name
            cells = json.loads(file.read_text("utf-8"))
            costs[key] = measured(part, cells, speed, costs.get(key, Cost(0, 0)))
            print(*key, costs[key])
    store(costs)


def measured(part: Part, cells: Sequence[dict[str, Any]], speed: Speed, before: Cost) -> Cost:
    """The cost of a cell with these timings, without the weights in memory."""
    done = [Cell.of(**cell["cell"]) for cell in cells]
    works = [work_of(part, cell, speed, Cost(1, 0)) for cell in done]
    texts = [each for cell in done for each in texts_of(part, cell, speed)]
    passes = statistics.mean(work.share for work in works)
    # What a pass takes, in steps of the cell's own texts.
    each = sum(cell["seconds"] for cell in cells) / sum(work.share * work.step for work in works)
    mib = max(cell["peak_mib"] for cell in cells) - before.weights * speed.weights_mib
    return before._replace(
        steps=round(each * passes),
        mib=round(mib),
        passes=round(passes, 1),
        tokens=round(statistics.mean([text.tokens for text in texts] or [0.0]), 1),
    )


if __name__ == "__main__":
    main()
