"""Every kind of stored file, flipped, cut and swapped: named and refused, or made again.

Whatever happens to a file, no number comes out of it that was not written.
"""

import json
import random
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_store import CELLS, FAILURE, HEADER, fill, of_format_1

from frenet._files import DamagedFileError
from frenet.integrations.recording import Recording
from frenet.measure.trajectory_files import FOLDER, START, read_steps
from frenet.methods.lora_from_delta import save_as_adapter
from frenet.methods.steering_vector import (
    SteeringVector,
    load_vector,
    save_control_vector,
    save_vector,
)
from frenet.methods.task_vectors import TaskVector, from_adapter, load_task_vector, save_task_vector
from frenet.network.checkpoints.cache import kept_tensors
from frenet.network.checkpoints.made_folder import RECORD, seal_folder, whole_folder
from frenet.network.checkpoints.tensor_files import load_tensors, save_tensors
from frenet.network.space import ParamSpace
from frenet.runs import RunFolder, RunFolderError, find_runs, pack_run, read_run
from network.models import tiny_llama

EVERY = 24
WEIGHT = "model.layers.0.self_attn.q_proj.weight"


def damages(data, other):
    """Contents that a file may have instead of ``data``: flips all over it, cuts, another file."""
    draw = random.Random(0)
    last = len(data) - 1
    for place in sorted({0, last, *(draw.randrange(len(data)) for _ in range(EVERY))}):
        flipped = bytearray(data)
        flipped[place] ^= 1 << draw.randrange(7)
        yield f"flip at {place}", bytes(flipped)
    for length in {0, 1, len(data) // 2, last}:
        yield f"cut to {length}", data[:length]
    yield "no UTF-8", b"\xff" + data
    yield "nested", b"[" * 100_000 + b"]" * 100_000
    if other is not None:
        yield "another file of its kind", other


def survives(path, read, *, other=None):
    """Damage a file in every way; ``read`` gives what was written, or an error that names it."""
    whole, expected = path.read_bytes(), read()
    for what, content in damages(whole, other):
        path.write_bytes(content)
        found, refused = outcome(read)
        if refused is None:
            assert found == expected, what
        else:
            assert path.name in refused, f"{what}: {refused}"
            assert "\n" not in refused, f"{what}: {refused}"
    path.write_bytes(whole)
    assert read() == expected


def outcome(read):
    """The result, and the message instead of one."""
    try:
        return read(), None
    except (ValueError, OSError) as error:
        return None, str(error)


def rows_of(folder):
    return (folder / "rows.jsonl").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    fill(run, CELLS)
    return run


CELL = "cells/seed=1.jsonl"


def test_a_damaged_cell_is_made_again_and_the_rows_are_the_same(tmp_path, undisturbed):
    fill(tmp_path / "begun", CELLS, finish=False)
    whole = (tmp_path / "begun" / CELL).read_bytes()
    other = (tmp_path / "begun" / "cells/seed=2.jsonl").read_bytes()
    for number, (what, content) in enumerate(damages(whole, other)):
        run = tmp_path / str(number)
        shutil.copytree(tmp_path / "begun", run)
        (run / CELL).write_bytes(content)
        with pytest.raises(RunFolderError, match=r"seed=1\.jsonl.* is damaged"):
            read_run(run, partial=True)
        with RunFolder(run, HEADER) as folder:
            assert "seed=1.jsonl" in folder.note, what
            assert not folder.done(CELLS[1])
        fill(run, CELLS)
        assert rows_of(run) == rows_of(undisturbed), what


def test_the_cell_of_another_configuration_is_not_taken(tmp_path, undisturbed):
    fill(tmp_path / "other", CELLS, header=replace(HEADER, config={"k": 4, "lr": 0.1}))
    fill(tmp_path / "run", CELLS, finish=False)
    shutil.copy(tmp_path / "other" / CELL, tmp_path / "run" / CELL)
    with RunFolder(tmp_path / "run", HEADER) as folder:
        assert "seed=1.jsonl is damaged: it is the file of another cell or of another" in (
            folder.note
        )


@pytest.mark.parametrize("name", ["rows.jsonl", "manifest.json"])
def test_damaged_rows_and_manifests_are_made_again_from_the_cells(tmp_path, undisturbed, name):
    fill(tmp_path / "other", CELLS[:3])
    other = (tmp_path / "other" / name).read_bytes()
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    survives(run / name, lambda: read_run(run).rows, other=other)
    for what, content in damages((undisturbed / name).read_bytes(), other):
        (run / name).write_bytes(content)
        fill(run, CELLS)
        assert read_run(run).rows == read_run(undisturbed).rows, what
        assert rows_of(run) == rows_of(undisturbed), what
    (run / name).unlink()
    fill(run, CELLS)
    assert rows_of(run) == rows_of(undisturbed)


def test_a_folder_that_was_sealed_over_a_broken_cell_is_repaired(tmp_path, undisturbed):
    """An early build wrote rows and manifest of a cell that was cut in the middle of a line."""
    import hashlib

    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    of_format_1(run)
    cell = (run / CELL).read_bytes()
    (run / CELL).write_bytes(cell[:-7])
    rows = b"".join(
        b"".join((run / "cells" / f"{c.id}.jsonl").read_bytes().splitlines(keepends=True)[1:])
        for c in CELLS
    )
    (run / "rows.jsonl").write_bytes(rows)
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["rows_sha256"] = hashlib.sha256(rows).hexdigest()
    (run / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunFolderError, match=r"rows\.jsonl.*run the command of this run again"):
        read_run(run)
    with RunFolder(run, HEADER) as folder:
        assert "rows.jsonl" in folder.note
        assert "seed=1.jsonl is damaged: it ends inside a row; this cell runs again" in (
            folder.note
        )
    fill(run, CELLS)
    assert rows_of(run) == rows_of(undisturbed)


def test_a_damaged_run_that_cannot_go_on_here_says_both(tmp_path, undisturbed):
    shutil.copytree(undisturbed, tmp_path / "run")
    (tmp_path / "run" / "rows.jsonl").unlink()
    later = replace(HEADER, versions={"frenet": "0.2.0"})
    with pytest.raises(RunFolderError, match=r"rows\.jsonl is missing.*version of frenet='0\.1"):
        fill(tmp_path / "run", CELLS, header=later)
    assert (tmp_path / "run" / "manifest.json").exists()


@pytest.mark.parametrize("finish", [True, False])
def test_a_damaged_configuration_is_refused(tmp_path, finish):
    run, other = tmp_path / "run", replace(HEADER, config={"k": 4, "lr": 0.1})
    fill(run, CELLS, finish=finish)
    fill(tmp_path / "other", CELLS, header=other)
    config = (tmp_path / "other" / "config.json").read_bytes()

    def read():
        found = read_run(run, partial=True)
        return found.config, found.rows

    survives(run / "config.json", read)
    (run / "config.json").write_bytes(config)
    with pytest.raises(RunFolderError, match=r"manifest\.json" if finish else r"seed=0\.jsonl"):
        read()


def test_edited_settings_of_an_early_build_are_noticed(tmp_path, undisturbed):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    of_format_1(run)
    assert read_run(run).rows == read_run(undisturbed).rows
    file = run / "config.json"
    file.write_text(file.read_text().replace('"lr": 0.1', '"lr": 0.2'))
    with pytest.raises(RunFolderError, match="are not those of its config_sha256"):
        read_run(run)


@pytest.mark.parametrize("name", ["config.json", "manifest.json", CELL, "run.run.jsonl.gz"])
def test_a_format_of_another_version_is_refused(tmp_path, name):
    import gzip

    run = tmp_path / "run"
    fill(run, CELLS, finish=name == "manifest.json")
    if name.endswith(".gz"):
        file = tmp_path / name
        file.write_bytes(gzip.compress(b'{"format": 3}\n'))
        with pytest.raises(RunFolderError, match="not written by this version of frenet"):
            read_run(file)
        return
    text = (run / name).read_text()
    first, *rest = [text] if name.endswith(".json") else text.splitlines(keepends=True)
    head = json.loads(first)
    (run / name).write_text("".join([json.dumps(head | {"format": 3}) + "\n", *rest]))
    with pytest.raises(RunFolderError, match=f"{name}.*(this version|unknown format)"):
        read_run(run, partial=True)


def test_cells_of_early_builds_are_taken_with_a_note(tmp_path, undisturbed):
    run = tmp_path / "run"
    fill(run, CELLS[:2], finish=False)
    of_format_1(run)
    assert read_run(run, partial=True).manifest["cells_without_digest"] == 2
    with RunFolder(run, HEADER) as folder:
        assert "without digests, from an earlier build: 2" in folder.note
    fill(run, CELLS)
    assert read_run(run).manifest["cells_without_digest"] == 2
    assert rows_of(run) == rows_of(undisturbed)
    assert "cells_without_digest" not in read_run(undisturbed).manifest


def test_a_damaged_record_of_a_failure_is_named_and_its_cell_runs_again(tmp_path):
    with RunFolder(tmp_path, HEADER) as folder:
        folder.store_failure(CELLS[1], FAILURE)
    file = tmp_path / "failed" / "seed=1.json"
    survives(file, lambda: read_run(tmp_path, partial=True).failures)
    file.write_text("{}")
    with RunFolder(tmp_path, HEADER):
        assert not file.exists()


def test_a_run_in_one_file(tmp_path, undisturbed):
    file = tmp_path / "a.run.jsonl.gz"
    file.write_bytes(pack_run(read_run(undisturbed)))
    fill(tmp_path / "other", CELLS[:3])

    def read():
        run = read_run(find_runs([file])[0])
        return run.config, run.rows, run.manifest["failures"]

    survives(file, read)


# Files of tensors

TENSORS = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.tensor([1, 2, 3])}


def listed(tensors):
    return {name: tensor.tolist() for name, tensor in tensors.items()}


def test_tensors(tmp_path):
    path = save_tensors(TENSORS, tmp_path / "x.safetensors", {"origin": "here"})
    survives(path, lambda: [listed(load_tensors(path)[0]), load_tensors(path)[1]])


def test_swapped_and_renamed_tensors_are_noticed(tmp_path):
    path = save_tensors(TENSORS, tmp_path / "x.safetensors")
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        about = file.metadata()
    held = load_file(path)
    for changed in (
        {"a": held["a"], "c": held["b"]},
        {"a": held["a"]},
        {"a": held["a"].reshape(4, 3), "b": held["b"]},
        {"a": held["a"].double(), "b": held["b"]},
    ):
        save_file(changed, path, about)
        with pytest.raises(ValueError, match=r"x\.safetensors"):
            load_tensors(path)


def test_a_cached_network(tmp_path):
    path = tmp_path / "x.safetensors"
    kept_tensors(path, lambda: TENSORS)
    kept_tensors(tmp_path / "y.safetensors", lambda: {"a": torch.zeros(3, 4)})
    other = (tmp_path / "y.safetensors").read_bytes()
    survives(path, lambda: listed(kept_tensors(path, lambda: TENSORS)), other=other)


@pytest.mark.parametrize("ending", ["safetensors", "gguf"])
def test_a_steering_vector(tmp_path, ending):
    path, vector = tmp_path / f"v.{ending}", SteeringVector({1: torch.randn(8)}, "by hand", "m")
    if ending == "gguf":
        save_control_vector(vector, path, architecture="llama")
    else:
        save_vector(vector, path)

    def read():
        found = load_vector(path)
        return {b: v.tolist() for b, v in found.directions.items()}, found.origin, found.model

    survives(path, read)


def test_a_task_vector(tmp_path):
    shapes = {name: tuple(t.shape) for name, t in TENSORS.items()}
    vector = TaskVector(shapes, lambda name: TENSORS[name].float(), "made up", "base")
    path = save_task_vector(vector, tmp_path / "v.safetensors")

    def read():
        found = load_task_vector(path)
        return {n: found.read(n).tolist() for n in found.shapes}, found.origin, found.base

    survives(path, read)


def test_a_recorded_training(tmp_path):
    """Its beginning, and a chunk of steps: cut, changed, or in the place of another chunk."""
    draw, space = torch.Generator().manual_seed(0), ParamSpace(("w",), ((3,),))
    recording = Recording(tmp_path / FOLDER, space, gradients=True)
    recording.begin(torch.randn(3, generator=draw))
    for _ in range(2):
        for _ in range(2):
            step, gradient = torch.randn(2, 3, generator=draw)
            recording.add(step, zeros=0, gradient=gradient)
        recording.flush()
    folder = tmp_path / FOLDER
    first, second = sorted(folder.glob("steps-*"))

    def read():
        path = read_steps(tmp_path)
        return path.start.tolist(), path.steps.tolist(), path.gradients.tolist()

    for file in (folder / START, second):
        survives(file, read, other=first.read_bytes())
    kept = second.read_bytes()
    second.write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match=r"steps-00000003.* has the content of steps-00000001"):
        read()
    second.write_bytes(kept)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_an_adapter(tmp_path, name):
    """Of another rank is the other file of its kind."""
    base = tiny_llama()
    draw = torch.Generator().manual_seed(0)
    for rank in (1, 2):
        B, A = torch.randn(16, rank, generator=draw), torch.randn(rank, 16, generator=draw)
        change = TaskVector({WEIGHT: (16, 16)}, lambda _, c=B @ A: c, "made up")
        save_as_adapter(change, tmp_path / str(rank), base=base)

    def read():
        return from_adapter(tmp_path / "1", base=base).read(WEIGHT).tolist()

    survives(tmp_path / "1" / name, read, other=(tmp_path / "2" / name).read_bytes())


def test_a_converted_model(tmp_path):
    """Every file of the folder is as in its record; the conversion is not run again."""
    tiny_llama().save_pretrained(tmp_path / "made")
    seal_folder(tmp_path / "made", {"file": "x.gguf"})
    for file in sorted((tmp_path / "made").iterdir()):
        kept = file.read_bytes()
        for what, content in damages(kept, b"{}"):
            file.write_bytes(content)
            if content == kept.rstrip(b"\n") and file.name == RECORD:
                continue  # its value is what it was
            with pytest.raises(DamagedFileError, match=file.name):
                pytest.fail(f"{what}: {whole_folder(tmp_path / 'made', {'file': 'x.gguf'})}")
        file.write_bytes(kept)
    assert whole_folder(tmp_path / "made", {"file": "x.gguf"})
