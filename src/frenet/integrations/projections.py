"""How long the projections of each matrix's gradient stay useful in a training, as for GaLore."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet.experiments.experiment import Row
from frenet.integrations.probes import Probe, undisturbed
from frenet.measure.gradients import gradient
from frenet.measure.projection import energy_in, is_projected, projection
from frenet.network.checkpoints.tensor_files import load_tensors, save_tensors
from frenet.network.space import ParamSpace

SETS = ("fit", "again", "held_out")
CONTROL = "control of "
Matrices = Mapping[str, Tensor]


def matrices_of(space: ParamSpace, rank: int) -> list[str]:
    """The parameters that a projection of this rank makes smaller.

    Raises:
        ValueError: there is none.
    """
    pairs = zip(space.names, space.shapes, strict=True)
    found = [name for name, shape in pairs if is_projected(shape, rank)]
    if not found:
        raise UsageError(
            f"projection_rank={rank} is not below both sides of any trained matrix; pass a smaller "
            "one, or leave it out"
        )
    return found


def cost_of_projections(space: ParamSpace, *, rank: int, probes: int, n: int) -> str:
    """What a look at the projections costs, in a sentence."""
    count = len(matrices_of(space, rank))
    return (
        f"each look at the projections of rank {rank} takes {3 * probes} gradients of {n} examples "
        f"and the singular vectors of {count} matrices for each of {probes} probes"
    )


def projection_rows(
    model: nn.Module, probe: Probe, *, space: ParamSpace, rank: int, n: int, start: Path
) -> list[Row]:
    """Rows of the table projection for every matrix, and one of the table projections.

    Args:
        model: at the current step; left unchanged.
        probe: its 3n examples for gradients are three minibatches: one gives projections, the
            others are held out; at the start the second gives those of the control.
        space: the parameters.
        rank: of the projections.
        n: examples in a minibatch.
        start: file of the projections of the start; the first call writes it.

    Raises:
        FloatingPointError: a gradient is not finite.
    """
    every = matrices_of(space, rank)
    sets = [
        _gradients(model, probe, space, every, slice(i * n, (i + 1) * n)) for i in range(len(SETS))
    ]
    fit, again, held_out = sets
    names = [name for name in every if all(bool(part[name].any()) for part in sets)]
    fresh = {name: projection(fit[name], rank) for name in names}
    if not start.exists():
        _store(start, fresh, again, held_out, rank=rank)
    stored, _ = load_tensors(start)
    rows = [
        _row(name, (again[name], held_out[name]), stored, fresh[name])
        for name in names
        if name in stored
    ]
    about: Row = {"probe": probe.task.name, "rank": rank}
    return [*({"table": "projection", **about, **row} for row in rows), *_summary(about, rows)]


def _gradients(
    model: nn.Module, probe: Probe, space: ParamSpace, names: Sequence[str], part: slice
) -> Matrices:
    """The gradient of each matrix on some of a probe's examples, on the CPU."""
    batch = {key: rows[part] for key, rows in probe.batch.items()}
    with undisturbed(model):
        whole = gradient(model, probe.task, batch, space=space).cpu()
    parts = space.unflatten(whole)
    return {name: parts[name] for name in names}


def _store(start: Path, fresh: Matrices, again: Matrices, held_out: Matrices, *, rank: int) -> None:
    """The projections of the start, and what other examples would have made of them."""
    tensors: dict[str, Tensor] = {}
    for name, basis in fresh.items():
        other = projection(again[name], rank)
        kept = _kept(energy_in(held_out[name], other), energy_in(held_out[name], basis), basis)
        tensors |= {name: basis, CONTROL + name: torch.tensor(math.nan if kept is None else kept)}
    save_tensors(tensors, start, named=True)


def _row(name: str, held_out: Sequence[Tensor], stored: Matrices, fresh: Tensor) -> Row:
    """The energies of several held-out gradients, in the mean."""
    old, new = (
        statistics.fmean(energy_in(gradient, basis) for gradient in held_out)
        for basis in (stored[name], fresh)
    )
    control = float(stored[CONTROL + name])
    return {
        "matrix": name,
        "ratio": _kept(old, new, fresh),
        "control": control if math.isfinite(control) else None,
        "energy": old,
        "fresh": new,
        "chance": _chance(fresh),
    }


def _kept(old: float, new: float, basis: Tensor) -> float | None:
    """Of the energy that a fresh projection holds beyond chance, the share that an old one holds.

    None if a fresh one holds no more than chance.
    """
    chance = _chance(basis)
    return (old - chance) / (new - chance) if new > chance else None


def _chance(basis: Tensor) -> float:
    return basis.shape[1] / basis.shape[0]


def _summary(about: Row, rows: Sequence[Row]) -> list[Row]:
    """The median over matrices, with the least and the greatest."""
    ratios = [float(row["ratio"]) for row in rows if isinstance(row["ratio"], float)]
    controls = [float(row["control"]) for row in rows if isinstance(row["control"], float)]
    if not ratios or not controls:
        return []
    return [
        {
            "table": "projections", **about, "matrices": len(ratios),
            "ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios),
            "control": statistics.median(controls), "nothing": 0.0,
        }
    ]  # fmt: skip
