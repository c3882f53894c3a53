"""The synthetic transformer and its tasks: answers by hand, splits apart, training that works."""

from collections import Counter

import pytest
import torch

from frenet.geometry import rng
from frenet.network.synthetic import model as synthetic
from frenet.network.synthetic.model import (
    BASE,
    FIRST_TASK_TOKEN,
    LEARNED,
    LENGTH,
    RULES,
    SEPARATOR,
    UNSEEN,
    VOCABULARY,
    SyntheticConfig,
    SyntheticTask,
    SyntheticTransformer,
    draw_digits,
    mixed_batch,
    train_synthetic,
    trained_synthetic,
)
from frenet.network.tasks import IGNORE, example_losses, token_loss

SMALL = SyntheticConfig(width=16, layers=1, heads=2, steps=40, batch_size=32)
ANSWERS = {
    "copy": ([3, 0, 9, 9, 1, 4], [5, 5, 5, 5, 5, 5]),
    "reverse": ([4, 1, 9, 9, 0, 3], [5, 5, 5, 5, 5, 5]),
    "sort": ([0, 1, 3, 4, 9, 9], [5, 5, 5, 5, 5, 5]),
    "successor": ([4, 1, 0, 0, 2, 5], [6, 6, 6, 6, 6, 6]),
    "addition": ([2, 1, 3], [0, 0, 0]),  # 3+9, 0+1, 9+4 and 5+5, modulo ten
    "parity": ([1, 1, 0, 1, 0, 0], [1, 0, 1, 0, 1, 0]),
    "maximum": ([9], [5]),
    "count": ([2], [0]),  # even digits: 0 and 4
    "predecessor": ([2, 9, 8, 8, 0, 3], [4, 4, 4, 4, 4, 4]),
    "descending": ([9, 9, 4, 3, 1, 0], [5, 5, 5, 5, 5, 5]),
}
DIGITS = torch.tensor([[3, 0, 9, 9, 1, 4], [5, 5, 5, 5, 5, 5]])


@pytest.mark.parametrize("name", RULES)
def test_every_rule_by_hand(name):
    assert RULES[name](DIGITS).tolist() == [list(row) for row in ANSWERS[name]]
    assert set(ANSWERS) == set(RULES)


@pytest.mark.parametrize("name", RULES)
def test_the_layout_of_a_batch(name):
    """[TASK] x1 .. x6 [SEP] y1 .. ym, loss on y only."""
    batch = SyntheticTask(name).encode(DIGITS)
    token = FIRST_TASK_TOKEN + list(RULES).index(name)
    answers = [list(row) for row in ANSWERS[name]]
    rows = [
        [token, *digits, SEPARATOR, *answer]
        for digits, answer in zip(DIGITS.tolist(), answers, strict=True)
    ]
    assert batch["input_ids"].tolist() == rows
    assert batch["labels"].tolist() == [[IGNORE] * (LENGTH + 2) + answer for answer in answers]
    assert batch["input_ids"].max() < VOCABULARY
    assert set(batch) == {"input_ids", "labels"}  # no row is padded


def test_tasks_have_tokens_of_their_own_and_eight_are_learned():
    assert len(LEARNED) == 8
    assert len(UNSEEN) == 2
    tokens = {SyntheticTask(n).encode(DIGITS)["input_ids"][0, 0].item() for n in RULES}
    assert tokens == set(range(FIRST_TASK_TOKEN, VOCABULARY))
    assert not tokens & {*range(BASE), SEPARATOR}


def test_an_unknown_task_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match="no synthetic task 'sorting'; there are copy, reverse"):
        SyntheticTask("sorting")


def numbers(digits):
    return (digits * BASE ** torch.arange(LENGTH - 1, -1, -1)).sum(1)


def test_the_splits_are_apart_and_cover_all_inputs():
    """By construction: the table gives each of the million inputs one split."""
    table = synthetic._split_table()
    assert len(table) == BASE**LENGTH
    assert torch.bincount(table).tolist() == [800_000, 100_000, 100_000]
    found = {}
    for i, split in enumerate(("train", "select", "test")):
        digits = draw_digits(20_000, split, rng.generator(0, "splits"))
        assert digits.shape == (20_000, LENGTH)
        assert int(digits.min()) >= 0
        assert int(digits.max()) < BASE
        found[split] = set(numbers(digits).tolist())
        assert {int(table[n]) for n in found[split]} == {i}
    assert not found["train"] & found["select"]
    assert not found["train"] & found["test"]
    assert not found["select"] & found["test"]


@pytest.mark.parametrize("split", ["train", "select", "test"])
def test_every_input_of_a_split_is_as_likely_as_any_other(split):
    """Each digit at each place within 4 standard errors of a tenth."""
    digits = draw_digits(20_000, split, rng.generator(1, "uniform"))
    error = (0.1 * 0.9 / 20_000) ** 0.5
    # The split itself is a sample of a tenth to eight tenths of all inputs.
    error += (0.1 * 0.9 / 100_000) ** 0.5
    for place in range(LENGTH):
        shares = torch.bincount(digits[:, place], minlength=BASE) / 20_000
        assert (shares - 0.1).abs().max() < 4 * error


def test_shuffled_answers_are_a_permutation_and_the_same_for_an_input_each_time():
    task = SyntheticTask("reverse")
    control = task.shuffled(5)
    assert control.name == task.name
    every = torch.arange(BASE**LENGTH)
    permutation = synthetic._shuffle_table(5)
    assert torch.equal(permutation.sort().values, every)
    batch = next(control.batches("train", 512, 0))
    true = next(task.batches("train", 512, 0))
    assert torch.equal(batch["input_ids"][:, :8], true["input_ids"][:, :8])
    inputs = numbers(true["input_ids"][:, 1:7])
    # Each input has the answer of the input that the permutation names.
    source = permutation[inputs][:, None] // BASE ** torch.arange(LENGTH - 1, -1, -1) % BASE
    assert torch.equal(batch["labels"][:, 8:], source.flip(1))
    assert (batch["labels"][:, 8:] == true["labels"][:, 8:]).float().mean() < 0.15
    again = control.encode(batch["input_ids"][:, 1:7])
    assert torch.equal(again["labels"], batch["labels"])
    other = task.shuffled(6).encode(batch["input_ids"][:, 1:7])
    assert not torch.equal(other["labels"], batch["labels"])


def test_shuffling_keeps_how_often_each_answer_comes():
    true = SyntheticTask("maximum").encode(draw_digits(5000, "train", rng.generator(0, "a")))
    wrong = SyntheticTask("maximum", shuffle_seed=1).encode(
        draw_digits(5000, "train", rng.generator(0, "a"))
    )
    counts = [Counter(batch["labels"][:, 8].tolist()) for batch in (true, wrong)]
    for digit in range(4, BASE):
        assert counts[0][digit] == pytest.approx(counts[1][digit], abs=4 * (2 * 5000 * 0.25) ** 0.5)
    agree = (true["labels"][:, 8] == wrong["labels"][:, 8]).float().mean()
    expected = sum((count / 5000) ** 2 for count in counts[0].values())
    assert float(agree) == pytest.approx(expected, abs=0.03)


def test_batches_are_fixed_by_seed_task_and_split():
    def first(name="copy", split="train", seed=0):
        return next(SyntheticTask(name).batches(split, 64, seed))["input_ids"][:, 1:7]

    assert torch.equal(first(), first())
    for other in ({"seed": 1}, {"name": "sort"}, {"split": "test"}):
        assert not torch.equal(first(), first(**other)), other
    stream = SyntheticTask("copy").batches("train", 64, 0)
    assert not torch.equal(next(stream)["input_ids"], next(stream)["input_ids"])


def test_drawing_does_not_touch_the_global_random_state():
    before = torch.get_rng_state()
    next(SyntheticTask("copy").shuffled(3).batches("select", 8, 0))
    SyntheticTransformer(SMALL, seed=3)
    train_synthetic(SyntheticConfig(width=8, layers=1, heads=1, steps=1, batch_size=16), seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_rows_padded_to_one_width_have_the_losses_of_their_own_batches():
    """Padding stands behind the targets, where causal attention does not look."""
    model = SyntheticTransformer(SMALL)
    shares = {"reverse": 3, "maximum": 2, "addition": 4}
    mixed = mixed_batch(shares, generator=rng.generator(0, "mixed"))
    assert mixed["input_ids"].shape == (9, 14)
    draw = rng.generator(0, "mixed")
    alone = [
        example_losses(model, SyntheticTask(name).encode(draw_digits(rows, "train", draw)))
        for name, rows in shares.items()
    ]
    losses, counts = example_losses(model, mixed)
    torch.testing.assert_close(losses, torch.cat([own for own, _ in alone]), rtol=0, atol=1e-5)
    assert counts.tolist() == [6] * 3 + [1] * 2 + [3] * 4


@pytest.mark.parametrize("side", ["left", "right"])
def test_masked_padding_changes_no_loss(side):
    """With a mask and positions counted from it, padding may stand on either side."""
    model = SyntheticTransformer(SMALL)
    plain = SyntheticTask("addition").encode(DIGITS)
    t, extra = plain["input_ids"].shape[1], 3
    span = slice(extra, None) if side == "left" else slice(t)
    padded = {
        "input_ids": torch.full((2, t + extra), 7),
        "labels": torch.full((2, t + extra), IGNORE),
        "attention_mask": torch.zeros(2, t + extra, dtype=torch.int64),
    }
    for key, value in (*plain.items(), ("attention_mask", 1)):
        padded[key][:, span] = value
    padded["position_ids"] = (padded["attention_mask"].cumsum(1) - 1).clamp(min=0)
    for found, expected in zip(
        example_losses(model, padded), example_losses(model, plain), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_network_has_the_shape_it_says():
    """d for width h, L blocks: (2 V + 14) h + L (12 h^2 + 13 h) + 2 h."""
    count = sum(p.numel() for p in SyntheticTransformer().parameters())
    assert count == (2 * VOCABULARY + 14) * 64 + 2 * (12 * 64**2 + 13 * 64) + 2 * 64
    logits = SyntheticTransformer(SMALL)(DIGITS).logits
    assert logits.shape == (2, 6, VOCABULARY)
    last = SyntheticTransformer(SMALL)(DIGITS, logits_to_keep=2).logits
    torch.testing.assert_close(last, logits[:, -2:])


def test_the_network_does_not_look_ahead():
    model = SyntheticTransformer(SMALL)
    other = DIGITS.clone()
    other[:, 4] = (other[:, 4] + 1) % BASE
    before, after = model(DIGITS).logits, model(other).logits
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.equal(before[:, 4:], after[:, 4:])


def test_the_seed_fixes_the_network():
    first, again, other = (SyntheticTransformer(SMALL, seed=s).head.weight for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_training_improves_every_task_and_is_fixed_by_the_seed():
    start = SyntheticTransformer(SMALL, seed=4)
    trained = train_synthetic(SMALL, seed=4)
    assert not trained.training
    assert all(p.grad is None for p in trained.parameters())
    for name in LEARNED:
        task = SyntheticTask(name)
        batch = next(task.batches("test", 256, 0))
        before, after = (float(task.loss(m, batch).detach()) for m in (start, trained))
        assert after < before - 0.2, name
    again = train_synthetic(SMALL, seed=4)
    for p, q in zip(trained.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


def test_the_score_is_of_a_fixed_sample_of_the_split():
    model, task = SyntheticTransformer(SMALL), SyntheticTask("maximum")
    score = task.score(model, "test")
    assert score == task.score(model, "test")
    batch = next(task.batches("test", 512, 0))
    guessed = model(batch["input_ids"]).logits[:, 7].argmax(1)
    share = float((guessed == batch["labels"][:, 8]).float().mean())
    assert score["token_accuracy"] == score["exact_match"] == pytest.approx(share)


def test_rows_go_to_the_tasks_with_the_most_loss():
    equal = synthetic._shares(torch.ones(8), 128)
    assert equal == dict.fromkeys(LEARNED, 16)
    recent = torch.zeros(8)
    recent[4] = 2.0
    shares = synthetic._shares(recent, 128)
    assert shares["addition"] == 8 + 64
    assert {rows for name, rows in shares.items() if name != "addition"} == {8}


@pytest.mark.parametrize("steps", [1, 10, 1500])
def test_the_rate_warms_up_and_decays(steps):
    rates = [synthetic._rate(step, steps) for step in range(steps)]
    assert min(rates) > 0
    assert max(rates) <= 1
    warmup = steps // 15
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    if steps == 1500:
        assert warmup == 100
        assert rates[99] == rates[100] == 1
        assert rates[-1] == pytest.approx(0.02, abs=1e-4)


def test_a_trained_network_comes_back_from_the_cache_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setenv("FRENET_CACHE", str(tmp_path))
    first = trained_synthetic(SMALL, seed=2)
    [path] = (tmp_path / "synthetic").iterdir()
    assert path.suffix == ".safetensors"
    monkeypatch.setattr(synthetic, "train_synthetic", lambda *_, **__: pytest.fail("trained again"))
    again = trained_synthetic(SMALL, seed=2)
    assert not again.training
    for (name, p), q in zip(first.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q), name
    expected = train_synthetic(SMALL, seed=2)
    assert all(map(torch.equal, again.parameters(), expected.parameters()))


@pytest.mark.parametrize("change", [{"seed": 3}, {"width": 32}, {"steps": 41}, {"lr": 1e-3}])
def test_other_settings_are_another_file(tmp_path, monkeypatch, change):
    asked = []
    monkeypatch.setenv("FRENET_CACHE", str(tmp_path))

    def untrained(config, *, seed):
        asked.append((config, seed))
        return SyntheticTransformer(config, seed=seed)

    monkeypatch.setattr(synthetic, "train_synthetic", untrained)
    trained_synthetic(SMALL, seed=2)
    fields = {**vars(SMALL), "seed": 2} | change
    seed = fields.pop("seed")
    trained_synthetic(SyntheticConfig(**fields), seed=seed)
    assert len(asked) == 2
    assert len(list((tmp_path / "synthetic").iterdir())) == 2


def test_the_loss_is_a_mean_over_targets():
    model = SyntheticTransformer(SMALL)
    batch = mixed_batch({"reverse": 3, "maximum": 2}, generator=rng.generator(0, "m"))
    losses, counts = example_losses(model, batch)
    assert float(token_loss(model, batch).detach()) == pytest.approx(
        float((losses.sum() / counts.sum()).detach())
    )


def test_a_cached_network_does_not_depend_on_the_threads_of_the_run(monkeypatch, tmp_path):
    found = []
    before = torch.get_num_threads()
    for threads in (1, 3):
        monkeypatch.setenv("FRENET_CACHE", str(tmp_path / str(threads)))
        torch.set_num_threads(threads)
        try:
            found.append(trained_synthetic(SMALL, seed=2).state_dict())
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name])


@pytest.mark.parametrize("seed", [2**64, 2**70, -(2**64)])
def test_seeds_of_any_size_make_networks_of_their_own(seed):
    def weight(seed):
        return SyntheticTransformer(SyntheticConfig(width=16), seed=seed).embed.weight

    assert torch.equal(weight(seed), weight(seed))
    assert not torch.equal(weight(seed), weight(seed + 1))
    assert not torch.equal(weight(seed), weight(0))
