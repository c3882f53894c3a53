"""What the rows of `recovery_basis` say: claims C2 and C4, columns and figures."""

import math
from collections.abc import Iterator

from frenet.experiments.experiment import (
    Breakdown,
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
CONDITION = ("space", "protocol", "optimizer")
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
    parts = _bases_apart(captures)
    return Finding(
        claim="C2",
        verdict=verdict,
        quantity=f"recovery captured by the best static basis ({best}), k = {K}",
        estimate=static,
        reference="prefix",
        reference_estimate=prefix,
        why=why,
        notes=(*_elsewhere(parts), *_function_notes(captures), *_status_notes(rows)),
        breakdown=parts,
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
    parts = _prefixes_apart(prefixes)
    return Finding(
        claim="C4",
        verdict=verdict,
        quantity=f"LoRA recovery captured by the first {best or 'few'} updates",
        estimate=shown,
        reference="random-walk share",
        reference_estimate=fraction(select(lora, k=best), "walk_share"),
        why=why,
        notes=_least_and_most(parts),
        breakdown=parts,
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


def _bases_apart(captures: Rows) -> Breakdown | None:
    """What every basis holds; those at the damaged point stand beside the verdict."""
    names = dict.fromkeys(str(row["basis"]) for row in captures)
    names.pop("prefix of replicate", None)
    rows: list[Row] = []
    for condition, part in _by_condition(captures):
        table = over_seeds(part, by=("basis",), value="captured")
        held = {str(row["basis"]): row["value"] for row in table}
        rows.append(condition | {name: held.get(name) for name in names})
    title = f"Captured at k = {K}, by damage and optimiser"
    return Breakdown(title, tuple(rows)) if rows else None


def _elsewhere(parts: Breakdown | None) -> tuple[str, ...]:
    """Damages and optimisers under which a static basis is not small: the mean hides them."""
    found = []
    for row in parts.rows if parts else ():
        held = {name: value for name in STATIC if isinstance(value := row.get(name), float)}
        if held:
            found.append((_named(row), *max(held.items(), key=lambda pair: pair[1])))
    large = sorted((f for f in found if f[2] >= MOST_STATIC), key=lambda f: -f[2])
    if not large:
        return ()
    listed = "; ".join(f"{where} ({name} {value:.2f})" for where, name, value in large)
    chance = [v for row in parts.rows if isinstance(v := row.get("random"), float)] if parts else []
    beside = f" (a random one at most {max(chance):.2g})" if chance else ""
    return (
        f"Not everywhere: under {len(large)} of {len(found)} damages and optimisers a static basis "
        f"holds {MOST_STATIC} or more{beside}: {listed}.",
    )


def _least_and_most(parts: Breakdown | None) -> tuple[str, ...]:
    """Where the first steps of LoRA hold least, and where most."""
    lora = [
        (value, f"{value:.2f} ({_named(row)}, k = {row['k']}; a random walk {walk:.2f})")
        for row in (parts.rows if parts else ())
        if row["space"] == "lora"
        and isinstance(value := row["captured"], float)
        and isinstance(walk := row["random walk"], float)
    ]
    if len(lora) < 2:
        return ()
    least, most = min(lora)[1], max(lora)[1]
    return (f"By damage and optimiser the first updates of LoRA hold {least} to {most}.",)


def _named(row: Row) -> str:
    """The condition of a row."""
    return ", ".join(str(row[key]) for key in CONDITION)


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


def _by_condition(rows: Rows) -> Iterator[tuple[Row, Rows]]:
    """Rows of each space, damage protocol and optimiser, after the names of the three."""
    for values in dict.fromkeys(tuple(row[key] for key in CONDITION) for row in rows):
        found = dict(zip(CONDITION, values, strict=True))
        yield found, select(rows, **found)


def _status_notes(rows: Rows) -> tuple[str, ...]:
    """Recoveries that gave no capture, and why."""
    table = select(rows, table="recovery")
    counts = {
        status: sum(row["status"] == status for row in table)
        for status in ("not damaged", "not recovered", "shallow")
    }
    listed = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    return (f"Of {len(table)} recoveries: {listed}.",) if listed else ()


def _prefixes_apart(prefixes: Rows) -> Breakdown | None:
    """What the first steps hold, with the random walk's share, and how much of the run they are."""
    rows: list[Row] = []
    for condition, part in _by_condition([r for r in prefixes if r.get("captured") is not None]):
        k = max((int(str(row["k"])) for row in part if int(str(row["k"])) <= K), default=0)
        at = select(part, k=k)
        shares = {
            "k / T_stop": estimate(at, "k_over_stop"),
            "captured": fraction(at, "captured"),
            "of the rest": estimate(at, "rest"),
            "random walk": fraction(at, "walk_share"),
            "lift": estimate(at, "lift"),
        }
        found = {name: None if share is None else share.value for name, share in shares.items()}
        rows.append({**condition, "k": k, **found})
    title = "What the first k steps hold, by damage and optimiser"
    return Breakdown(title, tuple(rows)) if rows else None


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
