"""Imports point one way, functions stay short."""

import ast
import re
import shutil
import subprocess
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src"
PACKAGE = "frenet"
LAYERS = (
    "statistics",
    "geometry",
    "network",
    "measure",
    "methods",
    "experiments",
    "runs",
    "report",
    "integrations",
    "cli",
)
# Rooms of a layer, each of which imports none that comes later; "" are the files beside them.
ROOMS = {
    "network": ("", "hooks", "data", "checkpoints", "synthetic"),
    "experiments": ("", "figures", "setup"),
}
FUNCTION_LINES = 50


def modules(src: Path) -> dict[str, Path]:
    """Dotted name -> file, for every module of the package."""
    found = {}
    for path in sorted((src / PACKAGE).rglob("*.py")):
        parts = path.relative_to(src).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of the package that a file imports anywhere, also inside functions."""
    inside = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = inside[: len(inside) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                child = f"{base}.{alias.name}"
                found.add(child if child in known else base)
    return {module for module in found if module in known and module != name}


def above_nothing(src: Path) -> list[str]:
    """Files beside the layers, which every layer may import, that import a layer."""
    known = modules(src)
    beside = [name for name in known if name.startswith(f"{PACKAGE}._") and name.count(".") == 1]
    return [
        f"{name} imports {module}"
        for name in beside
        if name != f"{PACKAGE}.__main__"
        for module in sorted(imports(name, known[name], known))
        if module not in beside
    ]


def layer(name: str) -> int | None:
    """Place in the list; None for the files above all layers (``__init__``, ``__main__``)."""
    parts = name.split(".")
    if len(parts) == 1 or parts[1].startswith("_"):
        return None
    if parts[1] not in LAYERS:
        raise AssertionError(f"{name} belongs to no layer; the layers are {', '.join(LAYERS)}")
    return LAYERS.index(parts[1])


def wrong_imports(src: Path) -> list[str]:
    """Imports of a later layer, and of the package itself by one of its layers."""
    known = modules(src)
    wrong = []
    for name, path in known.items():
        own = layer(name)
        for module in sorted(imports(name, path, known)) if own is not None else ():
            other = layer(module)
            if module == PACKAGE or (other is not None and other > own):
                wrong.append(f"{name} imports {module}")
    return wrong


def cycle(src: Path) -> list[str]:
    """Files that import each other in a circle, empty where there are none."""
    known = modules(src)
    graph = {name: imports(name, path, known) for name, path in known.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def long_functions(src: Path) -> list[str]:
    """Functions over the limit, docstring and decorators not counted."""
    found = []
    for name, path in modules(src).items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = node.end_lineno - node.lineno + 1
                if ast.get_docstring(node) is not None:
                    count -= node.body[0].end_lineno - node.body[0].lineno + 1
                if count > FUNCTION_LINES:
                    found.append(f"{name}.{node.name}: {count} lines")
    return found


def crossings(src: Path) -> list[str]:
    """Imports of an experiment from outside its own folder, but still among the experiments."""
    known, folder = modules(src), f"{PACKAGE}.experiments."
    declared = {
        name
        for name, path in known.items()
        if name.startswith(folder)
        and re.search(r"^(EXPERIMENT|STUDY) = ", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    found = []
    for name, path in known.items():
        own = ".".join(name.split(".")[:3])
        for module in sorted(imports(name, path, known)) if name.startswith(folder) else ():
            other = ".".join(module.split(".")[:3])
            if other in declared and other != own:
                found.append(f"{name} imports {module}")
    return found


def backward(src: Path) -> list[str]:
    """Imports of a later room of the same layer; rooms without a place come after the others."""
    known = modules(src)
    found = []
    for name, path in known.items():
        for module in sorted(imports(name, path, known)):
            (own, here), (other, there) = (room(each, known) for each in (name, module))
            if own == other and own in ROOMS and name != f"{PACKAGE}.{own}" and here < there:
                found.append(f"{name} imports {module}")
    return found


def room(name: str, known: dict[str, Path]) -> tuple[str, int]:
    """The layer of a module, and the place of its room in the order of the layer."""
    parts = [*name.split("."), "", ""]
    order = ROOMS.get(parts[1], ())
    path = known.get(".".join(parts[:3]))
    place = parts[2] if path is None or path.name == "__init__.py" else ""
    return parts[1], order.index(place) if place in order else len(order)


CHECKS = [wrong_imports, above_nothing, cycle, crossings, backward, long_functions]


@pytest.mark.parametrize("check", CHECKS)
def test_the_package_keeps_the_rules(check):
    assert check(SRC) == []


@pytest.fixture
def toy(tmp_path):
    """A function that writes files of a package and returns the folder above it."""

    def write(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / PACKAGE / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return tmp_path

    return write


@pytest.mark.parametrize(
    "line",
    [
        "from frenet.network import space",
        "from frenet.network.space import select",
        "import frenet.network.space",
        "from ..network.space import select",
        "from ..network import space",
        "def f():\n    from frenet.network.space import select",
    ],
)
def test_an_import_of_a_later_layer_is_found(toy, line):
    src = toy({"network/space.py": "select = 1", "geometry/linalg.py": line})
    assert wrong_imports(src) == ["frenet.geometry.linalg imports frenet.network.space"]


def test_earlier_layers_and_files_above_all_layers_may_be_imported(toy):
    src = toy(
        {
            "__init__.py": "from frenet.cli import main",
            "_version.py": "",
            "cli.py": "from frenet.geometry import linalg\nfrom frenet._version import x",
            "geometry/linalg.py": "import torch",
        }
    )
    assert wrong_imports(src) == []
    assert cycle(src) == []


def test_a_file_that_all_layers_may_import_imports_none_of_them(toy):
    src = toy({"_shared.py": "import html\nfrom frenet.geometry import linalg", "__main__.py": ""})
    toy({"geometry/linalg.py": "", "__init__.py": "from frenet._shared import x"})
    assert above_nothing(src) == ["frenet._shared imports frenet.geometry.linalg"]


def test_a_layer_may_not_import_the_package_itself(toy):
    src = toy({"__init__.py": "", "geometry/linalg.py": "from frenet import anything"})
    assert wrong_imports(src) == ["frenet.geometry.linalg imports frenet"]


def test_a_folder_outside_the_list_is_found(toy):
    src = toy({"helpers/misc.py": ""})
    with pytest.raises(AssertionError, match=r"frenet\.helpers\.misc belongs to no layer"):
        wrong_imports(src)


def test_a_cycle_inside_a_layer_is_found(toy):
    src = toy(
        {
            "geometry/a.py": "from frenet.geometry import b",
            "geometry/b.py": "from frenet.geometry.c import x",
            "geometry/c.py": "from .a import y",
        }
    )
    assert {"frenet.geometry.a", "frenet.geometry.b", "frenet.geometry.c"} == set(cycle(src))
    assert wrong_imports(src) == []


def test_an_import_from_one_experiment_into_another_is_found(toy):
    declared = "\nEXPERIMENT = 1\n"
    src = toy(
        {
            "experiments/one/__init__.py": declared,
            "experiments/one/rows.py": "from frenet.experiments.two.rows import row",
            "experiments/two/__init__.py": f"from frenet.experiments.setup import x{declared}",
            "experiments/two/rows.py": "from frenet.experiments.two import y",
            "experiments/setup/__init__.py": "from frenet.experiments import one",
        }
    )
    assert crossings(src) == [
        "frenet.experiments.one.rows imports frenet.experiments.two.rows",
        "frenet.experiments.setup imports frenet.experiments.one",
    ]


def test_an_import_of_a_later_room_is_found(toy):
    src = toy(
        {
            "network/__init__.py": "from frenet.network import data",
            "network/space.py": "from frenet.network.hooks.sites import x",
            "network/hooks/sites.py": "from frenet.network import tasks",
            "network/tasks.py": "",
            "network/data/__init__.py": "from frenet.network.checkpoints import load",
            "network/checkpoints/load.py": "from frenet.network.hooks import sites",
            "experiments/setup/lines.py": "from frenet.experiments.toy import measure",
            "experiments/toy/measure.py": "from frenet.experiments import setup",
        }
    )
    assert backward(src) == [
        "frenet.experiments.setup.lines imports frenet.experiments.toy.measure",
        "frenet.network.data imports frenet.network.checkpoints.load",
        "frenet.network.space imports frenet.network.hooks.sites",
    ]


def test_long_functions_are_found_and_docstrings_not_counted(toy):
    body = "\n".join(["    x = 1"] * (FUNCTION_LINES - 1))
    doc = '    """One.\n' + "\n" * 20 + '    """\n'
    src = toy(
        {
            "geometry/f.py": f"def fits():\n{doc}{body}\n\ndef over():\n{body}\n    y = 1\n",
        }
    )
    assert long_functions(src) == ["frenet.geometry.f.over: 51 lines"]


def test_a_seed_that_is_left_out_is_zero() -> None:
    """Everywhere the same, so that two ways to one measurement draw the same numbers."""
    found: dict[str, object] = {}
    for name, path in modules(SRC).items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            pairs: list[tuple[str, ast.expr | None]] = []
            if isinstance(node, ast.FunctionDef):
                late = zip(reversed(node.args.args), reversed(node.args.defaults), strict=False)
                named = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
                pairs = [(argument.arg, default) for argument, default in (*late, *named)]
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                pairs = [(node.target.id, node.value)]
            for argument, default in pairs:
                if argument == "seed" and isinstance(default, ast.Constant):
                    found[f"{name}:{node.lineno}"] = default.value
    assert len(found) > 10
    assert {place: seed for place, seed in found.items() if seed not in (0, None)} == {}


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_modules_whose_lines_are_changed_are_there():
    """Those of ``make mutants``, which prints its command here and runs nothing."""
    root = SRC.parent
    said = subprocess.run(
        ["make", "--dry-run", "mutants"], cwd=root, capture_output=True, text=True, check=True
    )
    names = re.findall(r"[a-z]+/[\w/]+", said.stdout.partition("mutants.py")[2].partition("--")[0])
    assert len(names) > 20
    assert [name for name in names if not (SRC / PACKAGE / f"{name}.py").is_file()] == []
