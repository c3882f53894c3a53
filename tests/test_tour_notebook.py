"""The cells of the notebook run in order, as in Jupyter, and what ends a cell shows itself."""

import ast
import json
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def shown(code: str, names: dict[str, Any]) -> Any:
    """Run a cell; the value of its last line if that is an expression, as Jupyter shows it."""
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    if last is None:
        return None
    assert isinstance(last, ast.Expr)
    value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    return None if code.rstrip().endswith(";") else value


def test_the_cells_run_and_show_their_results(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    notebook = json.loads((EXAMPLES / "tour.ipynb").read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)  # The first cell changes it, and this puts it back at the end.
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    monkeypatch.delitem(sys.modules, "watch_finetune", raising=False)
    names: dict[str, Any] = {"__name__": "__main__"}
    kinds = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            value = shown("".join(cell["source"]), names)
            kinds.append(type(value).__name__)
            if hasattr(value, "_repr_html_"):
                assert "<table" in value._repr_html_()
    assert kinds[1] == "DataFrame"
    assert {"Plan", "SearchResult", "Watched", "Trajectory"} <= set(kinds)
    assert {"ProbedDirection", "SteeringVector"} <= set(kinds)
    assert len(names["path"]) == 60
    assert Path("winner", "candidate.json").exists()
    assert names["watched"].advice[0].startswith("turn: the initial gradient basis")
