"""Contrasts from files: what is read, what is answered, what is refused."""

import json

import pytest

from frenet.network.data.contrast import UnansweredError
from frenet.network.data.contrasts import answered_names, contrasts
from frenet.network.data.files import RowError
from frenet.network.synthetic.contrasts import ANSWERS, synthetic_contrast
from network.models import tiny_tokenizer

# Tokens of one character; the two words are one token each.
WORDS = tiny_tokenizer(" y", " n")


def write(folder, rows, name="data.jsonl"):
    path = folder / name
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


def text(ids):
    return WORDS.decode(ids)


def labelled(labels):
    return [{"prompt": f"is it {i}?", "label": label} for i, label in enumerate(labels)]


def test_statements(tmp_path):
    path = write(tmp_path, labelled(["y", "n", "y", "n"]))
    (found,) = contrasts(path, WORDS, max_length=32, positive="y").values()
    assert (found.name, found.kind, found.words) == ("data", "statements", ("y", "n"))
    assert [item.label for item in found.items] == [True, False, True, False]
    for i, item in enumerate(found.items):
        assert text(item.context) == f"is it {i}?"
        assert [text(side) for side in item.sides] == [f"is it {i}? y", f"is it {i}? n"]
        assert [text(answer) for answer in item.both_answers()] == [" y", " n"]
        assert item.line == i + 1
    assert [item.label for item in found.of_class(False)] == [False, False]


def test_the_positive_side_is_known_by_its_word(tmp_path):
    path = write(tmp_path, labelled(["no", "yes", "no", "yes"]))
    (found,) = contrasts(path, WORDS, max_length=32).values()
    assert found.words == ("yes", "no")
    assert [item.label for item in found.items] == [False, True, False, True]


def test_words_in_place_of_labels(tmp_path):
    path = write(tmp_path, labelled(["true", "false"] * 2))
    (found,) = contrasts(path, WORDS, max_length=32, words=("y", "n")).values()
    assert [text(answer) for answer in found.items[0].both_answers()] == [" y", " n"]
    assert found.items[0].label is True


def test_statements_are_asked_about(tmp_path):
    """The known schema, and a prompt of one's own."""
    rows = [{"statement": f"it is {i}.", "label": i % 2, "dataset": "d"} for i in range(4)]
    path = write(tmp_path, rows)
    (found,) = contrasts(path, WORDS, max_length=99).values()
    assert (found.name, found.words) == ("d", ("Yes", "No"))
    assert [item.label for item in found.items] == [False, True, False, True]
    assert "statement true? it is 1.\nAnswer:" in found.items[1].text
    (own,) = contrasts(
        path, WORDS, max_length=99, prompt="{statement} so?", words=("y", "n")
    ).values()
    assert text(own.items[1].context) == "it is 1. so?"
    assert text(own.items[1].both_answers()[0]) == " y"


def test_answers_of_several_tokens(tmp_path):
    path = write(tmp_path, labelled(["yes", "no"] * 2))
    (found,) = contrasts(path, WORDS, max_length=32).values()
    item = found.items[0]
    assert [len(answer) for answer in item.both_answers()] == [3, 2]
    assert [text(answer) for answer in item.both_answers()] == [" yes", " no"]
    assert text(item.context) == "is it 0?"
    assert text(item.sides[0]) == "is it 0? yes"
    (note,) = found.answer_notes
    assert note.startswith("data: answers are 2 to 3 tokens; ")
    found.require_answers()


def test_of_answers_of_equal_length_the_note_says_the_sum(tmp_path):
    path = write(tmp_path, labelled(["yo", "no"] * 2))
    (found,) = contrasts(path, WORDS, max_length=32).values()
    (note,) = found.answer_notes
    assert note.startswith("data: every answer is 2 tokens; ")
    (one,) = contrasts(path, WORDS, max_length=32, words=("y", "n")).values()
    assert one.answer_notes == ()


def test_a_beginning_that_both_answers_share_is_read_with_the_prompt(tmp_path):
    """The answers are what follows: their first tokens differ, and the shared part cancels."""
    path = write(tmp_path, labelled(["true", "trite"] * 2))
    (found,) = contrasts(path, WORDS, max_length=32).values()
    for i, item in enumerate(found.items):
        assert text(item.context) == f"is it {i}? tr"
        assert [text(answer) for answer in item.both_answers()] == ["ue", "ite"]


def test_an_answer_that_begins_the_other_can_be_read_but_not_answered(tmp_path):
    """The class form needs no answers; there is no log-odds of events that include each other."""
    path = write(tmp_path, labelled(["yes", "yes it is"] * 2))
    (found,) = contrasts(path, WORDS, max_length=32).values()
    item = found.items[0]
    assert text(item.context) == "is it 0?"
    assert [text(side) for side in item.sides] == ["is it 0? yes", "is it 0? yes it is"]
    for ask in (item.both_answers, found.require_answers):
        with pytest.raises(
            UnansweredError, match=r"one answer to 'is it 0\?' \(line 1\) is the beginning of the"
        ):
            ask()


def test_choices(tmp_path):
    """Of either letter one answer is the behaviour; what is answered is the letter alone."""
    rows = [
        {
            "question": f"would it {i}?",
            "behavior": "b",
            "answer_matching_behavior": f"({letter})",
            "answer_not_matching_behavior": f"({'AB'[letter == 'A']})",
        }
        for i, letter in enumerate("ABBA")
    ]
    (found,) = contrasts(write(tmp_path, rows), WORDS, max_length=64).values()
    assert (found.name, found.kind) == ("b", "choices")
    ids = {letter: WORDS.convert_tokens_to_ids(letter) for letter in "AB"}  # B is unknown to it
    assert ids["A"] != ids["B"]
    for item, letter in zip(found.items, "ABBA", strict=True):
        assert item.label is None
        assert text(item.context).endswith("Answer: (")
        wanted = ([ids[letter]], [ids["AB"[letter == "A"]]])
        assert tuple(side[-1:] for side in item.sides) == wanted
        assert item.both_answers() == wanted


def questions(answers):
    return [
        {"question": f"would it {i}?", "behavior": "b", "answer_matching_behavior": answer}
        for i, answer in enumerate(answers)
    ]


def test_other_answers_are_refused_with_a_remedy_that_works(tmp_path):
    path = write(tmp_path, questions(["y", "n", "n", "y"]))
    with pytest.raises(RowError, match=r"unknown label 'y'; .*prompt and label") as refused:
        contrasts(path, WORDS, max_length=64)
    columns = str(refused.value).rpartition("--columns ")[2].rstrip(")").split()
    found = contrasts(path, WORDS, max_length=64, columns=columns, positive="y")["b"]
    assert (found.kind, found.words) == ("statements", ("y", "n"))
    assert [item.label for item in found.items] == [True, False, False, True]


def test_a_space_before_the_letters_changes_nothing(tmp_path):
    """Published A/B questions are answered " (A)" and " (B)"."""
    plain = write(tmp_path, questions(["(A)", "(B)", "(B)", "(A)"]), "plain.jsonl")
    spaced = write(tmp_path, questions([" (A)", " (B)", "(B)", " (A) "]), "spaced.jsonl")
    want, found = (contrasts(path, WORDS, max_length=64)["b"] for path in (plain, spaced))
    assert found.kind == "choices"
    assert (found.items, found.words) == (want.items, want.words)
    # Each letter is a token after the bracket; none stands before the bracket in the prompt.
    assert all(text(item.context).endswith("?\n\nAnswer: (") for item in found.items)
    assert found.items[0].both_answers() == found.items[1].both_answers()[::-1]


@pytest.mark.parametrize("answer", ["A", "Yes"])
def test_other_answers_to_ab_questions_are_refused(tmp_path, answer):
    path = write(tmp_path, questions(["(A)", answer]))
    for read in (lambda: contrasts(path, WORDS, max_length=64), lambda: answered_names(path)):
        with pytest.raises(
            RowError, match=rf"line 2: unknown label '{answer}'; known are \(A\), \(B\); read other"
        ):
            read()


def test_a_positive_word_is_known_behind_a_space(tmp_path):
    path = write(tmp_path, labelled([" no", " yes"] * 2))
    (found,) = contrasts(path, WORDS, max_length=32).values()
    assert found.words == ("yes", "no")


def test_pairs(tmp_path):
    rows = [{"positive": "i agree", "negative": "i do not"}, {"positive": "ok", "negative": "no"}]
    (found,) = contrasts(write(tmp_path, rows), WORDS, max_length=32).values()
    assert found.kind == "pairs"
    assert [text(side) for side in found.items[0].sides] == ["i agree", "i do not"]
    with pytest.raises(
        ValueError, match=r"'i agree' \(line 1\) has no answers: it is a pair of texts"
    ):
        found.items[0].both_answers()
    prompted = [{"prompt": "say:", **row} for row in rows]
    (found,) = contrasts(write(tmp_path, prompted), WORDS, max_length=32).values()
    assert [text(side) for side in found.items[1].sides] == ["say: ok", "say: no"]


def test_pairs_of_several_behaviours(tmp_path):
    rows = [
        {"positive": f"a{i}", "negative": f"b{i}", "behavior": name}
        for i in range(4)
        for name in ("one", "two")
    ]
    found = contrasts(write(tmp_path, rows), WORDS, max_length=32)
    assert {name: len(c.items) for name, c in found.items()} == {"one": 4, "two": 4}


def test_parts_are_disjoint_and_balanced(tmp_path):
    path = write(tmp_path, labelled(["y"] * 14 + ["n"] * 9))
    (found,) = contrasts(path, WORDS, max_length=32, positive="y").values()
    parts = found.divided(4, seed=0)
    lines = [item.line for part in parts for item in part.items]
    assert len(lines) == len(set(lines))
    for part in parts:
        assert len(part.of_class(True)) == 3
        assert len(part.of_class(False)) == 2
    assert found.divided(4, seed=0) == parts
    assert found.divided(4, seed=1) != parts
    assert [len(part.items) for part in found.divided(2, seed=0, rows=4)] == [4, 4]
    with pytest.raises(ValueError, match="has 9 prompts with the label 'n', too few for 5 parts"):
        found.divided(5, seed=0)


def test_repeated_rows_count_once_so_that_no_part_holds_them_twice(tmp_path):
    rows = labelled(["y", "n"] * 6)
    once = contrasts(write(tmp_path, rows, "a.jsonl"), WORDS, max_length=32)["a"]
    (tmp_path / "more").mkdir()
    path = write(tmp_path / "more", rows * 3, "a.jsonl")
    thrice = contrasts(path, WORDS, max_length=32)["a"]
    assert thrice.notes == (*once.notes, "a: 24 repeated rows dropped")
    assert thrice.items == once.items
    first, second, third = thrice.divided(3, seed=0)
    assert len({item.text for part in (first, second, third) for item in part.items}) == 12


def test_repeated_pairs_count_once(tmp_path):
    pair, other = {"positive": "a", "negative": "b"}, {"positive": "a", "negative": "c"}
    path = write(tmp_path, [pair, other, pair])
    (found,) = contrasts(path, WORDS, max_length=32).values()
    assert [item.line for item in found.items] == [1, 2]
    assert found.notes[1:] == ("data: 1 repeated rows dropped",)
    with pytest.raises(ValueError, match="'data' has a single pair"):
        contrasts(write(tmp_path, [pair, pair]), WORDS, max_length=32)


@pytest.mark.parametrize(
    "rows",
    [
        [*labelled(["y", "n"]), {"prompt": "is it 0?", "label": "n"}],
        [*questions(["(A)", "(B)"]), {**questions("B")[0], "answer_matching_behavior": "(B)"}],
        [{"positive": a, "negative": b} for a, b in ("ab", "cd", "ba")],
    ],
)
def test_a_text_on_either_side_is_refused(tmp_path, rows):
    with pytest.raises(RowError, match=r"line 3: .* has the tokens of line 1, on the other side"):
        contrasts(write(tmp_path, rows), WORDS, max_length=64)


def test_the_fingerprint_is_of_the_tokens(tmp_path):
    paths = [write(tmp_path, labelled(["y", "n", *end]), "a.jsonl") for end in (["y", "n"],) * 2]
    first, again = (next(iter(contrasts(p, WORDS, max_length=32).values())) for p in paths)
    assert first.fingerprint == again.fingerprint
    other = write(tmp_path, labelled(["y", "n", "n", "y"]), "a.jsonl")
    assert (
        next(iter(contrasts(other, WORDS, max_length=32).values())).fingerprint != first.fingerprint
    )


@pytest.mark.parametrize(
    ("rows", "error", "match"),
    [
        (labelled(["y"] * 4), ValueError, "all labels of contrast 'data' are 'y'"),
        (labelled(["a", "b", "c"]), ValueError, r"has 3 labels \('a', 'b', 'c' ...\), and a cont"),
        ([{"positive": "a", "negative": "b"}], ValueError, "'data' has a single pair"),
        ([{"positive": "a", "negative": "a"}] * 2, RowError, "line 1: both sides of the pair are"),
        ([{"positive": "a", "negative": ""}] * 2, RowError, "line 1: 'negative' is empty"),
        ([{"positive": "a" * 40, "negative": "b"}] * 2, RowError, "has 40 tokens, the model reads"),
    ],
)
def test_contrasts_that_are_none(tmp_path, rows, error, match):
    with pytest.raises(error, match=match):
        contrasts(write(tmp_path, rows), WORDS, max_length=32)


def test_a_positive_word_that_is_no_label(tmp_path):
    path = write(tmp_path, labelled(["y", "n"] * 2))
    with pytest.raises(ValueError, match="positive='maybe' is no label of contrast 'data'"):
        contrasts(path, WORDS, max_length=32, positive="maybe")


def test_prompts_longer_than_the_context_lose_their_beginning_and_are_counted(tmp_path):
    rows = [{"prompt": "x" * 50 + f"{i}?", "label": "yn"[i % 2]} for i in range(4)]
    (found,) = contrasts(write(tmp_path, rows), WORDS, max_length=16).values()
    assert all(len(item.context) == 15 for item in found.items)
    assert found.notes[1:] == ("data: 4 of 4 prompts lost their beginning",)


def test_of_a_cut_prompt_both_answers_keep_what_the_longer_one_leaves(tmp_path):
    rows = [{"prompt": "x" * 50 + f"{i}?", "label": "yn"[i % 2]} for i in range(4)]
    (found,) = contrasts(
        write(tmp_path, rows), WORDS, max_length=16, words=("maybe", "no")
    ).values()
    for item in found.items:
        (first, second), cut = item.sides, len(item.context)
        assert len(first) == 16 > len(second)
        assert first[:cut] == second[:cut] == item.context


@pytest.mark.parametrize("name", ANSWERS)
def test_synthetic_contrasts_are_balanced_and_answered_by_the_rule(name):
    import torch

    from frenet.network.synthetic.model import RULES

    found = synthetic_contrast(name, rows=20, seed=3)
    assert len(found.of_class(True)) == len(found.of_class(False)) == 10
    for item in found.items:
        answer = int(RULES[name](torch.tensor([item.context[1:7]]))[0, 0])
        assert item.both_answers()[0 if item.label else 1] == [answer]
        assert [side[-1] for side in item.sides] == list(ANSWERS[name])
    assert synthetic_contrast(name, rows=20, seed=3) == found
    with pytest.raises(ValueError, match="no synthetic contrast 'x'; there are parity"):
        synthetic_contrast("x", rows=4, seed=0)
