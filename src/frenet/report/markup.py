"""HTML in which everything is escaped unless it was made here."""

import base64
import html
import json
import re
import sys
import zlib
from collections.abc import Iterable
from typing import Any

import markupsafe
from markupsafe import Markup

from frenet._notebook import one_line, showable

# What ends code, emphasis, links and tags in Markdown, or in a common extension of it.
MARKS = re.compile(r"[`*]|(?<=\])[(\[]")
# The same, if not every reader understands a backslash before it; and the backslash itself.
MEANT = re.compile(r"[\\{}]|~~|==|://|(?<=\]):|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
# What turns a line into a heading, a list, a quotation, a definition or an inclusion.
LEADING = re.compile(r"^(?:[#>=:!?|;]|[-+](?=[- ]|$)|\d+[.)](?=\s|$)|\[(?=\w+\]$))")
VOID = frozenset({"br", "img", "input", "link", "meta"})


def escape(value: object) -> Markup:
    """HTML for any value, so that a browser shows its text as it is.

    >>> str(escape("<b>&'"))
    '&lt;b&gt;&amp;&#39;'
    """
    return value if isinstance(value, Markup) else markupsafe.escape(showable(str(value)))


def join(parts: Iterable[object]) -> Markup:
    """The parts one after the other, each escaped unless it is `Markup`."""
    return Markup("".join(escape(part) for part in parts))


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element; ``class_`` gives class, ``data_x`` data-x, True a bare attribute, None none.

    >>> str(tag("a", "R & D", href="#x", title=None))
    '<a href="#x">R &amp; D</a>'
    """
    pieces = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        label = key.rstrip("_").replace("_", "-")
        pieces.append(label if value is True else f'{label}="{escape(value)}"')
    opening = f"<{' '.join(pieces)}>"
    return Markup(opening if name in VOID else f"{opening}{join(children)}</{name}>")


def user_text(value: object) -> Markup:
    """Text from a task file, a path or an error; it cannot reverse the text around it."""
    return tag("bdi", value)


def markdown(text: object) -> str:
    """One line of Markdown that shows any text as it is, and starts or ends nothing.

    >>> print(markdown("a_b <b> *c* [d](e) {f}"))
    a_b &lt;b&gt; \\*c\\* [d]\\(e) &#123;f&#125;
    """
    plain = one_line(" ".join(str(text).split()), sys.maxsize)
    # First the backslashes of the text, since the last line adds more.
    plain = MEANT.sub(lambda match: _entities(match[0]), html.escape(plain, quote=False))
    plain = LEADING.sub(lambda match: _entities(match[0]), plain)
    return MARKS.sub(r"\\\g<0>", plain)


def _entities(text: str) -> str:
    return "".join(f"&#{ord(sign)};" for sign in text)


def packed(value: Any, *, id: str) -> Markup:
    """Data for the page's script: compressed JSON in letters that cannot end the element.

    >>> unpacked(re.sub("<.*?>", "", packed({"a": [1.5, None, "</script>"]}, id="b")))
    {'a': [1.5, None, '</script>']}
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    letters = base64.b64encode(zlib.compress(text.encode(), 9)).decode("ascii")
    return tag("script", Markup(letters), type="text/plain", id=id)


def unpacked(letters: str) -> Any:
    """What ``packed`` has put into its element."""
    return json.loads(zlib.decompress(base64.b64decode(letters)))
