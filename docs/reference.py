"""A hook of mkdocs: the reference, a page for each module, from the package as it is."""

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

SOURCE = Path(__file__).resolve().parents[1] / "src"
PACKAGE = SOURCE / "frenet"
PUBLIC = "<!-- public names -->"
GROUP = re.compile(r"^    # (.+)$")
ENTRY = re.compile(r'^    "(\w+)": "([\w.]+)",$')
PAGE = """\
---
title: {title}
search:
  boost: 0.5
---

::: {module}
    options:
      heading_level: 1
      show_root_full_path: true

{modules}
"""


def on_config(config: Any) -> Any:
    """The navigation with every module under its reference."""
    reference = next(entry["Reference"] for entry in config.nav if "Reference" in entry)
    reference += navigation(PACKAGE)[1:]
    return config


def on_files(files: Any, config: Any) -> Any:
    """The files of the site, with a page for each module."""
    for path in pages(PACKAGE):
        files.append(File.generated(config, address(path), content=page(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with its mark replaced by the public names."""
    return markdown.replace(PUBLIC, public_names()) if PUBLIC in markdown else markdown


def inside(package: Path) -> list[Path]:
    """What a package holds and names without an underscore: its modules, then its packages."""
    modules = sorted(package.glob("[!_]*.py"))
    return modules + sorted(path.parent for path in package.glob("[!_]*/__init__.py"))


def pages(package: Path) -> Iterator[Path]:
    """The modules and packages below a package that have a page."""
    for path in inside(package):
        yield path
        if path.is_dir():
            yield from pages(path)


def navigation(package: Path) -> list[Any]:
    """The entries of a package: its own page, its modules, and its packages as sections."""
    parts = (
        {path.stem: navigation(path) if path.is_dir() else address(path)}
        for path in inside(package)
    )
    return [address(package), *parts]


def address(path: Path) -> str:
    """The page of a module or a package."""
    name = path.relative_to(PACKAGE)
    return f"api/{name / 'index.md' if path.is_dir() else name.with_suffix('.md')}"


def page(path: Path) -> str:
    """The page of a module, or of a package with a table of what it holds."""
    rows = [_row(part) for part in inside(path)]
    table = ["## Modules\n\n| module | what is in it |\n|---|---|", *rows] if rows else []
    return PAGE.format(title=path.stem, module=dotted(path), modules="\n".join(table))


def dotted(path: Path) -> str:
    """The name of a module or a package as Python imports it."""
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def _row(path: Path) -> str:
    target = f"{path.stem}/index.md" if path.is_dir() else path.with_suffix(".md").name
    tree = ast.parse(_file(path).read_text(encoding="utf-8"))
    return f"| [`{path.stem}`]({target}) | {_first_line(ast.get_docstring(tree) or '')} |"


def public_names() -> str:
    """The names of ``frenet._HOME``, by the comments that group them, as Markdown tables."""
    source = (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    body = source.split("_HOME = {\n", 1)[1].split("\n}\n", 1)[0]
    parts = []
    for line in body.splitlines():
        if group := GROUP.match(line):
            title = group[1]
            parts.append(f"\n## {title[0].upper()}{title[1:]}\n\n| name | what it is |\n|---|---|")
        elif entry := ENTRY.match(line):
            module, summary = _defined(f"frenet.{entry[2]}", entry[1])
            parts.append(f"| [`frenet.{entry[1]}`][{module}.{entry[1]}] | {summary} |")
        else:
            raise PluginError(f"a line of frenet._HOME is neither a name nor a comment: {line!r}")
    return "\n".join(parts)


def _defined(module: str, name: str) -> tuple[str, str]:
    """The module that defines a name, and the first line of the name's docstring."""
    path = SOURCE / module.replace(".", "/")
    path = path if path.is_dir() else path.with_suffix(".py")
    nodes = ast.parse(_file(path).read_text(encoding="utf-8")).body
    for node, after in pairwise([*nodes, ast.Pass()]):
        match node:
            case ast.FunctionDef() | ast.ClassDef() if node.name == name:
                return module, _first_line(ast.get_docstring(node) or "")
            case ast.AnnAssign(target=ast.Name(id=found)) if found == name:
                return module, _first_line(ast.literal_eval(after.value))
            case ast.ImportFrom() if name in [a.asname or a.name for a in node.names]:
                return _defined(node.module, name)
    raise PluginError(f"{module} defines no {name!r}")


def _file(path: Path) -> Path:
    return path / "__init__.py" if path.is_dir() else path


def _first_line(docstring: str) -> str:
    return docstring.partition("\n")[0].replace("|", r"\|")
