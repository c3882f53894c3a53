"""Shapes in signatures are checked in the tests only; files that tests may read but not need."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from jaxtyping import config

import shape_checks

# Before anything imports torch: each processor has a process of tests already.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before anything imports frenet; src itself never pays for the checks.
shape_checks.install()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder ``shared`` beside the repository: models, task files and notes."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("the folder 'shared' is not beside the repository")
    return folder


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Shapes unchecked, as for users, so that frenet's own errors for wrong shapes are seen."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture
def says(request: pytest.FixtureRequest) -> str:
    """The words of the mark ``reads`` of a test, which the test looks for in the message."""
    mark = request.node.get_closest_marker("reads")
    words = mark.kwargs.get("says", "") if mark else ""
    if not words:
        pytest.fail("the fixture 'says' is for a test whose mark 'reads' has words in 'says'")
    return words
