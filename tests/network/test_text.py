"""Text tasks: schemas, splits, the scored span, batches, labels, shuffled answers."""

import json
import math
from itertools import islice

import datasets
import pytest
import torch
from models import EOS, byte_tokenizer, tiny_gpt2, tiny_llama, tiny_tokenizer

from frenet.network.checkpoints.load import load
from frenet.network.data.contrasts import contrasts
from frenet.network.data.files import RowError
from frenet.network.data.schemas import KNOWN, Template
from frenet.network.data.tables import Reading
from frenet.network.data.text import task_names, text_tasks
from frenet.network.data.tokens import encode, join
from frenet.network.tasks import IGNORE, Task


@pytest.fixture
def save(tmp_path):
    """A function that writes rows as JSONL and returns the path."""

    def write(rows, name="words.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def tasks_of(path, tokenizer=None, **options):
    options.setdefault("max_length", 32)
    return text_tasks(path, tokenizer or tiny_tokenizer(), **options)


def task_of(path, tokenizer=None, **options):
    (task,) = tasks_of(path, tokenizer, **options).values()
    return task


def open_ended(n=20):
    words = [f"{a}{b}" for a in "abcdefghij" for b in "klmno"][:n]
    return [{"prompt": f"say {word}:", "completion": word[::-1]} for word in words]


def labelled(n=20):
    return [{"prompt": f"is {i} even?", "label": "no" if i % 2 else "yes"} for i in range(n)]


# Schemas


ROWS = {
    ("input", "output"): ("a ->", "b"),
    ("input", "output", "task"): ("copy: a ->", "b"),
    ("prompt", "completion"): ("p", "c"),
    ("text",): ("", "to"),
    ("en", "fr"): ("English: e\nFrench:", "f"),
    ("mr", "ref"): ("Facts: m\nText:", "r"),
    ("question", "solution", "answer"): ("Question: q\nAnswer:", "s\n#### 7"),
    ("nums", "target", "solution"): ("Numbers: 3, 7\nTarget: 10\nExpression:", "s"),
}
VALUES = {
    "input": "a", "output": "b", "task": "copy", "prompt": "p", "completion": "c", "text": "to",
    "en": "e", "fr": "f", "mr": "m", "ref": "r", "question": "q", "solution": "s", "answer": 7,
    "nums": [3, 7], "target": 10,
}  # fmt: skip


@pytest.mark.parametrize("keys", ROWS)
def test_open_schemas_are_recognised_by_their_keys(save, keys):
    varied = [k for k in keys if k in ("input", "prompt", "text", "en", "mr", "question", "target")]
    rows = [{"id": i} | {key: VALUES[key] for key in keys} for i in range(4)]
    for i, row in enumerate(rows[1:], start=1):
        row[varied[0]] = f"{row[varied[0]]} {i}"
    task = task_of(save(rows))
    first = next(e for part in task.examples.values() for e in part if e.line == 1)
    assert (first.prompt, first.completion) == ROWS[keys]
    assert task.labels == ()
    assert task.name == ("copy" if "task" in keys else "words")


LABELLED = [
    ({"question": "q", "passage": "p"}, "answer", [True, False], ("yes", "no")),
    ({"statement": "s"}, "label", [1, 0], ("true", "false")),
    ({"premise": "p", "hypothesis": "h"}, "label", ["neutral", "entailment"], None),
    ({"text": "t"}, "label", ["pos", "neg"], None),
    ({"prompt": "p"}, "label", ["x y", "z"], None),
]


@pytest.mark.parametrize(("fields", "key", "values", "labels"), LABELLED)
def test_labelled_schemas_are_recognised_by_their_keys(save, fields, key, values, labels):
    rows = []
    for i in range(8):
        row = {name: f"{text} {i}" for name, text in fields.items()}
        rows.append(row | {key: values[i % 2], "split": "test" if i > 5 else "train"})
    task = task_of(save(rows), max_length=64)
    assert task.labels == (labels or tuple(sorted(values)))
    words = dict(zip(values, labels or values, strict=True))
    for example in task.examples["test"]:
        assert example.completion == words[rows[example.line - 1][key]]
        assert all(value in example.prompt for value in map(str, fields.values()))


def test_csv_flags_as_text_are_the_same_labels_as_json_ones(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("statement,label\n" + "".join(f"s{i},{i % 2}\n" for i in range(6)))
    examples = [e for part in task_of(path, max_length=64).examples.values() for e in part]
    assert {e.line: e.completion for e in examples} == {
        i + 2: "true" if i % 2 else "false" for i in range(6)
    }


def test_an_unknown_schema_lists_the_keys_found_and_the_schemas_known(save):
    path = save([{"foo": "a", "bar": "b"}] * 3)
    with pytest.raises(ValueError, match=r"keys foo, bar; known are \{task, input, output\}"):
        tasks_of(path)


def test_a_row_without_label_is_an_error_and_does_not_make_the_file_plain_text(save):
    rows = [{"text": f"t{i}", "label": "a"} for i in range(4)]
    del rows[2]["label"]
    with pytest.raises(RowError, match=r"words\.jsonl, line 3: missing key 'label'"):
        tasks_of(save(rows))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "'input' is empty: ''"),
        ({"a": 1}, "'input' is .*; pass text, a number or a list"),
        (None, "'input' is None"),
        ("\ud800", "'input' holds half a surrogate pair"),
    ],
)
def test_values_that_are_no_text_name_line_key_and_value(save, value, message):
    rows = [{"input": f"a{i}", "output": "b"} for i in range(4)]
    rows[1]["input"] = value
    with pytest.raises(RowError, match=rf"line 2: {message}"):
        tasks_of(save(rows))
    assert "line 2" in task_of(save(rows), on_bad="skip").notes[0]


def test_a_template_of_the_user(save):
    rows = [{"q": f"q{i}", "a b": "x", "kind": "odd" if i % 2 else "even"} for i in range(12)]
    template = Template("{{{q}}} is", "{a b}!", task_field="kind")
    tasks = tasks_of(save(rows), template=template)
    assert sorted(tasks) == ["even", "odd"]
    example = tasks["even"].examples["train"][0]
    assert example.prompt == f"{{q{example.line - 1}}} is"
    assert example.completion == "x!"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (Template("{nothing}", "{a}"), "the template names 'nothing', which no row has; .* q, a"),
        (Template("{q}", "{a}", task_field="kind"), "names 'kind'"),
        (Template("{q.x}", "{a}"), "only plain field names"),
        (Template("{q!r}", "{a}"), "only plain field names"),
        (Template("{}", "{a}"), "only plain field names"),
        (Template("{q", "{a}"), "is malformed: .*; write {{ for a brace"),
    ],
)
def test_bad_templates_are_errors(save, template, message):
    path = save([{"q": f"q{i}", "a": "b"} for i in range(4)])
    with pytest.raises(ValueError, match=message):
        tasks_of(path, template=template)


def test_every_known_schema_has_its_own_keys():
    assert len({frozenset(template.fields) for template in KNOWN}) == len(KNOWN)


# Splits


def parts(task):
    return {split: [e.line for e in part] for split, part in task.examples.items()}


def lines(task):
    return sorted(e.line for part in task.examples.values() for e in part)


def test_splits_are_disjoint_in_prompts_seeded_and_complete(save):
    path = save(open_ended(40))
    first, again, other = (parts(task_of(path, seed=seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert lines(task_of(path)) == list(range(1, 41))
    assert {split: len(part) for split, part in first.items()} == {
        "train": 28, "select": 6, "test": 6,
    }  # fmt: skip


def own(splits):
    rows = open_ended(len(splits))
    return [row | {"split": split} for row, split in zip(rows, splits, strict=True)]


def test_the_file_s_own_splits_are_kept(save):
    found = parts(task_of(save(own(["train", "Validation", "test", "dev", "train", "test"]))))
    assert found == {"train": [1, 5], "select": [2, 4], "test": [3, 6]}


def test_select_is_drawn_from_train_where_the_file_has_none(save):
    task = task_of(save(own(["train"] * 8 + ["test"] * 2)))
    found = parts(task)
    assert found["test"] == [9, 10]
    assert sorted(found["train"] + found["select"]) == list(range(1, 9))
    assert len(found["select"]) == round(0.15 * 10)
    assert "select: 2 rows drawn from train, split seed 0" in task.notes


def test_a_large_split_of_the_file_leaves_half_of_train(save):
    for given, drawn in (("test", "select"), ("dev", "test")):
        found = parts(task_of(save(own(["train"] * 6 + [given] * 44))))
        assert {split: len(rows) for split, rows in found.items()} == {
            "train": 3, given.replace("dev", "select"): 44, drawn: 3,
        }  # fmt: skip


def test_a_file_with_dev_and_val_trains_on_dev_and_tests_on_val(save):
    task = task_of(save(own(["dev"] * 8 + ["val"] * 2)))
    found = parts(task)
    assert found["test"] == [9, 10]
    assert sorted(found["train"] + found["select"]) == list(range(1, 9))
    assert task.notes[1] == "the file has no train rows: dev as train, val as test"


def test_a_file_with_one_split_only_is_divided_and_says_so(save):
    task = task_of(save(own(["test"] * 20)))
    assert all(task.examples.values())
    assert task.notes[1] == "the file has only test rows: they are divided"


def test_an_unknown_split_and_a_missing_one_name_the_line(save):
    with pytest.raises(RowError, match="line 2: unknown split 'trial'; known are train"):
        tasks_of(save(own(["train", "trial", "test"])))
    rows = own(["train", "train", "test"])
    del rows[1]["split"]
    with pytest.raises(RowError, match="line 2: missing key 'split'"):
        tasks_of(save(rows))


def test_a_prompt_in_two_splits_stays_in_the_later_one_only(save):
    rows = own(["train"] * 6 + ["test"] * 3)
    rows[6] = dict(rows[0], split="test", completion="other")
    rows[2] = dict(rows[1])
    task = task_of(save(rows))
    found = parts(task)
    assert 7 in found["test"]
    assert 1 not in found["train"] + found["select"]
    assert 3 not in found["train"] + found["select"]
    assert "train: 1 repeated rows dropped" in task.notes
    assert "train: 1 rows dropped because a later split has their prompt" in task.notes


def test_rows_of_one_prompt_go_to_one_split(save):
    rows = [{"prompt": f"p{i // 3}", "completion": f"c{i}"} for i in range(30)]
    task = task_of(save(rows))
    prompts = [{e.prompt for e in part} for part in task.examples.values()]
    assert sum(map(len, prompts)) == len(set.union(*prompts)) == 10
    assert sum(map(len, task.examples.values())) == 30


def test_too_few_prompts_are_an_error(save):
    with pytest.raises(ValueError, match=r"task 'words' has 2 distinct prompts and none is left"):
        tasks_of(save(open_ended(2)))


def test_one_file_makes_several_tasks(save):
    rows = [
        {"task": name, "input": f"{name} {i}", "output": "x"}
        for name in ("up", "down")
        for i in range(4)
    ]
    path = save(rows)
    assert list(tasks_of(path)) == ["up", "down"]
    assert task_names(path) == ("up", "down")


def test_names_of_a_built_in_set_are_read_once_and_those_of_a_file_whenever_asked(
    save, monkeypatch
):
    """A file may change; so may what the user reads as a name."""
    names = task_names("frenet:words")
    path = save([{"task": "up", "input": "a", "output": "b"}])
    monkeypatch.setattr("frenet.network.data.text.read_table", lambda *_, **__: 1 / 0)
    assert task_names("frenet:words", Reading()) == names
    assert set(names) == {"plural", "past", "reverse", "sort", "next-number"}
    for given in ((path,), ("frenet:words", Reading(chat=True))):
        with pytest.raises(ZeroDivisionError):
            task_names(*given)


def test_limit_takes_a_seeded_sample_in_file_order(save):
    path = save(open_ended(40))
    whole, few, again = (parts(task_of(path, limit=n)) for n in (None, 4, 4))
    assert few == again
    for split, lines in few.items():
        assert len(lines) == 4
        assert lines == sorted(lines)
        assert set(lines) <= set(whole[split])
    with pytest.raises(ValueError, match="limit=0; pass at least 1"):
        tasks_of(path, limit=0)


# The scored span


def scored(encoded, tokenizer):
    return "".join(tokenizer.convert_ids_to_tokens(encoded.target))


def test_a_space_is_put_at_the_join_only_where_there_is_none():
    assert join("a:", "b") == join("a: ", "b") == join("a:", " b") == "a: b"
    assert join("a:\n", "b") == "a:\nb"


def test_only_the_completion_is_scored():
    tokenizer = tiny_tokenizer()
    (found,) = encode(tokenizer, [("say ab:", "ba")], max_length=32)
    assert scored(found, tokenizer) == " ba"
    assert "".join(tokenizer.convert_ids_to_tokens(found.context)) == "say ab:"
    assert not found.spans_join


def test_a_token_across_the_join_is_scored():
    tokenizer = tiny_tokenizer(": ")
    (found,) = encode(tokenizer, [("an:", "be")], max_length=32)
    assert scored(found, tokenizer) == ": be"
    assert found.spans_join


def test_a_token_that_starts_at_the_join_is_not_called_across_it():
    tokenizer = tiny_tokenizer(" b")
    (found,) = encode(tokenizer, [("an:", "be")], max_length=32)
    assert scored(found, tokenizer) == " be"
    assert not found.spans_join


def test_rows_with_a_token_across_the_join_are_counted_in_the_notes(save):
    task = task_of(save(open_ended(20)), tiny_tokenizer(": "))
    assert any("in 14 of 14 rows a token spans the end of the prompt" in n for n in task.notes)


def test_a_prompt_that_ends_in_a_space_shares_its_token_with_the_completion():
    tokenizer = tiny_tokenizer(" b")
    (found,) = encode(tokenizer, [("an: ", "be")], max_length=32)
    assert scored(found, tokenizer) == " be"
    assert found.spans_join


def test_byte_level_offsets_that_leave_the_space_out_still_score_the_word():
    tokenizer = byte_tokenizer()
    (found,) = encode(tokenizer, [("a:", "yes")], max_length=32)
    assert tokenizer.convert_ids_to_tokens(found.target) == ["Ġyes"]
    assert not found.spans_join
    (found,) = encode(tokenizer, [("a:", "\nyé")], max_length=32)
    assert tokenizer.decode(found.target) == "\nyé"


def test_a_slow_tokenizer_gives_the_same_span():
    fast = tiny_tokenizer(": ")

    class Slow:
        bos_token_id = EOS

        def __call__(self, text, **_):
            return {"input_ids": fast(text)["input_ids"]}

    pairs = [("an:", "be"), ("a b", "c"), ("", "abc")]
    assert encode(Slow(), pairs, max_length=32) == encode(fast, pairs, max_length=32)


def test_the_beginning_of_sequence_token_is_there_once():
    tokenizer = tiny_tokenizer(bos=True)
    for prompt in ("ab:", "<eos>ab:"):
        (found,) = encode(tokenizer, [(prompt, "c")], max_length=32)
        assert found.context[0] == EOS
        assert (found.context + found.target).count(EOS) == 1


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("max_length", range(5, 13))
def test_truncation_takes_the_left_of_the_prompt_and_keeps_the_target(bos, max_length):
    tokenizer = tiny_tokenizer(bos=bos)
    (whole,) = encode(tokenizer, [("abcdefg:", "xy")], max_length=100)
    (found,) = encode(tokenizer, [("abcdefg:", "xy")], max_length=max_length)
    assert found.target == whole.target
    assert len(found.context) + len(found.target) == min(max_length, 11 + bos)
    assert found.cut == max(0, 11 + bos - max_length)
    assert found.context[bos:] == whole.context[bos + found.cut :]
    assert found.context[:bos] == [EOS] * bos


def test_a_completion_longer_than_the_context_names_the_line(save):
    rows = open_ended(10)
    rows[4]["completion"] = "a" * 40
    path = save(rows)
    with pytest.raises(RowError, match=r"line 5: the completion has 41 tokens .* context of 32"):
        tasks_of(path)
    skipping = task_of(path, on_bad="skip")
    assert 5 not in lines(skipping)
    assert any("line 5" in note for note in skipping.notes)


def test_cut_prompts_are_counted_in_the_notes(save):
    rows = own(["train", "dev", "test"] * 2)
    rows[0]["prompt"] = "b" * 40
    task = task_of(save(rows))
    assert "train: 1 of 2 rows cut, 11 tokens in all" in task.notes


def test_plain_text_scores_all_tokens_but_the_first_and_is_cut_at_its_end(save):
    rows = [{"text": text, "split": s} for text, s in
            [("abcdef", "train"), ("x" * 40, "train"), ("bcd", "dev"), ("cd", "test")]]  # fmt: skip
    tokenizer = tiny_tokenizer()
    task = task_of(save(rows), tokenizer)
    first, second = (e.encoded for e in task.examples["train"])
    assert scored(first, tokenizer) == "bcdef"
    assert len(first.context) == 1
    assert (len(second.context), len(second.target), second.cut) == (1, 31, 8)
    with_bos = task_of(save(rows), tiny_tokenizer(bos=True)).examples["train"][0].encoded
    assert with_bos.context == [EOS]
    assert scored(with_bos, tokenizer) == "abcdef"


def test_a_text_of_one_token_is_an_error(save):
    rows = [{"text": text} for text in ("ab", "b", "cd", "de")]
    with pytest.raises(RowError, match="line 2: the text is a single token"):
        tasks_of(save(rows))


def test_tokens_are_shown_with_what_is_scored(save):
    task = task_of(save(open_ended(5)))
    example = task.examples["train"][0]
    shown = task.tokens("train", 0)
    assert "".join(text for _, text, is_scored in shown if is_scored) == f" {example.completion}"
    assert [i for i, _, _ in shown] == example.encoded.context + example.encoded.target


def test_the_tokenizer_stays_as_it_was(save):
    tokenizer = tiny_tokenizer()
    before = (tokenizer.backend_tokenizer.to_str(), tokenizer.padding_side, len(tokenizer))
    task = task_of(save(labelled()), tokenizer)
    next(task.batches("train", 4, 0))
    task.label_scores(tiny_gpt2(), ["a b"])
    assert (tokenizer.backend_tokenizer.to_str(), tokenizer.padding_side, len(tokenizer)) == before
    assert tokenizer.pad_token is None


# Batches and losses


def test_a_text_task_is_a_task(save):
    task = task_of(save(open_ended()))
    assert isinstance(task, Task)
    model = tiny_gpt2()
    assert task.loss(model, next(task.batches("train", 4, 0))).shape == ()


def test_an_epoch_holds_every_row_at_most_once_in_an_order_that_the_seed_fixes(save):
    task = task_of(save(open_ended(30)))
    n = len(task.examples["train"])

    def epochs(seed):
        batches = islice(task.batches("train", 4, seed), 2 * (n // 4))
        return [
            tuple(ids[mask.bool()].tolist())
            for b in batches
            for ids, mask in zip(b["input_ids"], b["attention_mask"], strict=True)
        ]

    rows = epochs(0)
    assert rows == epochs(0) != epochs(1)
    half = len(rows) // 2
    assert len(set(rows[:half])) == len(set(rows[half:])) == half == 4 * (n // 4)
    assert rows[:half] != rows[half:]


def test_a_batch_is_as_wide_as_its_longest_row(save):
    rows = [row | {"prompt": "a" * (i + 1)} for i, row in enumerate(open_ended(12))]
    task = task_of(save(rows))
    for batch in islice(task.batches("train", 2, 0), 4):
        assert batch["attention_mask"].any(0).all()
        assert set(batch) == {"input_ids", "attention_mask", "position_ids", "labels"}


def test_more_rows_than_there_are_is_an_error(save):
    task = task_of(save(open_ended(20)))
    with pytest.raises(ValueError, match=r"batch_size=99 for the 14 train rows of task 'words'"):
        task.batches("train", 99, 0)
    with pytest.raises(ValueError, match="batch_size=0"):
        task.batches("train", 0, 0)


def test_the_loss_is_the_mean_over_target_tokens_by_hand(save):
    task = task_of(save(open_ended()))
    model = tiny_gpt2()
    batch = next(task.batches("train", 3, 0))
    total = count = 0.0
    for ids, mask, labels in zip(
        batch["input_ids"], batch["attention_mask"].bool(), batch["labels"], strict=True
    ):
        with torch.no_grad():
            logits = model(input_ids=ids[mask][None]).logits[0].log_softmax(-1)
        for position, label in enumerate(labels[mask].tolist()):
            if label != IGNORE:
                total -= float(logits[position - 1, label])
                count += 1
    assert task.loss(model, batch).item() == pytest.approx(total / count, rel=1e-5)


def test_a_real_end_of_sequence_token_in_the_completion_is_scored(save):
    rows = [{"prompt": f"p{i}:", "completion": "a<eos>"} for i in range(6)]
    task = task_of(save(rows))
    assert task.examples["train"][0].encoded.target[-1] == EOS
    assert next(task.batches("train", 2, 0))["labels"][:, -1].tolist() == [EOS, EOS]


# Labels


def test_label_scores_sum_the_log_probabilities_of_the_whole_label(save):
    rows = [row | {"label": "yes" if row["label"] == "yes" else "not so"} for row in labelled()]
    tokenizer = tiny_tokenizer()
    task = task_of(save(rows), tokenizer)
    assert task.labels == ("not so", "yes")
    model = tiny_gpt2().train()
    prompts = ["is 3 even?", "a"]
    found = task.label_scores(model, prompts, batch_size=3)
    assert model.training
    model.eval()
    for i, prompt in enumerate(prompts):
        for j, label in enumerate(task.labels):
            ids = tokenizer(f"{prompt} {label}", return_tensors="pt")["input_ids"]
            start = len(tokenizer(prompt)["input_ids"])
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            by_hand = logits.gather(1, ids[0, 1:, None])[start - 1 :].sum()
            assert float(found[i, j]) == pytest.approx(float(by_hand), abs=1e-5)


def test_one_token_labels_in_one_row_score_as_they_do_one_by_one(save):
    rows = [{"prompt": f"p{i}:", "label": "ab"[i % 2]} for i in range(8)]
    tokenizer = tiny_tokenizer(" a", " b")
    task = task_of(save(rows), tokenizer)
    model = tiny_gpt2()
    found = task.label_scores(model, ["p0:", "longer p1:"])
    for i, prompt in enumerate(["p0:", "longer p1:"]):
        for j, label in enumerate("ab"):
            (item,) = encode(tokenizer, [(prompt, label)], max_length=32)
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([item.context])).logits[0, -1].log_softmax(-1)
            assert float(found[i, j]) == pytest.approx(float(logits[item.target[0]]), abs=1e-5)


def test_score_reports_the_accuracy_of_the_best_label_and_the_chance_level(save):
    task = task_of(save(labelled(40)))
    model = tiny_gpt2()
    result = task.score(model, "train")
    rows = task.sample("train")
    chosen = task.label_scores(model, [row.prompt for row in rows]).argmax(1)
    right = sum(task.labels[c] == row.completion for c, row in zip(chosen, rows, strict=True))
    assert result["accuracy"] == right / len(rows)
    yes = sum(row.completion == "yes" for row in rows) / len(rows)
    assert result["chance"] == max(yes, 1 - yes)
    assert set(result) == {"accuracy", "chance", "token_accuracy", "exact_match"}
    assert result == task.score(model, "train")


def test_score_does_not_depend_on_padding_and_leaves_the_model_as_it_was(save):
    rows = [row | {"prompt": row["prompt"] * (1 + i % 3)} for i, row in enumerate(open_ended(40))]
    path = save(rows)
    model = tiny_gpt2().train()
    state = torch.get_rng_state()
    left = task_of(path).score(model, "train")
    task = task_of(path)
    right = type(task)(**{**vars(task), "padding_side": "right"}).score(model, "train")
    assert left == pytest.approx(right)
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert set(left) == {"token_accuracy", "exact_match"}


def test_an_unknown_label_names_file_line_and_value(save):
    rows = [row | {"split": "test" if i > 15 else "train"} for i, row in enumerate(labelled())]
    rows[17]["label"] = "maybe"
    path = save(rows)
    with pytest.raises(RowError, match=r"words\.jsonl, line 18: unknown label 'maybe'; known are"):
        tasks_of(path)
    assert 18 not in parts(task_of(path, on_bad="skip"))["test"]


def test_a_label_outside_the_given_set_is_an_error(save):
    template = Template("{prompt}", "{label}", labels=("yes", "no"))
    rows = labelled()
    rows[3]["label"] = "2"
    with pytest.raises(RowError, match="line 4: unknown label '2'; known are yes, no"):
        tasks_of(save(rows), template=template)
    truth = [{"statement": f"s{i}", "label": i} for i in range(4)]
    with pytest.raises(RowError, match="line 3: unknown label '2'; known are 1, 0, true, false"):
        tasks_of(save(truth), max_length=64)


def test_a_space_before_a_label_of_the_set_is_the_joins(save):
    answers = [f"({'AB'[i % 2]})" for i in range(6)]
    rows = [{"question": f"q{i}", "answer_matching_behavior": a} for i, a in enumerate(answers)]
    want = task_of(save(rows), max_length=64)
    for row in rows:
        row["answer_matching_behavior"] = " " + row["answer_matching_behavior"]
    found = task_of(save(rows), max_length=64)
    assert (found.examples, found.labels) == (want.examples, ("(A)", "(B)"))


def test_label_scores_need_labels_and_room(save):
    task = task_of(save(open_ended()))
    with pytest.raises(ValueError, match="task 'words' has no label set"):
        task.label_scores(tiny_gpt2(), ["a"])
    labels = ("x" * 40, "y")
    good = task_of(save(labelled()))
    longer = type(good)(**{**vars(good), "labels": labels})
    with pytest.raises(ValueError, match="after 'a': the completion has 41 tokens"):
        longer.label_scores(tiny_gpt2(), ["a"])


# Shuffled answers


def test_shuffled_answers_keep_prompts_splits_and_the_multiset_of_answers(save):
    task = task_of(save(open_ended(40)))
    wrong, again, other = (task.shuffled(seed) for seed in (0, 0, 1))
    assert wrong.fingerprint == again.fingerprint != other.fingerprint
    for split, rows in task.examples.items():
        new = wrong.examples[split]
        assert [e.prompt for e in new] == [e.prompt for e in rows]
        assert sorted(e.completion for e in new) == sorted(e.completion for e in rows)
    assert wrong.examples["train"] != task.examples["train"]
    assert wrong.name == task.name
    assert isinstance(wrong, Task)


def test_shuffled_answers_are_tokenised_with_their_new_prompts(save):
    task = task_of(save(open_ended(40))).shuffled(0)
    for example in task.examples["train"]:
        pair = (example.prompt, example.completion)
        assert encode(task.tokenizer, [pair], max_length=32) == [example.encoded]


def test_the_notes_say_how_many_shuffled_rows_keep_their_own_answer(save):
    task = task_of(save(labelled(40))).shuffled(3)
    same = sum(
        e.completion == ("no" if (e.line - 1) % 2 else "yes") for e in task.examples["train"]
    )
    assert f"train: answers permuted, {same} of 28 rows keep their answer" in task.notes


def test_plain_text_has_no_answers_to_shuffle(save):
    task = task_of(save([{"text": f"ab{i}"} for i in range(6)]))
    with pytest.raises(ValueError, match="task 'words' is plain text: it has no answers"):
        task.shuffled(0)


# Data sets on the hub


def hub(monkeypatch, result):
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_a_name_is_loaded_from_the_hub_with_its_splits_and_class_names(monkeypatch):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    part = {"text": [f"t{i}" for i in range(6)], "label": [0, 1] * 3}
    more = {"text": [f"u{i}" for i in range(2)], "label": [0, 1]}
    data = datasets.DatasetDict(
        train=datasets.Dataset.from_dict(part, features),
        validation=datasets.Dataset.from_dict(more, features),
    )
    asked = hub(monkeypatch, data)
    (task,) = tasks_of("someone/reviews:plain").values()
    assert asked == [(("someone/reviews", "plain"), {})]
    assert task.labels == ("bad", "good")
    assert parts(task)["select"] == [1, 2]
    assert sum(map(len, task.examples.values())) == 8


def test_the_class_that_stands_for_no_label_is_left_out(monkeypatch):
    """The hub has -1 in the rows that nobody agreed on, and in hidden test splits."""
    features = datasets.Features(
        {"prompt": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    classes = {"train": [0, 1, -1] * 4, "validation": [0, 1, 0, -1], "test": [-1, -1]}
    data = datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict(
                {"prompt": [f"{split} {i}" for i in range(len(own))], "label": own}, features
            )
            for split, own in classes.items()
        }
    )
    hub(monkeypatch, data)
    task = task_of("someone/claims")
    assert task.labels == ("no", "yes")
    assert len(task.examples["train"]) + len(task.examples["test"]) == 8
    assert parts(task)["select"] == [1, 2, 3]
    notes = (
        "train: 4 rows without a label left out",
        "validation: 1 rows without a label left out",
        "test: 2 rows without a label left out",
    )
    assert task.notes[:3] == notes
    (contrast,) = contrasts("someone/claims", tiny_tokenizer(), max_length=32).values()
    assert (contrast.words, len(contrast.items)) == (("yes", "no"), 11)
    assert contrast.notes[:3] == notes
    hub(monkeypatch, datasets.DatasetDict(test=data["test"]))
    with pytest.raises(ValueError, match="'someone/claims' has no row with a label"):
        tasks_of("someone/claims")


def test_offline_the_error_names_the_data_set_and_the_remedy(monkeypatch):
    hub(monkeypatch, ConnectionError("Couldn't reach 'glue' on the Hub\nmore"))
    with pytest.raises(ConnectionError, match=r"'glue:sst2' is no file here.*pass the path of a"):
        tasks_of("glue:sst2")


@pytest.mark.parametrize("name", ["absent.jsonl", "./absent", "a/b/c", "../absent.csv"])
def test_what_looks_like_a_path_never_asks_the_hub(monkeypatch, name):
    asked = hub(monkeypatch, AssertionError("asked the hub"))
    with pytest.raises(FileNotFoundError, match="there is no file"):
        tasks_of(name)
    assert asked == []


# The files in shared/data


COUNTS = {
    "boolq_400": {"boolq_400": (140, 60, 200)},
    "caa_ab_pairs": {
        "coordinate-other-ais": (78, 22, 50),
        "corrigible-neutral-HHH": (78, 22, 50),
        "myopic-reward": (78, 22, 50),
        "survival-instinct": (78, 22, 45),
    },
    "clinc_domain": {"clinc_domain": (395, 105, 200)},
    "countdown": {"countdown": (395, 105, 200)},
    "e2e_nlg": {"e2e_nlg": (395, 105, 200)},
    "gsm8k": {"gsm8k": (395, 105, 200)},
    "repeng_suffixes": {"repeng_suffixes": (615, 132, 132)},
    "sentiment_uci": {"sentiment_uci": (395, 105, 200)},
    "snli": {"snli": (395, 105, 200)},
    "tatoeba_en_fr": {"tatoeba_en_fr": (395, 105, 200)},
    "tinystories_300": {"tinystories_300": (155, 45, 100)},
    "truth_statements": {
        "cities": (280, 60, 60),
        "neg_cities": (280, 60, 60),
        "sp_en_trans": (245, 53, 53),
        "neg_sp_en_trans": (245, 53, 53),
        "larger_than": (140, 30, 30),
        "smaller_than": (140, 30, 30),
        "common_claim_true_false": (210, 45, 45),
    },
    "wikitext_paras": {"wikitext_paras": (78, 22, 50)},
    "word_tasks": {
        "country-capital": (117, 30, 50),
        "country-currency": (117, 30, 50),
        "singular-plural": (120, 30, 50),
        "present-past": (120, 30, 50),
        "capitalize_first_letter": (120, 30, 50),
        "next_item": (118, 29, 50),
    },
}


@pytest.fixture(scope="module")
def stories(shared):
    return load(shared / "models" / "stories260K", device="cpu")


@pytest.mark.parametrize("name", COUNTS)
def test_shared_files_are_recognised_without_options(shared, stories, name):
    tokenizer = stories.tokenizer
    tasks = text_tasks(shared / "data" / f"{name}.jsonl", tokenizer, max_length=512)
    found = {
        task.name: tuple(len(task.examples[s]) for s in ("train", "select", "test"))
        for task in tasks.values()
    }
    assert found == COUNTS[name]
    for task in tasks.values():
        for part in task.examples.values():
            for example in part[::10]:
                text = tokenizer.decode(example.encoded.target).strip()
                assert example.prompt == "" or text == example.completion.strip()


def test_untrained_and_trained_models_differ_as_they_should_on_their_own_text(shared, stories):
    path = shared / "data" / "tinystories_300.jsonl"
    (task,) = text_tasks(path, stories.tokenizer, max_length=512).values()
    batch = next(task.batches("test", 32, 0))
    with torch.no_grad():
        trained = float(task.loss(stories.model, batch))
        untrained = tiny_llama(vocabulary=512)
        untrained.config.max_position_embeddings = 512
        random = float(task.loss(untrained, batch))
    # 1.635 nats a token is what the notes beside the model say.
    assert trained == pytest.approx(1.635, abs=0.06)
    assert random > math.log(512) - 0.5
