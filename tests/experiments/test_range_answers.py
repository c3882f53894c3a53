"""What the sentences about task vectors say, from rows by hand."""

from frenet.experiments.experiment import Row
from frenet.experiments.range_rows import answer_rows

KEYS = {"seed": 3, "space": "lora"}


def along(task: str, a: float, loss: float, random: float) -> Row:
    start = {"start": 3.0, "others": 1.0, "others_start": 1.0}
    return {"table": "along", **KEYS, "task": task, "a": a, "loss": loss, "random": random, **start}


def pair(task: str, other: str, kept: float | None) -> Row:
    return {"table": "pair", **KEYS, "task": task, "other": other, "kept": kept, "kept_random": 0.9}


def test_a_sentence_holds_the_ends_of_the_line_the_end_of_training_and_every_sum() -> None:
    rows = [
        along("copy", -1.0, 7.0, 3.1),
        along("copy", 0.0, 3.0, 3.0),
        along("copy", 1.0, 0.5, 3.2),
        along("copy", 2.0, 0.75, 3.3),
        along("sort", 1.0, 0.25, 3.4),
        pair("copy", "sort", 0.5),
        pair("sort", "copy", None),
    ]
    first, second = answer_rows(rows)
    assert first == {
        "table": "answer",
        **KEYS,
        "task": "copy",
        "sentence": "copy: loss 3 without its vector, 0.5 at 1 (3.2 along a random one), "
        "0.75 at 2 (3.3 along a random one), 7 at -1 (3.1 along a random one); "
        "0.50 of its gain is left with that of sort added (0.90 with a random one)",
    }
    assert second["sentence"] == (
        "sort: loss 3 without its vector, 0.25 at 1 (3.4 along a random one)"
    )
