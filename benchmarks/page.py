"""The tables of the benchmark page, from the rows of the jobs."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import linregress

from records import Job
from units import duration, size

Row = Mapping[str, Any]
PAGE = Path(__file__).parent / "README.md"
FIGURE = Path(__file__).parent / "growth.svg"
GROWTH = "bench_growth"
HEADER = "| what | model | measured | quartiles | aim | | detail |\n|---|---|---|---|---|---|---|"
GROWTH_HEADER = (
    "| what | size | time | memory | exponent | last step | expected |\n"
    "|---|---|---|---|---|---|---|"
)
# "about 1" allows this tolerance.
ABOUT = 0.05


def tables(jobs: Mapping[str, Job]) -> dict[str, str]:
    """The parts of the page, by their markers."""
    ratios = [row for name, job in jobs.items() if name != GROWTH for row in job.rows]
    growth = jobs[GROWTH].rows if GROWTH in jobs else []
    return {
        "table": f"{environments(jobs)}\n\n{table(ratios)}",
        "growth": f"{growth_table(growth)}\n\n![Time against size]({FIGURE.name})",
    }


def write(parts: Mapping[str, str], page: Path) -> None:
    """Put the parts between ``<!-- NAME -->`` and ``<!-- end of NAME -->``.

    Raises:
        ValueError: the page has no such markers.
    """
    text = page.read_text(encoding="utf-8")
    for name, part in parts.items():
        start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if text.count(start) != 1 or text.count(end) != 1:
            raise ValueError(f"{page.name} must have {start} and {end} once each")
        before, after = text.split(start)[0], text.split(end)[1]
        text = f"{before}{start}\n{part}\n{end}{after}"
    page.write_text(text, encoding="utf-8")


def environments(jobs: Mapping[str, Job]) -> str:
    """Machine, versions, commit and date: one line for all jobs with the same ones."""
    shared: dict[str, list[str]] = {}
    for name, job in jobs.items():
        shared.setdefault(describe(job.environment), []).append(name)
    if len(shared) == 1:
        text = next(iter(shared))
    else:
        text = "\n".join(f"- {', '.join(names)}: {found}" for found, names in shared.items())
    loads = [job.environment["load"] for job in jobs.values()]
    missing = [name for name, job in jobs.items() if job.seconds is None]
    return "\n\n".join(
        [
            text,
            f"Load average when a script began: {min(loads):.1f} to {max(loads):.1f}. All scripts "
            f"together took {sum(job.seconds or 0 for job in jobs.values()) / 60:.0f} minutes.",
            *([f"Not ended: {', '.join(missing)}."] if missing else []),
        ]
    )


def describe(record: Mapping[str, Any]) -> str:
    """One environment in words."""
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    gpu = f"{record['gpu']}; " if record.get("gpu") else ""
    return (
        f"{record['date']}, commit {record['commit']}; {gpu}{record['processor']}, "
        f"{record['cores']} cores, "
        f"{record['threads']} threads, {size(record['memory'])}; {versions}."
    )


def table(rows: Iterable[Row]) -> str:
    """Ratios as a Markdown table, in their order."""
    return "\n".join([HEADER, *(_line(_cells(row)) for row in rows)])


def _cells(row: Row) -> list[str]:
    model = row.get("model") or "-"
    if "why" in row:
        return [row["name"], model, "not measured", "", "", "", row["why"]]
    spread = f"{row['low']:.3g} to {row['high']:.3g}" if "low" in row else ""
    verdict = judged(row) or ""
    return [
        row["name"], model, f"{row['ratio']:.3g}", spread, row["aim"], verdict, row["detail"],
    ]  # fmt: skip


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def judged(row: Row) -> str | None:
    """Whether the aim is met; "within noise" if it lies between the quartiles.

    >>> judged({"ratio": 1.1, "low": 1.0, "high": 1.2, "aim": "at most 1.05"})
    'within noise'
    >>> judged({"ratio": 9.0, "aim": "at least 8"})
    'met'
    >>> judged({"ratio": 0.0, "aim": "at most 0"})
    'met'
    """
    if not row["aim"]:
        return None
    kind, _, limit = row["aim"].rpartition(" ")
    limit = float(limit)
    if "low" in row and row["low"] < limit < row["high"]:
        return "within noise"
    met = {
        "at most": row["ratio"] <= limit,
        "below": row["ratio"] < limit,
        "at least": row["ratio"] >= limit,
        "above": row["ratio"] > limit,
        "about": abs(row["ratio"] - limit) <= ABOUT * limit,
    }
    return "met" if met[kind] else "missed"


def exponent(sizes: Sequence[float], values: Sequence[float]) -> tuple[float, float | None]:
    """Slope of log value against log size, and its standard error (None for two points).

    >>> slope, error = exponent([1, 10, 100], [3.0, 300.0, 30000.0])
    >>> round(slope, 9), round(error, 9)
    (2.0, 0.0)
    """
    x, y = ([math.log(value) for value in part] for part in (sizes, values))
    if len(x) == 2:
        return (y[1] - y[0]) / (x[1] - x[0]), None
    fit = linregress(x, y)
    return float(fit.slope), float(fit.stderr)


def growth_table(rows: Iterable[Row]) -> str:
    """Curves as a Markdown table: times and memory at their ends, and exponents."""
    return "\n".join([GROWTH_HEADER, *(_line(_growth_cells(row)) for row in rows)])


def _growth_cells(row: Row) -> list[str]:
    if "why" in row:
        return [row["name"], "", "not measured", "", "", "", row["why"]]
    points, notes = row["points"], [p["note"] for p in row["points"] if "note" in p]
    sizes, seconds = ([point[key] for point in points] for key in ("size", "seconds"))
    what = row["name"] + (f" (stopped: {row['stopped']})" if row["stopped"] else "")
    ends = [points[0], points[-1]]
    memory = ", ".join(size(p["bytes"]) for p in ends if p["bytes"] is not None)
    slope, step = "", ""
    if len(points) > 1:
        value, error = exponent(sizes, seconds)
        slope = f"{value:.2f}" + (f" ± {error:.2f}" if error is not None else "")
        step = f"{exponent(sizes[-2:], seconds[-2:])[0]:.2f}"
    return [
        "; ".join([what, *notes[-1:]]),
        f"{sizes[0]:,} to {sizes[-1]:,} {row['over']}",
        ", ".join(duration(p["seconds"]) for p in ends),
        memory or "-",
        slope,
        step,
        row["expected"],
    ]


def figure(rows: Iterable[Row]) -> str:
    """Time against size of all curves, both axes logarithmic, as SVG."""
    import altair as alt

    from frenet.report.figures import svg

    points = [
        {"curve": row["name"], "over": row["over"], "size": p["size"], "seconds": p["seconds"]}
        for row in rows
        for p in row.get("points", ())
    ]
    panels = []
    for over in dict.fromkeys(point["over"] for point in points):
        here = [point for point in points if point["over"] == over]
        # A label at every measured size, without lines between them.
        sizes = sorted({p["size"] for p in here})
        label = "~s" if over == "d" else ",d"
        marks = alt.Axis(
            values=sizes, format=label, grid=False, labelOverlap=False, labelFlush=False
        )
        panels.append(
            alt.Chart(alt.InlineData(here), width=190, height=170)
            .mark_line(point=True)
            .encode(
                alt.X("size:Q", title=over, axis=marks).scale(type="log", nice=False),
                alt.Y("seconds:Q", title="seconds")
                .scale(type="log", nice=False, padding=8)
                .axis(tickCount=4, format="~g", grid=False),
                alt.Color("curve:N", title=None, sort=None).legend(
                    orient="top", direction="vertical", labelLimit=240
                ),
            )
        )
    chart = alt.hconcat(*panels, background="white").resolve_scale(color="independent")
    return svg(chart.to_dict())
