"""Experiments on a file with fewer rows than they ask for: they take what there is, and say so."""

import json
from dataclasses import replace

import pytest

from frenet.experiments import EXPERIMENTS
from frenet.experiments.search_command import SearchConfig
from frenet.experiments.search_command.setup import load_subject
from frenet.experiments.setup.networks import build
from frenet.network.adapters import quiet_peft
from network.models import tiny_gpt2, tiny_llama, tiny_tokenizer

NOISE = {"protocols": ("absolute-noise",)}
RECOVERY = NOISE | {"n": 4, "steps": 60, "lora_optimizers": ("adamw:2e-3",)}
SMALL = {
    "best-of-n": {
        **NOISE,
        "places": ("random:4",), "searches": 1, "candidates": 4, "factors": (1.0,), "probes": 2,
    },
    "recovery-basis": RECOVERY | {"ks": (1, 2), "vector_steps": 1, "function_k": 2},
    "subspace-training": RECOVERY | {"ks": (2,), "tries": 1, "looks": 2},
    "direction-scale": {
        "protocol": "none",
        "k": 1, "n": 2, "lags": (1, 2), "prompts": 4, "candidates": 4, "probes": 2,
    },
    "task-vector-range": {"k": 1, "steps": 2, "scales": (0.0, 1.0)},
}  # fmt: skip
LAST = {
    "best-of-n": "winner", "recovery-basis": "capture", "subspace-training": "trained",
    "direction-scale": "lifetime", "task-vector-range": "inside",
}  # fmt: skip
FEWER = {
    "best-of-n": "next has 6 select rows, not 8; next has 6 test rows, not 32",
    "recovery-basis": "next has 6 select rows, not 16; next has 6 test rows, not 16",
    "subspace-training": "next has 6 select rows, not 16; next has 6 test rows, not 16",
    "direction-scale": "next has 6 select rows, not 8; next has 6 test rows, not 32",
    "task-vector-range": "next has 6 test rows, not 32",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model, and a file with 28 rows to train on, 6 to select by and 6 to test on."""
    folder = tmp_path_factory.mktemp("model")
    tiny_llama().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    rows = [{"task": "next", "input": f"{i}", "output": f"{i + 1}"} for i in range(40)]
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return {"model": str(folder), "tasks": (str(file),)}


@pytest.mark.parametrize("space", ["full", "lora"])
def test_an_adapter_is_no_network_of_an_experiment(source, tmp_path, space):
    """Of its model only the adapter would move: all weights, a user would think."""
    from peft import LoraConfig, get_peft_model

    with quiet_peft():
        wrapped = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    wrapped.peft_config["default"].base_model_name_or_path = source["model"]
    with quiet_peft():
        wrapped.save_pretrained(tmp_path / "adapter")
    config = replace(
        EXPERIMENTS["gradient-rank"].presets["lm"], **source | {"model": str(tmp_path / "adapter")}
    )
    with pytest.raises(ValueError, match="only the adapter would move; pass the base as"):
        build(config, space=space, seed=0)


@pytest.mark.parametrize("name", SMALL)
def test_a_small_file_is_measured_as_far_as_it_goes(name, source, tmp_path, monkeypatch):
    monkeypatch.setenv("FRENET_CACHE", str(tmp_path))
    experiment = EXPERIMENTS[name]
    config = replace(
        experiment.presets["lm"], seeds=(0,), damage_batch=4, damage_steps=20, learn_steps=60,
        **source, **SMALL[name],
    )  # fmt: skip
    (cell,) = experiment.cells(config)
    rows = list(experiment.run(config, cell))
    notes = [str(row["note"]) for row in rows if row["table"] == "notes"]
    assert LAST[name] in {row["table"] for row in rows}, rows
    (fewer,) = [note for note in notes if "fewer" in note]
    assert fewer == f"measured on fewer examples than requested: {FEWER[name]}"


@pytest.mark.parametrize("name", SMALL)
def test_a_tiny_file_is_taken_whole_where_that_says_something(name, source, tmp_path, monkeypatch):
    """12 rows: 8 to train on, fewer than a batch of learning, and 2 to select and to test by."""
    monkeypatch.setenv("FRENET_CACHE", str(tmp_path))
    rows = [{"task": "next", "input": f"{i}", "output": f"{i + 1}"} for i in range(12)]
    file = tmp_path / "tiny.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    experiment = EXPERIMENTS[name]
    config = replace(
        experiment.presets["lm"], seeds=(0,), damage_steps=20, learn_steps=60,
        **{**source, "tasks": (str(file),)}, **SMALL[name],
    )  # fmt: skip
    (cell,) = experiment.cells(config)
    if name != "best-of-n":
        with pytest.raises(ValueError, match="'next' has 8 training rows and batch_size asks for "):
            list(experiment.run(config, cell))
        config = replace(config, batch_size=4)
    rows = list(experiment.run(config, cell))
    assert LAST[name] in {row["table"] for row in rows}, rows
    (fewer,) = [r["note"] for r in rows if r["table"] == "notes" and "fewer" in str(r["note"])]
    assert "next has 8 train rows, not 10" in fewer


def test_examples_are_no_longer_than_the_model_reads(tmp_path):
    """64 tokens, for a model with 32 positions; a note says what was cut."""
    tiny_gpt2().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    rows = [{"task": "next", "input": f"{i:045}", "output": f"{i + 1}"} for i in range(40)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    config = replace(
        EXPERIMENTS["best-of-n"].presets["lm"], model=str(tmp_path), tasks=(str(file),),
        learn_steps=0, max_length=64,
    )  # fmt: skip
    network = build(config, space="full", seed=0)
    searched = SearchConfig(model=str(tmp_path), tasks=(str(file),), space="full", max_length=64)
    subject = load_subject(searched)
    for task, notes in ((network.tasks["next"], network.notes), (subject.task, subject.notes)):
        examples = [row.encoded for rows in task.examples.values() for row in rows]
        assert {len(row.context) + len(row.target) for row in examples} == {32}
        whole = {len(f"next: {i:045} -> {i + 1}") for i in range(40)}
        assert {row.cut for row in examples} == {length - 32 for length in whole}
        assert any("train: 28 of 28 rows cut" in note for note in notes)
