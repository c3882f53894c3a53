"""Directions around a language model with a small file of tasks."""

import json
from dataclasses import replace

import pytest
import torch

from frenet.experiments import EXPERIMENTS
from frenet.experiments.direction_scale.answers import OPEN_END, sentences
from frenet.experiments.direction_scale.directions import (
    Direction,
    Spot,
    steering_direction,
    weight_directions,
)
from frenet.experiments.direction_scale.measure import radius_rows, share_looks, steering_rows
from frenet.experiments.experiment import Cell
from frenet.experiments.setup.networks import build
from frenet.integrations.recording import Recording
from frenet.measure.gradients import gradient
from frenet.measure.trajectory import train_and_record
from frenet.network.space import ParamSpace
from network.models import tiny_llama, tiny_tokenizer

EXPERIMENT = EXPERIMENTS["direction-scale"]
CELL = Cell.of(seed=0, space="lora", task="next")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Of 40 rows 6 are for testing."""
    folder = tmp_path_factory.mktemp("model")
    model = tiny_llama()
    model.config.max_position_embeddings = 128
    model.save_pretrained(folder)
    tiny_tokenizer(" y", " n").save_pretrained(folder)
    rows = [{"task": "next", "input": f"{i}", "output": f"{i + 1}"} for i in range(40)]
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return replace(
        EXPERIMENT.presets["lm"], model=str(folder), tasks=(str(file),), seeds=(0,), learn_steps=0,
        protocol="none", n=2, batch_size=8, k=1, lags=(1, 2), prompts=4, candidates=4, probes=2,
    )  # fmt: skip


def spot(config):
    network = build(config, space="lora", seed=0)
    task = network.tasks["next"]
    return Spot(config, CELL, network, task, network.space.read(network.model))


@pytest.mark.parametrize("contrasts", ["google/boolq", "glue:sst2", "frenet:comparisons", ""])
def test_contrasts_may_be_a_data_set(config, contrasts):
    assert EXPERIMENT.cells(replace(config, contrasts=contrasts)) == [CELL]


@pytest.mark.parametrize("key", ["contrasts", "steering", "trajectory"])
def test_files_that_are_not_there_are_refused(config, key):
    with pytest.raises(FileNotFoundError, match=r"there is no file or folder \./none"):
        EXPERIMENT.cells(replace(config, **{key: "./none"}))


def test_a_steering_vector_without_prompts_is_refused(config, tmp_path):
    given = replace(config, steering=str(tmp_path))
    with pytest.raises(ValueError, match="needs prompts to steer; pass --contrasts FILE"):
        EXPERIMENT.cells(given)
    assert EXPERIMENT.cells(replace(given, contrasts="frenet:comparisons")) == [CELL]


def test_a_recorded_training_that_is_too_short_is_refused_first(config, tmp_path, monkeypatch):
    """Before anything is measured."""
    network = build(config, space="lora", seed=0)
    recording = Recording(tmp_path / "trajectory", network.space, gradients=False)
    recording.begin(network.space.read(network.model))
    recording.add(torch.ones(network.space.dim), zeros=0, gradient=None)
    recording.flush()
    monkeypatch.delattr("frenet.experiments.direction_scale.measure.weight_directions")
    with pytest.raises(ValueError, match="has 1 steps; pass at least one lag, up to that"):
        list(EXPERIMENT.run(replace(config, trajectory=str(tmp_path)), CELL))


def statements(folder, *labels):
    """A file of labelled statements."""
    file = folder / "statements.jsonl"
    rows = [{"prompt": f"is {i}?", "label": labels[i % 2]} for i in range(40)]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(file)


def test_a_steering_vector_whose_answers_are_several_tokens(config, tmp_path):
    """Its line is that of their log-odds, and a note says how answers are scored."""
    found = steering_direction(spot(replace(config, contrasts=statements(tmp_path, "yes", "no"))))
    assert found is not None
    assert {tuple(map(len, prompt.answers)) for prompt in found.prompts} == {(3, 2)}
    assert any("answers are 2 to 3 tokens; " in note for note in found.fresh.notes)


def test_a_steering_vector_whose_answers_include_each_other_is_left_out(config, tmp_path):
    """Alone: the directions of the weights are followed as ever, and the note has a remedy."""
    given = replace(config, contrasts=statements(tmp_path, "yes", "yes it is"))
    rows = list(EXPERIMENT.run(given, CELL))
    (told,) = [str(row["note"]) for row in rows if "left out" in str(row.get("note"))]
    assert told.startswith("the steering vector was left out: to this tokenizer one answer to ")
    assert told.endswith("; write two other words into the file of --contrasts")
    assert any(row["table"] == "radius" for row in rows)


def test_pairs_of_texts_are_refused_as_what_they_are(config, tmp_path):
    file = tmp_path / "pairs.jsonl"
    rows = [{"positive": f"yes {i}", "negative": f"no {i}"} for i in range(20)]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(ValueError, match="it is a pair of texts; pass statements or choices"):
        list(EXPERIMENT.run(replace(config, contrasts=str(file)), CELL))


def test_shares_are_of_gradients_that_no_direction_saw(config):
    """All of a gradient of all test rows lies along that of the same rows."""
    at = spot(config)
    model, space = at.network.model, at.network.space
    with torch.no_grad():  # a fresh LoRA has no gradient in A
        for p in space.parameters(model):
            p.add_(0.1)
    rows = at.task.examples["test"]
    assert len(rows) == 6
    delta = gradient(model, at.task, at.task.collate(rows), space=space)
    found = share_looks(at, [Direction("own", delta, space, None)], None, 3)
    assert found["own"] == pytest.approx(1, abs=1e-5)


def test_shares_of_a_direction_in_the_weights_are_of_their_own_gradient(config):
    """dL/dW, not the image of the factors' gradient: all of it lies along itself."""
    at = spot(config)
    model, rows = at.network.model, at.task.examples["test"]
    weights = ParamSpace.select(model, r"[qv]_proj\.base_layer\.weight")
    delta = gradient(model, at.task, at.task.collate(rows), space=weights)
    direction = Direction("own", delta, weights, None)
    assert direction.coordinates == "weights"
    assert share_looks(at, [direction], None, 3)["own"] == pytest.approx(1, abs=1e-5)


def products(model):
    """s B A of every adapted module, dense."""
    with torch.no_grad():
        found = [m.get_delta_weight("default") for m in model.modules() if hasattr(m, "lora_A")]
    return torch.cat([change.reshape(-1).double() for change in found])


def whole(model):
    """Every adapted weight with its adapter, dense."""
    layers = [m for m in model.modules() if hasattr(m, "lora_A")]
    with torch.no_grad():
        found = [m.base_layer.weight + m.get_delta_weight("default") for m in layers]
    return torch.cat([weight.reshape(-1).double() for weight in found])


def test_what_training_made_goes_along_the_weights_and_what_optimisers_make_along_factors(config):
    """Both with the change of the weights at their radius, over the norm of the weights."""
    at = spot(replace(config, lora_optimizer="adamw:5e-2"))
    model, space = at.network.model, at.network.space
    with torch.no_grad():  # a trained adapter, so that B is not zero
        for p in space.parameters(model):
            p.add_(0.05)
    here, weights = products(model), float(whole(model).norm())
    with space.restored(model):
        path = train_and_record(model, at.task, at.training(), space=space)
    found = {direction.name: direction for direction in weight_directions(at, path)}
    ways = {name: direction.coordinates for name, direction in found.items()}
    assert {name for name, way in ways.items() if way == "weights"} >= {"prefix", "task vector"}
    assert {ways[name] for name in ("gradient", "Adam step", "random")} == {"factors"}
    for name, stop in (("prefix", 1), ("task vector", 2)):
        with space.displaced(model, path.displacement(0, stop)):
            change = products(model) - here
        assert found[name].length == pytest.approx(float(change.norm()), rel=1e-4)
        assert found[name].space.dim == len(change)
    for name in ("task vector", "gradient"):
        sides = {r["sign"]: r for r in radius_rows(at, found[name]) if r["table"] == "radius"}
        assert sides
        for sign, row in sides.items():
            assert row["coordinates"] == ways[name]
            for end, r in (("relative", "radius"), ("relative_low", "low")):
                if name == "gradient":
                    unit = found[name].delta / found[name].delta.norm()
                    with space.displaced(model, sign * row[r] * unit):
                        moved = float((products(model) - here).norm())
                else:
                    moved = row[r]
                assert row[end] == pytest.approx(moved / weights, rel=1e-3)


OF_WEIGHTS = "up to 0.002 of the norm of the weights that it moves"


@pytest.mark.parametrize(
    ("coordinates", "share_of", "length", "words"),
    [
        ("factors", "weights", None, f"{OF_WEIGHTS}, in the factors [0.001, {OPEN_END}]"),
        ("weights", "weights", None, f"{OF_WEIGHTS}, in the weights [0.001, {OPEN_END}]"),
        (
            "weights",
            "weights",
            4.0,
            f"up to 0.5 of its own length, in the weights [0.25, {OPEN_END}]",
        ),
        # Of an earlier build, which had no share of the weights' norm.
        (
            "factors",
            "factors",
            None,
            f"up to 0.002 of the norm of the factors, in the factors [0.001, {OPEN_END}]",
        ),
        (
            "factors",
            "factors",
            4.0,
            f"up to 0.5 of its own length, in the factors [0.25, {OPEN_END}]",
        ),
        (
            "factors",
            "weights",
            4.0,
            f"up to 0.5 of its own length, in the factors [0.25, {OPEN_END}], which moves the "
            "weights by 0.002 of their norm",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_every_line_says_along_what_it_goes(coordinates, share_of, length, words):
    """A radius of factors without a length is given as a change of the weights."""
    keys = {**dict(CELL.keys), "direction": "d", "coordinates": coordinates, "share_of": share_of}
    reach = {"radius": 2.0, "low": 1.0, "high": None, "length": length, "eps": 0.2, "sign": 1}
    shares = {"relative": 0.002, "relative_low": 0.001, "relative_high": None}
    rows = [
        {"table": "radius", **keys, **reach, **shares, "where": "weights", "unbounded": False},
        {"table": "lifetime", **keys, "has_share": True, "steps": 3.0, "longest": 9},
    ]
    (answer,) = sentences(rows)
    assert answer.sentence.split("; ")[0] == f"loss is linear within 20% {words}"


def test_the_line_back_to_the_undamaged_adapter_is_one_of_the_weights(config):
    at = spot(config)
    model, space = at.network.model, at.network.space
    undamaged = products(model)
    noise = 0.1 * torch.randn(space.dim, generator=torch.Generator().manual_seed(0))
    with space.displaced(model, noise):
        path = train_and_record(model, at.task, at.training(), space=space)
        with space.displaced(model, at.start + noise - space.read(model)):
            back = {d.name: d for d in weight_directions(at, path)}["damage line"]
            change = undamaged - products(model)
    assert back.coordinates == "weights"
    assert back.length == pytest.approx(float(change.norm()), rel=1e-4)


@pytest.mark.parametrize(
    ("given", "length", "read"),
    [(128, 100, 100), (64, 100, 63), (200, 200, 127)],
)
def test_prompts_of_a_contrast_are_read_as_far_as_is_asked_and_the_model_can(
    config, tmp_path, monkeypatch, given, length, read
):
    """The option is what it says; the model, which reads 128, is not loaded again for them."""
    file = tmp_path / "s.jsonl"
    rows = [{"prompt": f"is it {i:02}?".rjust(length), "label": "yn"[i % 2]} for i in range(16)]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    at = spot(replace(config, contrasts=str(file), max_length=given))
    monkeypatch.delattr("frenet.network.checkpoints.load.load")
    found = steering_direction(at)
    assert found is not None
    assert {len(item.context) for item in found.fresh.items} == {read}
    notes = [row["note"] for row in steering_rows(at, found) if row["table"] == "notes"]
    cut = [] if read == length else ["s: 16 of 16 prompts lost their beginning"]
    counts = "s: rows: 16 statements, positive: 8, negative: 8"
    assert sorted(notes) == sorted(["columns read: prompt, label", counts, *cut])
