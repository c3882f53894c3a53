"""Canonical text of rows, configurations and cells."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_experiment import EXPERIMENT, Config

from frenet.experiments.experiment import Cell
from frenet.runs import default_out
from frenet.runs.records import (
    MAX_STEM,
    canonical,
    cell_stem,
    config_dict,
    config_digest,
    encode_row,
    input_digests,
    table_columns,
)

TABLES = {"t": ("k", "loss", "name")}


def test_a_row_is_the_same_text_whatever_the_order_of_its_columns():
    first = encode_row({"table": "t", "k": 1, "loss": 0.1}, TABLES)
    assert first == encode_row({"loss": 0.1, "k": 1, "table": "t"}, TABLES)
    assert first == '{"k":1,"loss":0.1,"table":"t"}'


@pytest.mark.parametrize("value", [0.1, 1e-300, -0.0, 1 / 3, 2**60, True, None, "θ \u2028 \ud800"])
def test_values_come_back_as_they_were(value):
    back = json.loads(encode_row({"table": "t", "loss": value}, TABLES))["loss"]
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), np.float64("nan")])
def test_numbers_that_are_not_finite_become_null(value):
    assert json.loads(encode_row({"table": "t", "loss": value}, TABLES))["loss"] is None


def test_a_numpy_double_is_a_python_float():
    assert encode_row({"table": "t", "loss": np.float64(0.1)}, TABLES) == (
        '{"loss":0.1,"table":"t"}'
    )


@pytest.mark.parametrize("value", [torch.tensor(1.0), np.float32(1), np.int64(1), [1], {"a": 1}])
def test_other_values_are_refused_by_name(value):
    words = rf"table 't', column 'loss': .* not {type(value).__name__}; convert it"
    with pytest.raises(ValueError, match=words):
        encode_row({"table": "t", "loss": value}, TABLES)


def test_undeclared_tables_and_columns_are_refused():
    with pytest.raises(ValueError, match=r"names the table 'u'; declared are \['t'\]"):
        encode_row({"table": "u"}, TABLES)
    with pytest.raises(ValueError, match="names the table None"):
        encode_row({"k": 1}, TABLES)
    with pytest.raises(ValueError, match="no column 'lost'; declared are: k, loss, name"):
        encode_row({"table": "t", "lost": 1.0}, TABLES)


def test_the_columns_of_a_table_are_those_it_declares():
    assert table_columns(EXPERIMENT.tables) == {"losses": ("seed", "task", "step", "loss", "null")}


def test_a_configuration_becomes_json_and_its_digest_depends_on_values_alone():
    settings = config_dict(Config(seeds=(3,), limit=None))
    assert settings["seeds"] == [3]
    assert settings["limit"] is None
    assert json.loads(canonical(settings)) == settings
    reordered = dict(reversed(settings.items()))
    assert config_digest("toy", settings) == config_digest("toy", reordered)
    assert config_digest("toy", settings) != config_digest("other", settings)
    assert config_digest("toy", settings) != config_digest("toy", config_dict(Config()))


@dataclass(frozen=True)
class Odd:
    """A configuration that holds something else."""

    value: object


def test_a_configuration_refuses_what_it_cannot_tell_apart():
    with pytest.raises(ValueError, match="configuration field seconds=nan is not finite"):
        config_dict(Config(seconds=float("nan")))
    with pytest.raises(TypeError, match="configuration field value is a Tensor; use str"):
        config_dict(Odd(torch.zeros(1)))
    with pytest.raises(TypeError, match=r"configuration field value\.a is a set"):
        config_dict(Odd({"a": set()}))
    assert config_dict(Odd(Odd((1, [2.0])))) == {"value": {"value": [1, [2.0]]}}


def test_default_folders_differ_with_the_configuration():
    folder = default_out(EXPERIMENT, Config())
    assert folder.parent == Path("runs")
    assert folder.name.startswith("toy-sums-")
    assert folder == default_out(EXPERIMENT, Config(k=3))
    assert folder != default_out(EXPERIMENT, Config(k=4))


@pytest.mark.parametrize(
    ("one", "other"), [("a/b", "a:b"), ("a~b", "a/b"), ("Sort", "sort"), ("x" * 200, "x" * 201)]
)
def test_no_two_cells_share_a_file(one, other):
    stems = {cell_stem(Cell((("task", task),))).lower() for task in (one, other)}
    assert len(stems) == 2
    assert all(len(stem) <= MAX_STEM + 9 and "/" not in stem for stem in stems)


def test_digests_notice_a_change_of_the_files_that_a_configuration_names(tmp_path):
    file, folder = tmp_path / "tasks.jsonl", tmp_path / "model"
    file.write_text("one\n")
    folder.mkdir()
    (folder / "weights").write_bytes(b"123")
    settings = {"model": str(folder), "tasks": [str(file), "copy"], "k": 3, "name": ""}
    before = input_digests(settings)
    assert set(before) == {str(file), str(folder)}
    assert input_digests(settings) == before
    (folder / "weights").write_bytes(b"124")
    after = input_digests(settings)
    assert after[str(file)] == before[str(file)]
    assert after[str(folder)] != before[str(folder)]


def test_large_inputs_are_told_apart_by_blocks_all_over_and_size(tmp_path, monkeypatch):
    monkeypatch.setattr("frenet.runs.records.WHOLE_FILE_BYTES", 1 << 20)
    size = 64 * 3 << 16
    file = tmp_path / "weights"
    found = set()
    for place in (None, 0, size // 2, size - 1):
        content = bytearray(size)
        if place is not None:
            # A stretch as long as from one block to the next.
            content[place : place + (4 << 16)] = b"1" * min(4 << 16, size - place)
        file.write_bytes(content)
        found |= set(input_digests({"model": str(file)}).values())
    file.write_bytes(bytes(size + 1))
    found |= set(input_digests({"model": str(file)}).values())
    assert len(found) == 5


def test_a_path_from_home_is_an_input(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "tasks.jsonl").write_text("one\n")
    found = input_digests({"tasks": ["~/tasks.jsonl", "~/other.jsonl", "~nobody-here/a"]})
    assert found == {
        "~/tasks.jsonl": input_digests({"tasks": str(tmp_path / "tasks.jsonl")}).popitem()[1]
    }


def test_the_base_of_an_adapter_is_an_input(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    for folder in (base, adapter):
        folder.mkdir()
    (base / "weights").write_bytes(b"123")
    config = adapter / "adapter_config.json"
    for name in (str(base), "~/base"):
        config.write_text(json.dumps({"base_model_name_or_path": name}))
        found = input_digests({"model": str(adapter)})
        assert set(found) == {str(adapter), name}
        assert found[name] == input_digests({"model": str(base)})[str(base)]
    for text in ('{"base_model_name_or_path": "owner/name"}', "{}", "[]", "{"):
        config.write_text(text)
        assert set(input_digests({"model": str(adapter)})) == {str(adapter)}


def test_a_name_that_happens_to_be_a_path_is_no_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("lora", "sort", "synthetic", "adapter"):
        (tmp_path / name).mkdir()
    settings = {"spaces": ["lora"], "only": "sort", "where": "lora", "adapter": "adapter"}
    assert set(input_digests({"model": "owner/name", **settings})) == {"adapter"}
    made = {"model": "synthetic", "tasks": ["sort"], "vectors": ["lora"]}
    assert set(input_digests(made)) == {"lora"}


def test_of_a_recorded_training_the_steps_are_the_input(tmp_path):
    run, steps = tmp_path / "run", tmp_path / "run" / "trajectory" / "steps-1-2.safetensors"
    steps.parent.mkdir(parents=True)
    steps.write_bytes(b"12")
    settings = {"trajectory": str(run)}
    before = input_digests(settings)
    assert set(before) == {str(run)}
    (run / "report.html").write_text("<html>")
    assert input_digests(settings) == before
    steps.write_bytes(b"13")
    assert input_digests(settings) != before


def test_text_that_cannot_be_a_path_is_no_input():
    assert input_digests({"model": "a\0b", "tasks": ["x" * 5000]}) == {}
