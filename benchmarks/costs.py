"""What a cell of each experiment costs, for `experiments/reproduce/costs.py`, from a reproduction.

    python benchmarks/costs.py demo runs/reproduce-demo-1a2b3c4d

prints the lines of that table. The step that costs are counted in is timed now: run it on the
machine that made the reproduction, as idle or as busy as it was then.
"""

import argparse
import json
import statistics
from pathlib import Path

from frenet.experiments.reproduce import PRESETS, Reproduction, folder_names, parts
from frenet.experiments.reproduce.costs import kind_of
from frenet.runs.forecast import Speed, network_speed


def main() -> None:
    """Print the costs of every part that has timings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset", choices=list(PRESETS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--networks", nargs="*", help="those of the reproduction")
    chosen = parser.parse_args()
    wanted = PRESETS[chosen.preset]
    if chosen.networks:
        wanted = Reproduction(networks=tuple(chosen.networks))
    todo = parts(wanted, chosen.preset)
    speeds: dict[str, Speed] = {}
    for part, name in zip(todo, folder_names(todo), strict=True):
        file = chosen.folder / name / "timings.json"
        if not file.exists():
            continue
        if part.network not in speeds:
            speeds[part.network] = network_speed(part)
        speed, cells = speeds[part.network], json.loads(file.read_text())
        steps = statistics.mean(cell["seconds"] for cell in cells) / speed.step
        mib = max(cell["peak_mib"] for cell in cells)
        kind = kind_of(part.network)
        print(f'{kind}, {part.network}: "{part.experiment.name}": Cost({steps:.0f}, {mib}),')


if __name__ == "__main__":
    main()
