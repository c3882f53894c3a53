"""Trainings in a row: what one may leave behind must not make the next ones slow."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def _small_heap() -> Iterator[None]:
    """Every training collects garbage, which takes half a second once torch is imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
