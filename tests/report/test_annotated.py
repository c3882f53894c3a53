"""The numbered first screen of a report, which the tour explains."""

import importlib.util
import re
import struct
from pathlib import Path

import pytest
from browsing import browser

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def annotated():
    spec = importlib.util.spec_from_file_location("annotated", DOCS / "annotated.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def size(picture: Path) -> tuple[int, int]:
    """Width and height of a PNG, from its header."""
    return struct.unpack(">II", picture.read_bytes()[16:24])


def test_the_tour_explains_every_number_of_both_pictures(annotated):
    tour = (DOCS / "tour.md").read_text("utf-8")
    numbers = [int(number) for number in re.findall(r"^(\d+)\. \*\*", tour, re.MULTILINE)]
    assert numbers == list(range(1, len(annotated.CALLOUTS) + 1))
    for picture in annotated.PICTURES.values():
        assert f"](assets/{picture.name}#only-" in tour
        assert picture.stat().st_size < 250_000


def test_the_picture_can_be_drawn_again(annotated, tmp_path):
    """With every number, since a part that the page lacks is an error of the script."""
    out = tmp_path / "again.png"
    with browser() as chromium:
        annotated.draw(chromium, annotated.report(tmp_path), out, "light")
    width, height = size(out)
    assert width == size(annotated.PICTURES["light"])[0]
    assert height > 500
