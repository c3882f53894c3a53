"""How often what is made from gradients has to be made anew in a training."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from frenet._errors import UsageError
from frenet.measure.bracket import Bracket


class Gap(NamedTuple):
    """For how many steps something may be kept, and what it holds if it is never renewed.

    Attributes:
        steps: the two measurements between which the gap ends.
        held: share held over all steps up to the last measurement.
        longest: step of the last measurement.
    """

    steps: Bracket
    held: float
    longest: int


def renewal_gap(kept: Mapping[int, float], fresh: Mapping[int, float], *, level: float) -> Gap:
    """The longest gap between two renewals over which enough is held on average.

    What is made at step 0 and kept for T steps holds the share

        h(T) = sum_{t < T} kept_t / sum_{t < T} fresh_t

    of what would be held if it were made anew at every step. The gap is the largest T up to which h
    is at least ``level``. Between two measurements both energies are interpolated linearly.

    This mean depends less on each measurement than the first crossing of a ratio, which noise makes
    the earlier the more measurements there are.

    Args:
        kept: step -> energy in what was made at step 0; with step 0.
        fresh: the same steps -> energy in what is made at this step; at least 0, at step 0 above.
        level: in (0, 1).

    Raises:
        ValueError: the steps differ or lack 0, or a fresh one has a negative energy or none at
            step 0.

    >>> fresh = {0: 0.5, 2: 0.5, 4: 0.5, 6: 0.5}
    >>> print(renewal_gap({0: 0.5, 2: 0.375, 4: 0.25, 6: 0.125}, fresh, level=0.75).steps)
    between 4 and 6
    """
    looks = sorted(fresh)
    if looks[:1] != [0] or sorted(kept) != looks:
        raise UsageError(f"kept has steps {sorted(kept)}, fresh {looks}; pass both at 0 and others")
    if not fresh[0] > 0 or min(fresh.values()) < 0:
        raise UsageError(
            f"fresh has {dict(fresh)}; pass energies of at least 0, above it at step 0"
        )
    every = np.arange(looks[-1] + 1)
    ours, best = (
        np.interp(every, looks, [energies[step] for step in looks]).cumsum()
        for energies in (kept, fresh)
    )
    below = np.flatnonzero(ours < level * best)
    held, longest = float(ours[-1] / best[-1]), looks[-1]
    if not len(below):
        return Gap(Bracket(float(longest), None), held, longest)
    end = int(below[0])
    low, high = (max(t for t in looks if t < end), min(t for t in looks if t >= end))
    return Gap(Bracket.between(float(low), float(high), float(end)), held, longest)
