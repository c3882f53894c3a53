"""What frenet makes itself: right answers, always the same, and a model that learns them."""

import re

import pytest
import torch

from frenet import contrasts, load, text_tasks
from frenet.network.checkpoints import builtin_gpt2 as made_model
from frenet.network.data.builtin_data import made_rows, spelled
from frenet.network.data.schemas import recognise

WORDS, COMPARISONS = "frenet:words", "frenet:comparisons"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FRENET_CACHE", str(tmp_path))
    monkeypatch.setattr(made_model, "STEPS", 12)
    return tmp_path


def test_words_are_the_same_every_time_and_no_prompt_stands_twice():
    rows = made_rows(WORDS)
    assert rows == made_rows(WORDS)
    prompts = [(row["task"], row["input"]) for row in rows.values]
    assert len(prompts) == len(set(prompts)) > 2500


def test_word_answers_are_right():
    rows = made_rows(WORDS).values
    numbers = {spelled(n): n for n in range(1000)}
    assert len(numbers) == 1000
    for row in rows:
        given, answer = row["input"], row["output"]
        if row["task"] == "reverse":
            assert answer.split() == given.split()[::-1]
        if row["task"] == "sort":
            assert answer.split() == sorted(given.split())
        if row["task"] == "next-number":
            assert numbers[answer] == numbers[given] + 1
        if row["task"] in ("plural", "past"):
            assert answer.split()[0] == given.split()[0]


def test_comparisons_are_labelled_rightly_and_half_of_them_are_true():
    rows = made_rows(COMPARISONS).values
    for row in rows:
        first, second = map(int, re.findall(r"\d+", row["statement"]))
        assert row["label"] == (first > second)
    assert 2 * sum(row["label"] for row in rows) == len(rows)


def test_made_data_are_read_like_files():
    tokenizer = made_model.made_tokenizer()
    tasks = text_tasks(WORDS, tokenizer, max_length=96)
    assert list(tasks) == ["plural", "past", "reverse", "sort", "next-number"]
    first = tasks["plural"].examples["train"][0]
    assert first.prompt.startswith("plural: ")
    assert first.prompt.endswith(" ->")
    found = contrasts(COMPARISONS, tokenizer, max_length=96)
    assert list(found) == ["comparisons"]
    assert recognise(made_rows(COMPARISONS)).fields == ("statement", "label")


def test_the_tokenizer_is_the_same_every_time_and_gives_every_text_back():
    once, again = made_model.made_tokenizer(), made_model.made_tokenizer()
    assert once.get_vocab() == again.get_vocab()
    text = "past: they grab -> they grabbed 47 ... über"
    assert once.decode(once(text)["input_ids"]) == text
    assert len(once("4711")["input_ids"]) == 4


def test_the_model_is_trained_once_learns_and_is_the_same_again(cache):
    first = load("frenet:gpt2")
    stamp = (cache / "made" / "gpt2-v1" / "model.safetensors").stat().st_mtime_ns
    again = load("frenet:gpt2")
    assert (cache / "made" / "gpt2-v1" / "model.safetensors").stat().st_mtime_ns == stamp
    assert first.fingerprint == again.fingerprint
    fresh = made_model.trained_gpt2(first.tokenizer, steps=12)
    same = zip(first.model.parameters(), fresh.parameters(), strict=True)
    assert all(torch.equal(a.cpu(), b) for a, b in same)
    task = text_tasks(WORDS, first.tokenizer, max_length=96)["reverse"]
    batch = next(task.batches("test", 32, 0))
    with torch.no_grad():
        assert task.loss(first.model, batch) < 0.9 * torch.tensor(384.0).log()


def test_names_that_frenet_does_not_make_are_refused():
    with pytest.raises(ValueError, match="no data set 'frenet:word'; there are frenet:words and"):
        made_rows("frenet:word")
    with pytest.raises(ValueError, match="no model 'frenet:llama'; there is frenet:gpt2"):
        load("frenet:llama")
