"""A figure of an experiment as a Vega-Lite specification: coloured for the page, or for a file."""

import functools
import json
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from typing import Any

from frenet._notebook import showable
from frenet.experiments.experiment import Figure, Row, Rows, Scalar
from frenet.experiments.figures.series import GREY, HEAT, INK, PALETTE, SHADES

Spec = dict[str, Any]

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
# Names of the page's CSS colours (dark and light in page.css) and their value in a file.
COLOURS: Mapping[str, str] = {
    "ink": INK,
    "muted": "#59636e",
    "line": "#dfe3e6",
    "reference": GREY,
    "heat": HEAT,
} | {
    f"{kind}-{index}": colour
    for kind, colours in (("series", PALETTE), ("shade", SHADES))
    for index, colour in enumerate(colours, start=1)
}
PAINTED = frozenset({"color", "fill", "range", "stroke", "symbolFillColor", "value"})
DATA = frozenset({"datasets", "domain", "values"})
# What the bundle exports to the script of the page.
BUNDLED = "window.vegaEmbed = vegaEmbed;"
WIDTH = 640
EMPTY: Spec = {"data": {"values": [{"x": 1}]}, "mark": "point"}
# The program of a process that draws one figure.
APART = """
import json, sys, vl_convert
name, what, options = json.load(sys.stdin.buffer)
found = getattr(vl_convert, name)(what, **options)
sys.stdout.buffer.write(found if isinstance(found, bytes) else found.encode())
"""


def rows_of(figure: Figure, rows: Rows) -> Rows:
    """The rows of the figure's table, with text that a picture can hold."""
    return [_clean(row) for row in rows if row.get("table") == figure.table]


def draw(figure: Figure, rows: Rows) -> Spec:
    """The Vega-Lite specification of a figure, with its data inside.

    Raises:
        Exception: the exception of the figure's code, with a note that names the figure.
    """
    import altair as alt
    from altair.utils import schemapi

    try:
        # Altair refuses more than 5,000 rows to keep notebooks small; a report may hold more. The
        # whole chart is checked once at the end, and not every part of it as well.
        with alt.data_transformers.enable("default", max_rows=None), schemapi.debug_mode(False):
            spec: Spec = figure.chart(rows).to_dict()
    except Exception as error:
        error.add_note(f"while drawing the figure {figure.id!r} from table {figure.table!r}")
        raise
    # The schema's address is never followed, and the page should hold no address at all.
    spec.pop("$schema", None)
    return spec


def blank(spec: Spec) -> bool:
    """Whether the data of a chart, if they are in one place, have no row."""
    data = spec.get("data", {})
    rows = data.get("values", spec.get("datasets", {}).get(data.get("name")))
    return rows is not None and not rows


def instead(spec: Spec) -> str:
    """What a chart without rows says; empty if it says nothing."""
    return str(spec.get("usermeta", {}).get("instead", ""))


def height(spec: Spec) -> str:
    """The height of a chart: of one panel in pixels, the number of panels, and of columns."""
    inner = spec.get("spec", spec)
    count = 1
    if "facet" in spec:
        field = spec["facet"]["field"]
        data = spec.get("data", {})
        rows = data.get("values", spec.get("datasets", {}).get(data.get("name"), []))
        count = len({row.get(field) for row in rows})
    return f"{inner.get('height', 300)} {count} {spec.get('columns', 1)}"


def for_page(spec: Spec) -> Spec:
    """The specification in the colours of the page, which change with light, dark and paper."""
    named = {value: f"var(--{name})" for name, value in COLOURS.items()}
    page = _replaced(spec, named)
    page["config"] = _merged(_config({n: f"var(--{n})" for n in COLOURS}), page.get("config", {}))
    page["background"] = "transparent"
    # The script of the page lays out the legend with this, at the width of the window.
    page["usermeta"] = {**page.get("usermeta", {}), "longest": _longest(page)}
    return _sized(page)


def headline(figure: Figure, rows: Rows, found: str = "") -> str:
    """What the figure finds in its rows, and after it ``found``, its claim with its hedges."""
    own = figure.finds(rows) if figure.finds else ""
    return " ".join(filter(None, (own, found)))


def for_file(spec: Spec, figure: Figure, found: str = "") -> Spec:
    """The specification on white, with the title and the caption that the page prints around it.

    ``found``: what the figure shows, in a sentence, above its question.
    """
    config = _config(COLOURS)
    config["legend"]["columns"] = max(1, min(4, WIDTH // (7 * _longest(spec) + 50)))
    config["title"] = {"anchor": "start", "fontSize": 15, "subtitleColor": COLOURS["muted"]}
    below = textwrap.wrap(figure.caption, 100)
    title = {
        "text": textwrap.wrap(found or figure.title, 78),
        "subtitle": [figure.title, *below] if found else below,
        "offset": 14,
    }
    still = spec | {"background": "white", "padding": 16, "title": title}
    still["config"] = _merged(config, spec.get("config", {}))
    return _sized(still)


def svg(spec: Spec) -> str:
    """The specification drawn as SVG."""
    return _drawn("vegalite_to_svg", spec).decode()


def png(spec: Spec) -> bytes:
    """The specification drawn as PNG, at twice the size for sharp print."""
    return _drawn("vegalite_to_png", spec, scale=2)


@functools.cache
def bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that needs nothing else."""
    return _drawn("javascript_bundle", BUNDLED).decode()


@functools.cache
def undrawable() -> str:
    """Why this process cannot draw figures; empty if it can.

    The drawing engine reserves far more addresses than it uses, and kills its process if they are
    not granted.
    """
    try:
        import vl_convert  # noqa: F401
    except ImportError as error:
        return f"vl-convert-python cannot be loaded ({error}); install it again"
    limit = address_limit()
    if limit is None:
        return ""
    try:
        _apart("vegalite_to_svg", EMPTY, {"vl_version": vega_lite_version()})
    except RuntimeError:
        return (
            f"the address space of this process is limited to {limit / 2**30:.3g} GiB (ulimit -v), "
            "and the drawing engine reserves more; the numbers are in the tables. Run frenet "
            "report without that limit to draw the figures"
        )
    return ""


def address_limit() -> int | None:
    """The limit of the address space of this process in bytes; None if there is none."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _drawn(name: str, what: Spec | str, **options: Any) -> bytes:
    """The output of a function of vl_convert."""
    options["vl_version"] = vega_lite_version()
    if address_limit() is not None:
        return _apart(name, what, options)
    import vl_convert

    output = getattr(vl_convert, name)(what, **options)
    return output if isinstance(output, bytes) else str(output).encode()


def _apart(name: str, what: Spec | str, options: dict[str, Any]) -> bytes:
    """The same in a separate process, which may die without ending this one.

    Raises:
        RuntimeError: it ended without a result.
    """
    call = json.dumps([name, what, options])
    # -P: do not import files of the current folder as libraries.
    done = subprocess.run(
        [sys.executable, "-P", "-c", APART], input=call.encode(), capture_output=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the drawing process ended with code {done.returncode}")
    return done.stdout


def vega_lite_version() -> str:
    """The Vega-Lite that Altair writes for, as vl-convert names it (such as 6.4)."""
    import altair as alt

    return ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])


def _clean(row: Mapping[str, Scalar]) -> Row:
    return {key: showable(v) if isinstance(v, str) else v for key, v in row.items()}


def _config(colours: Mapping[str, str]) -> Spec:
    ink, muted, line = colours["ink"], colours["muted"], colours["line"]
    return {
        "font": FONT,
        "view": {"stroke": None},
        "axis": {
            "labelColor": muted,
            "titleColor": ink,
            "gridColor": line,
            "domainColor": muted,
            "tickColor": line,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": 500,
            "titlePadding": 10,
            "labelLimit": 220,
            # Room for the longest label; Vega's default of 200 pixels puts the title on top of it.
            "maxExtent": 260,
            "labelSeparation": 6,
            "labelFlush": False,
        },
        "axisX": {"grid": False},
        "legend": {
            "orient": "bottom",
            "labelColor": ink,
            "titleColor": muted,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": 500,
            "labelLimit": 300,
            "columns": 3,
            "columnPadding": 18,
            "rowPadding": 6,
            "symbolStrokeWidth": 2.5,
            "offset": 14,
        },
        "header": {"labelColor": ink, "titleColor": ink, "labelFontSize": 12, "labelLimit": 300},
        "title": {"color": ink},
        "text": {"color": ink},
    }


def _sized(spec: Spec) -> Spec:
    """The starting width; on the page a script follows the window from there."""
    if "facet" in spec:
        # Axes and gaps come on top of the width of the panels themselves.
        room = spec.get("usermeta", {}).get("room", 0)
        panel = (WIDTH - room) // spec.get("columns", 3) - 30
        return spec | {"spec": spec["spec"] | {"width": panel}}
    if ("layer" in spec or "mark" in spec) and not isinstance(spec.get("width"), dict):
        fit = {"type": "fit-x", "contains": "padding"}
        return spec | {"width": WIDTH, "autosize": fit}
    return spec


def _longest(value: Any) -> int:
    """Length of the longest name in any legend."""
    if isinstance(value, list):
        return max(map(_longest, value), default=0)
    if not isinstance(value, dict):
        return 0
    lengths = [_longest(entry) for key, entry in value.items() if key not in DATA]
    names = value.get("domain")
    lengths += (
        [len(name) for name in names if isinstance(name, str)] if names and "range" in value else []
    )
    return max(lengths, default=0)


def _replaced(value: Any, names: Mapping[str, str]) -> Any:
    """Colours by name wherever Vega-Lite takes a colour; data and series names do not change."""
    if isinstance(value, list):
        return [_replaced(entry, names) for entry in value]
    if not isinstance(value, dict):
        return value
    replaced: Spec = {}
    for key, entry in value.items():
        if key in PAINTED and isinstance(entry, str):
            replaced[key] = names.get(entry.lower(), entry)
        elif key in PAINTED and isinstance(entry, list):
            replaced[key] = [names.get(str(part).lower(), part) for part in entry]
        else:
            replaced[key] = entry if key in DATA else _replaced(entry, names)
    return replaced


def _merged(base: Spec, over: Spec) -> Spec:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged
