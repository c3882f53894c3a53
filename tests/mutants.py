"""Changes single lines of mathematics and counts how many changes the tests notice.

    python tests/mutants.py geometry/linalg methods/scale --draw 50 --seed 1 --out mutants.jsonl

A mutant has one operator, comparison, constant, sign or reduction changed. It runs in a process of
its own, against those of the doctests of its module and of the tests of it (see ``tests_of``) that
run the line, and is noticed if one of them fails or takes too long. What survives either
changes no result, which somebody has to argue, or shows what the tests of its module leave open.
"""

import argparse
import ast
import importlib
import json
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import coverage

ROOT = Path(__file__).resolve().parents[1]
SRC, TESTS = ROOT / "src", ROOT / "tests"
LIMIT_S = 1800

# A test that runs all modules of a layer: it takes the place of those that import their users.
WHOLE = {"experiments": TESTS / "experiments" / "test_golden.py"}
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult,
}  # fmt: skip
# Reductions and functions that have a like one with another value.
NAMES = {
    "min": "max", "max": "min", "sum": "mean", "mean": "sum", "argmax": "argmin",
    "argmin": "argmax", "amax": "amin", "square": "abs", "sqrt": "square", "floor": "ceil",
    "ceil": "floor", "sin": "cos", "exp": "expm1", "log": "log1p", "any": "all", "all": "any",
    "clamp_min": "clamp_max", "cumsum": "cumprod",
}  # fmt: skip


class Mutant(NamedTuple):
    """One change: module below ``frenet``, line, what it was, what it became, the whole source."""

    module: str
    line: int
    before: str
    after: str
    source: str


def sites(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that can be changed, in order; not in annotations, docstrings, errors or words."""
    skipped: set[int] = set()
    for node in ast.walk(tree):
        own: list[ast.AST | None] = []
        if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom):
            own = [node]
        elif isinstance(node, ast.AnnAssign | ast.arg):
            own = [node.annotation]
        elif isinstance(node, ast.keyword) and node.arg == "stacklevel":
            own = [node.value]
        elif isinstance(node, ast.FunctionDef):
            own = [node.returns, *node.decorator_list]
        for part in filter(None, own):
            skipped |= {id(below) for below in ast.walk(part)}
    for node in ast.walk(tree):
        if id(node) not in skipped and list(changes(node)):
            yield node


def changes(node: ast.AST) -> Iterator[tuple[str, object]]:
    """The fields of a node that can be changed, each with its other value."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        yield "ops", [COMPARISONS[type(node.ops[0])](), *node.ops[1:]]
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield "op", OPERATORS[type(node.op)]()
    elif isinstance(node, ast.BoolOp):
        yield "op", ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield "op", ast.UAdd()
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield "value", node.value + 1 if type(node.value) is int else (node.value or 1.0) * 1.5
    elif isinstance(node, ast.Attribute) and node.attr in NAMES:
        yield "attr", NAMES[node.attr]
    elif isinstance(node, ast.Name) and node.id in ("min", "max", "any", "all"):
        yield "id", NAMES[node.id]


def mutants(module: str) -> list[Mutant]:
    """All changes of one module."""
    text = (SRC / "frenet" / f"{module}.py").read_text(encoding="utf-8")
    tree = ast.parse(text)
    found = []
    for node in sites(tree):
        before = ast.unparse(node)
        for field, value in changes(node):
            kept = getattr(node, field)
            setattr(node, field, value)
            after = ast.unparse(node)
            found.append(Mutant(module, node.lineno, before, after, ast.unparse(tree)))
            setattr(node, field, kept)
    return found


def draw(modules: Sequence[str], count: int, seed: int) -> list[Mutant]:
    """A number of changes, of different lines; the seed alone decides which."""
    chosen = random.Random(seed)
    lines: dict[tuple[str, int], list[Mutant]] = {}
    for module in sorted(modules):
        for mutant in mutants(module):
            lines.setdefault((module, mutant.line), []).append(mutant)
    drawn = chosen.sample(sorted(lines), min(count, len(lines)))
    return [chosen.choice(lines[line]) for line in drawn]


def importing(module: str, root: Path, pattern: str) -> set[Path]:
    """The files below a folder that import a module of frenet."""
    dotted = f"frenet.{module.replace('/', '.')}"
    package, _, name = dotted.rpartition(".")
    found = set()
    for path in root.rglob(pattern):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                parts = [alias.name for alias in node.names]
                if node.module == dotted or (node.module == package and name in parts):
                    found.add(path)
    return found


def tests_of(module: str, src: Path) -> list[str]:
    """The module itself in this copy, for its doctests, and the test files that may run it.

    These are the files that import it, and those that import a module of its layer that imports it,
    or the test of the whole layer where there is one.
    """
    package, layer = SRC / "frenet", module.split("/")[0]
    users = set() if layer in WHOLE else importing(module, package / layer, "*.py")
    names = [user.relative_to(package).with_suffix("").as_posix() for user in users]
    files = {file for name in (module, *names) for file in importing(name, TESTS, "test_*.py")}
    if layer in WHOLE:
        files.add(WHOLE[layer])
    own = src / "frenet" / f"{module}.py"
    return [str(own), *sorted(str(file.relative_to(ROOT)) for file in files)]


class Lines:
    """A plugin of pytest that notes which tests run each line of modules, the quickest first."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths, self.seconds = paths, Counter[str]()
        self.coverage = coverage.Coverage(include=[str(path) for path in paths], data_file=None)
        self.coverage.start()

    def pytest_runtest_logstart(self, nodeid: str, location: tuple[str, ...]) -> None:
        self.coverage.switch_context(placed(nodeid, location))

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[placed(report.nodeid, report.location)] += report.duration

    def pytest_runtest_logfinish(self) -> None:
        self.coverage.switch_context("")

    def pytest_unconfigure(self) -> None:
        self.coverage.stop()
        for path in self.paths:
            lines = self.coverage.get_data().contexts_by_lineno(str(path))
            # Of what runs at import, such as defaults, the tests that run any other line.
            lines[0] = list({test for tests in lines.values() for test in tests} - {""})
            found = {n: sorted(tests, key=self.seconds.__getitem__) for n, tests in lines.items()}
            path.with_suffix(".lines").write_text(json.dumps(found), encoding="utf-8")


def placed(nodeid: str, location: tuple[str, ...]) -> str:
    """A test as pytest can be given it: the name of a doctest of the copy lacks its file."""
    return location[0] + nodeid if nodeid.startswith("::") else nodeid


def noticed(tests: Sequence[str], noting: Sequence[Path] = ()) -> str:
    """What tests say: "passed", "failed" or "timed out".

    Args:
        tests: files, or single tests.
        noting: modules; which tests run their lines is written beside them.
    """
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
        import pytest

        # Plugins that the parent has imported cannot have their assertions rewritten.
        options = ["-c", "pyproject.toml", "-x", "-q", "-n", "0", "-p", "no:cacheprovider"]
        options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
        plugins = [Lines(noting)] if noting else []
        os._exit(pytest.main([*options, *tests], plugins=plugins))
    end = math.inf if noting else time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "passed" if status == 0 else "failed"
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timed out"


def that_run(mutant: Mutant, src: Path) -> list[str]:
    """The tests that run a line, the quickest first; any other of its module if at import."""
    path = src / "frenet" / f"{mutant.module}.py"
    found = lines_of(path).get(str(mutant.line), [""])
    return lines_of(path)["0"] if "" in found else found


def lines_of(path: Path) -> dict[str, list[str]]:
    """What ``Lines`` noted of a module: tests by line, and those of any line as "0"."""
    found: dict[str, list[str]] = json.loads(path.with_suffix(".lines").read_text("utf-8"))
    return found


@contextmanager
def written(mutant: Mutant, src: Path) -> Iterator[None]:
    """The change in a copy of the package, as long as the context lasts."""
    path = src / "frenet" / f"{mutant.module}.py"
    kept = path.read_text(encoding="utf-8")
    try:
        path.write_text(mutant.source, encoding="utf-8")
        yield
    finally:
        path.write_text(kept, encoding="utf-8")
        # A file of the same second and size would be taken for the one that was compiled.
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
            compiled.unlink()


def judge(mutant: Mutant, src: Path) -> dict[str, object]:
    """What became of a mutant, and of which it was one.

    Only the tests that run its line can notice it. Those that run the module in a process of their
    own are not seen to do so; what only they would notice counts as survived.
    """
    with written(mutant, src):
        verdict = noticed(that_run(mutant, src) or tests_of(mutant.module, src))
    row = {k: v for k, v in mutant._asdict().items() if k != "source"}
    return {**row, "verdict": "survived" if verdict == "passed" else verdict}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("modules", nargs="+", help="below src/frenet, such as geometry/linalg")
    parser.add_argument("--draw", type=int, default=50, help="how many changes")
    parser.add_argument("--seed", type=int, default=0, help="decides which")
    parser.add_argument("--only", nargs="+", default=(), help="layers whose part is judged")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one a change")
    asked = parser.parse_args()
    os.chdir(ROOT)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    drawn = draw(asked.modules, asked.draw, asked.seed)
    if asked.only:
        drawn = [mutant for mutant in drawn if mutant.module.split("/")[0] in asked.only]
    with tempfile.TemporaryDirectory() as folder:
        src = Path(folder, "src")
        shutil.copytree(SRC, src, ignore=shutil.ignore_patterns("__pycache__"))
        os.environ["PYTHONPATH"] = str(src)
        sys.path[:0] = [str(src), str(TESTS)]
        # Imported once for all processes; frenet itself is imported by each.
        for name in ("torch", "transformers", "peft", "scipy.stats", "altair", "pytest"):
            importlib.import_module(name)
        modules = list(dict.fromkeys(mutant.module for mutant in drawn))
        every = dict.fromkeys(test for module in modules for test in tests_of(module, src))
        paths = [src / "frenet" / f"{module}.py" for module in modules]
        if noticed(list(every), paths) != "passed":
            sys.exit("the tests of these modules fail without any change")
        # A test that pytest cannot find would count as one that noticed.
        noted = {test for path in paths for test in lines_of(path)["0"]}
        if noticed(["--collect-only", *noted]) != "passed":
            sys.exit("the tests that run these modules cannot be named one by one")
        with asked.out.open("a") as out:
            for mutant in drawn:
                row = judge(mutant, src)
                print(json.dumps(row), file=out, flush=True)
                where = f"{mutant.module}:{mutant.line}"
                print(
                    f"{row['verdict']:9} {where}  {mutant.before}  ->  {mutant.after}", flush=True
                )


if __name__ == "__main__":
    main()
