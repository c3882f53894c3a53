"""Directions around a language model with a small file of tasks."""

import json
from dataclasses import replace

import pytest
import torch

from frenet.experiments import EXPERIMENTS
from frenet.experiments.experiment import Cell
from frenet.experiments.networks import build
from frenet.experiments.scale_directions import Direction, Spot, steering_direction
from frenet.experiments.scale_rows import share_looks, steering_rows
from frenet.integrations.recording import Recording
from frenet.measure.gradients import gradient
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
    with pytest.raises(ValueError, match="needs prompts that it steers; pass --contrasts FILE"):
        EXPERIMENT.cells(given)
    assert EXPERIMENT.cells(replace(given, contrasts="frenet:comparisons")) == [CELL]


def test_a_recorded_training_that_is_too_short_is_refused_first(config, tmp_path, monkeypatch):
    """Before anything is measured."""
    network = build(config, space="lora", seed=0)
    recording = Recording(tmp_path / "trajectory", network.space, gradients=False)
    recording.begin(network.space.read(network.model))
    recording.add(torch.ones(network.space.dim), zeros=0, gradient=None)
    recording.flush()
    monkeypatch.delattr("frenet.experiments.direction_scale.weight_directions")
    with pytest.raises(ValueError, match="has 1 steps; pass lags up to that"):
        list(EXPERIMENT.run(replace(config, trajectory=str(tmp_path)), CELL))


def test_a_steering_vector_whose_answers_are_several_tokens_is_left_out(config):
    """Alone: the directions of the weights are followed as ever, and the note has a remedy."""
    rows = list(EXPERIMENT.run(replace(config, contrasts="frenet:comparisons"), CELL))
    told = [row["note"] for row in rows if "left out" in str(row.get("note"))]
    assert told == [
        "the steering vector was left out: Yes or No is several tokens to this tokenizer, so that "
        "no logit is the answer's; pass --contrasts that are answered with one token"
    ]
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
    monkeypatch.delattr("frenet.network.load.load")
    found = steering_direction(at)
    assert found is not None
    assert {len(item.context) for item in found.fresh.items} == {read}
    notes = [row["note"] for row in steering_rows(at, found) if row["table"] == "notes"]
    assert notes == ([] if read == length else ["s: 16 of 16 prompts lost their beginning"])
