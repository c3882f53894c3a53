"""What the seeds of a reproduction can show, from the spread over seeds of stored runs."""

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any, NamedTuple

from frenet.experiments.experiment import Claim, claim_order
from frenet.experiments.reproduce import Part, short_name
from frenet.statistics.intervals import Sample
from frenet.statistics.power import smallest_effect, smallest_margin

FILE = "spreads.json"
# What the words of a level begin with if it is shown by equality.
EQUAL = ("within", "equal", "alike")


class Power(NamedTuple):
    """What the seeds of one experiment on one network can show of a claim.

    Attributes:
        claim: its id.
        network: its short name.
        seeds: how many there are.
        line: what the rule compares the quantity with.
        smallest: the smallest distance from the line, or the smallest margin of an equality, that
            is found in 80% of repetitions; None: not known, or one seed.
        spread: standard deviation over seeds; None: not known.
        source: the networks that it comes from.
    """

    claim: str
    network: str
    seeds: int
    line: str
    smallest: float | None
    spread: float | None
    source: str

    def __str__(self) -> str:
        """What is decided in 80% of repetitions."""
        if self.seeds < 2:
            return "no verdict: one seed has no interval"
        if self.smallest is None:
            return "not known yet: no spread over seeds is stored"
        if self.line.startswith(EQUAL):
            return f"{self.line}, if a margin of {self.smallest:.2g} would do"
        return f"{self.line}, if the truth is {self.smallest:.2g} from it"


def powers(todo: Sequence[Part]) -> list[Power]:
    """What the seeds can show, claim by claim and network by network."""
    stored = json.loads(resources.files(__package__).joinpath(FILE).read_text("utf-8"))
    found = (power for part in todo for power in _of_part(part, stored))
    return sorted(found, key=lambda power: (claim_order(power.claim), power.network))


def _of_part(part: Part, stored: dict[str, dict[str, float]]) -> Iterator[Power]:
    seeds, network = len(part.config.seeds), short_name(part.network)
    for claim in part.experiment.claims:
        if claim.across is None or not claim.across.levels:
            continue
        spread, source = _spread(stored.get(claim.id, {}), network)
        for line in claim.across.levels:
            smallest = _smallest(line, spread, seeds)
            yield Power(claim.id, network, seeds, line, smallest, spread, source)


def _spread(by_network: dict[str, float], network: str) -> tuple[float | None, str]:
    """The spread on this network, otherwise the median over the stored ones, and its source."""
    if network in by_network:
        return by_network[network], "from earlier seeds of this network"
    if not by_network:
        return None, ""
    return statistics.median(by_network.values()), f"the median of {', '.join(by_network)}"


def _smallest(line: str, spread: float | None, seeds: int) -> float | None:
    if spread is None or seeds < 2:
        return None
    sample = Sample(0.0, spread, seeds)
    return smallest_margin(sample) if line.startswith(EQUAL) else smallest_effect(sample)


def spreads(decided: Sequence[tuple[str, Claim, Any]]) -> dict[str, dict[str, float]]:
    """The spread over seeds behind the estimate of every claim and network.

    Args:
        decided: network, claim and finding of stored runs; only the first case of a claim counts.
    """
    found: dict[str, dict[str, float]] = {}
    for network, claim, finding in decided:
        value = finding.estimate
        if value is None or value.low is None or value.unit != "seed" or claim.across is None:
            continue
        if claim.across.log:
            ends = math.log(value.low), math.log(value.high)
            value = value._replace(value=math.log(value.value), raw=ends)
        spread = float(f"{Sample.of(value).spread:.4g}")
        found.setdefault(claim.id, {}).setdefault(network, spread)
    return {claim: dict(sorted(found[claim].items())) for claim in sorted(found, key=claim_order)}
