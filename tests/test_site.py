"""What the hooks of the documentation make of pages, modules and docstrings."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import griffe
import pytest
import yaml
from mkdocs.exceptions import PluginError

import frenet

DOCS = Path(__file__).resolve().parents[1] / "docs"


def module(name):
    """A file of docs, imported."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def hooks():
    return module("hooks")


@pytest.fixture(scope="module")
def reference():
    return module("reference")


def test_formulas_become_mathml(hooks):
    page = (
        '<p><span class="arithmatex">\\(a &lt; b^2\\)</span></p>'
        '<div class="arithmatex">\\[\nx\n\\]</div>'
    )
    made = hooks.on_page_content(page)
    assert made.count("<math") == 2
    assert "arithmatex" not in made
    assert "<msup><mi>b</mi><mn>2</mn></msup>" in made
    assert made.index('display="inline"') < made.index('display="block"')
    text = "<p>costs $5 and <code>\\(x\\)</code></p>"
    assert hooks.on_page_content(text) == text


def test_all_public_names_are_listed_where_they_are_defined(reference):
    made = reference.on_page_markdown(f"# Reference\n\n{reference.PUBLIC}\n")
    row = r"^\| \[`frenet\.(\w+)`\]\[frenet\.([\w.]+)\.(\w+)\] \| .+ \|$"
    rows = re.findall(row, made, re.MULTILINE)
    assert [name for name, _, _ in rows] == list(frenet._HOME)
    assert {*frenet._HOME, "__version__"} == set(frenet.__all__)
    # The file that defines a name, also where frenet imports it from another.
    assert ("caa", "methods.steering", "caa") in rows
    assert ("Basis", "geometry.subspace", "Basis") in rows
    assert "## Networks and tasks" in made


def test_every_module_is_on_one_page_and_every_page_in_the_navigation(reference):
    package, pages = reference.PACKAGE, list(reference.pages(reference.PACKAGE))
    files = [path / "__init__.py" if path.is_dir() else path for path in pages]
    assert sorted(files) == sorted(public_files(package))
    config = SimpleNamespace(nav=[{"Start": "index.md"}, {"Reference": ["api/index.md"]}])
    start, modules = reference.on_config(config).nav
    assert start == {"Start": "index.md"}
    assert leaves(modules) == ["api/index.md", *map(reference.address, pages)]


def public_files(package):
    """The files of a package, and of its packages, that are named without an underscore."""
    names = {
        path: path.relative_to(package).as_posix().replace("/__init__.py", "")
        for path in package.rglob("*.py")
    }
    return [path for path, name in names.items() if not re.search(r"(^|/)_", name)]


def leaves(navigation):
    """The pages of a navigation in order."""
    if isinstance(navigation, str):
        return [navigation]
    parts = navigation.values() if isinstance(navigation, dict) else navigation
    return [page for part in parts for page in leaves(part)]


def test_the_page_of_a_package_leads_to_its_modules(reference):
    page = reference.page(reference.PACKAGE / "network")
    assert "\n::: frenet.network\n" in page
    assert "\n| [`space`](space.md) | The measured parameters as a vector;" in page
    assert "\n| [`data`](data/index.md) | Rows, texts and contrasts:" in page
    experiments = reference.page(reference.PACKAGE / "experiments")
    assert "\n| [`best_of_n`](best_of_n/index.md) | " in experiments


@pytest.mark.parametrize(
    "source",
    [
        '"""A module."""\n\n\ndef answer() -> int:\n    return 1\n',
        '"""A module."""\n\n\nclass Answer:\n    """A class."""\n\n    def of(self) -> int:\n'
        "        return 1\n",
        "ANSWER = 1\n",
    ],
)
def test_a_public_name_without_a_docstring_is_refused(source):
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "-", "--stdin-filename"]
    place = DOCS.parent / "src/frenet/geometry/new.py"
    found = subprocess.run([*command, place], input=source, capture_output=True, text=True)
    assert found.returncode == 1
    assert re.findall(r"\bD10\d\b", found.stdout)


@pytest.mark.parametrize(
    "outside",
    [
        '<script src="https://cdn.example/x.js"></script>',
        "<script async src=//cdn.example/x.js></script>",
        '<link rel="stylesheet" href="https://fonts.example/css">',
    ],
)
def test_a_page_that_loads_something_from_elsewhere_is_refused(hooks, outside):
    page = SimpleNamespace(file=SimpleNamespace(src_uri="a.md"))
    with pytest.raises(PluginError, match=r"a\.md loads something from elsewhere"):
        hooks.on_post_page(outside, page)
    fine = '<script src="assets/x.js"></script><a href="https://example.org">there</a>'
    assert hooks.on_post_page(fine, page) == fine
    with pytest.raises(PluginError, match="a formula that is not MathML"):
        hooks.on_post_page('<span class="arithmatex">', page)


def test_a_page_with_a_picture_that_the_site_lacks_is_refused(hooks, tmp_path):
    (tmp_path / "pages").mkdir()
    page = tmp_path / "pages" / "a.html"
    page.write_text(
        '<img src="data:image/png;base64,AA=="> <img alt="x" src="../b%20c.svg#only-light">',
        encoding="utf-8",
    )
    with pytest.raises(PluginError, match=r"a\.html shows the picture \.\./b c\.svg"):
        hooks.on_post_build({"site_dir": str(tmp_path)})
    (tmp_path / "b c.svg").write_text("<svg/>", encoding="utf-8")
    hooks.on_post_build({"site_dir": str(tmp_path)})


def test_pictures_of_included_pages_are_there_and_named_by_them(hooks):
    root = DOCS.parent
    shown = re.findall(
        r"!\[[^\]]*\]\(([^)]+)\)", (root / "benchmarks/README.md").read_text("utf-8")
    )
    assert set(shown) == set(hooks.BORROWED)
    assert all(path.is_file() for path in hooks.BORROWED.values())


def test_every_page_is_an_entry_of_the_navigation(hooks):
    """The theme makes the first index.md of a section the link of its heading: it has no entry."""
    config = yaml.load((DOCS.parent / "mkdocs.yml").read_text("utf-8"), Loader=yaml.BaseLoader)
    headings, entries = [], []
    for entry in config["nav"]:
        ((name, found),) = entry.items() if isinstance(entry, dict) else ((None, entry),)
        if isinstance(found, str):
            entries.append(found)
            continue
        pages = [next(iter(p.values())) if isinstance(p, dict) else p for p in found]
        titled = [p for p in pages if p.endswith("index.md")]
        headings += [(name, page) for page in titled]
        entries += [p for p in pages if p not in titled]
    assert headings == [("Results", "results/index.md"), ("Reference", "api/index.md")]
    pages = {f"results/{page.name}" for page in (DOCS / "results").glob("*.md")}
    assert pages - {"results/index.md"} <= set(entries)


def test_doctests_are_examples_and_imported_names_are_left_out(tmp_path):
    (tmp_path / "shape.py").write_text(
        'from math import pi\n\ndef area(r):\n    """Of a disc.\n\n    Text.\n\n    >>> area(0)\n'
        '    0.0\n\n    >>> area(0)\n    0.0\n    """\n    return pi * r * r\n',
        encoding="utf-8",
    )
    extensions = griffe.load_extensions(module("docstrings").Reference())
    read = griffe.load("shape", search_paths=[tmp_path], extensions=extensions)
    sections = read["area"].docstring.parse("google")
    assert [section.kind.value for section in sections] == ["text", "examples"]
    assert sections[1].value[0][1] == ">>> area(0)\n0.0"
    assert read.members["pi"].public is False
