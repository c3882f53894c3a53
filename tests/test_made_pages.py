"""What pages show of stored runs and commands is what those say now."""

import importlib.util
from pathlib import Path

import pytest

MADE = Path(__file__).resolve().parents[1] / "docs" / "made.py"


@pytest.fixture(scope="module")
def made():
    spec = importlib.util.spec_from_file_location("made", MADE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_marked_part_is_what_is_made_of_it(made):
    pages = made.pages()
    assert "README.md" in [page.name for page in pages]
    for page in pages:
        assert made.made(page) == page.read_text("utf-8"), f"{page.name}: run make pages"


def test_a_part_that_differs_is_made_again(made, tmp_path):
    page = tmp_path / "page.md"
    command = "frenet list --json"
    page.write_text(f"before\n<!-- made: $ {command} -->\nstale\n<!-- end -->\nafter\n")
    text = made.made(page)
    assert text.startswith(f"before\n<!-- made: $ {command} -->\n```console\n$ {command}\n{{")
    assert text.endswith("}\n```\n<!-- end -->\nafter\n")
    assert "stale" not in text
