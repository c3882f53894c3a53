"""A small, made-up set of runs with the shape of real ones, and hostile text in every place."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from frenet.experiments import intervals
from frenet.experiments.experiment import (
    Across,
    Breakdown,
    Claim,
    Column,
    Decision,
    Experiment,
    Figure,
    Finding,
    Row,
    Rows,
    Verdict,
)
from frenet.experiments.figures import charts
from frenet.experiments.figures.charts import Axis, Rule
from frenet.experiments.intervals import mean_of, select
from frenet.experiments.verdicts import Criterion
from frenet.runs import Run, config_dict
from frenet.statistics.intervals import Estimate

HOSTILE = "<script>alert(1)</script>"
TASKS = ("copy", "sort", "مهمة الفرز", HOSTILE, "emoji 🧭")
SEEDS = (0, 1, 2)
FRACTION = "fraction, 0 to 1"
ABOVE = Criterion("the share", above=0.4)
SHARE = Across("share of something", levels=ABOVE.levels, reference="null", limits=(0.0, 1.0))


@dataclass(frozen=True)
class Config:
    """The shape of a real configuration."""

    model: str = "synthetic"
    tasks: tuple[str, ...] = TASKS
    k: int = 10
    quick: bool = True


def spectrum_rows() -> list[Row]:
    dice = random.Random(0)
    rows: list[Row] = []
    for seed in SEEDS:
        for index, task in enumerate(TASKS):
            for k in (1, 2, 3, 5, 8, 10, 16, 24, 32):
                energy = 1 - math.exp(-(0.35 + 0.12 * index) * k**0.55 - 0.04 * dice.random())
                rows.append(
                    {
                        "table": "spectrum",
                        "seed": seed,
                        "task": task,
                        "k": k,
                        "energy": energy,
                        "energy_gaussian": 0.0012 * k * (1 + 0.05 * dice.random()),
                        "energy_shuffled": 0.93 * energy + 0.02 * dice.random(),
                        "ceiling": min(1.0, energy * 1.12),
                        "participation_ratio": 4.2 + dice.random(),
                    }
                )
    return rows


def overlap_rows() -> list[Row]:
    dice = random.Random(1)
    return [
        {
            "table": "overlap",
            "seed": seed,
            "task": one,
            "other": two,
            "overlap": 0.64 if one == two else 0.03 + 0.02 * dice.random(),
            "chance": 0.0001,
        }
        for seed in SEEDS
        for one in TASKS
        for two in TASKS
    ]


def basis_rows() -> list[Row]:
    dice = random.Random(2)
    levels = {
        "random": (0.0001, 0.01),
        "gradients before damage": (0.05, 0.22),
        "gradients after damage": (0.15, 0.35),
        "the same, in Adam's metric": (0.52, 0.55),
        "Krylov": (0.18, 0.8),
        "damage direction": (0.001, 0.98),
        "first updates": (0.61, 0.7),
    }
    return [
        {
            "table": "capture",
            "seed": seed,
            "damage": damage,
            "optimiser": optimiser,
            "basis": basis,
            "captured": captured * (0.9 + 0.3 * dice.random()),
            "random_walk": 0.25 + 0.02 * dice.random(),
            "regained": min(1.0, regained * (0.9 + 0.2 * dice.random())),
            "regained_random": 0.01,
        }
        for seed in SEEDS
        for damage in ("noise", "wrong answers")
        for optimiser in ("adam", "sgd")
        for basis, (captured, regained) in levels.items()
    ]


def drift_rows() -> list[Row]:
    dice = random.Random(3)
    return [
        {
            "table": "drift",
            "seed": seed,
            "rate": rate,
            "lag": lag,
            "ratio": 0.35 + 0.65 * math.exp(-lag * scale / 40) + 0.02 * dice.random(),
            "control": 1 + 0.01 * (dice.random() - 0.5),
        }
        for seed in SEEDS
        for rate, scale in (("Adam 3e-5", 1.0), ("Adam 1e-3", 12.0))
        for lag in (0, 1, 2, 5, 10, 20, 40, 60, 80, 100)
    ]


def spectrum_chart(rows: Rows) -> Any:
    values = {
        "energy": "held-out energy",
        "energy_shuffled": "labels shuffled",
        "ceiling": "split-half ceiling",
        "energy_gaussian": "Gaussian null",
    }
    return charts.lines(
        intervals.melt(rows, by=("task", "k"), values=values),
        x=Axis("k", "basis dimension k", log=True),
        y=Axis("value", "energy (fraction)", domain=(0, 1)),
        facet="task",
        rules=("labels shuffled", "split-half ceiling", "Gaussian null"),
    )


def overlap_chart(rows: Rows) -> Any:
    return charts.heatmap(
        intervals.aggregate(rows, by=("task", "other"), value="overlap"),
        x=Axis("other", "basis of"),
        y=Axis("task", "gradients of"),
    )


def capture_chart(rows: Rows) -> Any:
    noise = [row for row in rows if row["damage"] == "noise"]
    measured = [
        row | {"series": row["optimiser"]}
        for row in intervals.aggregate(noise, by=("optimiser", "basis"), value="captured")
    ]
    null = intervals.melt(noise, by=("basis",), values={"random_walk": "random walk"})
    return charts.dots(
        [*measured, *null],
        x=Axis("value", "captured fraction of the recovery", domain=(0, 1)),
        row=Axis("basis", "basis, k = 10"),
        colour=Axis("series", "optimiser"),
        rules=("random walk", Rule("in the paper: 0.77", 0.77)),
    )


def function_chart(rows: Rows) -> Any:
    return charts.scatter(
        rows,
        x=Axis("captured", "captured fraction", domain=(0, 1)),
        y=Axis("regained", "lost loss regained (fraction)", domain=(0, 1)),
        colour="basis",
    )


def drift_chart(rows: Rows) -> Any:
    control = intervals.melt(rows, by=("lag",), values={"control": "frozen control"})
    measured = [
        row | {"series": row["rate"]}
        for row in intervals.aggregate(rows, by=("rate", "lag"), value="ratio")
    ]
    return charts.lines(
        [*measured, *control],
        x=Axis("lag", "lag (steps)"),
        y=Axis("value", "energy ratio", domain=(0, 1.1)),
        colour=Axis("series", "step size"),
        rules=(
            "frozen control",
            Rule("line of the claim: 0.7", 0.7),
            Rule("lag 100", 100, axis="x"),
        ),
    )


def finding(claim: str, verdict: Any, *, why: str, **words: Any) -> Any:
    def decide(rows: Rows) -> Finding:
        del rows
        return Finding(claim, Decision(verdict, why), **words)

    return decide


def experiments() -> dict[str, Experiment]:
    def column(name: str, meaning: str, beside: str | None = None, unit: str = FRACTION) -> Column:
        return Column(name, unit, meaning, "measure", beside)

    def key(name: str, meaning: str) -> Column:
        return Column(name, "", meaning, "key")

    def reference(name: str, meaning: str) -> Column:
        return Column(name, FRACTION, meaning, "reference")

    shared: dict[str, Any] = {
        "config": Config,
        "cells": lambda config: [],
        "run": lambda config, cell: iter(()),
        "presets": {"smoke": Config(k=4, tasks=("copy",)), "demo": Config()},
    }
    seed, task = key("seed", "random seed of the whole run"), key("task", "task measured")
    rank = Experiment(
        name="gradient-rank",
        question="Are the gradients of one task locally low-rank?",
        claims=(
            Claim(
                "C1",
                "Task gradients are locally low-rank, strongly.",
                "“strongly low-rank”",
                "At k = 10 the interval's lower end is above 0.4 and above the upper end of every "
                "Gaussian and shuffle null.",
                finding(
                    "C1",
                    "supported",
                    quantity="held-out energy of the top 10 directions, mean over tasks",
                    estimate=Estimate(0.6621, 0.6012, 0.7233, 3),
                    reference="Gaussian null of equal norms",
                    reference_estimate=Estimate(0.0123, 0.0119, 0.0126, 3),
                    why="The lower end, 0.601, is above 0.4 and above the null's 0.0126.",
                    notes=(
                        "Gradients of shuffled labels are as low-rank: 0.62 of their energy.",
                        "The basis of one task holds 0.04 of another task's gradients.",
                    ),
                    breakdowns=(
                        Breakdown(
                            "Held-out energy by task",
                            (
                                {"task": "<i>a|b</i>", "energy": 0.251},
                                {"task": "c", "energy": None},
                            ),
                        ),
                        Breakdown("Overlap", ({"task": "c", "overlap": 0.5},)),
                    ),
                ),
                "spectrum",
            ),
        ),
        tables={
            "spectrum": (
                seed,
                task,
                key("k", "dimension of the basis"),
                column("energy", "energy of held-out gradients in the basis", "energy_gaussian"),
                column("participation_ratio", "effective number of directions", None, "directions"),
                reference("energy_gaussian", "the same for Gaussian vectors of equal norms"),
                reference("energy_shuffled", "the same with labels shuffled"),
                reference("ceiling", "the held-out half's own top k"),
            ),
            "overlap": (
                seed,
                task,
                key("other", "task whose basis it is"),
                column("overlap", "||U' V||^2 / k of two bases", "chance"),
                reference("chance", "k / d, two random bases"),
            ),
        },
        figures=(
            Figure(
                "spectrum",
                "How much of a held-out gradient do the top k directions hold?",
                "Mean and 95% interval over seeds. The grey lines are what the number has to be "
                "compared with: the same measure for gradients of shuffled labels, for Gaussian "
                "vectors of equal norms, and the best that any k directions can hold.",
                "spectrum",
                spectrum_chart,
            ),
            Figure(
                "overlap",
                "Do different tasks share their directions?",
                "Overlap of bases of dimension 10; on the diagonal two halves of one task.",
                "overlap",
                overlap_chart,
            ),
        ),
        **shared,
    )
    recovery = Experiment(
        name="recovery-basis",
        question="Which directions does a network take when it recovers from damage?",
        claims=(
            Claim(
                "C2",
                "No fixed task plane: static bases miss the recovery direction.",
                "static bases miss it",
                "The best static basis captures under 0.25 and less than the prefix.",
                finding(
                    "C2",
                    "contradicted",
                    quantity="capture by the best static basis, k = 10",
                    estimate=Estimate(0.52, 0.47, 0.57, 3),
                    reference="capture by the first 10 updates",
                    reference_estimate=Estimate(0.61, 0.5, 0.72, 3),
                    why="The lower end, 0.47, is above 0.25.",
                    notes=(f"Task {HOSTILE} recovered in two steps: its damage was shallow.",),
                ),
                "capture",
            ),
            Claim(
                "C4",
                "The first recovery updates span 77% of the LoRA recovery displacement.",
                "0.77",
                "For LoRA some k with k/T_stop up to 0.35 has an interval that reaches 0.77.",
                finding(
                    "C4",
                    "undecided",
                    quantity="capture by the first 10 updates, k/T_stop = 0.31",
                    estimate=Estimate(0.71, 0.55, 0.87, 3),
                    reference="share that a random walk would have",
                    reference_estimate=Estimate(0.25, 0.24, 0.26, 3),
                    why="The interval reaches 0.77, but the lift's lower end, 0.9, is below 1.",
                    notes=("What is left after the prefix is captured worse: 0.51.",),
                ),
                "missing-figure",
            ),
        ),
        tables={
            "capture": (
                seed,
                key("damage", "how the network was damaged"),
                key("optimiser", "what recovered it"),
                key("basis", "where the directions come from"),
                column("captured", "share of the recovery displacement", "random_walk"),
                reference("random_walk", "share that a random walk would have"),
                column("regained", "share of the lost loss regained", "regained_random"),
                reference("regained_random", "the same in random directions"),
            )
        },
        figures=(
            Figure(
                "capture",
                "How much of the recovery does each basis hold?",
                "Dots with 95% intervals over seeds; grey ticks are the share that a random walk "
                "of the same step sizes would have.",
                "capture",
                capture_chart,
            ),
            Figure(
                "function",
                "Does holding the displacement mean holding the function?",
                "Each point is one seed; on the dotted line both measures agree.",
                "capture",
                function_chart,
            ),
            Figure(
                "empty", "A table that no cell has filled", "Nothing yet.", "absent", drift_chart
            ),
            Figure("broken", "A chart whose code fails", "Nothing.", "capture", overlap_chart),
        ),
        **shared,
    )
    drift = Experiment(
        name="basis-drift",
        question="For how many steps does a basis stay useful?",
        claims=(
            Claim(
                "C3",
                "The useful basis drifts substantially within 100 steps.",
                "substantial drift",
                "Energy ratio at lag 100 below 0.7 with the control above 0.95.",
                finding(
                    "C3",
                    "supported",
                    quantity="energy ratio at lag 100, Adam 3e-5",
                    estimate=Estimate(0.41, 0.38, 0.44, 3),
                    reference="frozen control",
                    reference_estimate=Estimate(0.998, 0.991, 1.005, 3),
                    why="The upper end, 0.44, is below 0.7 and the control's lower end is 0.991.",
                ),
                "drift",
            ),
        ),
        tables={
            "drift": (
                seed,
                key("rate", "optimiser and step size"),
                key("lag", "steps since the basis was made"),
                column("ratio", "energy in the old basis over energy in a fresh one", "control"),
                reference("control", "the same with no step in between"),
            )
        },
        figures=(
            Figure(
                "drift",
                "How fast does the basis lose its hold?",
                "Mean and 95% interval over seeds, by step size.",
                "drift",
                drift_chart,
            ),
        ),
        **shared,
    )
    return {entry.name: entry for entry in (rank, recovery, drift)}


def runs() -> list[Run]:
    manifest = {
        "versions": {"frenet": "0.1.0", "torch": "2.13.0"},
        "cells": {"total": 4, "finished": 3, "failed": 1},
        "threads": 1,
        "complete": True,
    }
    config = config_dict(Config(quick=False))
    failure = {
        "cell": f"seed=1,task={HOSTILE}",
        "stage": "run",
        "type": "FloatingPointError",
        "error": "non-finite loss at step 17 of task مهمة (damage: noise)",
    }

    def run(name: str, rows: list[Row], failures: list[dict[str, Any]]) -> Run:
        return Run(name, config, rows, manifest, failures, Path("runs") / name)

    return [
        run("gradient-rank", [*spectrum_rows(), *overlap_rows()], []),
        run("recovery-basis", basis_rows(), [failure]),
        run("basis-drift", drift_rows(), []),
    ]


def planted(
    values: Sequence[float], verdict: Verdict = "supported", *, case: str = "", null: float = 0.1
) -> Finding:
    """A finding with these values of seeds."""
    estimate = mean_of(values, least=0.0) if values else None
    return Finding(
        "C1", Decision(verdict, "as planted"), "share", estimate, "null", Estimate(null), case=case
    )


def networks(names: list[str]) -> tuple[list[Run], dict[str, Experiment]]:
    """Runs of one experiment on several networks, and the experiment: its claim reads the rows."""
    known = experiments()
    rank = known["gradient-rank"]

    def decide(rows: Rows) -> tuple[Finding, ...]:
        values = [row["energy"] for row in select(rows, table="spectrum", k=1)]
        verdict: Verdict = "supported" if float(values[0]) > 0.2 else "contradicted"
        return (planted(values[:3], verdict), planted(values[3:8], case="in the weights"))

    claims = (rank.claims[0]._replace(across=SHARE, decide=decide),)
    known["gradient-rank"] = replace(rank, claims=claims, figures=())
    run = runs()[0]
    made = {"machine": {"platform": "made up"}, "commit": None, "cell_seconds": 1.0}
    found = [
        Run(
            **{
                **run.__dict__,
                "config": run.config | {"model": name},
                "manifest": run.manifest | made,
                "rows": [
                    row | ({"energy": row["energy"] ** (1 + i)} if "energy" in row else {})
                    for row in run.rows
                ],
            }
        )
        for i, name in enumerate(names)
    ]
    return found, known
