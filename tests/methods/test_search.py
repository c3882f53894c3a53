"""Random search: closed forms, honest reports, and results independent of the computation."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from frenet.geometry.basis import random_basis
from frenet.geometry.rng import generator
from frenet.geometry.theory import QuadraticModel, expected_maximum
from frenet.methods.candidates import Candidates, Noise
from frenet.methods.evaluation import Evaluator, most_together, row_scores
from frenet.methods.scores import RowScores, vote_scores
from frenet.methods.search import Selection, drop_duplicates, gain, random_search
from frenet.network.space import ParamSpace
from frenet.network.synthetic.model import SyntheticConfig, SyntheticTask, SyntheticTransformer
from frenet.network.tasks import IGNORE, collate, evaluate
from frenet.statistics.intervals import Estimate

TASK = SyntheticTask("reverse")
SMALL = Selection(select_size=8, test_size=16)


@pytest.fixture
def model():
    return SyntheticTransformer(SyntheticConfig(width=16), seed=0)


def test_a_linear_score_gives_the_closed_form(model):
    """m_N sigma ||g||, from 100 searches of 64 candidates in 16 dimensions."""
    space = ParamSpace.select(model, "ln_f.weight")
    g = torch.randn(space.dim, generator=generator(0, "slope"))

    def linear(network, batch):
        return float(space.read(network) @ g)

    chosen = Selection(linear, select_size=1, test_size=1)
    gains = [
        random_search(
            model, TASK, space, noise=Noise(0.1, seed=s), num_candidates=64, selection=chosen
        )
        for s in range(100)
    ]
    expected = expected_maximum(64) * 0.1 * float(g.norm())
    values = np.array([found.selected_gain for found in gains])
    assert abs(values.mean() - expected) < 0.05 * expected
    # The score ignores the batch, so that all of it is there on held-out data.
    for found in gains:
        assert found.held_out.gain.value == pytest.approx(found.selected_gain, rel=1e-4)


def test_a_score_that_ignores_the_weights_gains_nothing(model):
    """Coin tosses of unlike examples: the winner's score is high, its held-out gain is nought."""
    covered, curses = 0, []
    for seed in range(20):
        tosses = generator(seed, "tosses")

        def toss(network, batch, tosses=tosses):
            return float(torch.rand(1, generator=tosses))

        found = random_search(
            model, TASK, ParamSpace.select(model, "ln_f"), noise=Noise(0.1, seed=seed),
            num_candidates=32, selection=Selection(toss, select_size=4, test_size=64, seed=seed),
        )  # fmt: skip
        curses.append(found.selected_gain)
        covered += found.held_out.gain.low <= 0 <= found.held_out.gain.high
    assert covered >= 17
    assert np.mean(curses) > 0.2


@pytest.mark.parametrize("score", ["loss", "accuracy", "exact"])
@pytest.mark.parametrize("where", ["all", "head", "basis"])
def test_scores_do_not_depend_on_how_many_are_evaluated_together(model, score, where, monkeypatch):
    space = ParamSpace.select(model, None if where != "head" else "head")
    place = space
    if where == "basis":
        place = random_basis(space.dim, 5, generator(0, "b"), space=space)
    batch = next(TASK.batches("select", 6, 0))
    evaluator = Evaluator(place, Noise(0.3, seed=1), score, batch)
    together = evaluator(model, range(7))
    monkeypatch.setattr("frenet.methods.evaluation.TOKENS", 2 * batch["labels"].numel())
    assert evaluator(model, range(7)) == pytest.approx(together, abs=1e-5)
    monkeypatch.setattr("frenet.methods.evaluation.can_group", lambda *_: False)
    assert evaluator(model, range(7)) == pytest.approx(together, abs=1e-5)
    assert evaluator(model, [5, 2]) == pytest.approx([together[5], together[2]], abs=1e-5)


@pytest.mark.parametrize(("rows", "together"), [(6, True), (200, False)])
def test_candidates_share_a_pass_up_to_4096_tokens(model, rows, together):
    """Where no block is shared, at least four of them."""
    batch = next(TASK.batches("select", rows, 0))
    tokens = 4096 // batch["labels"].numel()
    assert (tokens >= 4) == together
    assert most_together(model, ParamSpace.select(model), batch) == (tokens if together else 1)


def test_scores_are_those_of_the_displaced_network(model):
    space = ParamSpace.select(model)
    batch = next(TASK.batches("select", 6, 0))
    with Candidates(model, space, Noise(0.2)) as candidates:
        delta = candidates.delta(3)
    with space.displaced(model, delta):
        wanted = evaluate(model, batch)
    found = {
        s: Evaluator(space, Noise(0.2), s, batch)(model, [3])[0]
        for s in ("loss", "accuracy", "exact")
    }
    assert found["loss"] == pytest.approx(-wanted.loss, abs=1e-5)
    assert found["accuracy"] == pytest.approx(wanted.token_accuracy)
    assert found["exact"] == pytest.approx(wanted.exact_match)


def test_the_result_is_the_same_again_and_the_model_untouched(model):
    space = ParamSpace.select(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    first, again = (
        random_search(model, TASK, space, noise=Noise(0.1), num_candidates=20, selection=SMALL)
        for _ in range(2)
    )
    assert torch.equal(first.scores, again.scores)
    assert first.order == again.order
    assert first.held_out == again.held_out
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_a_search_finds_what_the_theory_predicts(model):
    """The mean and the spread of 400 small changes of the loss, within 4 standard errors."""
    from frenet.measure.gradients import gradient

    space, sigma = ParamSpace.select(model), 1e-3
    batch = drop_duplicates(next(TASK.batches("select", 8, 0)))
    g = gradient(model, TASK, batch, space=space)
    found = random_search(
        model, TASK, space, noise=Noise(sigma), num_candidates=400, selection=SMALL
    )
    changes = found.before - found.scores
    std = QuadraticModel(space.dim, float(g.norm()), 0.0).change(sigma).std
    assert abs(float(changes.std()) / std - 1) < 4 / 800**0.5
    assert abs(float(changes.mean())) < 4 * std / 20


def test_tied_noise_has_the_variance_of_its_own_prediction(model):
    """sigma^2 ||sum of the gradients of equal-shaped tensors||^2, not sigma^2 times their sum."""
    space = ParamSpace.select(model, r"blocks.*(q|k|v|o)_proj.weight")
    g = torch.randn(space.dim, generator=generator(0, "slope")).abs()

    def linear(network, batch):
        return float(space.read(network) @ g)

    batch = next(TASK.batches("select", 1, 0))
    tied, free = (
        np.std(Evaluator(space, Noise(0.1, tied=flag), linear, batch)(model, range(300)))
        for flag in (True, False)
    )
    together = torch.stack(list(space.unflatten(g).values())).sum(0)
    assert tied == pytest.approx(0.1 * float(together.norm()), rel=4 / 600**0.5)
    assert free == pytest.approx(0.1 * float(g.norm()), rel=4 / 600**0.5)
    assert tied > 2 * free


def test_equal_scores_are_ordered_by_their_index(model):
    constant = Selection(lambda network, batch: 1.0, select_size=2, test_size=4, top=3)
    space = ParamSpace.select(model, "ln_f")
    found = random_search(
        model, TASK, space, noise=Noise(0.1), num_candidates=6, selection=constant
    )
    assert found.order == tuple(range(6))
    assert found.held_out.gain == Estimate(0.0, 0.0, 0.0, 4)
    assert found.vote is None


def test_a_gain_and_its_bootstrap_by_hand():
    """Twice as many tokens count twice; the interval is that of the mean of paired differences."""
    before = RowScores(torch.tensor([[1.0, 2.0]]), torch.tensor([1.0, 2.0]))
    after = RowScores(torch.tensor([[2.0, 2.0]]), torch.tensor([1.0, 2.0]))
    found = gain(before, after, seed=0)
    assert found[:2] == (pytest.approx(1.0), pytest.approx(4 / 3))
    assert found.gain.value == pytest.approx(1 / 3)
    # Resamples are (1, 1), (1, 2), (2, 2): differences 1, 1/3, 0.
    assert found.gain.low == 0.0
    assert found.gain.high == 1.0


def test_one_example_has_no_interval(model):
    found = random_search(
        model,
        TASK,
        ParamSpace.select(model, "ln_f.weight"),
        noise=Noise(0.1),
        num_candidates=2,
        selection=Selection(lambda network, batch: 1.0, select_size=1, test_size=1),
    )
    assert found.held_out.gain == Estimate(0.0, None, None, 1)
    assert "nan" not in repr(found)
    assert "0, the unperturbed weights, with a score of 1" in found._repr_html_()


def test_bootstrap_intervals_cover_the_mean():
    covered = 0
    for seed in range(200):
        draws = torch.randn(1, 60, generator=generator(seed, "draws")) + 0.3
        found = gain(
            RowScores(torch.zeros(1, 60), torch.ones(60)),
            RowScores(draws, torch.ones(60)),
            seed=seed,
            resamples=400,
        )
        covered += found.gain.low < 0.3 < found.gain.high
    assert abs(covered / 200 - 0.95) < 4 * (0.95 * 0.05 / 200) ** 0.5 + 0.01


def test_a_vote_goes_to_the_majority_and_a_tie_to_the_better():
    labels = torch.tensor([[7, 8, IGNORE]])
    votes = [torch.tensor([[7, 1, 0]]), torch.tensor([[7, 8, 1]]), torch.tensor([[2, 8, 2]])]
    found = vote_scores([(v, labels) for v in votes], exact=False)
    assert found.means().tolist() == [1.0]
    assert vote_scores([(v, labels) for v in votes], exact=True).means().tolist() == [1.0]
    tie = vote_scores([(v, labels) for v in votes[:2]], exact=False)
    assert tie.means().tolist() == [0.5]


def test_average_and_vote_of_one_are_the_winner(model):
    chosen = replace(SMALL, score="accuracy")
    space = ParamSpace.select(model)
    found = random_search(model, TASK, space, noise=Noise(0.3), num_candidates=9, selection=chosen)
    assert found.vote is not None
    assert found.vote.after == pytest.approx(found.held_out.after)
    assert found.average.after == pytest.approx(found.held_out.after, abs=1e-6)


def test_exact_match_is_greedy_generation(model):
    """Generated one token at a time, the answer is the target exactly when the score says so."""
    batch = next(TASK.batches("test", 64, 0))
    ids, labels = batch["input_ids"], batch["labels"]
    first = int((labels[0] != IGNORE).nonzero()[0])
    # Targets that an untrained network would give for half of the rows.
    generated = ids.clone()
    for t in range(first, ids.shape[1]):
        generated[:, t] = model(generated[:, :t]).logits[:, -1].argmax(-1)
    ids[::2], labels[::2, first:] = generated[::2], generated[::2, first:]
    found = row_scores(model, "exact", {"input_ids": ids, "labels": labels})
    same = (generated[:, first:] == labels[:, first:]).all(1)
    assert torch.equal(found.sums[0].bool(), same)
    assert same[::2].all()


class OneSplit(SyntheticTask):
    """A task with the same rows in all splits."""

    def batches(self, split, batch_size, seed):
        return super().batches("train", batch_size, seed)


def test_bad_input_is_refused_before_anything_is_done(model):
    space = ParamSpace.select(model, "ln_f")
    with pytest.raises(ValueError, match="num_candidates=0; pass at least 1"):
        random_search(model, TASK, space, noise=Noise(0.1), num_candidates=0)
    with pytest.raises(ValueError, match="top=0 leaves no winner to report; pass at least 1"):
        random_search(
            model, TASK, space, noise=Noise(0.1), num_candidates=2, selection=Selection(top=0)
        )
    with pytest.raises(ValueError, match="8 of the 8 examples that candidates are selected on"):
        random_search(
            model, OneSplit("reverse"), space, noise=Noise(0.1), num_candidates=2, selection=SMALL
        )
    with pytest.raises(ValueError, match="no score 'bleu'; there are loss, accuracy, exact"):
        random_search(
            model, TASK, space, noise=Noise(0.1), num_candidates=2, selection=Selection("bleu")
        )


@pytest.mark.parametrize(
    ("answer", "error", "match"),
    [
        (torch.tensor(1.0), TypeError, "returned a Tensor; return a float, such as .item"),
        (None, TypeError, "returned a NoneType"),
        (math.nan, FloatingPointError, "returned nan; candidates cannot be ranked"),
    ],
)
def test_a_score_has_to_be_a_number(model, answer, error, match):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    calls = []

    def score(network, batch):
        calls.append(1)
        return 1.0 if len(calls) < 4 else answer

    with pytest.raises(error, match=match):
        random_search(
            model, TASK, ParamSpace.select(model), noise=Noise(0.1), num_candidates=8,
            selection=Selection(score, select_size=2, test_size=2),
        )  # fmt: skip
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_a_sigma_that_breaks_the_network_is_named(model):
    with pytest.raises(
        FloatingPointError, match=r"the score of candidate 0 is nan at sigma=1e\+30"
    ):
        random_search(
            model, TASK, ParamSpace.select(model), noise=Noise(1e30), num_candidates=2,
            selection=SMALL,
        )  # fmt: skip


def test_repeated_examples_count_once():
    batch = collate([([1, 2], [3]), ([1, 2], [4]), ([1, 2], [3]), ([9, 1, 2], [3])])
    assert len(drop_duplicates(batch)["labels"]) == 3


def test_bf16_that_swallows_the_noise_is_told(model):
    half = model.to(torch.bfloat16)
    with pytest.warns(RuntimeWarning, match="of the weights do not move: torch.bfloat16 rounds"):
        random_search(
            half, TASK, ParamSpace.select(half, "up_proj.weight"), noise=Noise(1e-4),
            num_candidates=2, selection=SMALL,
        )  # fmt: skip
