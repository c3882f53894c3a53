"""Directions around a language model with a small file of tasks."""

import json
from dataclasses import replace

import pytest
import torch

from frenet.experiments import EXPERIMENTS
from frenet.experiments.experiment import Cell
from frenet.experiments.networks import build
from frenet.experiments.scale_directions import Direction, Spot
from frenet.experiments.scale_rows import share_looks
from frenet.measure.gradients import gradient
from network.models import tiny_llama, tiny_tokenizer

EXPERIMENT = EXPERIMENTS["direction-scale"]
CELL = Cell.of(seed=0, space="lora", task="next")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Of 40 rows 6 are for testing."""
    folder = tmp_path_factory.mktemp("model")
    tiny_llama().save_pretrained(folder)
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
