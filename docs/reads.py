"""Make docs/reads.md from the marks ``reads`` of the tests."""

import argparse
import ast
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGE, TESTS = ROOT / "docs" / "reads.md", ROOT / "tests"
KINDS = {
    "folders": "Folders of models",
    "adapters": "Adapters",
    "GGUF": "GGUF files",
    "data": "Data",
    "encodings": "Encodings, and names of files and tasks",
}
OUTCOMES = ("used", "refused", "note")
INTRO = """# What frenet reads

`make reads` generates this page. Every row is a test that gives frenet the input and asserts the
outcome and the words of the message.

- **used**: frenet reads it as the row says.
- **refused**: frenet stops with an error that contains these words.
- **note**: frenet reads it, and a note contains these words.
"""


class Row(NamedTuple):
    """One mark, with its file and line."""

    kind: str
    given: str
    outcome: str
    says: str
    place: str


def rows(tests: Path = TESTS) -> list[Row]:
    """The marks of all test files, by kind and in the order of the files.

    Raises:
        ValueError: an argument of a mark is not a literal or not known, or a test with words
            does not take the fixture ``says``.
    """
    marked: list[Row] = []
    for path in sorted(tests.rglob("test_*.py")):
        marked += _of_file(path.relative_to(tests), ast.parse(path.read_text(encoding="utf-8")))
    return sorted(marked, key=lambda row: list(KINDS).index(row.kind))


def _of_file(path: Path, tree: ast.Module) -> list[Row]:
    """The marks of one file."""
    marked = []
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            takes = {argument.arg for argument in function.args.args}
            marked += [_row(c, f"{path}:{c.lineno}", takes) for c in _marks(function)]
    if len(marked) != len(list(_marks(tree))):
        raise ValueError(f"{path}: a mark 'reads' decorates no function")
    return marked


def _marks(node: ast.AST) -> Iterator[ast.Call]:
    """The marks in the decorators of a function, or in all of a file."""
    parts = node.decorator_list if isinstance(node, ast.FunctionDef) else [node]
    for part in parts:
        for call in ast.walk(part):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.reads":
                yield call


def _row(call: ast.Call, place: str, takes: set[str]) -> Row:
    """A mark as a row of the page."""
    try:
        given: dict[str, Any] = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        row = Row(**{"says": "", **given, "place": place})
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{place}: the arguments of 'reads' are literal keywords: {error}"
        ) from None
    if row.kind not in KINDS or row.outcome.partition(":")[0] not in OUTCOMES:
        raise ValueError(
            f"{place}: kind is {row.kind!r}, outcome {row.outcome!r}; kinds are "
            f"{', '.join(KINDS)}, and an outcome begins with {', '.join(OUTCOMES)}"
        )
    if row.says and "says" not in takes:
        raise ValueError(f"{place}: the test has to take the fixture 'says' and assert the words")
    return row


def page(marked: Sequence[Row]) -> str:
    """The page of the documentation."""
    text = INTRO
    for kind, title in KINDS.items():
        of = [row for row in marked if row.kind == kind]
        if of:
            text += f"\n## {title}\n\n| given | outcome | the message says |\n|---|---|---|\n"
            text += "".join(
                f"| {_cell(row.given)} | {_cell(row.outcome)} | {_words(row.says)} |\n"
                for row in of
            )
    return text


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _words(says: str) -> str:
    """The words of a message as Markdown code; empty without words."""
    return "`" + says.replace("`", "'").replace("|", "\\|") + "`" if says else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PAGE, help="the page to write")
    options = parser.parse_args(arguments)
    options.out.write_text(page(rows()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
