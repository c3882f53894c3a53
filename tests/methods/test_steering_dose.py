"""Effects of doses beside null vectors, and costs, against forward passes by hand."""

import numpy as np
import pytest
import torch

from frenet.geometry.alignment import Contrasted
from frenet.geometry.rng import generator
from frenet.measure.activations import add
from frenet.methods.steering_dose import (
    Asked,
    NeutralTexts,
    largest_null,
    null_vectors,
    shares,
)
from frenet.methods.steering_effect import neutral_cost
from frenet.network.data.contrast import Contrast, Item
from frenet.network.hooks.sites import Site
from network.models import tiny_llama

YES, NO = 20, 21
CONTRAST = Contrast(
    "told", "statements", ("yes", "no"),
    tuple(
        Item("t", [5 + i, 9, 3], ([5 + i, 9, 3, YES], [5 + i, 9, 3, NO]), i % 2 == 0, i)
        for i in range(6)
    ),
)  # fmt: skip
TEXTS = [([1], [7, 8, 9, 10]), ([1], [11, 4, 6]), ([1], [30, 31, 32, 33, 34])]


def by_hand(model, position, block, vector):
    """P(yes) of both answers after each prompt, from whole passes of transformers."""
    found = []
    for item in CONTRAST.items:
        with torch.no_grad(), add(model, {Site(block, position): vector}):
            logits = model(input_ids=torch.tensor([item.context])).logits[0, -1]
        found.append(float((logits[YES] - logits[NO]).sigmoid()))
    return np.array(found)


def test_shares_with_vectors_are_those_of_whole_passes():
    model = tiny_llama()
    asked = Asked.of(model, CONTRAST)
    added = torch.randn(3, 16, generator=generator(0, "added"))
    found = shares(asked.odds(1, added))
    assert found.shape == (6, 3)
    for i, vector in enumerate(added):
        np.testing.assert_allclose(found[:, i], by_hand(model, "last", 1, vector), atol=1e-5)
    np.testing.assert_allclose(
        shares(asked.everywhere(0, added[0])), by_hand(model, "all", 0, added[0]), atol=1e-5
    )
    zero = torch.zeros(16)
    np.testing.assert_allclose(shares(asked.before), by_hand(model, "last", 0, zero), atol=1e-5)
    np.testing.assert_allclose(asked.odds(0, zero[None])[:, 0], asked.before, atol=1e-4)


def test_null_vectors_have_unit_length_and_both_directions():
    draw = generator(0, "nulls")
    sides = Contrasted(torch.randn(9, 5, generator=draw), torch.randn(8, 5, generator=draw))
    other = torch.arange(5.0)
    found = null_vectors(sides, [other, torch.zeros(5)], draws=7, generator=draw)
    assert {kind: len(v) for kind, v in found.items()} == {
        "shuffled": 14, "matched": 14, "unrelated": 2,
    }  # fmt: skip
    for vectors in found.values():
        half = len(vectors) // 2
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
        torch.testing.assert_close(vectors[:half], -vectors[half:])
    torch.testing.assert_close(found["unrelated"][0], other / other.norm())


def test_null_vectors_stay_in_the_span_of_the_streams():
    """Streams that never leave a plane have null vectors in that plane."""
    draw = generator(0, "plane")
    plane = torch.randn(2, 6, generator=draw)
    rows = torch.randn(20, 2, generator=draw) @ plane
    found = null_vectors(Contrasted(rows[:10], rows[10:]), [], draws=4, generator=draw)
    basis = torch.linalg.qr(plane.T).Q
    for vectors in found.values():
        torch.testing.assert_close(vectors @ basis @ basis.T, vectors, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("paired", [False, True])
def test_null_vectors_hold_nothing_of_the_contrast_itself(paired):
    """Sides that differ along one axis, with noise along the others: nulls have only the noise.

    Random vectors with the covariance of all streams would point along the axis.
    """
    draw = generator(0, "axis")
    noise = torch.randn(2, 10, 6, generator=draw)
    noise[..., 0] = torch.tensor([50.0, -50.0])[:, None]
    sides = Contrasted(noise[0], noise[1], paired)
    found = null_vectors(sides, [], draws=5, generator=draw)
    for vectors in found.values():
        assert vectors[:, 0].abs().max() < 1e-6
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(10))


def test_the_largest_null_is_the_largest_of_all():
    model = tiny_llama()
    asked = Asked.of(model, CONTRAST)
    draw = generator(0, "largest")
    nulls = {kind: torch.randn(4, 16, generator=draw) for kind in ("shuffled", "matched")}
    null = largest_null(asked, 0, nulls, 0.7)
    every = [
        (by_hand(model, "last", 0, 0.7 * vector).mean(), kind)
        for kind, vectors in nulls.items()
        for vector in vectors
    ]
    most, kind = max(every)
    assert null.shares.mean() == pytest.approx(most, abs=1e-5)
    assert (null.kind, null.drawn) == (kind, 8)


def test_costs_are_means_over_texts_and_nothing_costs_nothing():
    model = tiny_llama()
    vector = torch.randn(16, generator=generator(0, "cost"))
    texts = NeutralTexts(model, TEXTS)
    idle, costly = texts.costs(0, torch.zeros(16)), texts.costs(1, vector)
    assert (idle.kl.value, idle.loss.value) == pytest.approx((0, 0), abs=1e-6)
    each = [
        neutral_cost(model, [text], [lambda: add(model, {Site(1, "all"): vector})])[0]
        for text in TEXTS
    ]
    assert costly.kl.value == pytest.approx(np.mean([cost.kl for cost in each]))
    change = [np.log(cost.perplexity) - np.log(cost.before) for cost in each]
    assert costly.loss.value == pytest.approx(np.mean(change), abs=1e-6)
    assert costly.kl.low < costly.kl.value < costly.kl.high
