"""Several networks as a folder of HTML pages: an index, and a report of each network."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from frenet.experiments.experiment import Study
from frenet.report.front_page import grouped
from frenet.report.page import document, index_of, sections_of
from frenet.report.pages import INDEX, named, page_files, write_pages
from frenet.runs import Run
from frenet.runs.files import require_folder

SUFFIX, MOVES = ".html", "--site"


def write_site(
    runs: Sequence[Run],
    out: Path | str,
    *,
    experiments: Mapping[str, Study] | None = None,
    static: bool = False,
) -> list[Path]:
    """Write ``index.html``, and the report of every network as a page of its own.

    Every page needs no other file and no network.

    Args:
        runs: finished or partial runs.
        out: the folder. An index in it is replaced, and pages that this function has written, which
            are removed if their network is gone; all other files stay.
        experiments: name -> experiment; default: those of frenet.
        static: add a picture of every figure for readers without scripts.

    Returns:
        The paths of the pages, the index first, and then in the order of the networks.

    Raises:
        ValueError: no run, or a run of an unknown experiment.
        NotADirectoryError: ``out`` is a file.
        FileExistsError: a page would replace a file that this function has not written.
    """
    out = require_folder(out)
    networks = grouped(named(sections_of(runs, experiments)))
    files = page_files(out, networks, SUFFIX, moves=MOVES)
    index = f"{INDEX}{SUFFIX}"
    pages = {
        files[network.label]: document([network], static=static, above={"All networks": index})
        for network in networks
    }
    pages[index] = index_of(networks, files, static=static)
    return write_pages(out, pages, moves=MOVES)
