"""Tasks and contrasts from lists and data sets are those of a file with the same rows."""

import json
from pathlib import Path

import datasets
import pytest

import frenet
from network.models import tiny_tokenizer

ROWS = [{"prompt": f"word {i} is", "completion": f"thing {i % 3}"} for i in range(12)]
PAIRS = [(f"it is {i} yes", f"it is {i} no") for i in range(4)]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def of_file(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def test_a_task_from_rows_is_that_of_the_file(tmp_path: Path, tokenizer) -> None:
    file = of_file(tmp_path / "rows.jsonl", ROWS)
    expected = frenet.text_tasks(file, tokenizer, max_length=32)["rows"].examples
    for source in (ROWS, tuple(ROWS), datasets.Dataset.from_list(ROWS)):
        assert frenet.text_tasks(source, tokenizer, max_length=32)["rows"].examples == expected


def test_splits_and_class_names_of_a_data_set_count(tokenizer) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    parts = {
        name: datasets.Dataset.from_list(
            [{"text": f"{name} word {i}", "label": i % 2} for i in range(count)], features
        )
        for name, count in (("train", 6), ("validation", 4), ("test", 4))
    }
    task = frenet.text_tasks(
        datasets.DatasetDict(parts), tokenizer, max_length=32, columns={"prompt": "text"}
    )["rows"]
    assert task.labels == ("bad", "good")
    assert [len(task.examples[s]) for s in ("train", "select", "test")] == [6, 4, 4]


def test_a_contrast_from_pairs_is_that_of_the_file(tmp_path: Path, tokenizer) -> None:
    rows = [{"positive": yes, "negative": no} for yes, no in PAIRS]
    file = of_file(tmp_path / "rows.jsonl", rows)
    expected = frenet.contrasts(file, tokenizer, max_length=32)["rows"].items
    assert frenet.contrasts(PAIRS, tokenizer, max_length=32)["rows"].items == expected


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ([], "there are no rows"),
        ([*PAIRS, ("a", "b", "c")], "row 5 is a tuple of 3; pass"),
        ([("a", 1)], "row 1 is a tuple of 2; pass"),
        (["a", "b"], "row 1 is a str; pass"),
        ({"positive": ["a"], "negative": ["b"]}, "a mapping is no list of rows"),
        (datasets.Dataset.from_list([{"story": "a", "ending": "b"}]), "keys story, ending"),
    ],
)
def test_what_is_no_list_of_rows_is_refused_with_its_place(source, why, tokenizer) -> None:
    with pytest.raises(ValueError, match=why):
        frenet.contrasts(source, tokenizer, max_length=32)
