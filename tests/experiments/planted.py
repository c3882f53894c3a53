"""Rows with a planted truth for every rule, and the share of draws in which it says which word.

``python tests/experiments/planted.py --write`` reads the spread over seeds from the stored pilot.
"""

import argparse
import functools
import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
from scipy import stats

from frenet.experiments import EXPERIMENTS
from frenet.experiments.basis_drift import findings as drift
from frenet.experiments.best_of_n import findings as search
from frenet.experiments.composition import findings as adding
from frenet.experiments.composition.tables import VECTORS
from frenet.experiments.experiment import Breakdown, Finding, Row, Rows
from frenet.experiments.gradient_rank import findings as rank
from frenet.experiments.intervals import estimate, seed_means, select
from frenet.experiments.recovery_basis import findings as recovery
from frenet.experiments.setup.comparable import comparable
from frenet.experiments.subspace_training import findings as training
from frenet.experiments.verdicts import Criterion
from frenet.runs import find_runs, read_run
from frenet.statistics import coverage
from frenet.statistics.coverage import clustered_share

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
STORED = Path(__file__).with_name("pilot.json")
PILOT = (0, 1, 2)
# Seeds of the runs that confirm.
PLANNED = 5
DECIDED = ("supported", "contradicted", "equivalent")
NO_WORD: tuple[str, ...] = ()
NOT_TESTABLE = ("not testable",)
# Claims whose rules have no planted rows.
WITHOUT = frozenset(("C6", "C7"))
# Standard deviation over seeds, relative to the mean, of what the pilot does not have.
RELATIVE = 0.2

# Of every network, a quantity's value for each seed of the pilot.
Spreads = Mapping[str, Mapping[str, Sequence[float]]]


@dataclass(frozen=True, eq=False)
class Truth:
    """A planted truth.

    Attributes:
        name: where it is planted.
        right: the words that are true; none if every decided word is wrong, as on a line.
        values: means of the quantities that differ from the declared ones.
        fault: why the rule says a wrong word too often, if it does.
    """

    name: str
    right: tuple[str, ...]
    values: Mapping[str, float]
    fault: str = ""


@dataclass(frozen=True, eq=False)
class Planted:
    """A rule with the truths that it is tried on.

    Attributes:
        claim: its id.
        effect: the declared effect, in words.
        decide: the function from rows to the finding.
        rows: the rows of one draw, from the value of every quantity for each seed.
        declared: the mean of every quantity at the declared effect.
        measured: the quantities with a spread in the pilot, by their names there, and the factor
            by which the spread is multiplied. Of the others, ``exact`` ones have no spread.
        truths: others than the declared effect.
        exact: such as counts.
        enough: seeds with which the declared effect is found in 80% of draws, if more than planned.
    """

    claim: str
    effect: str
    decide: Callable[[Rows], Finding | tuple[Finding, ...]]
    rows: Callable[[Mapping[str, list[float]]], list[Row]]
    declared: Mapping[str, float]
    measured: Mapping[str, tuple[str, float]]
    truths: tuple[Truth, ...]
    exact: tuple[str, ...] = ()
    enough: int = PLANNED

    @functools.cached_property
    def every_truth(self) -> tuple[Truth, ...]:
        """The declared effect first."""
        return (Truth(self.effect, ("supported",), {}), *self.truths)


# The effects that are declared: the paper's figures where it has one, otherwise ours.
ENERGY, NULL = 0.7, 0.05
STATIC, PREFIX = 0.15, 0.6
RATIO = 0.35
CAPTURE, WALK = 0.77, 0.2
COVERAGE = 0.95
LOG_RATIO = 0.0
LEAD = 0.1
ADDED = 0.4


def spectra(values: Mapping[str, list[float]]) -> list[Row]:
    """Rows for C1."""
    rows: list[Row] = []
    for s, energy in enumerate(values["energy"]):
        at: Row = {"seed": s, "space": "full", "point": "none", "batch_size": 64, "task": "a"}
        nulls = dict.fromkeys(rank.NULLS, values["null"][s])
        own = {"k": rank.K, "energy": energy, "clear": values["clear"][s]}
        rows.append({"table": "energy", **at, **own, **nulls})
        rows.append({"table": "learned", **at, "loss": values["loss"][s], "chance": 1.0})
    return rows


def recoveries(values: Mapping[str, list[float]]) -> list[Row]:
    """Rows for C2 and C4."""
    rows: list[Row] = []
    at: Row = {"space": "lora", "task": "a", "protocol": "p", "optimizer": "adam:1e-3"}
    for s, long in enumerate(values["recoveries"]):
        for replicate in (0, 1):
            stop = 40 if replicate < long else 10
            row = {"table": "recovery", "status": "recovered", "replicate": replicate}
            rows.append({**row, **at, "seed": s, "stop": stop})
        for basis in ("prefix", *recovery.STATIC):
            if basis in values:
                row = {"table": "capture", "basis": basis, "k": recovery.K, "replicate": 0}
                held = {"captured": values[basis][s], "walk_share": values["walk"][s]}
                rows.append({**row, **at, "seed": s, **held})
    return rows


def drifts(values: Mapping[str, list[float]]) -> list[Row]:
    """Rows for C3."""
    at: Row = {"table": "drift", "kind": "gradients", "lag": drift.LAG, "mode": "recovery"}
    where: Row = {"space": "full", "optimizer": "adam:1e-3"}
    return [
        {
            **at,
            **where,
            "seed": s,
            "ratio": ratio,
            "control": values["control"][s],
            "chance": 1 / values["fresh"][s],
            "moved": values["moved"][s],
        }
        for s, ratio in enumerate(values["ratio"])
    ]


def bands(values: Mapping[str, list[float]]) -> list[Row]:
    """Rows for C5a: of every seed the share of its searches inside their band."""
    rows: list[Row] = []
    at: Row = {"place": "all", "unit": "sigma*", "factor": 0.5, "second_order": 0.1}
    for s, inside in enumerate(values["inside"]):
        own = {"candidates": search.SIZE, "blocks": int(values["searches"][s]), "inside": inside}
        rows.append({"table": "best", "seed": s, **at, **own, "gain": 1.0, "predicted": 1.0})
        rows.append({"table": "spread", "seed": s, **at, "noise": values["noise"][s]})
    return rows


def gains(values: Mapping[str, list[float]]) -> list[Row]:
    """Rows for C5b. Of a seed without a comparable case, the whole space has no gain."""
    rows: list[Row] = []
    at: Row = {"space": "full", "task": "a", "protocol": "p", "size": 64, "dim": 9}
    how: Row = {"unit": "sigma*", "factor": 1.0, "candidates": search.SIZE, "search": 0}
    for s, log in enumerate(values["log"]):
        for place, gain in (("all", values["compared"][s]), ("random:10", math.exp(log))):
            half = gain / values["clear"][s]
            band = {"gain": gain, "low": gain - half, "high": gain + half}
            rows.append({"table": "best", "seed": s, **at, **how, "place": place, **band})
    return rows


def positions(values: Mapping[str, list[float]]) -> list[Row]:
    """Rows for C10."""
    at: Row = {"table": "position", "space": "full", "kind": VECTORS, "first": "a", "second": "b"}
    return [
        {
            **at,
            "seed": s,
            "depth": adding.DEPTHS[-1],
            "error": error,
            "noise": values["noise"][s],
            "random": values["random"][s],
            "each": error,
        }
        for s, error in enumerate(values["error"])
    ]


def trained(values: Mapping[str, list[float]]) -> list[Row]:
    """Rows for S1 and S2."""
    at: Row = {"table": "trained", "space": "full", "task": "a", "protocol": "p", "k": training.K}
    more: Row = {"optimizer": "adam:1e-3", "steps": 50, "stop": None}
    return [
        {**at, **more, "seed": s, "basis": basis, "regained": share}
        for basis in (*training.FIXED, *training.MOVING)
        if basis in values
        for s, share in enumerate(values[basis])
        if values["recoveries"][s]
    ]


CAPTURES = {"walk": ("walk", 1.0), "prefix": ("prefix", 1.0)}
SHORT = Truth("premise: one recovery of 29 steps or more", NOT_TESTABLE, {"recoveries": 1})
WALKING = Truth("premise: walk share 0.8, its line", NOT_TESTABLE, {"walk": 0.8})
HALF = 2**-0.5  # of the variance of a difference
NONE = Truth("premise: no recoveries", NOT_TESTABLE, {"recoveries": 0})
BEST, SECOND, THIRD = training.FIXED[1:]
NOTHING = {BEST: -0.2, SECOND: -0.3, THIRD: -0.4}
MOVED, STAYS, CHANCE = "moving prefix", "prefix from step k", "moving random"

RULES = (
    Planted(
        "C1",
        "energy 0.7",
        rank.decide,
        spectra,
        {"energy": ENERGY, "null": NULL, "loss": 0.1, "clear": 100.0},
        {name: (name, 1.0) for name in ("energy", "null", "loss")},
        (
            Truth("energy 0.05, the null", ("contradicted",), {"energy": NULL}),
            Truth("energy 0.4, its line", NO_WORD, {"energy": rank.FLOOR}),
            Truth("energy and null 0.6", NO_WORD, {"energy": 0.6, "null": 0.6}),
            Truth("premise: half the loss of a guess, its line", NOT_TESTABLE, {"loss": 0.5}),
            Truth("premise: gradients of 10 rounding errors", NOT_TESTABLE, {"clear": 10.0}),
        ),
    ),
    Planted(
        "C2",
        "static 0.15, prefix 0.6",
        recovery.fixed_plane,
        recoveries,
        {"prefix": PREFIX, "walk": WALK, "recoveries": 2, **dict.fromkeys(recovery.STATIC, 0.05)}
        | {recovery.STATIC[0]: STATIC},
        CAPTURES | dict.fromkeys(recovery.STATIC, ("static", 1.0)),
        (
            Truth("a plane that holds 0.5", ("contradicted",), {recovery.STATIC[0]: 0.5}),
            Truth("static 0.25, its line", NO_WORD, {recovery.STATIC[0]: 0.25}),
            Truth(
                "all static bases 0.25",
                NO_WORD,
                dict.fromkeys(recovery.STATIC, 0.25),
                "the highest of four equal captures is above their mean, and the basis is chosen "
                "on the seeds that it is tested on",
            ),
            Truth("static and prefix 0.15", NO_WORD, {"prefix": STATIC}),
            WALKING,
            SHORT,
        ),
        exact=("recoveries",),
    ),
    Planted(
        "C3",
        "ratio 0.35",
        drift.decide,
        drifts,
        {"ratio": RATIO, "control": 1.0, "fresh": 50.0, "moved": 5.0},
        {"ratio": ("ratio", 1.0), "control": ("control", 1.0)},
        (
            Truth("ratio 1, no drift", ("contradicted",), {"ratio": 1.0}),
            Truth("ratio 0.7, its line", NO_WORD, {"ratio": drift.CEILING}),
            Truth("premise: fresh basis at 5 times chance", NOT_TESTABLE, {"fresh": 5.0}),
            Truth("premise: loss moved by its noise", NOT_TESTABLE, {"moved": 1.0}),
            Truth("premise: frozen control 0.95, its line", NOT_TESTABLE, {"control": 0.95}),
        ),
    ),
    Planted(
        "C4a",
        "capture 0.77, walk share 0.2",
        recovery.prefix_span,
        recoveries,
        {"prefix": CAPTURE, "walk": WALK, "recoveries": 2},
        CAPTURES,
        (
            Truth("capture 0.2, the walk's", ("contradicted",), {"prefix": WALK}),
            Truth("capture 0.5, its line", NO_WORD, {"prefix": recovery.MOST}),
            Truth("capture and walk share 0.6", NO_WORD, {"prefix": 0.6, "walk": 0.6}),
            WALKING,
            SHORT,
        ),
        exact=("recoveries",),
    ),
    Planted(
        "C4b",
        "capture 0.77",
        recovery.prefix_as_paper,
        recoveries,
        {"prefix": CAPTURE, "walk": WALK, "recoveries": 2},
        CAPTURES,
        (
            Truth("capture 0.5", ("contradicted",), {"prefix": 0.5}),
            Truth("capture 0.67, its limit", NO_WORD, {"prefix": 0.67}),
            Truth("capture 0.87, its limit", NO_WORD, {"prefix": 0.87}),
            WALKING,
            SHORT,
        ),
        exact=("recoveries",),
    ),
    Planted(
        "C5a",
        "coverage 0.95",
        search.coverage,
        bands,
        {"inside": COVERAGE, "searches": 72, "noise": 1e-3},
        {},
        (
            Truth("coverage 0.8", ("contradicted",), {"inside": 0.8}),
            Truth("coverage 0.9, its line", NO_WORD, {"inside": search.COVERED}),
            Truth("premise: noise a third of the spread", NOT_TESTABLE, {"noise": 1 / 3}),
            Truth("premise: 3 searches a seed", NOT_TESTABLE, {"searches": 3}),
        ),
        exact=("inside", "searches"),
    ),
    Planted(
        "C5b",
        "equal gains",
        search.dimension,
        gains,
        {"log": LOG_RATIO, "clear": 2.5, "compared": 1.0},
        {"log": ("log", 1.0), "clear": ("clear", 1.0)},
        (
            Truth("ratio 0.6", ("contradicted",), {"log": math.log(0.6)}),
            Truth("ratio 0.8, its limit", NO_WORD, {"log": math.log(search.EVEN[0])}),
            Truth("ratio 1.25, its limit", NO_WORD, {"log": math.log(search.EVEN[1])}),
            Truth("premise: gains of their noise", NOT_TESTABLE, {"clear": 1.0}),
            Truth("premise: no case compared", NOT_TESTABLE, {"compared": 0.0}),
        ),
        exact=("compared",),
    ),
    Planted(
        "C10",
        "error 0.4",
        adding.decide,
        positions,
        {"error": ADDED, "noise": 0.2, "random": 0.1},
        {},
        (
            Truth("error 0.05", ("contradicted",), {"error": 0.05}),
            Truth("error 0.2, its line", NO_WORD, {"error": adding.LINE}),
            Truth("premise: a shift of its noise", NOT_TESTABLE, {"noise": 0.5}),
        ),
    ),
    Planted(
        "S1",
        "lead 0.1",
        training.fixed_prefix,
        trained,
        {"prefix": 0.5 + LEAD, BEST: 0.5, SECOND: 0.4, THIRD: 0.1, "recoveries": 1},
        dict.fromkeys(("prefix", BEST, SECOND, THIRD), ("S1 lead", HALF)),
        (
            Truth("no lead", ("equivalent",), {"prefix": 0.5}),
            Truth("no lead over any", ("equivalent",), {"prefix": 0.5, SECOND: 0.5, THIRD: 0.5}),
            Truth("lead 0.05, its margin", ("supported",), {"prefix": 0.55}),
            Truth("lead -0.05, its margin", ("contradicted",), {"prefix": 0.45}),
            Truth("lead -0.1", ("contradicted",), {"prefix": 0.4}),
            Truth("premise: 0.05 regained", NOT_TESTABLE, {"prefix": 0.05} | NOTHING),
            NONE,
        ),
        exact=("recoveries",),
    ),
    Planted(
        "S2",
        "both leads 0.1",
        training.refreshed_prefix,
        trained,
        {MOVED: 0.6 + LEAD, STAYS: 0.6, CHANCE: 0.6, "recoveries": 1},
        {STAYS: ("S2 lead", 1.0), CHANCE: ("S2 lead over random", 1.0)},
        (
            Truth("no lead over the prefix", ("equivalent",), {STAYS: 0.6 + LEAD}),
            Truth("no lead over random", ("equivalent",), {CHANCE: 0.6 + LEAD}),
            Truth("both leads 0.05, the margin", ("supported",), {MOVED: 0.65}),
            Truth("both leads -0.1", ("contradicted",), {MOVED: 0.5}),
            Truth(
                "premise: 0.05 regained",
                NOT_TESTABLE,
                {MOVED: 0.05, STAYS: -0.3, CHANCE: -0.3},
            ),
            NONE,
        ),
        exact=("recoveries", MOVED),
        enough=7,
    ),
)


def pilot() -> Spreads:
    """What the stored runs of the pilot have, by quantity and network."""
    found: dict[str, dict[str, list[float]]] = {}
    for path in find_runs([RESULTS]):
        run = read_run(path)
        experiment = EXPERIMENTS[run.experiment]
        rows = [row for row in run.rows if row.get("seed") in PILOT]
        reread = experiment.reread(rows) if experiment.reread else rows
        network = path.name.partition(f"-{experiment.name}")[0]
        for name, values in _quantities(experiment.name, reread):
            if len(values) == len(PILOT) or name == "correlation":
                found.setdefault(name, {})[network] = [round(value, 6) for value in values]
    return found


def _quantities(experiment: str, rows: Rows) -> Iterator[tuple[str, list[float]]]:
    """Name and values by seed of the quantities of one run."""
    if experiment == "gradient-rank":
        energies = select(rows, table="energy", k=rank.K, point="none")
        largest = max(row["batch_size"] for row in energies)
        at = [{**r, "null": max(r[n] for n in rank.NULLS)} for r in energies]
        yield "energy", _by_seed(select(at, batch_size=largest), "energy")
        yield "null", _by_seed(select(at, batch_size=largest), "null")
        learned = [
            {**row, "share": row["loss"] / row["chance"]} for row in select(rows, table="learned")
        ]
        yield "loss", _by_seed(learned, "share")
    if experiment == "recovery-basis":
        lora = select(comparable(rows), space="lora")
        yield "prefix", _by_seed(select(lora, basis="prefix"), "captured")
        yield "walk", _by_seed(select(lora, basis="prefix"), "walk_share")
        held = [_by_seed(select(lora, basis=basis), "captured") for basis in recovery.STATIC]
        yield "static", max(filter(None, held), key=statistics.mean)
    if experiment == "basis-drift":
        at = select(rows, table="drift", kind="gradients", lag=drift.LAG)
        yield "ratio", _by_seed(at, "ratio")
        yield "control", _by_seed(at, "control")
    if experiment == "best-of-n":
        near = select(search.within_reach(rows), candidates=search.SIZE)
        seeds = [select(near, seed=seed) for seed in PILOT]
        hits = [sum(round(row["inside"] * row["blocks"]) for row in mine) for mine in seeds]
        trials = [sum(row["blocks"] for row in mine) for mine in seeds]
        yield "correlation", [clustered_share(hits, trials).correlation]
        ratios = search.relative_gains(rows, "random:")
        yield "log", _by_seed([{**row, "log": math.log(row["ratio"])} for row in ratios], "log")
        yield "clear", _by_seed(search._least_clear(ratios), "clear")
    if experiment == "subspace-training":
        table = training.at_k(select(rows, table="trained"))
        best = max(
            training.FIXED[1:],
            key=lambda name: estimate(select(table, basis=name), "regained").value,
        )
        for name, pair in {
            "S1 lead": ("prefix", best),
            "S2 lead": (MOVED, STAYS),
            "S2 lead over random": (MOVED, CHANCE),
        }.items():
            yield name, _by_seed(training._paired(table, *pair), "difference")


def _by_seed(rows: Rows, column: str) -> list[float]:
    return [float(row[column]) for row in seed_means(rows, by=(), value=column)]


@functools.cache
def stored() -> Spreads:
    """The pilot, as ``--write`` left it."""
    return json.loads(STORED.read_text(encoding="utf-8"))


def spread(found: Mapping[str, Sequence[float]], network: str | None) -> float:
    """Standard deviation over seeds: of a network, or the typical one.

    The variance of three values has the median ln 2 times what it estimates, hence the division.
    """
    variances = {name: statistics.variance(values) for name, values in found.items()}
    if network is not None:
        return float(variances[network] ** 0.5)
    return (statistics.median(variances.values()) / math.log(2)) ** 0.5


def draws(
    rule: Planted, truth: Truth, *, count: int, n: int = PLANNED, network: str | None = None
) -> Iterator[list[Row]]:
    """Rows of ``count`` runs of n seeds.

    Quantities are normally distributed over seeds, and searches inside their bands beta-binomially.
    """
    rng = np.random.default_rng([n, *map(ord, f"{rule.claim}: {truth.name}")])
    means, shape = {**rule.declared, **truth.values}, (count, n)
    drawn = {
        name: mean + _deviation(rule, name, mean, network) * rng.standard_normal(shape)
        for name, mean in means.items()
    }
    if "inside" in means:
        p, searches = means["inside"], int(means["searches"])
        r = correlation(network)
        shares = rng.beta(p * (1 - r) / r, (1 - p) * (1 - r) / r, shape) if r > 0 else p
        drawn["inside"] = rng.binomial(searches, shares, shape) / searches
    for i in range(count):
        yield rule.rows({name: values[i].tolist() for name, values in drawn.items()})


def _deviation(rule: Planted, name: str, mean: float, network: str | None) -> float:
    """Standard deviation over seeds of a quantity."""
    if name in rule.exact:
        return 0.0
    if name not in rule.measured:
        return RELATIVE * mean
    source, factor = rule.measured[name]
    return factor * spread(stored()[source], network)


def has(rule: Planted, network: str) -> bool:
    """Whether the pilot of a network has a spread of every quantity."""
    return all(network in stored()[source] for source, _ in rule.measured.values())


def correlation(network: str | None) -> float:
    """Of two searches of one seed: in the pilot of a network, or the typical one."""
    found = stored()["correlation"]
    return found[network][0] if network else statistics.median(r for (r,) in found.values())


@contextmanager
def words_alone() -> Iterator[None]:
    """Without the tables of findings and without needed numbers of seeds, which decide nothing."""
    with ExitStack() as stack:
        for module in (rank, recovery, drift, search, adding, training):
            for name, function in vars(module).copy().items():
                returned = getattr(function, "__annotations__", {}).get("return")
                if returned == tuple[Breakdown, ...]:
                    stack.enter_context(patch.object(module, name, lambda *_, **__: ()))
        stack.enter_context(patch.object(Criterion, "_needs", lambda *_: None))
        stack.enter_context(patch.object(coverage, "clustered_share", _clustered_share))
        yield


def _clustered_share(successes: list[int], trials: list[int]) -> coverage.ClusteredShare:
    """The share, computed once for the same clusters in any order."""
    return _sorted_share(tuple(sorted(zip(successes, trials, strict=True))))


@functools.cache
def _sorted_share(clusters: tuple[tuple[int, int], ...]) -> coverage.ClusteredShare:
    return clustered_share(*map(list, zip(*clusters, strict=True)))


@functools.cache
def words(
    rule: Planted, truth: Truth, *, count: int, n: int = PLANNED, network: str | None = None
) -> Counter[str]:
    """How often the rule says each word in some draws."""
    with words_alone():
        drawn = draws(rule, truth, count=count, n=n, network=network)
        return Counter(word(rule.decide(rows)) for rows in drawn)


def word(found: Finding | tuple[Finding, ...]) -> str:
    """The verdict of a finding, or of the first of several cases."""
    return (found if isinstance(found, Finding) else found[0]).verdict


def upper(successes: int, count: int) -> float:
    """Upper 99% bound of a share."""
    test = stats.binomtest(successes, count, alternative="less")
    return float(test.proportion_ci(confidence_level=0.99).high)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The spread over seeds in the stored pilot.")
    parser.add_argument("--write", action="store_true", help="to pilot.json, in place of it")
    text = json.dumps(pilot(), indent=1, sort_keys=True) + "\n"
    if parser.parse_args().write:
        STORED.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
