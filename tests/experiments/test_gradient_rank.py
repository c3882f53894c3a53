"""Gradients of a task from a file: how often its rows are gone through."""

import json
from dataclasses import replace

import torch

from frenet.experiments import EXPERIMENTS
from frenet.experiments.gradient_rank import Config
from frenet.experiments.gradient_rank.findings import decide
from frenet.experiments.gradient_rank.measure import _spectra
from frenet.geometry import rng
from frenet.network.space import ParamSpace
from network.models import tiny_llama, tiny_tokenizer


def test_halves_of_the_same_examples_are_told(tmp_path):
    """Of 40 rows 28 are for training: 4 batches of 4 need 16, 4 of 8 need 32."""
    tiny_llama().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    rows = [{"task": "next", "input": f"{i}", "output": f"{i + 1}"} for i in range(40)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    experiment = EXPERIMENTS["gradient-rank"]
    config = replace(
        experiment.presets["lm"], model=str(tmp_path), tasks=(str(file),), seeds=(0,),
        learn_steps=0, n=2, batch_sizes=(4, 8), points=("none",), ks=(1,), repeats=2, nulls=1,
    )  # fmt: skip
    (cell,) = experiment.cells(config)
    found = list(experiment.run(config, cell))
    notes = [str(row["note"]) for row in found if row["table"] == "notes"]
    repeated = [note for note in notes if "training rows" in note]
    assert len(repeated) == 1
    assert repeated[0].startswith("next: 4 batches of 8 go 1.1 times through 28 training rows")
    caution = "Both halves of the gradients come from the same training rows"
    assert [note.startswith(caution) for note in decide(found)[0].notes].count(True) == 1
    once = [row for row in found if row.get("note") != repeated[0]]
    assert not any(note.startswith(caution) for note in decide(once)[0].notes)


def test_the_random_stream_has_the_names_of_its_cell_whatever_other_columns_there_are(monkeypatch):
    """Stored runs were drawn with these names in this order."""
    asked, plain = [], rng.generator

    def named(seed, *names):
        asked.append((seed, *names))
        return plain(seed, *names)

    monkeypatch.setattr(rng, "generator", named)
    space = ParamSpace(("a", "b"), ((12,), (8,)))
    config = Config(nulls=1, repeats=2, n=4, ks=(1, 2))
    gradients, shuffled = torch.randn(2, 8, 20, generator=torch.Generator().manual_seed(1))
    keys = {"seed": 3, "space": "full", "point": "none", "batch_size": 16, "task": "copy"}
    more = {"dtype": "float32", **dict(reversed(keys.items())), "note": "x"}
    energies = []
    for columns in (keys, more):
        rows = list(_spectra(space, config, columns, gradients, shuffled))
        energies.append([{k: v for k, v in row.items() if k not in more} for row in rows])
    assert asked == [(3, "gradient-rank", "3", "full", "none", "16", "copy")] * 2
    assert energies[0] == energies[1]
