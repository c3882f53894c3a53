"""One small run of every experiment, shared by the tests of this folder."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from experiments.small import small
from frenet.experiments import EXPERIMENTS


class Rows(dict[str, list[dict[str, Any]]]):
    """Rows of one small run of an experiment, by its name; run at the first look."""

    def __missing__(self, name: str) -> list[dict[str, Any]]:
        self[name] = _rows(name)
        return self[name]


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rows]:
    """Rows of one small run of every experiment that a test uses."""
    patch = pytest.MonkeyPatch()
    patch.setenv("FRENET_CACHE", str(tmp_path_factory.mktemp("cache")))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield Rows()
    finally:
        torch.set_num_threads(threads)
        patch.undo()


def _rows(name: str) -> list[dict[str, Any]]:
    experiment, config = EXPERIMENTS[name], small(name)
    return [row for cell in experiment.cells(config) for row in experiment.run(config, cell)]
