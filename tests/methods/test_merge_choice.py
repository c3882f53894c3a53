"""Shares, scores and coefficients of merges, compared with values by hand."""

import numpy as np
import pytest
import torch

from frenet.methods.merge_choice import (
    LIMITS,
    Interval,
    Yardstick,
    blended,
    coefficients_by_block,
    half_of,
    halved,
)
from frenet.network.blocks import OUTSIDE, parameter_blocks
from frenet.network.space import ParamSpace
from measure.quadratic import RowsTask
from network.models import tiny_llama


def losses(**values):
    return {task: torch.tensor(each, dtype=torch.float64) for task, each in values.items()}


COUNTS = losses(a=[1.0, 3.0], b=[2.0, 2.0])
NONE, ALONE = losses(a=[4.0, 8.0], b=[10.0, 6.0]), losses(a=[1.0, 3.0], b=[4.0, 4.0])
STICK = Yardstick.of(COUNTS, NONE, ALONE, seed=0, resamples=50)


def test_shares_are_of_means_over_tokens():
    """a falls from 12/4 to 4/4 alone and to 8/4 merged, b from 16/4 to 8/4 and to 14/4."""
    merged = losses(a=[3.0, 5.0], b=[8.0, 6.0])
    assert STICK.gain("a")[0] == 2.0
    assert STICK.kept("a", merged)[0] == 0.5
    assert STICK.kept("b", merged)[0] == 0.25
    assert STICK.shares
    assert STICK.score(merged)[0] == 0.375
    assert STICK.score(NONE)[0] == 0.0
    assert STICK.score(ALONE)[0] == 1.0
    assert STICK.slopes() == {"a": -0.25, "b": -0.25}


def test_a_resample_is_the_mean_of_the_drawn_examples():
    """Two examples: every resample is one of them twice, or both."""
    means = STICK.mean("a", NONE)
    assert means[0] == 3.0
    assert set(np.round(means[1:], 12)) == {4.0, 3.0, round(8 / 3, 12)}
    assert set(STICK.weights["a"][1:].sum(1)) == {2.0}
    again = Yardstick.of(COUNTS, NONE, ALONE, seed=0, resamples=50)
    assert np.array_equal(again.weights["b"], STICK.weights["b"])
    other = Yardstick.of(COUNTS, NONE, ALONE, seed=1, resamples=50)
    assert not np.array_equal(other.weights["b"], STICK.weights["b"])


def test_without_a_gain_the_score_is_minus_the_mean_loss():
    """A tenth of 16/4 is 0.4: a vector that takes more off has a gain, one that takes less none."""
    for off, has in ((0.4375, True), (0.375, False)):
        alone = losses(a=[1.0, 3.0], b=[10.0, 6.0 - 4 * off])
        stick = Yardstick.of(COUNTS, NONE, alone, seed=0, resamples=2)
        assert stick.has_gain("b") is has
        assert stick.shares is has
        if not has:
            assert stick.score(NONE)[0] == -3.5
            assert stick.slopes() == {"a": -0.5, "b": -0.5}


def test_an_interval_has_95_percent_of_the_draws():
    found = Interval.of(np.array([7.0, *range(1001)], dtype=float))
    assert found == (7.0, 25.0, 975.0)


def test_halves_are_disjoint_and_a_single_example_is_in_both():
    assert [half_of(5, 0), half_of(5, 1)] == [slice(0, 2), slice(2, 5)]
    assert [list(range(1))[half_of(1, i)] for i in (0, 1)] == [[0], [0]]
    second = STICK.half(1)
    assert second.gain("a")[0] == pytest.approx(8 / 3 - 1)
    assert second.score(halved(ALONE, 1))[0] == pytest.approx(1.0)


def test_coefficients_by_parameter():
    reads = [lambda name: torch.tensor([1.0, 2.0]), lambda name: torch.tensor([10.0, 20.0])]
    blend = blended(reads, [lambda name: 2.0, lambda name: {"v": 0.0, "w": 0.5}[name]])
    assert blend("v").tolist() == [2.0, 4.0]
    assert blend("w").tolist() == [7.0, 14.0]
    nothing = blended(reads, [lambda name: 0.0] * 2)
    assert nothing("v").tolist() == [0.0, 0.0]


@pytest.fixture
def two_tasks():
    """A model, two tasks on it, and for each the change by a step down its gradient."""
    from frenet.measure.gradients import gradient

    model = tiny_llama().eval()
    space = ParamSpace.select(model, lambda name, _: "q_proj" in name or "down_proj" in name)
    tasks = {
        "a": RowsTask(name="a"),
        "b": RowsTask(((list(range(3, 9)), [20, 21]), ([30, 31], [33])), name="b"),
    }
    batches = {name: next(task.batches("train", 2, 0)) for name, task in tasks.items()}
    reads = []
    for name, task in tasks.items():
        step = -0.5 * gradient(model, task, batches[name], space=space)
        reads.append(space.unflatten(step).__getitem__)
    return model, space, tasks, batches, reads


def measured(model, space, tasks, batches, change):
    from frenet.network.tasks import example_losses

    with (
        torch.no_grad(),
        space.displaced(model, space.flatten({n: change(n) for n in space.names})),
    ):
        return {t: example_losses(model, b)[0].double() for t, b in batches.items()}


def test_coefficients_of_blocks_improve_the_score_within_their_limits(two_tasks):
    """They start at one for all, so they are never worse there, and the weights come back."""
    model, space, tasks, batches, reads = two_tasks
    zero = measured(model, space, tasks, batches, blended(reads, [lambda n: 0.0] * 2))
    own = [measured(model, space, tasks, batches, read) for read in reads]
    alone = {"a": own[0]["a"], "b": own[1]["b"]}
    counts = {name: (batch["labels"] != -100).sum(1).double() for name, batch in batches.items()}
    stick = Yardstick.of(counts, zero, alone, seed=0, resamples=2)
    before = space.read(model)
    blocks = parameter_blocks(model, space.names)
    assert OUTSIDE not in blocks.values()
    found = coefficients_by_block(
        model, tasks, batches, reads, space=space, blocks=blocks, yardstick=stick, start=(1.0, 1.0)
    )
    assert torch.equal(space.read(model), before)
    assert list(found) == ["block 0", "block 1"]
    assert all(LIMITS[0] <= c <= LIMITS[1] for pair in found.values() for c in pair)
    change = blended(reads, [lambda n, i=i: found[blocks[n]][i] for i in range(2)])
    plain = blended(reads, [lambda n: 1.0] * 2)
    scores = [
        float(stick.score(measured(model, space, tasks, batches, each))[0])
        for each in (change, plain)
    ]
    assert scores[0] > scores[1] + 1e-3


def test_the_gradient_of_the_coefficients_is_that_of_the_score(two_tasks, monkeypatch):
    """The slope that the optimiser is given, compared with differences of the score."""
    from frenet.methods import merge_choice

    model, space, tasks, batches, reads = two_tasks
    counts = {name: (batch["labels"] != -100).sum(1).double() for name, batch in batches.items()}
    zero = measured(model, space, tasks, batches, blended(reads, [lambda n: 0.0] * 2))
    alone = {t: 0.5 * values for t, values in zero.items()}
    stick = Yardstick.of(counts, zero, alone, seed=0, resamples=2)
    seen = {}

    def look(function, first, **settings):
        seen["value"], seen["slope"] = function(first)
        h = 1e-2
        seen["differences"] = [
            (function(first + h * e)[0] - function(first - h * e)[0]) / (2 * h)
            for e in np.eye(len(first))
        ]

    monkeypatch.setattr(merge_choice, "minimize", look)
    coefficients_by_block(
        model, tasks, batches, reads, space=space, blocks=parameter_blocks(model, space.names),
        yardstick=stick, start=(0.7, 0.4),
    )  # fmt: skip
    assert len(seen["slope"]) == 4
    np.testing.assert_allclose(seen["slope"], seen["differences"], rtol=2e-2, atol=1e-4)
