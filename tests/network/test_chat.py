"""Conversations through chat templates: the same ids, and only the assistant's are scored."""

import json

import pytest

from frenet.network.data.chat import asked, messages_of, opened
from frenet.network.data.contrasts import contrasts
from frenet.network.data.files import RowError
from frenet.network.data.text import task_names, text_tasks
from network.chats import TEMPLATES, chat_tokenizer

TALK = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "good day"},
    {"role": "user", "content": "and now?"},
    {"role": "assistant", "content": "bye"},
]
ENDS = {"chatml": "<|im_end|>", "llama3": "<|eot|>", "mistral": "</s>", "thinking": "</s>"}
SPACE = {"chatml": "", "llama3": "", "mistral": " ", "thinking": ""}


def save(folder, rows, name="talk.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def talks(n=6):
    return [{"messages": [{**TALK[0], "content": f"hello {i}"}, *TALK[1:]]} for i in range(n)]


def examples(task):
    return sorted(
        (e for part in task.examples.values() for e in part), key=lambda e: (e.line, len(e.prompt))
    )


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("begins", [True, False])
def test_a_turn_has_the_ids_of_the_template_and_only_the_assistant_is_scored(
    tmp_path, template, begins
):
    tokenizer = chat_tokenizer(template, begins=begins)
    rows = talks()
    (task,) = text_tasks(save(tmp_path, rows), tokenizer, max_length=400).values()
    found = examples(task)
    assert len(found) == 2 * len(rows)
    for i, example in enumerate(found):
        messages, turn = rows[i // 2]["messages"], 2 * (i % 2) + 1
        whole = tokenizer.apply_chat_template(
            messages[: turn + 1], tokenize=True, return_dict=False
        )
        ids = example.encoded.context + example.encoded.target
        # White space behind the end of the turn is not the assistant's.
        assert ids == whole[: len(ids)]
        assert tokenizer.decode(whole[len(ids) :]).strip() == ""
        said = tokenizer.decode(example.encoded.target)
        assert said == SPACE[template] + messages[turn]["content"] + ENDS[template]


@pytest.mark.reads(
    kind="data",
    given="rows of `messages`, each with a role and content",
    outcome="used: through the tokenizer's chat template; each turn of the assistant is scored",
)
def test_all_turns_of_a_conversation_are_in_one_split(tmp_path):
    (task,) = text_tasks(
        save(tmp_path, talks(40)), chat_tokenizer("chatml"), max_length=400
    ).values()
    lines = {split: {e.line for e in part} for split, part in task.examples.items()}
    assert not lines["train"] & (lines["test"] | lines["select"])
    assert not lines["test"] & lines["select"]
    assert len(lines["train"] | lines["select"] | lines["test"]) == 40
    assert all(len(part) == 2 * len(lines[split]) for split, part in task.examples.items())


@pytest.mark.parametrize("template", TEMPLATES)
def test_prompt_and_response_are_a_question_and_its_answer(tmp_path, template):
    tokenizer = chat_tokenizer(template)
    rows = [{"prompt": f"say {i}", "response": f"it is {i}"} for i in range(6)]
    talk = [
        {"conversations": [{"from": "human", "value": a}, {"from": "gpt", "value": b}]}
        for a, b in (row.values() for row in rows)
    ]
    found, same = (
        next(iter(text_tasks(save(tmp_path, each, name), tokenizer, max_length=99).values()))
        for each, name in ((rows, "a.jsonl"), (talk, "b.jsonl"))
    )
    want = {e.line: e.encoded for e in examples(same)}
    assert {e.line: e.encoded for e in examples(found)} == want


def test_of_a_prompt_and_a_completion_of_messages_only_the_completion_is_scored(tmp_path):
    """As trl has them; what the assistant said before is read, not scored."""
    tokenizer = chat_tokenizer("chatml")
    rows = [
        {"prompt": [{**TALK[0], "content": f"hello {i}"}, *TALK[1:3]], "completion": TALK[3:]}
        for i in range(6)
    ]
    (task,) = text_tasks(save(tmp_path, rows), tokenizer, max_length=400).values()
    (whole,) = text_tasks(save(tmp_path, talks(), "b.jsonl"), tokenizer, max_length=400).values()
    last = {e.line: e.encoded for e in examples(whole) if "good day" in e.prompt}
    assert {e.line: e.encoded for e in examples(task)} == last
    assert task.notes[0] == "columns read: prompt, completion"


def test_the_user_may_read_prompt_and_response_as_plain_text(tmp_path):
    rows = [{"prompt": f"say {i}", "response": "x"} for i in range(6)]
    (task,) = text_tasks(
        save(tmp_path, rows), chat_tokenizer("chatml"), max_length=99,
        columns={"prompt": "prompt", "completion": "response"},
    ).values()  # fmt: skip
    assert examples(task)[0].prompt == "say 0"
    assert examples(task)[0].completion == "x"


@pytest.mark.parametrize("template", TEMPLATES)
def test_labels_are_scored_where_the_template_has_the_answer(tmp_path, template):
    tokenizer = chat_tokenizer(template)
    rows = [{"prompt": f"is it {i}?", "label": ("yes", "no")[i % 2]} for i in range(12)]
    (task,) = text_tasks(save(tmp_path, rows), tokenizer, max_length=99, chat=True).values()
    assert task.labels == ("no", "yes")
    for example in examples(task):
        messages = [{"role": "user", "content": rows[example.line - 1]["prompt"]}]
        start = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert example.prompt == start + SPACE[template]
        ids = example.encoded.context + example.encoded.target
        text = start + SPACE[template] + example.completion
        assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_what_a_conversation_cannot_use_is_refused(tmp_path):
    """Tools change what the template writes; a system message may have another name."""
    rows = [{**row, "tools": [{"name": "t"}]} for row in talks()]
    with pytest.raises(ValueError, match=r"leave it out with --columns ignore=tools$"):
        text_tasks(save(tmp_path, rows), chat_tokenizer("chatml"), max_length=400)
    path = save(tmp_path, [{**row, "system_prompt": "be brief"} for row in talks()])
    with pytest.raises(ValueError, match="--columns system=system_prompt "):
        text_tasks(path, chat_tokenizer("chatml"), max_length=400)
    columns = {"system": "system_prompt"}
    (task,) = text_tasks(path, chat_tokenizer("chatml"), max_length=400, columns=columns).values()
    assert all(e.prompt.startswith("<|im_start|>system\nbe brief<") for e in examples(task))


def test_a_system_message_is_a_turn_of_its_own(tmp_path):
    rows = [
        {"system": "" if i % 2 else "be brief", "prompt": f"p{i}", "completion": "c"}
        for i in range(6)
    ]
    path, tokenizer = save(tmp_path, rows), chat_tokenizer("chatml")
    (task,) = text_tasks(path, tokenizer, max_length=200, chat=True).values()
    texts = [e.prompt for e in examples(task)]
    assert texts[0].startswith("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\np0")
    assert texts[1].startswith("<|im_start|>user\np1")


@pytest.mark.reads(
    kind="data",
    given="rows of `messages`, or `--chat`, and a tokenizer without a chat template",
    outcome="refused",
    says="this model's tokenizer has no chat template",
)
def test_a_tokenizer_without_a_template_is_refused_with_a_remedy_that_works(tmp_path, says):
    rows = [{"prompt": f"say {i}", "response": "x"} for i in range(6)]
    path, tokenizer = save(tmp_path, rows), chat_tokenizer(None)
    with pytest.raises(ValueError, match="prompt=prompt completion=response") as error:
        text_tasks(path, tokenizer, max_length=99)
    assert says in str(error.value)
    columns = ["prompt=prompt", "completion=response"]
    assert text_tasks(path, tokenizer, max_length=99, columns=columns)
    assert task_names(path) == ("talk",)


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([], "pass a list of messages"),
        ("hello", "pass a list of messages"),
        ([{"role": "user", "content": "a"}], "no message has the role assistant"),
        ([{"role": "assistant", "content": None}], "both have to be text"),
        ([TALK[0], {"role": "assistant", "content": " "}], "is blank"),
        ([{"role": "system", "content": "s"}, *TALK], "refuses the messages: only user and"),
    ],
)
def test_conversations_that_are_none_name_their_line(tmp_path, messages, why):
    path = save(tmp_path, [*talks(5), {"messages": messages}])
    with pytest.raises(RowError, match=rf"line 6: .*{why}"):
        text_tasks(path, chat_tokenizer("mistral"), max_length=400)


def test_what_nothing_answers_is_said(tmp_path):
    rows = [{"messages": [*row["messages"], TALK[0]]} for row in talks()]
    (task,) = text_tasks(save(tmp_path, rows), chat_tokenizer("chatml"), max_length=400).values()
    assert any("6 conversations end with messages that are not used" in n for n in task.notes)


def test_parts_of_a_message_are_its_text():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert messages_of([{"role": "user", "content": parts}]) == [{"role": "user", "content": "ab"}]


def statements():
    return [{"prompt": f"is it {i}?", "label": ("yes", "no")[i % 2]} for i in range(6)]


@pytest.mark.parametrize("template", TEMPLATES)
def test_contrasts_are_asked_and_answered_in_the_template(tmp_path, template):
    tokenizer = chat_tokenizer(template)
    path = save(tmp_path, statements())
    (found,) = contrasts(path, tokenizer, max_length=99, chat=True, words=("y", "n")).values()
    for i, item in enumerate(found.items):
        start = asked(tokenizer, f"is it {i}?")
        assert item.text == opened(tokenizer, f"is it {i}?") == start + SPACE[template]
        ids = tokenizer(item.text, add_special_tokens=False)["input_ids"]
        assert item.context == ids
        assert [tokenizer.decode(side[-1:]) for side in item.sides] == ["y", "n"]
        assert item.sides[0][:-1] == ids


def test_pairs_are_the_users_or_the_assistants(tmp_path):
    tokenizer = chat_tokenizer("chatml")
    rows = [{"positive": f"good {i}", "negative": f"bad {i}"} for i in range(3)]
    (found,) = contrasts(save(tmp_path, rows), tokenizer, max_length=99, chat=True).values()
    start = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(found.items[0].sides[1]) == start.format("bad 0")
    rows = [{"prompt": "go", **row} for row in rows]
    (found,) = contrasts(save(tmp_path, rows), tokenizer, max_length=99, chat=True).values()
    assert tokenizer.decode(found.items[0].sides[1]) == start.format("go") + "bad 0"


def test_conversations_are_no_contrast(tmp_path):
    with pytest.raises(ValueError, match="conversations, which have no two sides"):
        contrasts(save(tmp_path, talks()), chat_tokenizer("chatml"), max_length=400)
