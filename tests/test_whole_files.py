"""Files that are whole or not there, errors that name them, JSON whose damage is named."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from frenet import _files
from frenet._files import (
    TEMPORARY,
    DamagedFileError,
    DiskFullError,
    NotWrittenError,
    named_errors,
    parse_json,
    read_object,
    sealed,
    unsealed,
    whole,
    whole_files,
    write_whole,
)
from frenet.network.checkpoints.folders import held
from frenet.network.data.files import RowError, read_rows


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, DiskFullError),
        (errno.EDQUOT, DiskFullError),
        (errno.EROFS, NotWrittenError),
        (errno.EIO, NotWrittenError),
        (errno.EACCES, PermissionError),
        (errno.ENOENT, FileNotFoundError),
        (errno.ENOTDIR, NotADirectoryError),
    ],
)
def test_an_error_of_the_disk_keeps_its_kind_and_names_file_and_remedy(
    tmp_path, monkeypatch, number, kind
):
    def broken(handle):
        raise OSError(number, os.strerror(number))

    old = write_whole(tmp_path / "x.json", "old")
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(kind, match=r"x\.json .* with THERE") as caught:
        write_whole(tmp_path / "x.json", "new", moves="THERE")
    assert TEMPORARY not in str(caught.value)
    assert old.read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]


def test_errors_of_other_code_and_of_libraries_without_numbers(tmp_path, monkeypatch):
    """What is raised while a file is written need not be about it."""
    for error in (FileNotFoundError(2, "no source"), ValueError("not finite"), KeyError("x")):
        with pytest.raises(type(error)) as caught, whole(tmp_path / "x"):
            raise error
        assert caught.value is error
    with pytest.raises(DiskFullError, match=r"disk full: .*x does not fit"), whole(tmp_path / "x"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    with pytest.raises(NotWrittenError, match="x cannot be written"), whole(tmp_path / "x"):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))  # ulimit -f
    few = type("Usage", (), {"free": 100})
    monkeypatch.setattr(_files.shutil, "disk_usage", lambda _: few)
    with pytest.raises(DiskFullError), named_errors(tmp_path / "x"):
        raise OSError("40000 requested and 2984 written")
    assert list(tmp_path.iterdir()) == []


def written(folder, text, names, **options):
    with whole_files(folder, last="record", **options) as part:
        for name in names:
            (part / name).write_text(text)
            assert not (folder / name).exists() or (folder / name).read_text() != text


def test_a_folder_is_marked_whole_after_all_its_files(tmp_path, monkeypatch):
    folder = tmp_path / "made"
    written(folder, "old", ("record", "a", "b"))
    (folder / "mine").touch()
    moved = []
    replace = Path.replace

    def stops(self, target):
        if len(moved) == 1:
            raise KeyboardInterrupt
        moved.append(self.name)
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stops)
        with pytest.raises(KeyboardInterrupt):
            written(folder, "new", ("record", "a", "b"))
    assert {p.name: p.read_text() for p in folder.iterdir()} == {"a": "new", "b": "old", "mine": ""}
    written(folder, "alone", ["record"], alone=True)
    assert [path.name for path in folder.iterdir()] == ["record"]


def test_a_folder_that_fails_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        written(tmp_path / "made", "text", ("record", "no/such/folder"))
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from frenet._files import whole, whole_files
with whole_files(Path(sys.argv[1]) / "made", last="x") as part, whole(Path(sys.argv[1]) / "y"):
    (part / "x").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name != "posix", reason="kills a process")
def test_what_a_killed_process_left_goes_when_the_next_one_writes(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.rglob(f"{TEMPORARY}*"))) == 2
    _files._tidied.clear()  # what another process begins with
    write_whole(tmp_path / "z", "text")
    with whole_files(tmp_path / "made", last="x") as part:
        (part / "x").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["made", "x", "z"]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"[" * 100_000 + b"]" * 100_000, "is nested too deeply"),
        (b'{"a": "\xff"}', "is not UTF-8: byte 0xff at 7"),
        (b'{"a": ', "is not JSON: Expecting value"),
        (b"", "is not JSON"),
        (b"9" * 5000, "is not JSON: .*digits"),
        (b"[1]", "holds a list, not an object"),
        (b"null", "holds null, not an object"),
        (b'{"b": 1}', "has no key 'a'"),
        (b'{"a": [1]}', "has a value of type list under 'a'"),
    ],
)
def test_json_that_cannot_be_used_is_one_line_with_the_file(tmp_path, data, why):
    path = tmp_path / "x.json"
    path.write_bytes(data)
    with pytest.raises(DamagedFileError, match=rf"x\.json {why}") as caught:
        read_object(path, a=dict)
    assert "\n" not in str(caught.value)


def test_a_seal_covers_every_key_and_value():
    value = sealed({"b": [1.5, None], "a": {"x": "\ud800"}})
    assert unsealed(value, "here") == {"b": [1.5, None], "a": {"x": "\ud800"}}
    assert value["sha256"] == sealed({"a": {"x": "\ud800"}, "b": [1.5, None]})["sha256"]
    for changed in (
        value | {"b": [1.5, 0]},
        value | {"c": 1},
        {"a": value["a"], "sha256": value["sha256"]},
        {key: entry for key, entry in value.items() if key != "sha256"},
        value | {"b": float("nan")},
    ):
        with pytest.raises(DamagedFileError, match="here has changed since it was written"):
            unsealed(changed, "here")


@pytest.mark.parametrize("text", ["[]", "3", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_an_index_of_weights_that_is_none_is_named(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"index\.json is no index of files \(it .*fetch it again"):
        held(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="is nested too deeply"):
        held(tmp_path)


def test_a_nested_row_is_one_bad_row(tmp_path):
    file = tmp_path / "rows.jsonl"
    deep = "[" * 100_000 + "]" * 100_000
    file.write_text(f'{{"a": 1}}\n{{"a": {deep}}}\n{{"a": 2}}\n')
    with pytest.raises(RowError, match=r"rows\.jsonl, line 2: nested too deeply"):
        read_rows(file)
    assert [row["a"] for row in read_rows(file, on_bad="skip").values] == [1, 2]
    with pytest.raises(DamagedFileError):
        parse_json(deep, file)
