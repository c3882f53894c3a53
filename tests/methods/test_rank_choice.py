"""Ranks of an adapter by its effect and by its norm."""

import itertools

import pytest
import torch

from frenet.geometry.rng import generator
from frenet.methods.rank_choice import (
    choose_ranks,
    cut_losses,
    factored,
    factored_parts,
    held,
    random_parts,
    rank_holding,
)
from frenet.methods.task_vectors import TaskVector, from_adapter
from frenet.network.tasks import collate, example_losses
from network.adapted import adapted
from network.models import tiny_llama


def low_rank(o, i, values, seed=0):
    draws = generator(seed, "low rank")
    U, V = (torch.linalg.qr(torch.randn(n, len(values), generator=draws))[0] for n in (o, i))
    return (U * torch.tensor(values)) @ V.T


def test_a_matrix_of_low_rank_comes_back_and_is_cut_like_a_dense_one():
    matrix = low_rank(40, 30, [5.0, 2.0, 0.5])
    found = factored(matrix, generator(0, "sketch"))
    torch.testing.assert_close(found.S, torch.tensor([5.0, 2.0, 0.5]))
    torch.testing.assert_close(found.cut(3), matrix, atol=1e-5, rtol=1e-5)
    U, S, Vh = torch.linalg.svd(matrix)
    torch.testing.assert_close(found.cut(2), (U[:, :2] * S[:2]) @ Vh[:2], atol=1e-5, rtol=1e-5)
    assert not found.cut(0).any()
    assert factored(torch.randn(40, 30, generator=generator(0, "full")), generator(0, "s")) is None


def test_a_share_of_the_norm_is_that_of_the_squared_singular_values():
    S = torch.tensor([3.0, 2.0, 1.0])  # 9, 13 and 14 of 14
    held_by = [rank_holding(S, share) for share in (0.5, 9 / 14, 0.65, 13 / 14, 0.99)]
    assert held_by == [1, 1, 2, 2, 3]


@pytest.fixture(scope="module")
def case():
    """A tiny model, an adapter's change of it, and examples that the adapted model would write."""
    model = tiny_llama()
    draws = generator(3, "adapter")
    names = [n for n, p in model.named_parameters() if "self_attn" in n and p.dim() == 2][:4]
    shapes = {name: tuple(model.get_parameter(name).shape) for name in names}
    # The third part is small, and the fourth is nearly of rank 1.
    sizes = ([3.0, 1.0], [3.0, 2.0], [1e-4, 1e-4], [3.0, 0.01])
    changes = {n: low_rank(*shapes[n], sizes[i], seed=i) for i, n in enumerate(names)}
    vector = TaskVector(shapes, changes.__getitem__, "made")
    rows = torch.randint(3, 30, (24, 12), generator=draws).tolist()
    with vector.applied(model), torch.no_grad():
        batch = collate([(row[:4], row[4:]) for row in rows])
        logits = model(batch["input_ids"]).logits
    written = torch.cat([batch["input_ids"][:, :1], logits[:, :-1].argmax(-1)], 1).tolist()
    pairs = [(row[:4], own[4:]) for row, own in zip(rows, written, strict=True)]
    return model, vector, collate(pairs), names


def test_losses_of_cut_adapters_are_those_of_the_cut_weights(case):
    model, vector, batch, names = case
    before = {name: p.clone() for name, p in model.named_parameters()}
    parts = factored_parts(vector)
    ranks = {names[0]: 1, names[1]: 2}
    with cut_losses(model, parts, batch) as losses:
        found, whole = losses.at(ranks), losses.at(losses.whole)
        again = losses.at(ranks)
        assert losses.passes == 3
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])
    change = {name: parts[name].cut(rank) for name, rank in ranks.items()}
    dense = TaskVector({n: vector.shapes[n] for n in ranks}, change.__getitem__, "cut")
    for made, expected in ((dense, found), (vector, whole)):
        with made.applied(model), torch.no_grad():
            direct = example_losses(model, batch)[0].double()
        torch.testing.assert_close(expected, direct, rtol=1e-4, atol=1e-4)
    assert torch.equal(found, again)


@pytest.mark.parametrize(
    ("share", "total", "least"), [(0.5, 1, 1), (0.8, 3, 3), (0.9, 6, 3), (0.97, 6, 5)]
)
def test_few_ranks_of_planted_weights_hold_the_share(case, share, total, least):
    """One weight does nothing, one does harm, and one needs a single direction.

    ``least`` is the fewest of all ranks that there are; with equal ones it takes all 8.
    """
    model, vector, batch, names = case
    with cut_losses(model, factored_parts(vector), batch) as losses:
        advice = choose_ranks(losses, share=share)
        # Both ends, each weight left out, and two bisections of 8 and of 2 places.
        assert losses.passes <= 2 + 4 + 3 + 1

        def mean(ranks):
            return float(losses.at(ranks).sum() / losses.counts.sum())

        best = mean(losses.whole)
        for one in advice.weights:
            out = mean({**losses.whole, one.name: 0})
            assert one.effect.value == pytest.approx(out - best, abs=1e-6)
        enough = [
            sum(ranks)
            for ranks in itertools.product(range(3), repeat=4)
            if held(losses.at(dict(zip(names, ranks, strict=True))), losses, seed=0).share.low
            >= share
        ]
    assert advice.gain.low > 0
    assert (sum(advice.ranks.values()), min(enough)) == (total, least)
    by_name = {one.name: one for one in advice.weights}
    assert [one.whole for one in advice.weights] == [2, 2, 2, 2]
    assert by_name[names[2]].effect.value == pytest.approx(0, abs=1e-3)
    assert by_name[names[2]].by_effect == 0
    assert by_name[names[3]].by_norm == 1


def test_an_adapter_that_does_harm_gets_no_ranks(case):
    model, vector, batch, _ = case
    with cut_losses(model, factored_parts(-vector), batch) as losses:
        advice = choose_ranks(losses)
    assert advice.weights == ()
    assert advice.gain.value < 0
    assert "no advice" in repr(advice)


def test_the_random_adapter_has_the_ranks_and_norms_of_the_own(case):
    parts = factored_parts(case[1])
    for name, twin in random_parts(parts, seed=0).items():
        assert len(twin.S) == len(parts[name].S)
        assert float(twin.S.norm()) == pytest.approx(float(parts[name].S.norm()), rel=1e-5)


def test_the_parts_of_a_stored_adapter_have_its_rank():
    vector = from_adapter(adapted("qwen2", trained=True))
    assert {len(part.S) for part in factored_parts(vector).values()} == {2, 3}


@pytest.mark.parametrize(("shape", "why"), [((8, 6), "a matrix of high rank"), ((8,), "no matrix")])
def test_what_has_no_low_rank_form_is_named(shape, why):
    change = torch.randn(shape, generator=generator(0, "change"))
    vector = TaskVector({"w": shape}, lambda _: change, "tuned")
    with pytest.raises(ValueError, match=f"tuned has no low-rank form: its change of w is {why}"):
        factored_parts(vector)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5])
def test_a_share_out_of_range_is_refused(case, share):
    model, vector, batch, _ = case
    with (
        cut_losses(model, factored_parts(vector), batch) as losses,
        pytest.raises(ValueError, match="pass a number between 0 and 1"),
    ):
        choose_ranks(losses, share=share)
