"""The page of what frenet reads is what the tests assert."""

import textwrap

import pytest

from test_site import DOCS, module


@pytest.fixture(scope="module")
def reads():
    return module("reads")


def test_the_page_is_made_from_the_marks_as_they_are(reads):
    found = (DOCS / "reads.md").read_text(encoding="utf-8")
    assert found == reads.page(reads.rows()), "docs/reads.md is not up to date: run make reads"


def collected(reads, folder, source):
    (folder / "test_some.py").write_text(textwrap.dedent(source))
    return reads.rows(folder)


def test_marks_of_functions_and_of_their_parameters_become_rows(reads, tmp_path):
    source = """
        @pytest.mark.reads(kind="data", given="a | b", outcome="refused", says="words of it")
        def test_one(says): ...

        @pytest.mark.parametrize("x", [
            pytest.param(1, marks=pytest.mark.reads(kind="folders", given="f", outcome="used: w")),
            2,
        ])
        def test_two(x): ...
    """
    found = collected(reads, tmp_path, source)
    assert [row[:4] for row in found] == [
        ("folders", "f", "used: w", ""),
        ("data", "a | b", "refused", "words of it"),
    ]
    assert found[1].place == "test_some.py:2"
    page = reads.page(found)
    assert "| f | used: w |  |" in page
    assert "| a \\| b | refused | `words of it` |" in page
    assert "GGUF" not in page.replace(reads.INTRO, "")


@pytest.mark.parametrize(
    ("marked", "why"),
    [
        ('@MARK(kind="data", given="g", outcome="note", says="w")\ndef test(): ...', "says"),
        ('@MARK(kind="dat", given="g", outcome="note")\ndef test(): ...', "kinds are"),
        ('@MARK(kind="data", given="g", outcome="good")\ndef test(): ...', "begins"),
        ('@MARK(kind=KIND, given="g", outcome="note")\ndef test(): ...', "literal"),
        ('@MARK(kind="data", outcome="note")\ndef test(): ...', "literal"),
        ('marked = MARK(kind="data", given="g", outcome="note")', "no function"),
    ],
)
def test_a_mark_that_the_page_cannot_show_is_an_error(reads, tmp_path, marked, why):
    with pytest.raises(ValueError, match=why):
        collected(reads, tmp_path, marked.replace("MARK", "pytest.mark.reads"))
