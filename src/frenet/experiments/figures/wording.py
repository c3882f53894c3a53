"""Numbers in the titles of figures."""

import math
from collections.abc import Sequence

from frenet.experiments.experiment import Rows, number
from frenet.experiments.figures.names import label


def two(value: float) -> str:
    """A number of about two digits, with an exponent only below a millionth.

    >>> two(0.000442), two(0.0619), two(0.5672), two(1.04), two(20.0), two(137.2), two(9e-16)
    ('0.0004', '0.06', '0.57', '1.0', '20', '137', '9e-16')
    """
    if value == 0:
        return "0"
    if abs(value) < 1e-6:
        return f"{value:.0e}"
    if abs(value) < 0.01:
        return f"{value:.{-math.floor(math.log10(abs(value)))}f}"
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 0.995 else f"{value:.1f}"


def between(rows: Rows, field: str, value: str = "value") -> str:
    """From the least to the greatest number of some rows, each with its name; one number alone.

    >>> between([{"task": "copy", "value": 0.61}, {"task": "sort", "value": 0.3}], "task")
    '0.30 (sort) to 0.61 (copy)'
    """
    least, most = (pick(rows, key=lambda row: number(row, value)) for pick in (min, max))
    ends = [f"{two(number(row, value))} ({label(str(row[field]))})" for row in (least, most)]
    return ends[0] if least is most else " to ".join(ends)


def span(values: Sequence[float]) -> str:
    """From the least to the greatest of some numbers; one number if both look the same.

    >>> span([0.97, 0.902, 0.95]), span([0.301, 0.302]), span([0.5])
    ('0.90 to 0.97', '0.30', '0.50')
    """
    return " to ".join(dict.fromkeys(two(pick(values)) for pick in (min, max)))
