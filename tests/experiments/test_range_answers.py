"""What the sentences about task vectors say, from rows by hand."""

from types import SimpleNamespace

import pytest
import torch

from frenet.experiments.experiment import Answer, Row
from frenet.experiments.task_vector_range.answers import sentences
from frenet.experiments.task_vector_range.measure import pair_rows

KEYS = {"seed": 3, "space": "lora"}


def along(task: str, a: float, loss: float, random: float, way: str = "weights") -> Row:
    start = {"start": 3.0, "others": 1.0, "others_start": 1.0, "coordinates": way}
    return {"table": "along", **KEYS, "task": task, "a": a, "loss": loss, "random": random, **start}


def pair(task: str, other: str, kept: float | None) -> Row:
    keys = {**KEYS, "task": task, "other": other, "coordinates": "weights"}
    return {"table": "pair", **keys, "kept": kept, "kept_random": 0.9}


def reach(task: str, way: str, times: float, *, unbounded: bool = False) -> Row:
    keys = {**KEYS, "task": task, "coordinates": way}
    return {"table": "radius", **keys, "times": times, "unbounded": unbounded, "eps": 0.2}


def test_a_sentence_holds_the_ends_of_the_line_the_end_of_training_and_every_sum() -> None:
    rows = [
        along("copy", -1.0, 7.0, 3.1),
        along("copy", 0.0, 3.0, 3.0),
        along("copy", 1.0, 0.5, 3.2),
        along("copy", 2.0, 0.75, 3.3),
        along("copy", 1.0, 0.5, 3.5, "factors"),
        along("copy", -1.0, 1.5, 3.6, "factors"),
        along("sort", 1.0, 0.25, 3.4),
        reach("copy", "weights", 0.65),
        reach("copy", "factors", 8.0, unbounded=True),
        pair("copy", "sort", 0.5),
        pair("sort", "copy", None),
    ]
    first, second = sentences(rows)
    assert first == Answer(
        "copy",
        KEYS,
        "loss 3 without its vector; in the weights 0.5 at 1 (3.2 along a random vector), 0.75 at 2 "
        "(3.3 along a random vector), 7 at -1 (3.1 along a random vector), linear within 20% up to "
        "0.65 of its length; in the factors 0.5 at 1 (3.5 along a random vector), 1.5 at -1 (3.6 "
        "along a random vector), linear within 20% up to at least 8 of its length; 0.50 of its "
        "gain is left after adding the vector of sort in the weights (0.90 with a random vector)",
    )
    assert str(second) == (
        "sort: loss 3 without its vector; in the weights 0.25 at 1 (3.4 along a random vector); "
        "its gain is too small to measure what is left of it (less than a tenth of the loss)"
    )


def test_cells_with_the_same_task_have_a_sentence_each() -> None:
    rows = [along("copy", 1.0, 0.5, 3.2), along("copy", 1.0, 0.25, 3.2) | {"seed": 4}]
    found = {answer.keys["seed"]: answer.sentence for answer in sentences(rows)}
    assert "0.5 at 1 " in found[3]
    assert "0.25 at 1 " in found[4]


@pytest.mark.usefixtures("unchecked")
def test_what_is_left_of_a_gain_is_asked_from_a_tenth_of_the_loss() -> None:
    """Below, a share of the gain is a small number over a smaller one."""
    vectors = {"copy": torch.tensor([1.0, 0.0]), "sort": torch.tensor([0.0, 1.0])}
    spot = SimpleNamespace(
        paths=vectors,
        keys=KEYS,
        vector=lambda name, replicate=0: vectors[name],
        random=lambda name: torch.zeros(2),
        space=SimpleNamespace(dim=4),
        # The vector of copy takes 0.5 off its loss of 2, that of sort 0.1.
        losses=lambda delta: {"copy": 2 - 0.5 * float(delta[0]), "sort": 2 - 0.1 * float(delta[1])},
    )
    copy, sort = pair_rows(spot)
    assert (copy["gain"], copy["kept"], copy["transfer"]) == (0.5, 1.0, 0.0)
    assert sort["gain"] == pytest.approx(0.1)
    assert (sort["kept"], sort["kept_random"], sort["transfer"]) == (None, None, None)
