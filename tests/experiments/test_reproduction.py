"""A reproduction: which experiments run where, with which settings, and at which cost."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

import frenet.experiments
from frenet.cli.execution import preset_of
from frenet.experiments import EXPERIMENTS
from frenet.experiments.experiment import MADE, MODEL, SYNTHETIC, kind_of
from frenet.experiments.reproduce import (
    PRESETS,
    Reproduction,
    by_network,
    folder_names,
    parts,
    settings,
)
from frenet.experiments.reproduce import costs as stored_costs
from frenet.experiments.reproduce.costs import Cost, store, stored
from frenet.experiments.setup.contrasts import SteeringConfig, behaviours
from frenet.experiments.setup.networks import task_names
from frenet.network.checkpoints import builtin_gpt2 as made_model
from frenet.runs import forecast as forecasting
from frenet.runs import machine
from frenet.runs.engine import cells_of
from frenet.runs.forecast import (
    Forecast,
    Speed,
    forecast,
    network_speed,
    pending_cells,
    preparation,
)
from frenet.runs.records import cell_stem

CLAIMS = {"C1", "C2", "C3", "C4a", "C4b", "C5a", "C5b", "C6", "C7"}
# Settings that make cells, or other cells.
CELLS = (
    "seeds", "spaces", "protocols", "protocol", "places", "widths", "ranks", "modes", "optimizers",
    "lora_optimizers",
)  # fmt: skip
OFFLINE = [name for name in PRESETS if name != "gpu"]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_puts_every_claim_to_the_test_on_every_network(preset):
    found = by_network(parts(PRESETS[preset], preset))
    assert list(found) == list(PRESETS[preset].networks)
    for mine in found.values():
        assert {claim.id for part in mine for claim in part.experiment.claims} >= CLAIMS
        assert "direction-scale" in {part.experiment.name for part in mine}  # the map


@pytest.mark.parametrize("preset", OFFLINE)
def test_presets_are_configurations_that_run(preset):
    for part in parts(PRESETS[preset], preset):
        assert cells_of(part.experiment, part.config)


def test_costs_are_of_kinds_and_presets_that_there_are():
    assert {kind for kind, _, _ in stored()} <= {SYNTHETIC, MADE, MODEL}
    for (kind, preset, name), cost in stored().items():
        assert preset in PRESETS
        assert name in EXPERIMENTS
        assert cost.steps > 0
        assert cost.mib > 100
        assert (cost.weights > 0) == (cost.tokens > 0) == (kind != SYNTHETIC)
        assert cost.passes > 0


def test_costs_are_kept_as_they_are_written(tmp_path, monkeypatch):
    before = stored_costs.FILE.read_bytes()
    costs = dict(stored())
    monkeypatch.setattr(stored_costs, "FILE", tmp_path / "costs.json")
    store(costs)
    assert stored_costs.FILE.read_bytes() == before
    more = costs | {(MODEL, "demo", "new"): Cost(1.5, 200, 2.5)}
    store(more)
    assert stored() == more
    stored.cache_clear()


@pytest.mark.parametrize("network", [SYNTHETIC, MADE, "a/model"])
@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_a_cell_of_gpu_costs_more_than_one_of_cpu_where_it_does_more(network, experiment):
    cpu, gpu = (
        settings(experiment, network, Reproduction(statements=()), preset=preset)
        for preset in ("cpu", "gpu")
    )
    # If all tasks are in one cell, more of them make no more cells.
    apart = set(CELLS)
    if network == SYNTHETIC:
        few, many = (len(cells_of(experiment, replace(gpu, max_tasks=n))) for n in (1, 2))
        apart |= {"max_tasks"} if few < many else set()
    elif experiment.name not in ("gradient-rank", "task-vector-range"):
        apart.add("max_tasks")
    more = {f.name for f in fields(cpu) if getattr(cpu, f.name) != getattr(gpu, f.name)} - apart
    keys = [(kind_of(network), preset, experiment.name) for preset in ("cpu", "gpu")]
    if set(keys) <= set(stored()):
        costs = [stored()[key].steps for key in keys]
        assert (costs[1] > costs[0]) == bool(more)


def test_the_larger_presets_run_everything():
    for preset in ("cpu", "gpu"):
        mine = by_network(parts(PRESETS[preset], preset))[SYNTHETIC]
        assert {part.experiment.name for part in mine} == set(EXPERIMENTS)


def test_language_models_get_tasks_and_statements_where_they_belong():
    wanted = Reproduction(networks=("a/model",), tasks=("t.jsonl",), statements=("s.jsonl",))
    for part in parts(wanted, "cpu"):
        steering = part.experiment.name in ("step-vs-vector", "steering-effect")
        assert part.config.model == "a/model"
        assert part.config.tasks == (("s.jsonl",) if steering else ("t.jsonl",))
        if part.experiment.name == "direction-scale":
            assert part.config.contrasts == "s.jsonl"


@pytest.mark.parametrize("preset", ["demo", "cpu", "gpu"])
def test_the_network_made_here_has_the_rates_that_it_needs_to_recover(preset):
    """It takes as many steps as a pretrained one, at 4 times the rate."""
    wanted = Reproduction(networks=("frenet:gpt2", "a/model"), experiments=("recovery-basis",))
    made, pretrained = (part.config for part in parts(wanted, preset))
    assert made.steps == pretrained.steps
    rates = [
        {float(name.partition(":")[2]) for name in config.lora_optimizers}
        for config in (made, pretrained)
    ]
    assert rates[0] <= {4 * rate for rate in rates[1]}
    assert (len(rates[0]), len(rates[1])) == (1 if preset == "demo" else 3, 3)


def test_names_reach_the_experiments_that_have_them():
    wanted = Reproduction(networks=("a/model",), only=("sort", "comparisons"))
    only = {part.experiment.name: part.config.only for part in parts(wanted, "demo")}
    assert only["gradient-rank"] == ("sort",)
    assert only["step-vs-vector"] == ("comparisons",)


@pytest.mark.parametrize("preset", OFFLINE)
def test_all_that_is_named_is_measured(preset):
    """However few tasks the preset takes by itself."""
    names = ("sort", "plural", "comparisons")
    for part in parts(Reproduction(networks=("a/model",), only=names), preset):
        if isinstance(part.config, SteeringConfig):
            assert behaviours(part.config) == names[2:]
        else:
            assert task_names(part.config) == names[:2]


@pytest.mark.parametrize(
    ("wanted", "match"),
    [
        (Reproduction(networks=()), "there are no networks"),
        (Reproduction(networks=("a", "b", "a")), "--networks names a twice"),
        (Reproduction(experiments=("rank",)), "no experiment 'rank'; there are"),
        (Reproduction(only=("sorted",)), "no task or statements 'sorted'; there are plural"),
    ],
)
def test_what_cannot_be_reproduced_is_said_at_once(wanted, match):
    with pytest.raises(ValueError, match=match):
        parts(wanted, "demo")


def test_folders_of_models_that_share_a_name_stay_apart():
    wanted = Reproduction(networks=("a/last", "b/last", "c/Other One.gguf"))
    wanted = replace(wanted, experiments=("gradient-rank",))
    assert folder_names(parts(wanted, "demo")) == [
        "a-last-gradient-rank", "b-last-gradient-rank", "Other-One-gradient-rank",
    ]  # fmt: skip


def test_a_forecast_is_cells_times_steps_and_falls_with_what_is_finished(tmp_path: Path):
    wanted = replace(PRESETS["demo"], experiments=("gradient-rank",))
    synthetic, model = parts(wanted, "demo")
    speed = Speed(step=0.5, weights_mib=100.0)
    for part, kind in ((synthetic, SYNTHETIC), (model, MADE)):
        cost = stored()[kind, "demo", "gradient-rank"]
        cells = len(cells_of(part.experiment, part.config))
        before = forecast(part, "demo", speed, folder=tmp_path / "none")
        assert before.seconds == pytest.approx(cost.steps * 0.5 * cells)
        assert before.mib == pytest.approx(cost.mib + cost.weights * 100.0)
        folder = store_first(part, tmp_path / kind)
        after = forecast(part, "demo", speed, folder=folder)
        assert (after.finished, after.cells, after.pending) == (1, cells, cells - 1)
        assert after.seconds == pytest.approx(before.seconds * (cells - 1) / cells)


def store_first(part, folder):
    """A folder with the first cell of a part, and files that are no cells of it."""
    (folder / "cells").mkdir(parents=True)
    first = cell_stem(cells_of(part.experiment, part.config)[0])
    for name in (f"{first}.jsonl", ".writing-seed=9.jsonl", "seed=99.jsonl"):
        (folder / "cells" / name).touch()
    return folder


def test_nothing_is_left_of_a_finished_run_with_failed_cells_unless_they_are_retried(tmp_path):
    (part,) = parts(Reproduction(networks=(SYNTHETIC,), experiments=("gradient-rank",)), "demo")
    folder, cells = store_first(part, tmp_path), len(cells_of(part.experiment, part.config))
    assert pending_cells(part, folder) == cells_of(part.experiment, part.config)[1:]
    (folder / "manifest.json").touch()
    assert pending_cells(part, folder) == []
    found = forecast(part, "demo", Speed(1.0, 1.0), folder=folder)
    assert (found.seconds, found.finished, found.pending) == (0.0, 1, 0)
    assert len(pending_cells(part, folder, retry_failed=True)) == cells - 1
    again = forecast(part, "demo", Speed(1.0, 1.0), folder=folder, retry_failed=True)
    assert again.pending == cells - 1
    assert again.seconds > 0


@pytest.mark.parametrize(("pending", "busy"), [(0, 0), (1, 1), (4, 4), (9, 4)])
def test_no_more_workers_are_counted_than_cells_are_left(pending, busy):
    found = Forecast(12.0, 36.0, 100.0, cells=9, finished=0, pending=pending, crew=4, processors=3)
    assert found.workers == busy
    assert found.memory == 100.0 * busy
    assert found.duration == 12.0 / max(1, min(busy, 3))
    assert found.longest_duration == 3 * found.duration


def test_a_forecast_says_what_long_recoveries_may_take(tmp_path):
    names = ("subspace-training", "gradient-rank")
    subspace, rank = parts(Reproduction(networks=(MADE,), experiments=names), "cpu")
    cost, seeds = stored()[MADE, "cpu", "subspace-training"], subspace.config.seeds
    found = forecast(subspace, "cpu", Speed(0.5, 1.0), folder=tmp_path)
    assert found.longest == cost.longest * subspace.config.steps * 0.5 * len(seeds)
    assert found.longest > found.seconds
    other = forecast(rank, "cpu", Speed(0.5, 1.0), folder=tmp_path)
    assert other.longest == other.seconds


def test_a_cost_that_nobody_has_measured_is_not_known_and_no_error(tmp_path, monkeypatch):
    (part,) = parts(Reproduction(networks=(SYNTHETIC,), experiments=("gradient-rank",)), "demo")
    known = forecast(part, "demo", Speed(1.0, 1.0), folder=tmp_path)
    monkeypatch.setattr(forecasting, "stored", dict)
    found = forecast(part, "demo", Speed(1.0, 1.0), folder=tmp_path)
    assert known.known
    assert found == known._replace(known=False, seconds=0.0, longest=0.0, mib=0.0)


def test_the_speed_of_a_network_is_that_of_its_training_step(monkeypatch):
    clock = iter(range(0, 1000, 3))
    monkeypatch.setattr(forecasting.time, "perf_counter", lambda: float(next(clock)))
    (part,) = parts(Reproduction(networks=(SYNTHETIC,), experiments=("gradient-rank",)), "smoke")
    speed = network_speed([part])
    assert speed.step == 3.0
    assert 0.05 < speed.weights_mib < 0.5  # 4 bytes of some tens of thousands of parameters


def test_preparation_is_the_training_of_every_seed(tmp_path, monkeypatch):
    monkeypatch.setenv("FRENET_CACHE", str(tmp_path))
    wanted = replace(PRESETS["demo"], experiments=("gradient-rank", "step-vs-vector"))
    synthetic, _, model, steering = parts(wanted, "demo")
    speed = Speed(step=0.5, weights_mib=1.0)
    config = synthetic.config
    steps = len(config.seeds) * config.train_steps
    assert preparation(synthetic, speed) == pytest.approx(forecasting.OWN_STEP * 0.5 * steps)
    learned = len(model.config.seeds) * model.config.learn_steps
    own = made_model.STEPS * made_model.ROWS // forecasting.MODEL_ROWS
    assert preparation(model, speed) == pytest.approx(0.5 * (learned + own))
    made_model.made_folder().mkdir(parents=True)
    assert preparation(model, speed) == pytest.approx(0.5 * (learned + own))
    (made_model.made_folder() / made_model.RECORD).write_text("{}", encoding="utf-8")
    assert preparation(model, speed) == pytest.approx(0.5 * learned)
    assert preparation(steering, speed) == 0.0


def test_a_preparation_is_shared_by_no_more_processes_than_it_has_seeds(tmp_path, monkeypatch):
    monkeypatch.setenv("FRENET_CACHE", str(tmp_path))
    wanted = replace(PRESETS["demo"], experiments=("gradient-rank",))
    speed = Speed(step=0.5, weights_mib=1.0)
    own = 0.5 * (made_model.STEPS * made_model.ROWS // forecasting.MODEL_ROWS)
    for part, alone in zip(parts(wanted, "demo"), (0.0, own), strict=True):
        seeds, whole = len(part.config.seeds), preparation(part, speed) - alone
        assert whole > 0
        for processors, shared in ((2, 2), (seeds, seeds), (64, seeds)):
            found = preparation(part, speed, processors=processors)
            assert found == pytest.approx(alone + whole / shared)


@pytest.mark.parametrize(("cuda", "crews"), [(False, (6, 6)), (True, (6, 1))])
def test_on_a_gpu_one_process_has_the_model_and_all_have_the_synthetic_network(
    cuda, crews, monkeypatch, tmp_path
):
    monkeypatch.setattr(machine, "has_cuda", lambda: cuda)
    monkeypatch.setattr(machine, "cpu_count", lambda: 6)
    wanted = replace(PRESETS["demo"], experiments=("gradient-rank",))
    speed = Speed(step=0.5, weights_mib=100.0)
    found = [forecast(part, "demo", speed, folder=tmp_path) for part in parts(wanted, "demo")]
    assert tuple(f.crew for f in found) == crews


def test_an_experiment_without_the_preset_is_left_out_unless_it_is_named(monkeypatch):
    """For a language model every usual preset starts from ``lm``; the synthetic one has no such."""
    own = EXPERIMENTS["gradient-rank"]
    presets = {name: own.presets[name] for name in ("smoke", "lm")}
    short = replace(own, name="short", presets=presets, changes={})
    monkeypatch.setattr(frenet.experiments, "EXPERIMENTS", {"short": short, own.name: own})
    synthetic = Reproduction(networks=(SYNTHETIC,))
    assert [part.experiment.name for part in parts(synthetic, "demo")] == [own.name]
    assert {part.experiment.name for part in parts(synthetic, "smoke")} == {"short", own.name}
    with pytest.raises(ValueError, match="no preset of short 'demo'"):
        parts(replace(synthetic, experiments=("short",)), "demo")
    assert short.settings("gpu", MODEL) == presets["lm"]
    # Without a preset, its help and its runs start from the first one that there is.
    assert (preset_of([], short), preset_of([], own)) == ("smoke", "demo")
    assert preset_of(["--preset", "cpu", "--preset=gpu"], short) == "gpu"
