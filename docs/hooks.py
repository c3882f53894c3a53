"""Hooks of mkdocs: formulas as MathML, lists of names, and checks that pages load offline."""

import ast
import html
import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
OUTSIDE = re.compile(
    r'<(?:script|img|iframe)[^>]*\ssrc="?(?:https?:)?//|<link[^>]*\shref="?https?:'
)
PICTURE = re.compile(r'<img[^>]*\ssrc="([^"]+)"')
# Pictures of included pages outside docs, by their names in those pages.
BORROWED = {"growth.svg": ROOT / "benchmarks/growth.svg"}
PUBLIC = "<!-- public names -->"
MODULES = re.compile(r"<!-- modules of (\w+) -->")
GROUP = re.compile(r"^    # (.+)$")
ENTRY = re.compile(r'^    "(\w+)": "([\w.]+)",$')


def on_files(files: Any, config: Any) -> Any:
    """The files of the site, with the pictures of included pages."""
    for name, path in BORROWED.items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with its marks replaced by public names, or by the modules of a layer."""
    if PUBLIC in markdown:
        markdown = markdown.replace(PUBLIC, public_names())
    return MODULES.sub(lambda found: modules(found[1]), markdown)


def on_page_content(content: str, **_: Any) -> str:
    """The page with its formulas as MathML, which needs no script."""
    return FORMULA.sub(_formula, content)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Check that the page loads nothing from the network and that all formulas are MathML."""
    if found := OUTSIDE.search(output):
        raise PluginError(f"{page.file.src_uri} loads something from elsewhere: {found[0]}")
    if 'class="arithmatex"' in output:
        raise PluginError(f"{page.file.src_uri} has a formula that is not MathML")
    return output


def on_post_build(config: Any) -> None:
    """Check that every picture of every page is a file of the site."""
    for page in sorted(Path(config["site_dir"]).rglob("*.html")):
        for source in PICTURE.findall(page.read_text(encoding="utf-8")):
            name = unquote(html.unescape(source))
            if not name.startswith("data:") and not (page.parent / name).is_file():
                raise PluginError(f"{page.name} shows the picture {name}, which is not in the site")


def public_names() -> str:
    """The names of ``frenet._HOME``, by the comments that group them, as Markdown tables."""
    source = (ROOT / "src/frenet/__init__.py").read_text(encoding="utf-8")
    body = source.split("_HOME = {\n", 1)[1].split("\n}\n", 1)[0]
    parts = []
    for line in body.splitlines():
        if group := GROUP.match(line):
            title = group[1]
            parts.append(f"\n## {title[0].upper()}{title[1:]}\n\n| name | what it is |\n|---|---|")
        elif entry := ENTRY.match(line):
            module, summary = _defined(f"frenet.{entry[2]}", entry[1])
            parts.append(f"| [`{entry[1]}`][{module}.{entry[1]}] | {summary} |")
        else:
            raise PluginError(f"a line of frenet._HOME is neither a name nor a comment: {line!r}")
    return "\n".join(parts)


def modules(layer: str) -> str:
    """Directives that document every module of a layer, first its files, then its subfolders."""
    folder = ROOT / "src/frenet" / layer
    paths = sorted(folder.glob("[a-z]*.py")) + sorted(folder.glob("*/[a-z]*.py"))
    names = (".".join(path.relative_to(folder).with_suffix("").parts) for path in paths)
    return "\n\n".join(f"::: frenet.{layer}.{name}" for name in names)


def _defined(module: str, name: str) -> tuple[str, str]:
    """The module that defines a name, and the first line of the name's docstring."""
    path = ROOT / "src" / module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    for node, after in pairwise([*nodes, ast.Pass()]):
        match node:
            case ast.FunctionDef() | ast.ClassDef() if node.name == name:
                return module, _first_line(ast.get_docstring(node) or "")
            case ast.AnnAssign(target=ast.Name(id=found)) if found == name:
                return module, _first_line(ast.literal_eval(after.value))
            case ast.ImportFrom() if name in [a.asname or a.name for a in node.names]:
                return _defined(node.module, name)
    raise PluginError(f"{module} defines no {name!r}")


def _first_line(docstring: str) -> str:
    return docstring.splitlines()[0].replace("|", r"\|")


def _formula(found: re.Match[str]) -> str:
    source = html.unescape(found[2]).strip()
    if found[1] == "span":
        return convert(source)
    return f'<div class="formula">{convert(source, display="block")}</div>'
