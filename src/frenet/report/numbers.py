"""Numbers in readable form."""

import math

from frenet.experiments.figures.wording import two
from frenet.statistics.intervals import Estimate

NONE = "–"


def figure(value: object, digits: int = 4) -> str:
    """A cell of a table: ``digits`` significant digits, integers whole, nothing as a dash.

    >>> figure(0.123456), figure(12.0), figure(0.00001234), figure(102592), figure(None)
    ('0.1235', '12', '1.234e-5', '102,592', '–')
    >>> figure(0.99999), figure(1.00001)
    ('1.000', '1.000')
    """
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{int(exponent)}"
    if value == int(value):
        return figure(int(value))
    # A number that is rounded up to a power of ten has as many digits as one just above it.
    rounded = float(f"{value:.{digits - 1}e}")
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(rounded))))}f}"


def estimate(value: Estimate | None, digits: int = 3) -> str:
    """A value with its interval and how many values it is the mean of.

    >>> estimate(Estimate(0.61234, 0.5512, 0.6701, 3))
    '0.612 [0.551, 0.670], n = 3'
    >>> estimate(Estimate(0.004))
    '0.00400, n = 1'
    >>> estimate(Estimate(0.95, n=0))
    '0.950'
    """
    if value is None or not math.isfinite(value.value):
        return NONE
    text = figure(float(value.value), digits)
    ends = [end for end in (value.low, value.high) if end is not None and math.isfinite(end)]
    if len(ends) == 2:
        text += f" [{figure(float(ends[0]), digits)}, {figure(float(ends[1]), digits)}]"
    return f"{text}, n = {value.n}" if value.n else text


def spread(value: Estimate) -> str:
    """The interval of a value in brackets, with numbers of about two digits; empty without one.

    >>> spread(Estimate(0.61234, 0.5512, 0.6701, 3)), spread(Estimate(0.004))
    ('[0.55, 0.67]', '')
    """
    ends = [end for end in (value.low, value.high) if end is not None]
    return f"[{two(ends[0])}, {two(ends[1])}]" if len(ends) == 2 else ""


def percent(share: float) -> str:
    """A share in percent, of about two digits.

    >>> percent(0.00052), percent(0.0104), percent(0.5), percent(1.3), percent(0.1)
    ('0.05%', '1%', '50%', '130%', '10%')
    """
    return f"{float(f'{100 * share:.2g}'):.10g}%" if share >= 0.01 else f"{100 * share:.1g}%"


def join_words(parts: list[str]) -> str:
    """A list in words: ``a``, ``a and b``, ``a, b and c``."""
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"
