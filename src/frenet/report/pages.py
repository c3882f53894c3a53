"""Several networks as pages in one folder: the names of the files, and writing them."""

import contextlib
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path

from frenet._files import write_whole
from frenet.experiments.reproduce import short_name
from frenet.report.front_page import Network
from frenet.report.sections import Section, slug

INDEX = "index"
# The last line of every page. A page of a network without it belongs to somebody else.
MARK = (
    "<!-- Written by frenet report, which replaces this page and removes it with its network. -->"
)
NAMELESS = "a model without a name"


def named(parts: Sequence[Section]) -> list[Section]:
    """The runs with a label for the network of each, since its page needs one."""
    return [part if part.label else part._replace(label=NAMELESS) for part in parts]


def page_files(
    folder: Path, networks: Sequence[Network], ending: str, *, moves: str
) -> dict[str, str]:
    """The name of the page of every network, by label.

    Names are of letters that every file system takes, and differ not only in upper and lower case.

    Args:
        folder: where the pages will be.
        networks: all of them.
        ending: of the names.
        moves: the option that moves the folder, for messages.

    Raises:
        FileExistsError: a page would replace a file that frenet has not written.
    """
    names: dict[str, str] = {}
    used = {INDEX}
    for network in networks:
        base = name = slug(short_name(network.parts[0].model))
        again = count(2)
        while name.lower() in used:
            name = f"{base}-{next(again)}"
        used.add(name.lower())
        names[network.label] = f"{name}{ending}"
    for path in (folder / name for name in names.values()):
        if path.exists() and not _written_by_frenet(path):
            raise FileExistsError(
                f"{path} was not written by frenet report; move it away, or choose another folder "
                f"with {moves}"
            )
    return names


def write_pages(folder: Path, pages: Mapping[str, str], *, moves: str) -> list[Path]:
    """Write pages into a folder, the last one last, and remove those of networks that are gone.

    Args:
        folder: made if it is missing.
        pages: name of the file -> text; the last one is the index.
        moves: the option that moves the folder, for messages.

    Returns:
        The files, the index first.

    Raises:
        OSError: as ``write_whole``.
    """
    *_, index = pages
    for path in sorted(folder.glob(f"*{Path(index).suffix}")):
        if path.name not in pages and _written_by_frenet(path):
            path.unlink()
    *networks, first = (
        write_whole(folder / name, f"{text.rstrip()}\n\n{MARK}\n", moves=moves)
        for name, text in pages.items()
    )
    return [first, *networks]


def _written_by_frenet(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.read_bytes().rstrip().endswith(MARK.encode())
    return False
