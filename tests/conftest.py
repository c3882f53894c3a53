"""Shapes in signatures are checked in the tests only; files that tests may read but not need."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from jaxtyping import config, install_import_hook

# Before anything imports frenet; src itself never pays for the checks.
install_import_hook("frenet", "beartype.beartype")


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
