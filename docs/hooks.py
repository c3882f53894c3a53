"""Hooks of mkdocs: formulas as MathML, and checks that pages load offline."""

import html
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

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


def on_files(files: Any, config: Any) -> Any:
    """The files of the site, with the pictures of included pages."""
    for name, path in BORROWED.items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page as it is; that of all results has no table of contents beside its wide matrix."""
    if page.file.src_uri == "results/index.md":
        page.meta["hide"] = ["toc"]
    return markdown


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
            name = unquote(urldefrag(html.unescape(source)).url)
            if not name.startswith("data:") and not (page.parent / name).is_file():
                raise PluginError(f"{page.name} shows the picture {name}, which is not in the site")


def _formula(found: re.Match[str]) -> str:
    source = html.unescape(found[2]).strip()
    if found[1] == "span":
        return convert(source)
    return f'<div class="formula">{convert(source, display="block")}</div>'
