"""Tasks in a stated order: which batches they give, and the mean of two losses."""

from dataclasses import replace
from itertools import islice

import pytest
import torch

from frenet.measure.schedules import InTurn, Together
from frenet.network.synthetic.model import SyntheticConfig, SyntheticTask, SyntheticTransformer
from frenet.network.tasks import repeatable

COPY, SORT = SyntheticTask("copy"), SyntheticTask("sort")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_in_turn_gives_the_first_batches_of_each_and_then_the_last_task():
    given = list(islice(InTurn((COPY, SORT), 2).batches("train", 4, 3), 6))
    copies, sorts = (list(islice(task.batches("train", 4, 3), 3)) for task in (COPY, SORT))
    for found, expected in zip(given, [*copies[:2], *sorts[:2], *sorts[:2]], strict=True):
        assert same(found, expected)


def test_together_is_the_mean_of_both_losses_on_half_of_the_rows():
    model = SyntheticTransformer(SyntheticConfig(width=8, layers=1, heads=2)).eval()
    task = Together(COPY, SORT)
    batch = next(repeatable(task, "train", 8, 3))
    halves = [next(each.batches("train", 4, 3)) for each in (COPY, SORT)]
    losses = [
        each.loss(model, half).item() for each, half in zip((COPY, SORT), halves, strict=True)
    ]
    assert task.loss(model, batch).item() == pytest.approx(sum(losses) / 2)


def test_names_scores_and_shuffled_answers_are_those_of_the_tasks():
    model = SyntheticTransformer(SyntheticConfig(width=8, layers=1, heads=2)).eval()
    turn, both = InTurn((COPY, SORT), 2), Together(COPY, SORT)
    assert (turn.name, both.name) == ("copy, then sort", "copy with sort")
    assert turn.score(model, "test") == SORT.score(model, "test")
    one, other = COPY.score(model, "test"), SORT.score(model, "test")
    assert both.score(model, "test") == {key: (one[key] + other[key]) / 2 for key in one}
    assert turn.shuffled(1) == replace(turn, tasks=(COPY.shuffled(1), SORT.shuffled(1)))
    assert both.shuffled(1) == Together(COPY.shuffled(1), SORT.shuffled(1))
