"""What a run is, fixed before its first cell and compared whenever it resumes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from frenet._files import (
    DamagedFileError,
    pretty,
    read_json,
    require_object,
    sealed,
    unsealed,
    write_whole,
)
from frenet.runs.files import RunFolderError
from frenet.runs.machine import commit

# Format of config.json, manifest.json, cells and packed runs. Format 1 has a digest of all rows
# only.
FORMAT = 2
FORMATS = (1, FORMAT)
# The end of the name of a run in one file.
PACKED = ".run.jsonl.gz"
OTHER_OUT = "use another --out"
_ABSENT = object()

State = Literal["empty", "begun", "finished"]


@dataclass(frozen=True)
class Header:
    """What is fixed before the first cell, and must be the same whenever the run resumes.

    ``device`` is None if it is unknown (on a cluster, in folders of earlier builds), and for
    trainings, which may resume on another device. ``declared``: digest of the declaration that the
    run is made under, and the rules in it; None: not declared.
    """

    experiment: str
    config: dict[str, Any]
    cells: list[str]
    inputs: dict[str, str]
    threads: int
    versions: dict[str, str | None]
    device: str | None = None
    declared: dict[str, Any] | None = None


def read_header(folder: Path) -> Header | None:
    """The header of a run folder; None if there is none.

    Raises:
        RunFolderError: config.json exists, but is not frenet's.
    """
    file = folder / "config.json"
    if not file.exists():
        return None
    names = Header.__dataclass_fields__
    try:
        stored = read_json(file)
        needed = {"format", *names} - {"device", "declared"}
        readable = isinstance(stored, dict) and stored.get("format") in FORMATS
        if not readable or needed - set(stored):
            raise RunFolderError(
                f"{file} was not written by this version of frenet; use another folder"
            )
        stored = require_object(
            without_seal(stored, file), file, experiment=str, config=dict, cells=list, inputs=dict,
            threads=int, versions=dict,
        )  # fmt: skip
        if not all(isinstance(stem, str) for stem in stored["cells"]):
            raise DamagedFileError(file, "has a cell name that is not text")
        if not isinstance(stored.get("commits", []), list):
            raise DamagedFileError(file, "has no list under 'commits'")
    except DamagedFileError as error:
        raise RunFolderError(
            f"{file} is damaged or not frenet's: it {error.why}; restore it, or use another folder"
        ) from error
    known: dict[str, Any] = {name: stored.get(name) for name in names}
    return Header(**known)


def without_seal(stored: dict[str, Any], where: Path | str) -> dict[str, Any]:
    """A stored object without its digest, which format 1 does not have.

    Raises:
        DamagedFileError: the digest is missing, or of another content.
    """
    if stored["format"] == 1 and "sha256" not in stored:
        return stored
    return unsealed(stored, where)


def compare_headers(folder: Path, *, stored: Header, wanted: Header, state: State) -> None:
    """Refuse to resume another run, and name the first difference.

    Args:
        folder: the run folder, for the message.
        stored: its header.
        wanted: the header of the run to resume.
        state: "empty" if no cell is finished: only experiment and configuration must agree;
            "finished": the run is only read, so versions, threads and device may differ; "begun":
            everything known must agree.

    Raises:
        RunFolderError: something differs.
    """
    pairs: list[tuple[str, Any, Any]] = [("experiment", stored.experiment, wanted.experiment)]
    pairs += _pairs("", stored.config, wanted.config)
    if state != "empty":
        pairs += _pairs("contents of ", stored.inputs, wanted.inputs)
        pairs += [("cells", stored.cells, wanted.cells)]
        pairs += [("a declaration", stored.declared, wanted.declared)]
    if state == "begun":
        pairs += [("threads", stored.threads, wanted.threads)]
        pairs += _pairs("version of ", stored.versions, wanted.versions)
        if None not in (stored.device, wanted.device):
            pairs += [("device", stored.device, wanted.device)]
    for name, old, new in pairs:
        if old is _ABSENT and new is not _ABSENT:
            raise RunFolderError(
                f"{folder} holds a run of an earlier version, which had no {name}; frenet report "
                f"reads it (with --partial if it is not finished). To run this one, {OTHER_OUT}"
            )
        if old != new:
            raise RunFolderError(
                f"{folder} holds a run with {name}={_show(old)}, and this one has "
                f"{name}={_show(new)}; {OTHER_OUT}"
            )


def _pairs(
    prefix: str, old: Mapping[str, Any], new: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """Both values of every name of two dicts."""
    names = list(dict.fromkeys([*old, *new]))
    return [(prefix + name, old.get(name, _ABSENT), new.get(name, _ABSENT)) for name in names]


def _show(value: object) -> str:
    """A value for an error, shortened if it is long."""
    text = "(absent)" if value is _ABSENT else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def commits_of(folder: Path) -> list[str | None]:
    """The commits of frenet that worked on a run, in order; None is an unknown one."""
    # Earlier builds recorded none before the end.
    return list(_head(folder).get("commits", [None]))


def _head(folder: Path) -> dict[str, Any]:
    """The content of config.json, once it was read as a header."""
    stored: dict[str, Any] = read_json(folder / "config.json")
    return stored


def write_head(folder: Path, head: Mapping[str, Any]) -> None:
    """Write config.json; format 1 stays format 1, since its cells have no digests, either."""
    rest = {key: value for key, value in head.items() if key != "sha256"}
    write_whole(folder / "config.json", pretty(rest if rest["format"] == 1 else sealed(rest)))


def note_commit(folder: Path) -> str | None:
    """Record the current commit; return a note if the run has others as well."""
    before, now = commits_of(folder), commit()
    if before == [now]:
        return None
    if now not in before:
        write_head(folder, _head(folder) | {"commits": [*before, now]})
    so_far = ", ".join(name or "(unknown)" for name in before)
    return (
        f"{folder} was made so far at commit {so_far} of frenet and resumes at commit "
        f"{now or '(unknown)'}; its manifest will name all of them"
    )


def refuse_foreign(folder: Path) -> None:
    """Refuse a folder that holds something other than a run."""
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"{folder} is a file; a run needs a folder: {OTHER_OUT}")
    if not folder.exists() or (folder / "config.json").exists():
        return
    other = [item.name for item in folder.iterdir() if not item.name.startswith(".")]
    if other:
        raise RunFolderError(f"{folder} holds other things ({min(other)}, ...); {OTHER_OUT}")


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """The runs among paths, and those directly inside a path that is not a run.

    A run is a folder, or one file that :func:`frenet.runs.pack_run` made. Anything else there, such
    as the folder of a model, is ignored.

    Raises:
        FileNotFoundError: a path does not exist.
        RunFolderError: a folder neither is a run nor holds one.
    """
    runs: list[Path] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; give a run folder")
        itself = path.name.endswith(PACKED) or (path / "config.json").exists()
        inside = [file.parent for file in path.glob("*/config.json") if _is_run(file)]
        # Skip hidden files that a system puts next to a file, with a dot before its name.
        inside += path.glob(f"[!.]*{PACKED}")
        if not itself and not inside:
            raise RunFolderError(f"{path} is not a run folder and holds none")
        runs += [path] if itself else sorted(inside)
    return list(dict.fromkeys(runs))


def _is_run(file: Path) -> bool:
    """Whether a config.json belongs to a run, of this or another version."""
    try:
        stored = read_json(file)
    except DamagedFileError as error:
        raise RunFolderError(
            f"{file} is damaged or not frenet's: it {error.why}; restore it, or name the runs to "
            "read"
        ) from error
    return isinstance(stored, dict) and "experiment" in stored
