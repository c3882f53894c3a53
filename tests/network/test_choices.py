"""Multiple-choice rows: every way in which an answer names a choice."""

import json

import pytest

from frenet.network.data.contrasts import contrasts
from frenet.network.data.files import RowError
from frenet.network.data.text import text_tasks
from network.chats import chat_tokenizer

WORDS = chat_tokenizer(None)
TEXTS = ["red", "blue", "green"]


def save(folder, rows, name="quiz.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def quiz(answers, texts=TEXTS, **names):
    """One question for each answer."""
    keys = {"question": "question", "choices": "choices", "answer": "answer"} | names
    return [
        {keys["question"]: f"q{i}?", keys["choices"]: texts, keys["answer"]: answer}
        for i, answer in enumerate(answers)
    ]


def read(path, **more):
    (task,) = text_tasks(path, WORDS, max_length=99, **more).values()
    found = sorted((e for part in task.examples.values() for e in part), key=lambda e: e.line)
    return task, found


LABELLED = {"text": TEXTS, "label": ["x", "y", "z"]}
WAYS = [
    ([0, 2, 1, 0], TEXTS, "ACBA", "numbers from 0"),
    (["0", "2", "1", "0"], TEXTS, "ACBA", "numbers from 0"),
    ([1, 3, 2, 1], TEXTS, "ACBA", "numbers from 1"),
    (["A", "c", "(B)", "a."], TEXTS, "ACBA", "letters"),
    (["red", "Green ", "blue", "red"], TEXTS, "ACBA", "the text of a choice"),
    (["x", "z", "y", "x"], LABELLED, "ACBA", "the choices' own labels"),
    # Choices that are numbers themselves: texts are meant by texts, and places by numbers.
    (["2", "1", "3", "2"], ["1", "2", "3"], "BACB", "the text of a choice"),
    ([2, 1, 0, 2], [1, 2, 3], "CBAC", "numbers from 0"),
    # A table has lists as text.
    ([0, 2, 1, 0], json.dumps(TEXTS), "ACBA", "numbers from 0"),
]


@pytest.mark.reads(
    kind="data",
    given="rows of `question`, `choices`, `answer` (a letter, a number from 0 or 1, or a text)",
    outcome="used: choices as lines A., B., ...; the letter is scored; a note says how answers "
    "were read",
    says="answers are read as ",
)
@pytest.mark.parametrize(("answers", "choices", "letters", "way"), WAYS)
def test_answers_become_letters(tmp_path, says, answers, choices, letters, way):
    task, found = read(save(tmp_path, quiz(answers, choices)))
    assert [example.completion for example in found] == list(letters)
    assert task.labels == ("A", "B", "C")
    texts = choices["text"] if isinstance(choices, dict) else choices
    texts = json.loads(texts) if isinstance(texts, str) else texts
    listed = "\n".join(f"{a}. {b}" for a, b in zip("ABC", texts, strict=True))
    assert found[1].prompt == f"Question: q1?\n{listed}\nAnswer:"
    assert says + way in task.notes


@pytest.mark.parametrize(
    "names", [{"choices": "options"}, {"answer": "answerKey"}, {"question": "Question"}]
)
def test_other_names_of_the_columns(tmp_path, names):
    _, found = read(save(tmp_path, quiz("ABCA", **names)))
    assert [example.completion for example in found] == list("ABCA")


def test_rows_may_have_fewer_choices_and_the_letters_are_all_labels(tmp_path):
    rows = [*quiz(["A", "B", "A", "B"], TEXTS[:2]), *quiz(["C"])]
    task, _ = read(save(tmp_path, [{**row, "question": f"{i}"} for i, row in enumerate(rows)]))
    assert task.labels == ("A", "B", "C")


def test_a_prompt_of_the_users_own_has_the_lettered_choices(tmp_path):
    _, found = read(save(tmp_path, quiz("ABCA")), prompt="{choices}\n{question}")
    assert found[0].prompt == "A. red\nB. blue\nC. green\nq0?"
    assert found[0].completion == "A"


@pytest.mark.reads(
    kind="data",
    given="a multiple-choice row with an answer that is none of its choices",
    outcome="refused",
    says="which is none of 3 choices",
)
@pytest.mark.parametrize("answer", ["D", 3, "violet", -1])
def test_an_answer_that_is_no_choice_names_its_line(tmp_path, says, answer):
    path = save(tmp_path, [*quiz([0, 1, 2, 0]), {**quiz([answer])[0], "question": "last"}])
    with pytest.raises(RowError, match="line 5: 'answer' is") as error:
        read(path)
    assert says in str(error.value)
    task, found = read(path, on_bad="skip")
    assert len(found) == 4
    assert "line 5" in task.notes[0]


@pytest.mark.parametrize(
    ("choices", "why"),
    [
        (["one"], "pass a list of 2 to 26 texts"),
        ("red, blue", "pass a list of 2 to 26 texts"),
        ('["red"', "is no JSON"),
        (["red", " "], "choice 2 of 2 is empty"),
        ([["red"], ["blue"]], "pass a list of 2 to 26 texts"),
    ],
)
def test_choices_that_are_none_name_their_line(tmp_path, choices, why):
    with pytest.raises(RowError, match=f"line 5: .*{why}"):
        read(save(tmp_path, [*quiz([0, 1, 2, 0]), *quiz([0], choices)]))


def test_two_choices_are_a_contrast_of_the_right_and_the_wrong_answer(tmp_path):
    path = save(tmp_path, quiz("ABBA", ["yes", "no"]))
    (found,) = contrasts(path, WORDS, max_length=99).values()
    assert found.kind == "choices"
    for item, right in zip(found.items, "ABBA", strict=True):
        wrong = "AB"[right == "A"]
        assert [WORDS.decode(side[-1:]).strip() for side in item.sides] == [right, wrong]
    with pytest.raises(ValueError, match="has 3 labels"):
        contrasts(save(tmp_path, quiz("ABC"), "three.jsonl"), WORDS, max_length=99)
