"""Gradients of a task from a file: how often its rows are gone through."""

import json
from dataclasses import replace

from frenet.experiments import EXPERIMENTS
from frenet.experiments.rank_findings import decide
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
    told = "Both halves of the gradients are of the same training rows"
    assert [note.startswith(told) for note in decide(found).notes].count(True) == 1
    once = [row for row in found if row.get("note") != repeated[0]]
    assert not any(note.startswith(told) for note in decide(once).notes)
