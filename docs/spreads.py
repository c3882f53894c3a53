"""Write the spreads over seeds that ``frenet reproduce --plan`` takes, from the pilot's runs."""

import json
from pathlib import Path

from pilot import stored

from frenet.experiments import EXPERIMENTS
from frenet.experiments.reproduce import power
from frenet.runs import decide_claims

if __name__ == "__main__":
    decided = []
    for name, run in stored(declared=False):
        network = name.removesuffix(f"-{run.experiment}")
        findings = decide_claims(EXPERIMENTS[run.experiment], run)
        decided += [(network, claim, finding) for claim, finding in findings]
    text = json.dumps(power.spreads(decided), indent=1) + "\n"
    Path(power.__file__).with_name(power.FILE).write_text(text, encoding="utf-8")
