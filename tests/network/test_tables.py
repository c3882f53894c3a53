"""Which columns are read, and what is said of the others; labels, persona files, tables of
spreadsheets."""

import json
import re

import pytest

from frenet.network.data.contrasts import answered_names, contrasts
from frenet.network.data.files import RowError, read_rows
from frenet.network.data.tables import Reading
from frenet.network.data.text import task_names, text_tasks
from network.chats import chat_tokenizer

WORDS = chat_tokenizer(None)
THINGS = [(f"thing {i}", ("good", "bad")[i % 2]) for i in range(12)]


def save(folder, rows, name="data.jsonl"):
    path = folder / name
    text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(text.encode())
    return path


def rows_of(**columns):
    """Twelve rows: each column from the thing and its value."""
    return [{name: make(a, b) for name, make in columns.items()} for a, b in THINGS]


def thing(a, b):
    return a


def value(a, b):
    return b


def read(path, **more):
    (task,) = text_tasks(path, WORDS, max_length=120, **more).values()
    return task, sorted((e for p in task.examples.values() for e in p), key=lambda e: e.line)


# Columns


@pytest.mark.reads(
    kind="data",
    given="columns that no schema reads, such as id or source",
    outcome="note",
    says="not read: id, source",
)
def test_a_note_says_what_is_read_and_what_is_not(tmp_path, says):
    rows = rows_of(id=thing, text=thing, source=value, label=value)
    task, _ = read(save(tmp_path, rows))
    assert task.notes[0] == f"columns read: text, label; {says}"
    task, _ = read(save(tmp_path, rows), columns=["ignore=id,source"])
    assert task.notes[0] == "columns read: text, label"


PARTS = [
    {"instruction": thing, "input": thing, "output": value},
    {"system": value, "prompt": thing, "completion": value},
    {"Context": thing, "statement": thing, "label": lambda a, b: int(b == "good")},
    {"article": thing, "question": thing, "solution": value, "answer": value},
    {"background": thing, "premise": thing, "hypothesis": thing, "label": value},
    {"task": lambda a, b: "t", "history": value, "input": thing, "output": value},
    {"question": thing, "text": thing},
]


@pytest.mark.reads(
    kind="data",
    given="a column named instruction, system, context or the like that the schema does not read",
    outcome="refused",
    says="is usually part of a prompt",
)
@pytest.mark.parametrize("columns", PARTS, ids=lambda columns: next(iter(columns)))
def test_a_part_of_a_prompt_is_refused_and_both_remedies_work(tmp_path, says, columns):
    path = save(tmp_path, rows_of(**columns))
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        read(path)
    hint = re.search(r"with --columns (.+?) \(columns=", str(error.value))[1].split(" ")
    leave = re.search(r"leave it out with --columns (\S+)$", str(error.value))[1]
    _, found = read(path, columns=hint)
    name = leave.removeprefix("ignore=")
    for example, (a, b) in zip(found, THINGS, strict=True):
        assert str(columns[name](a, b)) in example.prompt + example.completion
    _, left = read(path, columns=[leave])
    assert len(left[0].prompt + left[0].completion) < len(found[0].prompt + found[0].completion)
    assert task_names(path, Reading.of(hint)) == task_names(path, Reading.of([leave]))


@pytest.mark.reads(
    kind="data",
    given="plain text with a column named sentiment, category, answer or the like",
    outcome="refused",
    says="is usually part of a label",
)
@pytest.mark.parametrize("name", ["sentiment", "Category", "answer"])
def test_a_label_under_another_name_is_refused_and_the_remedy_works(tmp_path, says, name):
    path = save(tmp_path, rows_of(text=thing, **{name: value}))
    with pytest.raises(ValueError, match=f"{says}.*--columns label={name} ") as error:
        read(path)
    assert says in str(error.value)
    task, found = read(path, columns={"label": name})
    assert task.labels == ("bad", "good")
    assert found[0].prompt == "Text: thing 0\nLabel:"


def test_a_label_beside_prompt_and_completion_is_refused(tmp_path):
    """As in data of preferences, whose label says that a completion is a bad one."""
    path = save(tmp_path, rows_of(prompt=thing, completion=thing, label=value))
    with pytest.raises(ValueError, match="'label' is usually part of a label"):
        read(path)


def test_columns_of_any_name_play_a_role(tmp_path):
    path = save(tmp_path, rows_of(Ask=thing, Say=value))
    for columns in (["prompt=ask", "completion=SAY"], {"prompt": "Ask", "completion": ["Say"]}):
        task, found = read(path, columns=columns)
        assert [(e.prompt, e.completion) for e in found] == THINGS
        assert task.labels == ()
        assert task.notes[0] == "columns read: Ask, Say"
    columns = {"statement": "Ask", "label": "Say"}
    task, _ = read(path, columns=columns, words={"good": "true", "BAD": "false"})
    assert task.labels == ("true", "false")


@pytest.mark.reads(
    kind="data",
    given="several columns of one role, some of them empty (`--columns prompt=instruction,input`)",
    outcome="used: joined by an empty line, the empty ones left out",
)
def test_empty_optional_parts_are_left_out(tmp_path):
    rows = rows_of(instruction=thing, input=lambda a, b: "" if b == "bad" else "x", output=value)
    path = save(tmp_path, rows)
    _, found = read(path, columns=["prompt=instruction,input", "completion=output"])
    assert [e.prompt for e in found[:2]] == ["thing 0\n\nx", "thing 1"]
    _, found = read(path, prompt="{instruction}{input?}:", completion="{output}")
    assert [e.prompt for e in found[:2]] == ["thing 0x:", "thing 1:"]
    with pytest.raises(RowError, match="line 2: 'input' is empty"):
        read(path, prompt="{instruction}{input}:", completion="{output}")


def test_templates_on_known_and_unknown_columns(tmp_path):
    path = save(tmp_path, rows_of(text=thing, label=value))
    task, found = read(path, prompt="{text}?")
    assert (found[0].prompt, task.labels) == ("thing 0?", ("bad", "good"))
    task, found = read(path, prompt="{TEXT}?", completion="{label}!")
    assert (found[0].prompt, found[0].completion) == ("thing 0?", "good!")
    task, _ = read(path, prompt="{text}?", completion="{label}", words=["good=yes", "bad=no"])
    assert task.labels == ("yes", "no")


def test_a_role_takes_the_place_of_a_column_of_that_name(tmp_path):
    rows = rows_of(prompt=lambda a, b: "id", body=thing, completion=value)
    path = save(tmp_path, rows)
    task, found = read(path, columns={"prompt": "body"})
    assert found[0].prompt == "thing 0"
    assert task.notes[0] == "columns read: body, completion; not read: prompt"


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        (["text"], "is not NAME=VALUE, such as prompt=text"),
        (["prompt=text", "prompt=label"], "'prompt' is given twice"),
        (["promt=text"], "'promt' is no role of a column; roles are prompt, completion"),
        (["prompt=body"], "no row has the column 'body'; columns are text, label, more"),
        (["prompt=text", "label=text"], "'text' is given two roles"),
        (["system=more"], "pass --chat"),
        (["premise=text"], "no known schema fits"),
    ],
)
def test_columns_that_cannot_be_are_errors(tmp_path, columns, why):
    with pytest.raises(ValueError, match=why):
        read(save(tmp_path, rows_of(text=thing, label=value, more=thing)), columns=columns)


def test_a_template_says_it_all():
    from frenet.network.data.schemas import Template

    with pytest.raises(ValueError, match="pass a template, or columns, prompt and completion"):
        Reading.of({"prompt": "a"}, template=Template("{a}", "{b}"))


# Tables of spreadsheets


def table(separator, rows=THINGS, header=("text", "label")):
    return "".join(separator.join(cells) + "\n" for cells in (header, *rows))


@pytest.mark.reads(
    kind="data",
    given="a table with semicolons, tabs or bars between its cells, with or without `sep=;`",
    outcome="used: a note says what separates them",
    says="cells are separated by ",
)
@pytest.mark.parametrize(
    ("text", "name"),
    [
        (table(";"), "semicolon"),
        (table("\t"), "tab"),
        (table("|"), "bar"),
        (table(";", [(f"{a}, or so", b) for a, b in THINGS]), "semicolon"),
        ("sep=;\n" + table(";"), "semicolon"),
        ('"sep=|"\n' + table("|"), "bar"),
        ("sep=\t\n" + table("\t"), "tab"),
        (table(";", [(f'"{a};\n""{a}"""', b) for a, b in THINGS]), "semicolon"),
    ],
)
def test_separators_are_seen(tmp_path, says, text, name):
    rows = read_rows(save(tmp_path, text, "data.csv"))
    assert list(rows.values[0]) == ["text", "label"]
    assert [row["label"] for row in rows.values] == [b for _, b in THINGS]
    assert rows.notes == (f"{says}{name}s",)
    told = text.lower().lstrip('"').startswith("sep=")
    assert rows.lines[0] == (3 if told else 2)


@pytest.mark.parametrize(
    "text",
    [
        table(","),
        table(",", [(f"{a}; b; c", b) for a, b in THINGS]),
        table(",", [(f'"{a}|{a}, and"', b) for a, b in THINGS]),
        "text\n" + "".join(f"{a}\n" for a, _ in THINGS),
    ],
)
def test_commas_stay_commas(tmp_path, text):
    rows = read_rows(save(tmp_path, text, "data.csv"))
    assert rows.notes == ()
    assert len(rows) == 12


def test_spaces_around_names_and_behind_commas(tmp_path):
    text = "text , Label\n" + "".join(f'"{a}, b", {b}\n' for a, b in THINGS)
    task, found = read(save(tmp_path, text, "data.csv"))
    assert (found[0].prompt, found[0].completion) == ("Text: thing 0, b\nLabel:", "good")
    assert task.labels == ("bad", "good")


def test_a_cell_may_be_as_long_as_a_value_of_jsonl(tmp_path):
    import csv

    before = csv.field_size_limit()
    text = table(",", [("x" * 140_000, "good"), *THINGS])
    rows = read_rows(save(tmp_path, text, "data.csv"))
    assert len(rows.values[0]["text"]) == 140_000
    assert csv.field_size_limit() == before


def test_a_list_of_objects_is_read_and_its_elements_are_counted(tmp_path):
    rows = rows_of(text=thing, label=value)
    path = save(tmp_path, json.dumps(rows, indent=1), "data.json")
    assert read_rows(path).values == tuple(rows)
    with pytest.raises(RowError, match="line 2: holds 3; every element of the list"):
        read_rows(save(tmp_path, '[{"text": "a"}, 3]', "data.json"))
    with pytest.raises(RowError, match="line 2: not JSON at column"):
        read_rows(save(tmp_path, '[{"text": "a"},\n{]', "data.json"))


# Labels


@pytest.mark.reads(
    kind="data",
    given="labels that differ only in the space around them or in case",
    outcome="note",
    says="labels that differ only in space or case are read as one",
)
@pytest.mark.parametrize("odd", ["good ", "Good", " GOOD\n"])
def test_labels_that_differ_only_in_space_or_case_are_one(tmp_path, says, odd):
    rows = rows_of(text=thing, label=value)
    rows[4]["label"] = odd
    task, found = read(save(tmp_path, rows))
    assert task.labels == ("bad", "good")
    assert found[4].completion == "good"
    assert any(note.startswith(says) and repr(odd) in note for note in task.notes)
    (contrast,) = contrasts(save(tmp_path, rows), WORDS, max_length=99).values()
    assert contrast.words == ("bad", "good")
    assert [item.label for item in contrast.items[:5]] == [False, True, False, True, False]
    plain, _ = read(save(tmp_path, rows_of(text=thing, label=value)))
    assert not any(note.startswith(says) for note in plain.notes)


# Persona files


def persona(answers, *, other=True):
    swap = {"yes": "No", "no": "Yes", "(a)": "(B)", "(b)": "(A)", "true": "False", "false": "True"}
    rows = [
        {"question": f"would it {i}?", "statement": f"s{i}", "answer_matching_behavior": answer}
        for i, answer in enumerate(answers)
    ]
    for row in rows if other else ():
        answer = row["answer_matching_behavior"]
        row["answer_not_matching_behavior"] = swap[answer.strip().lower()]
    return rows


@pytest.mark.reads(
    kind="data",
    given="persona files: `question` and `answer_matching_behavior`, Yes and No or (A) and (B)",
    outcome="used: the matching answer against the other one",
)
@pytest.mark.parametrize("other", [True, False])
@pytest.mark.parametrize(
    "pair", [("Yes", "No"), (" Yes", " No"), ("(A)", "(B)"), ("TRUE", "false")]
)
def test_the_matching_answer_of_a_behaviour_is_the_positive_side(tmp_path, pair, other):
    order = [0, 1, 1, 0]
    rows = persona([pair[i] for i in order], other=other)
    path = save(tmp_path, rows)
    (found,) = contrasts(path, WORDS, max_length=99).values()
    assert found.kind == "choices"
    bare = [word.strip() for word in pair]
    ends = [word.removesuffix(")") if word == "(A)" or word == "(B)" else word for word in bare]
    for item, right in zip(found.items, order, strict=True):
        assert item.label is None
        assert item.text == f"would it {item.line - 1}?\n\nAnswer:"
        said = [WORDS.decode(side).partition("Answer: ")[2].lower() for side in item.sides]
        assert said == [ends[right].lower(), ends[1 - right].lower()]
    assert answered_names(path) == ("data",)
    assert found.notes[0].endswith("not read: statement")
    (own,) = contrasts(path, WORDS, max_length=99, prompt="{question} Answer:").values()
    assert own.items[0].text == "would it 0? Answer:"


def test_the_words_of_a_behaviour_can_be_others(tmp_path):
    path = save(tmp_path, persona(["Yes", "No"]))
    (found,) = contrasts(path, WORDS, max_length=99, words=("N", "Y")).values()
    ends = [[WORDS.decode(side[-1:]) for side in item.sides] for item in found.items]
    assert ends == [["N", "Y"], ["Y", "N"]]


# Pairs


@pytest.mark.reads(
    kind="data",
    given="a pair of texts (or two answers) that are the same tokens to the tokenizer",
    outcome="refused",
    says="are the same tokens to this tokenizer",
)
@pytest.mark.parametrize("columns", [{}, {"prompt": "p"}])
def test_pairs_whose_texts_differ_and_whose_tokens_do_not_are_refused(tmp_path, says, columns):
    rows = [{**columns, "positive": f"{i} 語", "negative": f"{i} 文"} for i in range(3)]
    with pytest.raises(RowError, match="line 1: ") as error:
        contrasts(save(tmp_path, rows), WORDS, max_length=99)
    assert says in str(error.value)


def test_a_chat_template_may_make_two_texts_the_same(tmp_path):
    """It trims what it is given."""
    rows = [{"positive": f"good {i}", "negative": f"good {i} "} for i in range(3)]
    with pytest.raises(RowError, match=r"line 1: (both sides|.*the same tokens)"):
        contrasts(save(tmp_path, rows), chat_tokenizer("llama3"), max_length=99, chat=True)
    assert contrasts(save(tmp_path, rows), WORDS, max_length=99)


def test_pairs_of_other_names_and_with_empty_prompts(tmp_path):
    rows = [{"prompt": "" if i else "so", "chosen": f"y{i}", "rejected": "n"} for i in range(3)]
    columns = {"positive": "chosen", "negative": "rejected"}
    (found,) = contrasts(save(tmp_path, rows), WORDS, max_length=99, columns=columns).values()
    assert [item.text for item in found.items] == ["so y0", "y1", "y2"]
    assert found.notes[0] == "columns read: prompt, chosen, rejected"
