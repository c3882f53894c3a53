"""The last file of a run: it marks the run as finished and describes its rows."""

import hashlib
from pathlib import Path
from typing import Any, NoReturn

from frenet._files import DamagedFileError, parse_json, read_json, require_object
from frenet.experiments.experiment import Row
from frenet.runs.files import DamagedRunError, RunFolderError
from frenet.runs.header import FORMATS, Header, without_seal
from frenet.runs.records import config_digest

MANIFEST, ROWS = "manifest.json", "rows.jsonl"
# Entries that every build has written, with their types in JSON.
NEEDED: dict[str, type | tuple[type, ...]] = {
    "complete": bool,
    "cells": dict,
    "rows": int,
    "rows_sha256": str,
    "config_sha256": str,
    "failures": list,
    "versions": dict,
    "machine": dict,
}
AGAIN = "run the command of this run again, which makes it again from the stored cells"


def read_finished(folder: Path, header: Header) -> tuple[dict[str, Any], list[Row]]:
    """Manifest and rows of a finished run, after comparing them with each other and the header.

    Raises:
        DamagedRunError: one of them is damaged; both can be made again from the cells.
        RunFolderError: the manifest is of another version of frenet, or of another run.
    """
    file = folder / MANIFEST
    try:
        stored = require_object(read_json(file), file)
        manifest = checked_manifest(stored, file)
        refuse_other(header.experiment, header.config, manifest, file)
        rows = checked_rows((folder / ROWS).read_bytes(), manifest, folder / ROWS)
    except FileNotFoundError as error:
        raise DamagedRunError(f"{error.filename} is missing", AGAIN) from error
    except DamagedFileError as error:
        raise DamagedRunError.of(error, AGAIN) from error
    return manifest, rows


def checked_manifest(stored: dict[str, Any], where: Path | str) -> dict[str, Any]:
    """A manifest without its digest.

    Raises:
        DamagedFileError: it is damaged.
        RunFolderError: it is of another version of frenet.
    """
    if stored.get("format") not in FORMATS:
        refuse_version(where)
    manifest = require_object(without_seal(stored, where), where, **NEEDED)
    for failure in manifest["failures"]:
        require_object(failure, f"{where}, failures,", cell=str, stage=str, type=str, error=str)
    return manifest


def refuse_version(where: Path | str) -> NoReturn:
    """Raise the RunFolderError of a file with an unknown format."""
    raise RunFolderError(
        f"{where} was not written by this version of frenet; read it with the one that wrote it"
    )


def refuse_other(
    experiment: str, config: dict[str, Any], manifest: dict[str, Any], where: Path | str
) -> None:
    """Raise RunFolderError if the manifest belongs to settings other than the configuration."""
    if manifest["config_sha256"] != config_digest(experiment, config):
        raise RunFolderError(
            f"the settings next to {where} are not those of its config_sha256: one of the two was "
            "edited, or belongs to another run; restore both"
        )


def checked_rows(data: bytes, manifest: dict[str, Any], where: Path | str) -> list[Row]:
    """The rows of a text, after comparing it with the manifest.

    Raises:
        DamagedFileError: it is another text, or holds something other than rows.
    """
    if hashlib.sha256(data).hexdigest() != manifest["rows_sha256"]:
        raise DamagedFileError(
            where,
            f"is not what the manifest says: it was edited or cut off, or {MANIFEST} is another "
            "run's",
        )
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError as error:
        raise DamagedFileError(where, f"is not UTF-8 at {error.start}") from None
    if len(lines) != manifest["rows"]:
        raise DamagedFileError(where, f"has {len(lines)} rows of {manifest['rows']}")
    return [
        require_object(parse_json(line, named), named, table=str)
        for number, line in enumerate(lines, start=1)
        for named in [f"{where}, line {number},"]
    ]
