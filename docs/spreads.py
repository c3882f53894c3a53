"""Write the spreads over seeds that ``frenet reproduce --plan`` takes, from the stored runs."""

import json
from pathlib import Path

from frenet.experiments import EXPERIMENTS
from frenet.experiments.reproduce import power
from frenet.runs import decide_claims, find_runs, read_run
from frenet.runs.header import PACKED

RUNS = Path(__file__).resolve().parent / "results"

if __name__ == "__main__":
    decided = []
    for path in find_runs([RUNS]):
        run = read_run(path)
        network = path.name.removesuffix(PACKED).removesuffix(f"-{run.experiment}")
        findings = decide_claims(EXPERIMENTS[run.experiment], run)
        decided += [(network, claim, finding) for claim, finding in findings]
    text = json.dumps(power.spreads(decided), indent=1) + "\n"
    Path(power.__file__).with_name(power.FILE).write_text(text, encoding="utf-8")
