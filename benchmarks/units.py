"""Times and bytes in readable units."""


def duration(seconds: float) -> str:
    """Three digits of seconds, milliseconds or microseconds.

    >>> duration(12.34), duration(0.05), duration(0.0000021)
    ('12.3 s', '50 ms', '2.1 µs')
    """
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= 0.1 * scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def size(count: float) -> str:
    """Bytes in MiB or GiB.

    >>> size(3 * 2**20), size(5.25 * 2**30)
    ('3.0 MiB', '5.2 GiB')
    """
    scale, unit = (2**30, "GiB") if count >= 2**30 else (2**20, "MiB")
    return f"{count / scale:.1f} {unit}"
