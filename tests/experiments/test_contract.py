"""What holds for every experiment."""

import json
from dataclasses import replace

import pytest

from experiments.small import small
from frenet.experiments import EXPERIMENTS, Experiment
from frenet.experiments.experiment import MADE, MODEL, SYNTHETIC, VERDICTS, Finding, decided
from frenet.experiments.setup.contrasts import SteeringConfig
from frenet.experiments.setup.networks import NetworkConfig
from frenet.runs.engine import cells_of

NOTHING = {"undecided", "not testable"}
PRESETS = ("smoke", "demo", "cpu", "gpu", "lm")

all_experiments = pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=list(EXPERIMENTS))


@all_experiments
def test_every_measure_names_a_reference_that_is_there(experiment: Experiment) -> None:
    for table, columns in experiment.tables.items():
        names = [column.name for column in columns]
        assert len(names) == len(set(names)), table
        roles = {column.name: column.role for column in columns}
        for column in columns:
            if column.role == "measure":
                assert roles[column.beside] in ("reference", "measure"), (table, column.name)
                assert column.beside != column.name


@all_experiments
def test_figures_and_claims_point_at_what_is_there(experiment: Experiment) -> None:
    figures = {figure.id for figure in experiment.figures}
    assert {figure.table for figure in experiment.figures} <= set(experiment.tables)
    assert {claim.figure for claim in experiment.claims} <= figures
    assert set(PRESETS) <= set(experiment.presets)


@all_experiments
def test_cells_are_distinct_and_safe_as_file_names(experiment: Experiment) -> None:
    for name in PRESETS:
        ids = [cell.id for cell in experiment.cells(experiment.presets[name])]
        assert len(ids) == len(set(ids))
        assert all(set(i) <= set("abcdefghijklmnopqrstuvwxyz0123456789=,.-_~") for i in ids)


@all_experiments
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds_cells_with_every_kind_of_network(
    experiment: Experiment, preset: str, tmp_path
) -> None:
    """Also if the tasks have other names than those of the synthetic transformer."""
    rows = [{"prompt": f"Is {i} even?", "label": ("no", "yes")[i % 2]} for i in range(8)]
    file = tmp_path / "parities.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert cells_of(experiment, experiment.settings(preset, SYNTHETIC))
    for kind, network in ((MODEL, "some/model"), (MADE, "frenet:gpt2")):
        config = experiment.settings(preset, kind)
        cells = cells_of(experiment, replace(config, model=network, tasks=(str(file),)))
        name = "behaviour" if isinstance(config, SteeringConfig) else "task"
        assert {dict(cell.keys).get(name, "parities") for cell in cells} == {"parities"}


@all_experiments
def test_changes_are_of_kinds_and_presets_that_there_are(experiment: Experiment) -> None:
    assert set(experiment.changes) <= {MODEL, MADE}
    for changes in (experiment.reproduced, *experiment.changes.values()):
        assert set(changes) <= set(PRESETS) - {"lm"}
    for preset in PRESETS:
        assert experiment.settings(preset) == experiment.presets[preset]


def test_settings_for_a_model_are_those_of_lm_with_the_changes_of_its_kind() -> None:
    experiment = EXPERIMENTS["recovery-basis"]
    rates = ("adamw:2.5e-4", "adamw:5e-4", "adamw:1e-3")
    found = {
        (preset, kind): (config.lora_optimizers, config.seeds, config.spaces)
        for preset in ("demo", "lm")
        for kind in (MODEL, MADE)
        for config in (experiment.settings(preset, kind),)
    }
    assert found == {
        ("demo", MODEL): (rates, (0, 1), ("lora",)),
        ("demo", MADE): (("adamw:2e-3",), (0, 1), ("lora",)),
        ("lm", MODEL): (rates, (0, 1, 2), ("lora",)),
        ("lm", MADE): (rates, (0, 1, 2), ("lora",)),
    }


def test_without_lm_a_preset_is_for_every_network_and_an_unknown_one_is_refused() -> None:
    experiment = EXPERIMENTS["recovery-basis"]
    smoke = experiment.presets["smoke"]
    bare = replace(experiment, presets={"smoke": smoke}, changes={MODEL: {"smoke": {"steps": 7}}})
    assert bare.settings("smoke", MODEL) == replace(smoke, steps=7)
    with pytest.raises(ValueError, match="no preset of recovery-basis 'demo'; there are: smoke"):
        bare.settings("demo", MODEL)


@all_experiments
def test_conditions_and_minibatches_are_settings(experiment: Experiment) -> None:
    config = experiment.presets["smoke"]
    for setting in experiment.shown_settings:
        assert hasattr(config, setting.name)
        assert setting.space in ("", "full", "lora")
    for name, size in config.minibatches.items() if isinstance(config, NetworkConfig) else ():
        value = getattr(config, name)
        assert size == (max(value) if isinstance(value, tuple) else value)


@all_experiments
def test_rows_fill_their_tables(experiment: Experiment, rows) -> None:
    own = rows[experiment.name]
    json.dumps(own, allow_nan=True)
    seen = {row["table"] for row in own}
    assert seen >= set(experiment.tables) - {"notes"}
    for table, columns in experiment.tables.items():
        part = [row for row in own if row["table"] == table]
        assert {key for row in part for key in row} <= {c.name for c in columns} | {"table"}
        for column in columns:
            if column.role == "measure":
                filled = [row for row in part if row.get(column.name) is not None]
                assert all(row.get(column.beside) is not None for row in filled), (table, column)


@all_experiments
def test_a_measure_that_can_be_filled_is_filled_somewhere(experiment: Experiment, rows) -> None:
    for table, columns in experiment.tables.items():
        part = [row for row in rows[experiment.name] if row["table"] == table]
        for column in (c for c in columns if c.role == "measure"):
            assert any(row.get(column.name) is not None for row in part), (table, column.name)


@all_experiments
def test_the_same_cell_gives_the_same_rows(experiment: Experiment, rows) -> None:
    config = small(experiment.name)
    cell = experiment.cells(config)[0]
    again = list(experiment.run(config, cell))
    assert json.dumps(again) == json.dumps(rows[experiment.name][: len(again)])


@all_experiments
def test_figures_draw_and_claims_decide(experiment: Experiment, rows) -> None:
    own = rows[experiment.name]
    for figure in experiment.figures:
        spec = figure.chart([r for r in own if r["table"] == figure.table]).to_dict()
        assert spec["$schema"].startswith("https://vega.github.io/schema/vega-lite/")
    for claim in experiment.claims:
        found = claim.decide(own)
        for finding in (found,) if isinstance(found, Finding) else found:
            assert finding.claim == claim.id
            assert finding.verdict in VERDICTS


@all_experiments
def test_no_rows_decide_nothing(experiment: Experiment) -> None:
    assert {finding.verdict for _, finding in decided(experiment, [])} <= NOTHING
