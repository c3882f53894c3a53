"""What the rows of `recovery_basis` say: claims C2 and C4, columns and figures."""

import math
from collections.abc import Iterator

from frenet.experiments.experiment import (
    Claim,
    Estimate,
    Finding,
    Row,
    Rows,
    Verdict,
)
from frenet.experiments.intervals import estimate, fraction, high, low, over_seeds, select, why_open
from frenet.experiments.recovery_cells import LONGEST_PREFIX

# Bases that need neither the damaged point's gradients nor the recovery itself.
STATIC = ("gradients at start", "other tasks", "task vectors", "damage direction")
AT_DAMAGE = ("gradients at damage", "Adam-scaled gradients", "Krylov", "Hessian")
K = 10
MOST_STATIC, PREFIX_SHARE = 0.25, 0.77
# What is less is not most of a displacement, however wide its interval.
MOST = 0.5


def fixed_plane(rows: Rows) -> Finding:
    """C2: the best static basis at k = 10 holds under 0.25, and less than the prefix."""
    verdict: Verdict
    captures = at_dimension(rows, K)
    found = {
        name: value
        for name in STATIC
        if (value := fraction(select(captures, basis=name), "captured")) is not None
    }
    best = max(found, key=lambda name: found[name].value, default="none measured")
    static, prefix = found.get(best), fraction(select(captures, basis="prefix"), "captured")
    if high(static) < min(MOST_STATIC, low(prefix)):
        verdict, why = "supported", f"below {MOST_STATIC} and below the prefix"
    elif low(static) > min(MOST_STATIC, high(prefix)):
        verdict, why = "contradicted", f"above {MOST_STATIC}, or above the prefix"
    else:
        straddles = f"the interval straddles {MOST_STATIC}, or overlaps with the prefix's"
        verdict, why = "undecided", why_open(static, straddles)
    return Finding(
        claim="C2",
        verdict=verdict,
        quantity=f"recovery captured by the best static basis ({best}), k = {K}",
        estimate=static,
        reference="prefix",
        reference_estimate=prefix,
        why=why,
        notes=(*_basis_notes(captures), *_function_notes(captures), *_status_notes(rows)),
    )


def prefix_span(rows: Rows) -> Finding:
    """C4: for LoRA some k with k / T_stop <= 0.35 reaches 0.77, all above 0.5 and a lift of 1."""
    verdict: Verdict
    prefixes = select(rows, table="capture", basis="prefix")
    lora = [r for r in prefixes if r["space"] == "lora" and r.get("captured") is not None]
    sizes = sorted({int(str(r["k"])) for r in lora})
    at = {k: fraction(select(lora, k=k), "captured") for k in sizes}
    lifts = {k: estimate(select(lora, k=k), "lift") for k in sizes}
    reaching = [k for k in sizes if _reaches(at[k]) and low(at[k]) > MOST and low(lifts[k]) > 1]
    # The k that comes closest is the one to show: a wide interval reaches far, and says little.
    best = min(reaching or sizes, key=lambda k: _distance(at[k]), default=0)
    shown = at.get(best)
    if reaching:
        ks = ", ".join(map(str, reaching))
        verdict = "supported"
        why = f"k = {ks} reaches {PREFIX_SHARE}, all above {MOST} and with a lift above 1"
    elif shown is not None and shown.low is not None and not any(map(_reaches, at.values())):
        verdict, why = "contradicted", f"no k up to {LONGEST_PREFIX} T_stop reaches {PREFIX_SHARE}"
    else:
        unclear = f"the interval is not all above {MOST}, or the lift's not all above 1"
        verdict, why = "undecided", why_open(lifts.get(best), unclear)
    return Finding(
        claim="C4",
        verdict=verdict,
        quantity=f"LoRA recovery captured by the first {best or 'few'} updates",
        estimate=shown,
        reference="random-walk share",
        reference_estimate=fraction(select(lora, k=best), "walk_share"),
        why=why,
        notes=_prefix_notes(prefixes),
    )


def at_dimension(rows: Rows, k: int) -> list[Row]:
    """Captures at dimension k, or at the largest that a smaller basis has."""
    found = [dict(r) for r in select(rows, table="capture") if r.get("captured") is not None]
    largest: dict[object, int] = {}
    for row in found:
        dimension = int(str(row["k"]))
        if dimension <= k:
            largest[row["basis"]] = max(dimension, largest.get(row["basis"], 0))
    return [row for row in found if row["k"] == largest.get(row["basis"])]


def _reaches(value: Estimate | None) -> bool:
    return value is not None and value.high is not None and value.high >= PREFIX_SHARE


def _distance(value: Estimate | None) -> float:
    return math.inf if value is None else abs(value.value - PREFIX_SHARE)


def _basis_notes(captures: Rows) -> tuple[str, ...]:
    """The bases at the damaged point stand beside the verdict, by damage and optimiser."""
    notes = []
    for condition, part in _by_condition(captures):
        table = over_seeds(part, by=("basis",), value="captured")
        shown = [row for row in table if row["basis"] not in ("prefix of replicate",)]
        listed = ", ".join(f"{row['basis']} {row['value']:.3f}" for row in shown)
        notes.append(f"{condition}: {listed}.")
    return tuple(notes)


def _function_notes(captures: Rows) -> tuple[str, ...]:
    """Capture and function disagree: name the pair that does most."""
    by_basis = {
        str(row["basis"]): float(str(row["value"]))
        for row in over_seeds(captures, by=("basis",), value="captured")
    }
    gains = over_seeds(captures, by=("basis",), value="regained")
    apart = [(str(row["basis"]), float(str(row["value"]))) for row in gains]
    if not apart:
        return ()
    name, gain = max(apart, key=lambda pair: abs(pair[1] - by_basis[pair[0]]))
    return (
        f"Capture is not function: {name} holds {by_basis[name]:.3f} of the displacement, and the "
        f"displacement projected on it regains {gain:.2f} of the lost loss.",
    )


def _by_condition(rows: Rows) -> Iterator[tuple[str, Rows]]:
    """Rows of each space, damage protocol and optimiser, after a name for the three."""
    keys = ("space", "protocol", "optimizer")
    for values in dict.fromkeys(tuple(row[key] for key in keys) for row in rows):
        yield ", ".join(map(str, values)), select(rows, **dict(zip(keys, values, strict=True)))


def _status_notes(rows: Rows) -> tuple[str, ...]:
    """Recoveries that gave no capture, and why."""
    table = select(rows, table="recovery")
    counts = {
        status: sum(row["status"] == status for row in table)
        for status in ("not damaged", "not recovered", "shallow")
    }
    listed = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    return (f"Of {len(table)} recoveries: {listed}.",) if listed else ()


def _prefix_notes(prefixes: Rows) -> tuple[str, ...]:
    """Lift, rest and share of the run, by damage and optimiser."""
    measured = [row for row in prefixes if row.get("captured") is not None]
    notes = []
    for condition, part in _by_condition(measured):
        k = max((int(str(row["k"])) for row in part if int(str(row["k"])) <= K), default=0)
        at = select(part, k=k)
        captured, walk = fraction(at, "captured"), fraction(at, "walk_share")
        lift, rest, share = (estimate(at, name) for name in ("lift", "rest", "k_over_stop"))
        if captured and walk and lift and share:
            rested = f", {rest.value:.2f} of the rest" if rest else ""
            notes.append(
                f"{condition}, k = {k} ({share.value:.2f} of the run): "
                f"{captured.value:.2f}{rested}; a random walk {walk.value:.2f}, "
                f"lift {lift.value:.1f}."
            )
    return tuple(notes)


CLAIMS = (
    Claim(
        id="C2",
        statement="No fixed task plane: static bases miss the recovery direction",
        paper="they miss it",
        rule=f"the best of {', '.join(STATIC)} at k = {K} captures under {MOST_STATIC}, and its "
        "upper end is below the prefix's lower end",
        decide=fixed_plane,
        figure="bases",
    ),
    Claim(
        id="C4",
        statement="The first recovery updates span most of a LoRA recovery",
        paper="0.77",
        rule=f"for LoRA some k with k / T_stop <= {LONGEST_PREFIX} has an interval reaching "
        f"{PREFIX_SHARE} with its lower end above {MOST}, and its lift's lower end is above 1",
        decide=prefix_span,
        figure="prefix",
    ),
)
